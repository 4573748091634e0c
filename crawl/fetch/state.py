"""What a crawl has to do, and what became of it.

The fetching process writes it down, and the collecting one takes from the outbox (`crawl.fetch.outbox`). Each change is
one transaction, so that a kill at any moment leaves a state to go on from: what was in flight is asked again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from crawl.fetch.database import (
    DONE,
    FAILED,
    FLIGHT,
    HANDING_OVER,
    MOVED,
    REFUSED,
    STATES,
    TODO,
    UNCHANGED,
    WOULD_ASK,
    count_fetched,
    get_meta,
    set_meta,
    transaction,
)
from crawl.fetch.faults import Refusal
from crawl.fetch.found import API, PAGE, PICTURE, About, Entry, Picture
from crawl.fetch.register import NO_PAGE, Bounds, Register
from crawl.fetch.shares import WHOLE, Share
from crawl.fetch.urls import host_of, pattern_of

_TO_DO = {False: "state = 0", True: "state = 0 AND image_id IS NOT NULL"}


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
    is_known: bool = False  # a picture that came before
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


class State(Register):
    """The queue, and the outcomes: what the fetching process does with the database."""

    def __init__(self, path: Path, bounds: Bounds, share: Share = WHOLE) -> None:
        super().__init__(path, bounds, share)
        self.num_fetched = count_fetched(self.db)

    def recover(self, latest: float = math.inf) -> None:
        """Put back what was in flight when the last process ended, and what a clock that went wrong had put too late.

        Args:
            latest: time until which anything may have to wait.
        """
        self.db.execute("UPDATE urls SET not_before = ? WHERE state = ? AND not_before > ?", (latest, TODO, latest))
        self.db.execute("UPDATE urls SET state = ? WHERE state = ?", (TODO, FLIGHT))
        self.tally["to do"] = self.num_to_do()

    # What is to do

    def num_to_do(self) -> int:
        """Count the addresses that are to be asked for."""
        return int(self.db.execute("SELECT COUNT(*) FROM urls WHERE state = 0").fetchone()[0])

    def waiting_bytes(self) -> int:
        """Return the bytes in the outbox that no one took out yet."""
        query = "SELECT COALESCE(SUM(LENGTH(body)), 0) FROM outbox WHERE seq > ?"
        return int(self.db.execute(query, (get_meta(self.db, "taken"),)).fetchone()[0])

    def hosts(self, after: str, limit: int, known: bool = False) -> list[str]:
        """Return hosts with something to do, in order of name, skipping through the index from one to the next.

        Args:
            after: this name.
            limit: at most so many.
            known: only those with pictures to do that came before.
        """
        found: list[str] = []
        while len(found) < limit:
            row = self.db.execute(
                f"SELECT host FROM urls WHERE {_TO_DO[known]} AND host > ? ORDER BY host LIMIT 1",  # noqa: S608
                (after,),
            ).fetchone()
            if row is None:
                break
            after = row[0]
            found.append(after)
        return found

    def jobs(self, host: str, now: float, limit: int, known: bool = False) -> list[Job]:
        """Return what may be asked of a host now, nearest to the start first; `known`: only pictures that came before.

        Those are known by their image_id, which nothing but a picture has.
        """
        query = (
            "SELECT id, url, kind, depth, hops, attempts, etag, modified, image_id IS NOT NULL FROM urls "  # noqa: S608
            f"WHERE {_TO_DO[known]} AND host = ? AND not_before <= ? ORDER BY depth, id LIMIT ?"
        )
        return [Job(*row) for row in self.db.execute(query, (host, now, limit))]

    def next_at(self, host: str, known: bool = False) -> float | None:
        """Return when the next address of a host may be asked for, None where there is none."""
        query = f"SELECT MIN(not_before) FROM urls WHERE {_TO_DO[known]} AND host = ?"  # noqa: S608
        row = self.db.execute(query, (host,)).fetchone()
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
                self.add(entry, page=-self.share.first_page - position, depth=0)
            set_meta(self.db, "position", position)
            if whole:
                set_meta(self.db, "listed", 1)

    def finish_page(
        self, job: Job, entries: list[Entry], answered: Answered, opt_out: str = "", behind: Iterable[Picture] = ()
    ) -> None:
        """Take in what a page shows; with `opt_out` it keeps its pictures out, by this directive.

        A page that was read before and shows nothing new, as most do on a refresh, says nothing of its pattern.
        """
        with transaction(self.db):
            status = self.db.execute("SELECT status FROM urls WHERE id = ?", (job.id,)).fetchone()[0]
            new = sum(self.add(entry, page=job.id, depth=job.depth + 1) for entry in entries)
            for picture in behind:
                self.lead(picture, job.id)
            self.db.execute("DELETE FROM leads WHERE url = ?", (job.id,))
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

    # What became of it

    def taken_as_picture(self, job: Job) -> Job:
        """Return the job of a picture where it was one of a page, whose answer is none."""
        with transaction(self.db):
            self.db.execute("UPDATE urls SET kind = ? WHERE id = ?", (PICTURE, job.id))
            query = "SELECT urls.url FROM leads JOIN urls ON urls.id = leads.page WHERE leads.url = ?"
            pages = {(host_of(url), pattern_of(url)) for (url,) in self.db.execute(query, (job.id,))}
            self.db.executemany("UPDATE patterns SET barren = 0 WHERE host = ? AND pattern = ?", pages)
            self.db.execute("INSERT OR IGNORE INTO mentions SELECT * FROM leads WHERE url = ?", (job.id,))
            self.db.execute("DELETE FROM leads WHERE url = ?", (job.id,))
        return replace(job, kind=PICTURE)

    def finish_picture(self, job: Job, image_id: str, body: bytes, answered: Answered) -> None:
        """Keep the bytes of a picture for the gate; bytes that did not change since are not sent again."""
        with transaction(self.db):
            row = self.db.execute("SELECT image_id FROM urls WHERE id = ?", (job.id,)).fetchone()
            self._done(job, answered, UNCHANGED if row[0] == image_id else "")
            self._ended("pictures")
            self.num_fetched += row[0] is None
            if row[0] != image_id:
                self.db.execute(
                    "UPDATE urls SET image_id = ?, num_bytes = ? WHERE id = ?", (image_id, len(body), job.id)
                )
                self.send(job.id, self.mentioned(job.id), body=body)

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
            ours = self.share.owns(host)
            state, reason = (TODO, "") if ours else (DONE, HANDING_OVER)
            target = self.insert(url, host, job.kind, job.depth, state, reason, job.hops + 1)
            if not target:
                query = "SELECT id, kind, reason FROM urls WHERE url = ?"
                target, kind, ended = self.db.execute(query, (url,)).fetchone()
                if self.end_of(target) == job.id:
                    raise Refusal("redirect_loop", url[:200])
                is_picture = self.is_mentioned(job.id) and (kind == PICTURE or ended in NO_PAGE)
                is_picture = is_picture or (kind == PICTURE and self.is_led_to(job.id))
                if kind != job.kind and PICTURE in (kind, job.kind) and not is_picture:
                    raise Refusal("not_a_picture", f"moved to {url}"[:200])
            self.db.execute(
                "UPDATE urls SET state = ?, reason = ?, status = ?, target = ? WHERE id = ?",
                (DONE, MOVED, status, target, job.id),
            )
            if not ours:
                self.db.execute("UPDATE urls SET reason = ? WHERE id = ?", (HANDING_OVER, target))
            self.tally["to do"] -= 1
            rows = self.db.execute("SELECT page, about FROM mentions WHERE url = ?", (job.id,)).fetchall()
            for page, about in rows:
                self.pass_on(target, About.from_json(about), page)
            rows = self.db.execute("DELETE FROM leads WHERE url = ? RETURNING page, about", (job.id,)).fetchall()
            for page, about in rows:
                self.lead(Picture(url, About.from_json(about)), page)

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

    def _has_ended(self, job: Job) -> bool:
        """Say whether another process has ended a job: one that outlives its killed parent by seconds, on answers."""
        return self.db.execute("SELECT state FROM urls WHERE id = ?", (job.id,)).fetchone()[0] not in (TODO, FLIGHT)

    def _end(self, job: Job, state: int, reason: str, detail: str, status: int) -> None:
        with transaction(self.db):
            if self._has_ended(job):
                self.tally["to do"] -= 1
                return
            if job.kind == PAGE and reason in NO_PAGE and self.is_mentioned(job.id):
                self.as_picture(job.id)
                return
            self._ended(STATES[state])
            self.db.execute(
                "UPDATE urls SET state = ?, reason = ?, detail = ?, status = ? WHERE id = ?",
                (state, reason, detail, status, job.id),
            )
            if job.kind == PICTURE:
                self.send(job.id, self.mentioned(job.id), reason=reason, detail=detail)

    # What sites ask of us

    def site(self, origin: str, now: float, max_age_s: float) -> tuple[float, int, bytes, bytes] | None:
        """Return when an origin was asked, status and body of its robots.txt, and its tdmrep.json; None: not known."""
        row: tuple[float, int, bytes, bytes] | None = self.db.execute(
            "SELECT asked_at, status, robots, tdm FROM origins WHERE origin = ?", (origin,)
        ).fetchone()
        return row if row and row[0] > now - max_age_s else None

    def keep_site(self, origin: str, now: float, status: int, robots: bytes, tdm: bytes) -> None:
        """Keep what an origin asks of us."""
        self.db.execute("INSERT OR REPLACE INTO origins VALUES (?, ?, ?, ?, ?)", (origin, now, status, robots, tdm))

    def ready_at(self, host: str) -> float:
        """Return until when a host is to be left alone, whichever process asked it last."""
        row = self.db.execute("SELECT ready_at FROM asked WHERE host = ?", (host,)).fetchone()
        return float(row[0] or 0.0) if row else 0.0

    def leave_alone(self, host: str, until: float) -> None:
        """Note until when a host is to be left alone."""
        self.db.execute("UPDATE asked SET ready_at = ? WHERE host = ?", (until, host))

    def count(self, host: str, kept: float | None, gap: float, delay: float, waited: float, ready_at: float) -> None:
        """Count one request of a host for the politeness report.

        Args:
            host: its name.
            kept: seconds since the request before, None for the first of a process.
            gap: seconds that we owe it.
            delay: its crawl-delay.
            waited: seconds that it asked us to wait before this request.
            ready_at: when the next one may follow.
        """
        self.db.execute(
            "INSERT INTO asked VALUES (?, 1, ?, ?, ?, ?, ?, ?) ON CONFLICT (host) DO UPDATE SET "
            "requests = requests + 1, "
            "min_gap = MIN(COALESCE(min_gap, excluded.min_gap), COALESCE(excluded.min_gap, min_gap)), "
            "gap = excluded.gap, delay = excluded.delay, waits = waits + excluded.waits, "
            "waited = waited + excluded.waited, ready_at = excluded.ready_at",
            (host, kept, gap, delay, int(waited > 0), waited, ready_at),
        )
