"""What a crawl knows of every image_id: on its way through the gate, in the collection with its tags, or refused.

It lies in SQLite's temporary database, a nameless file that goes with the process, so that memory holds a bounded part
of it however large the collection is. A kill loses nothing: the shards hold what counts.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

_CACHE_KIB = 4 * 1024
_SCHEMA = """
CREATE TABLE known (
    image_id INTEGER PRIMARY KEY,
    tags TEXT,                  -- of an image of the collection: lists in JSON, one a line; NULL: not accepted so far
    reason TEXT, detail TEXT    -- of a refusal
);
CREATE TABLE said (image_id INTEGER, tags TEXT);
"""
_UNITE = "ON CONFLICT (image_id) DO UPDATE SET tags = COALESCE(tags || char(10), '') || excluded.tags"


class Known:
    """Image_ids with what became of them, each looked up or changed in some microseconds."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        for setting in (f"cache_size = -{_CACHE_KIB}", "journal_mode = OFF", "secure_delete = OFF"):
            self._db.execute(f"PRAGMA {setting}")
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")  # never committed: without it, each change would be
        self.num_images = 0

    def close(self) -> None:
        """Forget everything."""
        self._db.close()

    def fill(self, rows: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Take in rows of the collection, image_id and tags; an image may have several.

        They are sorted first, because to find each one's place by itself takes twice as long at a million.
        """
        said = ((_key(image_id), json.dumps(list(tags))) for image_id, tags in rows)
        self._db.executemany("INSERT INTO said VALUES (?, ?)", said)
        self._db.execute(
            f"INSERT INTO known (image_id, tags) SELECT * FROM said WHERE TRUE ORDER BY image_id, rowid {_UNITE}"  # noqa: S608
        )
        self._db.execute("DELETE FROM said")
        self.num_images = self._db.execute("SELECT COUNT(*) FROM known WHERE tags IS NOT NULL").fetchone()[0]

    def claim(self, image_id: str) -> bool:
        """Say whether an image was never met; from now on it is on its way."""
        return self._db.execute("INSERT OR IGNORE INTO known (image_id) VALUES (?)", (_key(image_id),)).rowcount == 1

    def accept(self, image_id: str, tags: Sequence[str]) -> None:
        """Note that an image is in the collection."""
        self._say(image_id, tags)
        self.num_images += 1

    def refuse(self, image_id: str, reason: str, detail: str) -> None:
        """Note that an image is refused."""
        self._db.execute("UPDATE known SET reason = ?, detail = ? WHERE image_id = ?", (reason, detail, _key(image_id)))

    def refusal(self, image_id: str) -> tuple[str, str] | None:
        """Return reason and detail of what was refused in this crawl, None of all else."""
        row = self._row("reason, detail", image_id)
        return (row[0], row[1] or "") if row and row[0] is not None else None

    def tags(self, image_id: str) -> set[str] | None:
        """Return the tags of an image of the collection as given, None of all else."""
        row = self._row("tags", image_id)
        if row is None or row[0] is None:
            return None
        return {tag for line in row[0].split("\n") for tag in json.loads(line)}

    def add_tags(self, image_id: str, tags: Sequence[str]) -> None:
        """Note that an image of the collection has more tags."""
        self._say(image_id, tags)

    def _say(self, image_id: str, tags: Sequence[str]) -> None:
        self._db.execute(
            f"INSERT INTO known (image_id, tags) VALUES (?, ?) {_UNITE}",  # noqa: S608
            (_key(image_id), json.dumps(list(tags))),
        )

    def _row(self, columns: str, image_id: str) -> tuple[str | None, ...] | None:
        query = f"SELECT {columns} FROM known WHERE image_id = ?"  # noqa: S608
        row: tuple[str | None, ...] | None = self._db.execute(query, (_key(image_id),)).fetchone()
        return row


def _key(image_id: str) -> int:
    """Return 16 hex digits as the number by which SQLite finds a row fastest."""
    return int.from_bytes(bytes.fromhex(image_id), "big", signed=True)
