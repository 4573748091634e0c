"""The database of a crawl: one file of SQLite that knows of every address what became of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.artifacts import ArtifactError

TODO, FLIGHT, DONE, REFUSED, FAILED = range(5)
STATES = ("to do", "in flight", "done", "refused", "failed")
# Reasons of what is done: the last in a dry run, those before it where another part of the crawl has the host.
MOVED, UNCHANGED, HANDING_OVER, HANDED_OVER, WOULD_ASK = (
    *("moved", "unchanged", "to be handed over", "handed over"),
    "would be asked",
)
SCHEMA_VERSION = 2
_BUSY_S = 60.0
_LOG_PAGES = 4000  # 16 MiB before they are copied to their place, by when most of a picture's are free again
TALLY = ("pages", "pictures", "refused", "failed", "to do")

Database = sqlite3.Connection
DatabaseError = sqlite3.Error

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS urls (
    id INTEGER PRIMARY KEY,
    url TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',      -- of a refusal or failure
    detail TEXT NOT NULL DEFAULT '',
    status INTEGER NOT NULL DEFAULT 0,    -- of HTTP, 0 = no answer
    depth INTEGER NOT NULL DEFAULT 0,     -- links from the start
    hops INTEGER NOT NULL DEFAULT 0,      -- redirects behind it
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0,   -- seconds since 1970
    target INTEGER,                       -- urls.id it redirects to
    etag TEXT, modified TEXT,             -- of the last answer
    image_id TEXT, num_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS todo ON urls (host, depth, id) WHERE state = 0;
CREATE INDEX IF NOT EXISTS sources ON urls (target) WHERE target IS NOT NULL;
CREATE TABLE IF NOT EXISTS mentions (
    url INTEGER NOT NULL, page INTEGER NOT NULL, about TEXT NOT NULL, PRIMARY KEY (url, page)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leads (            -- what is said of a thumbnail, should the page behind it be the picture
    url INTEGER NOT NULL, page INTEGER NOT NULL, about TEXT NOT NULL, PRIMARY KEY (url, page)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    url INTEGER NOT NULL,
    about TEXT NOT NULL,
    fetched_at TEXT NOT NULL DEFAULT '',
    image_id TEXT,                        -- of bytes that went before, where there are none here
    reason TEXT, detail TEXT,             -- why there are no bytes
    body BLOB
);
CREATE TABLE IF NOT EXISTS gated (
    seq INTEGER PRIMARY KEY,              -- of the outbox
    verdict BLOB NOT NULL                 -- in place of its body, where a worker has asked the gate already
);
CREATE TABLE IF NOT EXISTS patterns (
    host TEXT, pattern TEXT, pages INTEGER NOT NULL DEFAULT 0, barren INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (host, pattern)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (
    origin TEXT PRIMARY KEY, asked_at REAL, status INTEGER, robots BLOB, tdm BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asked (
    host TEXT PRIMARY KEY, requests INTEGER, min_gap REAL, gap REAL, delay REAL, waits INTEGER, waited REAL,
    ready_at REAL                         -- seconds since 1970, until when the host is to be left alone
) WITHOUT ROWID;
"""


def opened(path: Path | None) -> Database:
    """Open the database of a crawl, and make it where it is missing; without a path one that lasts while it is open.

    A commit is in the log before it returns, so that a killed process loses none; after a power cut the last ones may
    be gone, and are asked again.

    Raises:
        ArtifactError: it cannot be opened, or is of a later version than this one.
    """
    try:
        db = sqlite3.connect(path or "", timeout=_BUSY_S, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(
            "PRAGMA secure_delete = OFF"
        )  # no zeros over what is in shards; a takedown leaves none behind itself
        db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        db.executescript(_SCHEMA)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (SCHEMA_VERSION,))
        _upgrade(db, path)
    except sqlite3.DatabaseError as error:
        raise ArtifactError(
            f"the state of the crawl in '{path}' cannot be opened ({error}). See to the disk and its permissions; "
            "if the file is damaged, delete its directory to crawl anew."
        ) from error
    return db


def _upgrade(db: Database, path: Path | None) -> None:
    version = get_meta(db, "version")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"the state of the crawl in '{path}' is of version {version}, and only versions up to {SCHEMA_VERSION} are "
            "understood. Go on with the program that wrote it, or delete its directory to crawl anew."
        )
    if version == 1:
        with transaction(db):
            if get_meta(db, "version") == 1:  # another process may have been faster
                db.execute("ALTER TABLE asked ADD COLUMN ready_at REAL")
                set_meta(db, "version", SCHEMA_VERSION)


_COPIED = "url, host, kind, state, reason, detail, status, image_id, num_bytes"


def united(paths: Iterable[Path]) -> Database:
    """Return what the databases of a crawl's parts tell together, for as long as it is open.

    An address that was handed over counts where it was asked for.
    """
    db = opened(None)
    for number, path in enumerate(paths):
        before = {"before": number << 40}  # more than a part has addresses
        db.execute("ATTACH ? AS part", (str(path),))
        with transaction(db):
            db.execute(
                f"INSERT OR IGNORE INTO urls (id, {_COPIED}) SELECT id + :before, {_COPIED} FROM part.urls "  # noqa: S608
                f"WHERE reason NOT IN ('{HANDING_OVER}', '{HANDED_OVER}')",
                before,
            )
            db.execute("INSERT INTO mentions SELECT url + :before, page, about FROM part.mentions", before)
            db.execute("INSERT OR IGNORE INTO asked SELECT * FROM part.asked")
        db.execute("DETACH part")
    return db


@contextmanager
def transaction(db: Database) -> Iterator[None]:
    """Make several changes one, or none.

    Raises:
        ArtifactError: the disk does not let us.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if db.in_transaction:  # a full disk has ended it already
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise ArtifactError(
            f"the state of the crawl cannot be written ({error}); what it holds is whole. See to the disk, and run the "
            "same command again."
        ) from error


def get_meta(db: Database, key: str, default: int = 0) -> int:
    """Return a number that the database keeps."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else int(row[0])


def set_meta(db: Database, key: str, value: int) -> None:
    """Keep a number."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def count_fetched(db: Database) -> int:
    """Count the pictures that came, in all passes, whatever the gate made of them."""
    return int(db.execute("SELECT COUNT(*) FROM urls WHERE image_id IS NOT NULL").fetchone()[0])


def read_tally(db: Database) -> dict[str, int]:
    """Return how many pages, pictures, refusals and failures there were, and how much is to do."""
    return {name: get_meta(db, f"num {name}") for name in TALLY}
