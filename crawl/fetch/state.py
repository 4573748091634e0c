"""The state of a crawl: one SQLite database that knows of every URL what became of it.

The fetching process writes to it, and the collecting process takes from its outbox (`crawl.fetch.outbox`). Each change
is one transaction, so that a kill at any moment leaves a state to go on from: what was in flight is asked again.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crawl.fetch.faults import Refusal
from crawl.fetch.found import API, PAGE, PICTURE, About, Entry, Link, Picture
from crawl.fetch.urls import BadUrl, canonical, host_of, pattern_of

TODO, FLIGHT, DONE, REFUSED, FAILED = range(5)
STATES = ("to do", "in flight", "done", "refused", "failed")
MOVED, UNCHANGED, WOULD_ASK = "moved", "unchanged", "would be asked"  # reasons of what is done; the last in a dry run
SCHEMA_VERSION = 1
_BUSY_S = 60.0
_TALLY = ("pages", "pictures", "refused", "failed", "to do")

Database = sqlite3.Connection

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
CREATE TABLE IF NOT EXISTS mentions (
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
CREATE TABLE IF NOT EXISTS patterns (
    host TEXT, pattern TEXT, pages INTEGER NOT NULL DEFAULT 0, barren INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (host, pattern)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS origins (
    origin TEXT PRIMARY KEY, asked_at REAL, status INTEGER, robots BLOB, tdm BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asked (
    host TEXT PRIMARY KEY, requests INTEGER, min_gap REAL, gap REAL, delay REAL, waits INTEGER, waited REAL
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Job:
    """One address that is to be asked for."""

    id: int
    url: str
    kind: int
    depth: int = 0
    hops: int = 0
    attempts: int = 0  # before this one
    etag: str | None = None
    modified: str | None = None
    errand_of: str = ""  # host whose rules this asks for; such a job lies in no table

    @property
    def host(self) -> str:
        """The host whose turn it takes."""
        return self.errand_of or host_of(self.url)


@dataclass(frozen=True)
class Answered:
    """What is kept of an answer's head."""

    status: int
    etag: str = ""
    modified: str = ""


@dataclass(frozen=True)
class Bounds:
    """How far a crawl goes."""

    max_depth: int
    max_per_host: int
    max_per_pattern: int
    max_barren: int
    max_redirects: int


class State:
    """The queue's side of the database.

    Args:
        path: of the database; made where it is missing.
        bounds: of the crawl.
    """

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.bounds = bounds
        self.new_hosts: set[str] = set()  # hosts that got something to do since this was emptied
        self.db = opened(path)
        self.tally = Counter(read_tally(self.db))

    def close(self) -> None:
        """Close the database."""
        self.save_tally()
        self.db.close()

    def recover(self) -> None:
        """Put back what was in flight when the last process ended."""
        self.db.execute("UPDATE urls SET state = ? WHERE state = ?", (TODO, FLIGHT))
        self.tally["to do"] = self.num_to_do()

    def save_tally(self) -> None:
        """Write down how far the crawl is, for the one who shows it."""
        with transaction(self.db):
            for name in _TALLY:
                set_meta(self.db, f"num {name}", self.tally[name])

    # What is to do

    def num_to_do(self) -> int:
        """Count the addresses that are to be asked for."""
        return int(self.db.execute("SELECT COUNT(*) FROM urls WHERE state = 0").fetchone()[0])

    def waiting_bytes(self) -> int:
        """Return the bytes in the outbox that no one took out yet."""
        query = "SELECT COALESCE(SUM(LENGTH(body)), 0) FROM outbox WHERE seq > ?"
        return int(self.db.execute(query, (get_meta(self.db, "taken"),)).fetchone()[0])

    def hosts(self, after: str, limit: int) -> list[str]:
        """Return hosts with something to do, in order of name, skipping through the index from one to the next."""
        found: list[str] = []
        while len(found) < limit:
            row = self.db.execute(
                "SELECT host FROM urls WHERE state = 0 AND host > ? ORDER BY host LIMIT 1", (after,)
            ).fetchone()
            if row is None:
                break
            after = row[0]
            found.append(after)
        return found

    def jobs(self, host: str, now: float, limit: int) -> list[Job]:
        """Return what may be asked of a host now, nearest to the start first."""
        rows = self.db.execute(
            "SELECT id, url, kind, depth, hops, attempts, etag, modified FROM urls "
            "WHERE state = 0 AND host = ? AND not_before <= ? ORDER BY depth, id LIMIT ?",
            (host, now, limit),
        )
        return [Job(*row) for row in rows]

    def next_at(self, host: str) -> float | None:
        """Return when the next address of a host may be asked for, None where there is none."""
        row = self.db.execute("SELECT MIN(not_before) FROM urls WHERE state = 0 AND host = ?", (host,)).fetchone()
        return None if row[0] is None else float(row[0])

    def take(self, job: Job) -> None:
        """Mark an address as in flight."""
        self.db.execute("UPDATE urls SET state = ?, attempts = attempts + 1 WHERE id = ?", (FLIGHT, job.id))

    # What is found

    def add_entries(self, entries: Iterable[Entry], position: int, whole: bool) -> None:
        """Take in a piece of what a crawl begins with, and how far it goes now."""
        with transaction(self.db):
            for entry in entries:
                position += 1
                self._add(entry, page=-position, depth=0)
            set_meta(self.db, "position", position)
            if whole:
                set_meta(self.db, "listed", 1)

    def finish_page(self, job: Job, entries: list[Entry], answered: Answered, opt_out: str = "") -> None:
        """Take in what a page shows; with `opt_out` it keeps its pictures out, by this directive.

        A page that was read before and shows nothing new, as most do on a refresh, says nothing of its pattern.
        """
        with transaction(self.db):
            status = self.db.execute("SELECT status FROM urls WHERE id = ?", (job.id,)).fetchone()[0]
            new = sum(self._add(entry, page=job.id, depth=job.depth + 1) for entry in entries)
            self._done(job, answered)
            self._ended("refused" if opt_out else "pages")
            if opt_out:
                self.db.execute("UPDATE urls SET state = ?, reason = ? WHERE id = ?", (REFUSED, opt_out, job.id))
            if job.kind in (PAGE, API) and (new or not 200 <= status < 300):
                barren = "0" if new else "barren + 1"
                self.db.execute(
                    f"UPDATE patterns SET barren = {barren} WHERE host = ? AND pattern = ?",  # noqa: S608 - ours
                    (host_of(job.url), pattern_of(job.url)),
                )

    def _add(self, entry: Entry, page: int, depth: int) -> bool:
        """Take in one address; say whether it is a picture that was not known."""
        if isinstance(entry, BadUrl):
            self._refuse_entry(entry, PICTURE, page, depth, About())
            return False
        kind = entry.kind if isinstance(entry, Link) else PICTURE
        try:
            url = canonical(entry.url)
        except BadUrl as bad:
            self._refuse_entry(bad, kind, page, depth, entry.about if isinstance(entry, Picture) else About())
            return False
        if isinstance(entry, Picture):
            return self._mention(url, entry.about, page, depth)
        self._add_link(url, kind, depth)
        return False

    def _refuse_entry(self, bad: BadUrl, kind: int, page: int, depth: int, about: About) -> None:
        added = self._insert(bad.url, "", kind, depth, REFUSED, bad.reason)
        if added and kind == PICTURE and page < 0:  # what a list names itself is accounted for in the collection
            self._send(added, about, reason=bad.reason, detail=bad.url)

    def _add_link(self, url: str, kind: int, depth: int) -> None:
        if self.db.execute("SELECT 1 FROM urls WHERE url = ?", (url,)).fetchone():
            return
        host, reason = host_of(url), ""
        if kind in (PAGE, API):
            reason = self._beyond(host, pattern_of(url), depth if kind == PAGE else 0)
        self._insert(url, host, kind, depth, REFUSED if reason else TODO, reason)

    def _beyond(self, host: str, pattern: str, depth: int) -> str:
        """Return the bound that a page lies beyond, or count it and return nothing."""
        if depth > self.bounds.max_depth:
            return "depth"
        counts = dict(
            (row[0], (row[1], row[2]))
            for row in self.db.execute(
                "SELECT pattern, pages, barren FROM patterns WHERE host = ? AND pattern IN ('', ?)", (host, pattern)
            )
        )
        pages, barren = counts.get(pattern, (0, 0))
        if counts.get("", (0, 0))[0] >= self.bounds.max_per_host:
            return "host_limit"
        if pages >= self.bounds.max_per_pattern:
            return "pattern_limit"
        if barren >= self.bounds.max_barren:
            return "barren_pattern"
        self.db.executemany(
            "INSERT INTO patterns (host, pattern, pages) VALUES (?, ?, 1) "
            "ON CONFLICT (host, pattern) DO UPDATE SET pages = pages + 1",
            [(host, ""), (host, pattern)],
        )
        return ""

    def _insert(self, url: str, host: str, kind: int, depth: int, state: int, reason: str, hops: int = 0) -> int:
        """Insert an address that may be known already; return its id where it is new, else 0."""
        cursor = self.db.execute(
            "INSERT OR IGNORE INTO urls (url, host, kind, depth, state, reason, hops) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (url, host, kind, depth, state, reason, hops),
        )
        if cursor.rowcount and state == TODO:
            self.new_hosts.add(host)
            self.tally["to do"] += 1
        elif cursor.rowcount:
            self.tally["refused"] += 1
        return int(cursor.lastrowid or 0) if cursor.rowcount else 0

    def _mention(self, url: str, about: About, page: int, depth: int) -> bool:
        """Note that a page mentions a picture; what is known of it already goes out at once."""
        if added := self._insert(url, host_of(url), PICTURE, depth, TODO, ""):
            self._note(added, page, about)
            return True
        row = self.db.execute("SELECT id, kind FROM urls WHERE url = ?", (url,)).fetchone()
        if row[1] == PICTURE:
            self._pass_on(row[0], about, page)
        return False

    def _note(self, url_id: int, page: int, about: About) -> bool:
        """Keep a mention; say whether its page said something else before, or nothing."""
        text = about.as_json()
        known = self.db.execute("SELECT about FROM mentions WHERE url = ? AND page = ?", (url_id, page)).fetchone()
        if known and known[0] == text:
            return False
        self.db.execute("INSERT OR REPLACE INTO mentions VALUES (?, ?, ?)", (url_id, page, text))
        return True

    def _pass_on(self, url_id: int, about: About, page: int) -> None:
        """Hand a later mention to the end of a chain of redirects, and out where the picture went out already."""
        url_id = self._end_of(url_id)
        before = self.mentioned(url_id)
        if not self._note(url_id, page, about):
            return
        state, image_id = self.db.execute("SELECT state, image_id FROM urls WHERE id = ?", (url_id,)).fetchone()
        if (
            state == DONE
            and image_id
            and (set(about.tags) - set(before.tags) or set(about.labels) - set(before.labels))
        ):
            self._send(url_id, about, image_id=image_id)

    def mentioned(self, url_id: int) -> About:
        """Unite what is said of a picture."""
        rows = self.db.execute("SELECT about FROM mentions WHERE url = ? ORDER BY page", (url_id,))
        return About.united(About.from_json(row[0]) for row in rows)

    def _end_of(self, url_id: int) -> int:
        seen: set[int] = set()
        while url_id not in seen:
            seen.add(url_id)
            row = self.db.execute("SELECT target FROM urls WHERE id = ?", (url_id,)).fetchone()
            if row[0] is None:
                return url_id
            url_id = row[0]
        return url_id

    # What became of it

    def finish_picture(self, job: Job, image_id: str, body: bytes, answered: Answered) -> None:
        """Keep the bytes of a picture for the gate; bytes that did not change since are not sent again."""
        with transaction(self.db):
            row = self.db.execute("SELECT image_id FROM urls WHERE id = ?", (job.id,)).fetchone()
            self._done(job, answered, UNCHANGED if row[0] == image_id else "")
            self._ended("pictures")
            if row[0] != image_id:
                self.db.execute(
                    "UPDATE urls SET image_id = ?, num_bytes = ? WHERE id = ?", (image_id, len(body), job.id)
                )
                self._send(job.id, self.mentioned(job.id), body=body)

    def finish_unchanged(self, job: Job) -> None:
        """Note that an answer is that of the last time (304)."""
        self._done(job, Answered(304, job.etag or "", job.modified or ""), UNCHANGED)
        self._ended("pictures" if job.kind == PICTURE else "pages")

    def _ended(self, how: str) -> None:
        self.tally[how] += 1
        self.tally["to do"] -= 1

    def _done(self, job: Job, answered: Answered, reason: str = "") -> None:
        self.db.execute(
            "UPDATE urls SET state = ?, status = ?, reason = ?, detail = '', etag = ?, modified = ?, target = NULL "
            "WHERE id = ?",
            (DONE, answered.status, reason, answered.etag or None, answered.modified or None, job.id),
        )

    def move(self, job: Job, url: str, status: int) -> None:
        """Follow a redirect: its target is an address of its own, and takes over what is said of the picture.

        Raises:
            Refusal: redirect_loop, too_many_redirects, or not_a_picture where a picture moved to a page.
        """
        if job.hops >= self.bounds.max_redirects:
            raise Refusal("too_many_redirects", f"more than {self.bounds.max_redirects}, the next to {url}"[:200])
        with transaction(self.db):
            host = host_of(url)
            target = self._insert(url, host, job.kind, job.depth, TODO, "", job.hops + 1)
            if not target:
                target, kind = self.db.execute("SELECT id, kind FROM urls WHERE url = ?", (url,)).fetchone()
                if self._end_of(target) == job.id:
                    raise Refusal("redirect_loop", url[:200])
                if kind != job.kind and PICTURE in (kind, job.kind):
                    raise Refusal("not_a_picture", f"moved to {url}"[:200])
            self.db.execute(
                "UPDATE urls SET state = ?, reason = ?, status = ?, target = ? WHERE id = ?",
                (DONE, MOVED, status, target, job.id),
            )
            self.tally["to do"] -= 1
            if job.kind == PICTURE:
                rows = self.db.execute("SELECT page, about FROM mentions WHERE url = ?", (job.id,)).fetchall()
                for page, about in rows:
                    self._pass_on(target, About.from_json(about), page)

    def refuse(self, job: Job, reason: str, detail: str, status: int = 0) -> None:
        """Note that an address is not asked for, or its answer not used."""
        self._end(job, REFUSED, reason, detail, status)

    def fail(self, job: Job, kind: str, detail: str, status: int, retry_at: float | None = None) -> None:
        """Note that an address brought nothing; with `retry_at` it is asked again then."""
        if retry_at is None:
            self._end(job, FAILED, kind, detail, status)
            return
        self.db.execute(
            "UPDATE urls SET state = ?, reason = ?, detail = ?, status = ?, not_before = ? WHERE id = ?",
            (TODO, kind, detail, status, retry_at, job.id),
        )

    def pass_over(self, job: Job, gap: float, delay: float) -> None:
        """Note in a dry run that an address would be asked for."""
        self.tally["to do"] -= 1
        self.db.execute("UPDATE urls SET state = ?, reason = ? WHERE id = ?", (DONE, WOULD_ASK, job.id))
        self.db.execute(
            "INSERT INTO asked (host, requests, gap, delay) VALUES (?, 0, ?, ?) ON CONFLICT (host) DO UPDATE SET "
            "gap = excluded.gap, delay = excluded.delay",
            (job.host, gap, delay),
        )

    def _end(self, job: Job, state: int, reason: str, detail: str, status: int) -> None:
        self._ended(STATES[state])
        with transaction(self.db):
            self.db.execute(
                "UPDATE urls SET state = ?, reason = ?, detail = ?, status = ? WHERE id = ?",
                (state, reason, detail, status, job.id),
            )
            if job.kind == PICTURE:
                self._send(job.id, self.mentioned(job.id), reason=reason, detail=detail)

    def _send(
        self,
        url_id: int,
        about: About,
        *,
        body: bytes | None = None,
        image_id: str | None = None,
        reason: str | None = None,
        detail: str = "",
    ) -> None:
        fetched_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) if body is not None else ""
        self.db.execute(
            "INSERT INTO outbox (url, about, fetched_at, image_id, reason, detail, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (url_id, about.as_json(), fetched_at, image_id, reason, detail, body),
        )

    # What sites ask of us

    def site(self, origin: str, now: float, max_age_s: float) -> tuple[int, bytes, bytes] | None:
        """Return status and body of an origin's robots.txt and its tdmrep.json, None where they are not known."""
        row: tuple[float, int, bytes, bytes] | None = self.db.execute(
            "SELECT asked_at, status, robots, tdm FROM origins WHERE origin = ?", (origin,)
        ).fetchone()
        return row[1:] if row and row[0] > now - max_age_s else None

    def keep_site(self, origin: str, now: float, status: int, robots: bytes, tdm: bytes) -> None:
        """Keep what an origin asks of us."""
        self.db.execute("INSERT OR REPLACE INTO origins VALUES (?, ?, ?, ?, ?)", (origin, now, status, robots, tdm))

    def count(self, host: str, kept: float | None, gap: float, delay: float, waited: float) -> None:
        """Count one request of a host for the politeness report.

        Args:
            host: its name.
            kept: seconds since the request before, None for the first of a process.
            gap: seconds that we owe it.
            delay: its crawl-delay.
            waited: seconds that it asked us to wait before this request.
        """
        self.db.execute(
            "INSERT INTO asked VALUES (?, 1, ?, ?, ?, ?, ?) ON CONFLICT (host) DO UPDATE SET requests = requests + 1, "
            "min_gap = MIN(COALESCE(min_gap, excluded.min_gap), COALESCE(excluded.min_gap, min_gap)), "
            "gap = excluded.gap, delay = excluded.delay, waits = waits + excluded.waits, "
            "waited = waited + excluded.waited",
            (host, kept, gap, delay, int(waited > 0), waited),
        )


def opened(path: Path) -> sqlite3.Connection:
    """Open the database of a crawl, and make it where it is missing.

    A commit is in the log before it returns, so that a killed process loses none; after a power cut the last ones may
    be gone, and are asked again.
    """
    db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.executescript(_SCHEMA)
    db.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (SCHEMA_VERSION,))
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Make several changes one, or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def get_meta(db: sqlite3.Connection, key: str, default: int = 0) -> int:
    """Return a number that the database keeps."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else int(row[0])


def set_meta(db: sqlite3.Connection, key: str, value: int) -> None:
    """Keep a number."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def read_tally(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many pages, pictures, refusals and failures there were, and how much is to do."""
    return {name: get_meta(db, f"num {name}") for name in _TALLY}
