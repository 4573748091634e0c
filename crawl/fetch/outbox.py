"""The collecting side of a crawl's database: what was fetched, in the order in which it came, until it is in shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from crawl.fetch.database import (
    DONE,
    FAILED,
    FLIGHT,
    HANDED_OVER,
    HANDING_OVER,
    REFUSED,
    TODO,
    count_fetched,
    get_meta,
    opened,
    read_tally,
    set_meta,
    transaction,
)
from crawl.fetch.found import PICTURE, About

_PIECE = 64  # rows that are read at a time, with their bytes, and
_PIECE_BYTES = 8 * 2**20  # no further row once they are so many
_COLUMNS = (
    "outbox.seq, outbox.url, urls.url, about, fetched_at, COALESCE(outbox.image_id, ''), COALESCE(outbox.reason, ''), "
    "COALESCE(outbox.detail, ''), COALESCE(body, x''), COALESCE(urls.image_id, ''), COALESCE(verdict, x'')"
)


@dataclass(frozen=True)
class Parcel:
    """One row of the outbox."""

    seq: int
    url_id: int
    url: str
    about: About
    fetched_at: str
    image_id: str  # of bytes that went before, empty where there are bytes here
    reason: str  # why there are none
    detail: str
    body: bytes
    fetched_id: str = ""  # image_id of the bytes that came
    verdict: bytes = b""  # of the gate, packed, where a worker has asked it: then it stands in place of the body

    @property
    def is_picture(self) -> bool:
        """Say whether the bytes of a picture came, rather than more of what is said of it, or a reason."""
        return not (self.image_id or self.reason)


@dataclass(frozen=True)
class Rest:
    """What a bound on pictures left to do."""

    num_to_do: int
    position: int | None  # entries of the list that were read, None: all


class Outbox:
    """What was fetched and is not yet in a committed shard.

    A pass is one go through a crawl: the first, and one for each retry or refresh. Its parcels are numbered from 1 on.
    """

    def __init__(self, path: Path) -> None:
        self.db = opened(path)
        self._verdicts: list[tuple[int, str, str, int]] = []

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def copy_to(self, path: Path) -> None:
        """Copy the database as it is now."""
        other = opened(path)
        try:
            self.db.backup(other)
        finally:
            other.close()

    def tally(self) -> dict[str, int]:
        """Return how far the crawl is."""
        return read_tally(self.db)

    @property
    def number(self) -> int:
        """Number of the pass that is under way, or that ended last."""
        return get_meta(self.db, "pass", 1)

    @property
    def is_sealed(self) -> bool:
        """Say whether the pass went into the collection to its end."""
        return get_meta(self.db, "sealed") == self.number

    @property
    def base(self) -> int:
        """Sequence number before the first parcel of the pass."""
        return get_meta(self.db, "base")

    def begin_pass(self, reasons: Iterable[str] = (), refresh: bool = False) -> int:
        """Begin another pass over what failed or was refused for a reason, or over everything that was done.

        Returns:
            The number of addresses to ask again; where there are none no pass begins.
        """
        wanted = sorted(set(reasons))
        marks = ",".join("?" * len(wanted))
        chosen = f"((state IN ({FAILED}, {REFUSED})) AND reason IN ({marks}))"
        chosen += f" OR (state = {DONE} AND reason NOT IN ('{HANDING_OVER}', '{HANDED_OVER}'))" if refresh else ""
        chosen = f"({chosen}) AND host != ''"  # what is no address to ask for has no host
        with transaction(self.db):
            changed = self.db.execute(
                f"UPDATE urls SET state = {TODO}, attempts = 0, not_before = 0, reason = '', detail = '', "  # noqa: S608
                f"target = NULL, etag = iif(image_id IS NULL AND kind = {PICTURE}, NULL, etag), "
                f"modified = iif(image_id IS NULL AND kind = {PICTURE}, NULL, modified) WHERE {chosen}",
                wanted,
            ).rowcount
            if changed:
                self.db.execute("DELETE FROM origins WHERE status NOT BETWEEN 200 AND 499")
                self._next_pass()
        return int(changed)

    def list_anew(self, fingerprint: str, is_empty: bool = False) -> None:
        """Go through a list again that has changed since: what it names already is not asked again, the rest is."""
        known = self.db.execute("SELECT value FROM meta WHERE key = 'list'").fetchone()
        with transaction(self.db):
            self.db.execute("INSERT OR REPLACE INTO meta VALUES ('list', ?)", (fingerprint,))
            if known and known[0] != fingerprint:
                set_meta(self.db, "position", 0)
                set_meta(self.db, "listed", 0)
                if self.is_sealed:
                    self._next_pass()
            if is_empty:
                set_meta(self.db, "listed", 1)

    def keep_up(self, number: int) -> None:
        """Begin the pass that another part of the crawl is in, though there is nothing to ask again here."""
        if self.is_sealed and self.number < number:
            with transaction(self.db):
                self._next_pass()

    def _next_pass(self) -> None:
        set_meta(self.db, "pass", self.number + 1)
        set_meta(self.db, "base", self._last())

    def begin_again(self) -> None:
        """Ask again what failed or was refused, where a crawl has brought nothing at all: options may have changed."""
        if self.is_sealed or self._last():
            return
        with transaction(self.db):
            self.db.execute(
                "UPDATE urls SET state = ?, attempts = 0, not_before = 0 WHERE state IN (?, ?) AND host != ''",
                (TODO, FAILED, REFUSED),
            )
            self.db.execute("DELETE FROM origins WHERE status NOT BETWEEN 200 AND 499")

    def rest(self) -> Rest:
        """Return what is left to do."""
        to_do = self.db.execute("SELECT COUNT(*) FROM urls WHERE state = ?", (TODO,)).fetchone()[0]
        return Rest(int(to_do), None if self.is_listed else get_meta(self.db, "position"))

    def go_on(self, max_pictures: int) -> None:
        """Begin another pass over what a bound on pictures left to do, where this one leaves room."""
        is_full = 0 < max_pictures <= count_fetched(self.db)
        if not is_full and self.is_sealed and self.rest() != Rest(0, None):
            with transaction(self.db):
                self._next_pass()

    def broken(self, kinds: Iterable[int]) -> list[tuple[str, str, int]]:
        """Return reason, a detail and number of what was refused or failed: what it would have listed is missing.

        Args:
            kinds: of addresses that are read.
        """
        marked = ",".join(str(int(kind)) for kind in kinds)
        rows = self.db.execute(
            f"SELECT reason, MAX(detail), COUNT(*) FROM urls WHERE kind IN ({marked}) "  # noqa: S608 - numbers of ours
            f"AND state IN ({FAILED}, {REFUSED}) GROUP BY reason ORDER BY reason"
        )
        return [(reason, detail, count) for reason, detail, count in rows]

    def parcels(self, start: int) -> Iterator[Parcel]:
        """Yield what lies there now of the pass, from number `start` on (0 is the first)."""
        after = self.base + start
        while True:
            parcels = self._piece(after)
            for parcel in parcels:
                yield parcel
                after = parcel.seq
            if not parcels:
                return

    def _piece(self, after: int) -> list[Parcel]:
        """Return the next parcels, few where their pictures are large."""
        query = (
            f"SELECT {_COLUMNS} FROM outbox JOIN urls ON urls.id = outbox.url "  # noqa: S608
            "LEFT JOIN gated ON gated.seq = outbox.seq WHERE outbox.seq > ? ORDER BY outbox.seq LIMIT ?"
        )
        found: list[Parcel] = []
        num_bytes = 0
        with closing(self.db.execute(query, (after, _PIECE))) as rows:  # so that none stays open between two parcels
            for seq, url_id, url, about, *rest in rows:
                found.append(Parcel(seq, url_id, url, About.from_json(about), *rest))
                num_bytes += len(found[-1].body)
                if num_bytes >= _PIECE_BYTES:
                    break
        return found

    @property
    def num_parcels(self) -> int:
        """Number of the parcels of the pass so far, those that were dropped included."""
        return self._last() - self.base

    @property
    def num_taken(self) -> int:
        """Number of the parcels of the pass that were taken out."""
        return max(0, get_meta(self.db, "taken") - self.base)

    @property
    def is_whole(self) -> bool:
        """Say whether nothing of the pass is left to ask for, or to take out."""
        open_ones = self.db.execute(f"SELECT 1 FROM urls WHERE state IN ({TODO}, {FLIGHT}) LIMIT 1")  # noqa: S608
        return self.is_listed and open_ones.fetchone() is None and self.num_taken == self.num_parcels

    @property
    def is_listed(self) -> bool:
        """Say whether all that the crawl begins with is in the database."""
        return bool(get_meta(self.db, "listed"))

    def keep_verdict(self, parcel: Parcel, verdict: bytes | None) -> None:
        """Take a parcel out and put it back with what the gate made of its picture, for who collects it later."""
        with transaction(self.db):
            if verdict is not None:
                self.db.execute("INSERT OR REPLACE INTO gated VALUES (?, ?)", (parcel.seq, verdict))
                self.db.execute("UPDATE outbox SET body = NULL WHERE seq = ?", (parcel.seq,))
            set_meta(self.db, "taken", parcel.seq)

    def is_dropped(self, start: int) -> bool:
        """Say whether parcels from number `start` on were dropped, because they lay in shards."""
        return get_meta(self.db, "dropped") > self.base + start

    def reason_of(self, url_id: int) -> tuple[str, str]:
        """Return why the gate refused the picture of an address earlier, empty texts where it did not."""
        row = self.db.execute("SELECT state, reason, detail FROM urls WHERE id = ?", (url_id,)).fetchone()
        return (row[1], row[2]) if row[0] == REFUSED else ("", "")

    def note(self, url_id: int, reason: str, detail: str) -> None:
        """Remember what the gate refused, to be written down before the next shard is committed."""
        self._verdicts.append((REFUSED, reason, detail, url_id))

    def write_down(self, taken: int | None = None) -> None:
        """Write the verdicts down, and how many parcels were taken out."""
        with transaction(self.db):
            self.db.executemany("UPDATE urls SET state = ?, reason = ?, detail = ? WHERE id = ?", self._verdicts)
            if taken is not None:
                set_meta(self.db, "taken", self.base + taken)
        self._verdicts.clear()

    def drop(self, count: int) -> None:
        """Drop the first parcels of the pass, which lie in committed shards."""
        last = self.base + count
        if last <= get_meta(self.db, "dropped"):
            return
        with transaction(self.db):
            self.db.execute("DELETE FROM outbox WHERE seq <= ?", (last,))
            self.db.execute("DELETE FROM gated WHERE seq <= ?", (last,))
            set_meta(self.db, "dropped", last)

    def seal(self) -> None:
        """Note that the pass went into the collection to its end, and drop what is left of it."""
        with transaction(self.db):
            self.db.execute("DELETE FROM outbox")
            self.db.execute("DELETE FROM gated")
            set_meta(self.db, "dropped", self._last())
            set_meta(self.db, "taken", self._last())
            set_meta(self.db, "sealed", self.number)
        self.give_back()

    def give_back(self) -> None:
        """Return to the disk the room of what was dropped, where that is most of the file."""
        free, pages = (self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
        if 2 * free > pages:
            self.db.execute("VACUUM")

    def _last(self) -> int:
        row = self.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        return int(row[0]) if row else 0
