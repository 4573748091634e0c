"""Which addresses a crawl has met, and what is said of the pictures among them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crawl.fetch.database import (
    DONE,
    FAILED,
    FLIGHT,
    HANDED_OVER,
    HANDING_OVER,
    REFUSED,
    STATES,
    TALLY,
    TODO,
    opened,
    read_tally,
    set_meta,
    transaction,
)
from crawl.fetch.found import API, PAGE, PICTURE, SITEMAP, About, Entry, Link, Picture
from crawl.fetch.shares import WHOLE, Share
from crawl.fetch.urls import BadUrl, canonical, host_of, pattern_of

if TYPE_CHECKING:
    from crawl.config import FetchOptions

# Reasons for which a page is not asked for, or its answer not used, and which do not hold for a picture.
NO_PAGE = (
    *("wrong_type", "too_many_bytes", "other_host", "not_a_picture"),
    *("depth", "host_limit", "pattern_limit", "barren_pattern"),
)


@dataclass(frozen=True)
class Bounds:
    """How far a crawl goes."""

    max_depth: int
    max_per_host: int
    max_per_pattern: int
    max_barren: int
    max_redirects: int
    pictures_first: bool = False  # before further pages; else pages of a level, which may all tell of one picture


def bounds_of(options: FetchOptions) -> Bounds:
    """Return the bounds that options set."""
    return Bounds(
        options.max_depth,
        options.max_per_host,
        options.max_per_pattern,
        options.max_barren,
        options.max_redirects,
        pictures_first=options.max_pictures > 0,
    )


class Register:
    """Addresses and mentions in the database of a crawl; every method that writes wants a transaction around it.

    Args:
        path: of the database; made where it is missing.
        bounds: of the crawl.
        share: of the crawl that the database has.
    """

    def __init__(self, path: Path, bounds: Bounds, share: Share = WHOLE) -> None:
        self.bounds = bounds
        self.share = share
        self.new_hosts: set[str] = set()  # hosts that got something to do since this was emptied
        self.db = opened(path)
        self.tally = Counter(read_tally(self.db))

    def close(self) -> None:
        """Close the database."""
        self.save_tally()
        self.db.close()

    def save_tally(self) -> None:
        """Write down how far the crawl is, for the one who shows it."""
        with transaction(self.db):
            for name in TALLY:
                set_meta(self.db, f"num {name}", self.tally[name])

    def add(self, entry: Entry, page: int, depth: int) -> bool:
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
        added = self.insert(bad.url, "", kind, depth, REFUSED, bad.reason)
        if added and kind == PICTURE and page < 0:  # what a list names itself is accounted for in the collection
            self.send(added, about, reason=bad.reason, detail=bad.url)

    def _add_link(self, url: str, kind: int, depth: int) -> None:
        if self.db.execute("SELECT 1 FROM urls WHERE url = ?", (url,)).fetchone():
            return
        host, reason = host_of(url), ""
        if kind != PICTURE:  # sitemaps are as many as they like where they stand side by side
            reason = self._beyond(host, "" if kind == SITEMAP else pattern_of(url), 0 if kind == API else depth)
        self.insert(url, host, kind, depth, REFUSED if reason else TODO, reason)

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
        if pattern and pages >= self.bounds.max_per_pattern:
            return "pattern_limit"
        if barren >= self.bounds.max_barren:
            return "barren_pattern"
        self.db.executemany(
            "INSERT INTO patterns (host, pattern, pages) VALUES (?, ?, 1) "
            "ON CONFLICT (host, pattern) DO UPDATE SET pages = pages + 1",
            {(host, ""), (host, pattern)},
        )
        return ""

    def insert(self, url: str, host: str, kind: int, depth: int, state: int, reason: str, hops: int = 0) -> int:
        """Insert an address that may be known already; return its id where it is new, else 0."""
        cursor = self.db.execute(
            "INSERT OR IGNORE INTO urls (url, host, kind, depth, state, reason, hops) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (url, host, kind, depth, state, reason, hops),
        )
        if cursor.rowcount and state == TODO:
            self.new_hosts.add(host)
            self.tally["to do"] += 1
        elif cursor.rowcount and state == REFUSED:
            self.tally["refused"] += 1
        return int(cursor.lastrowid or 0) if cursor.rowcount else 0

    def _mention(self, url: str, about: About, page: int, depth: int) -> bool:
        """Note that a page mentions a picture; what is known of it already goes out at once."""
        depth = 0 if self.bounds.pictures_first else depth
        if added := self.insert(url, host_of(url), PICTURE, depth, TODO, ""):
            self._note(added, page, about)
            return True
        url_id, kind = self.db.execute("SELECT id, kind FROM urls WHERE url = ?", (url,)).fetchone()
        is_news = kind == PAGE and not self.is_mentioned(url_id)
        self.pass_on(url_id, about, page)
        return is_news

    def lead(self, picture: Picture, page: int) -> None:
        """Keep what a page says of a thumbnail until it is known whether that leads to a page or to the picture."""
        row = self.db.execute("SELECT id FROM urls WHERE url = ?", (picture.url,)).fetchone()
        if row is None:
            return  # links of this page are not followed
        url_id = self.end_of(row[0])
        kind, state = self.db.execute("SELECT kind, state FROM urls WHERE id = ?", (url_id,)).fetchone()
        if kind == PICTURE:
            self.pass_on(url_id, picture.about, page)
        elif state in (TODO, FLIGHT):
            self.db.execute("INSERT OR REPLACE INTO leads VALUES (?, ?, ?)", (url_id, page, picture.about.as_json()))

    def is_led_to(self, url_id: int) -> bool:
        """Say whether a thumbnail leads to a page."""
        return self.db.execute("SELECT 1 FROM leads WHERE url = ? LIMIT 1", (url_id,)).fetchone() is not None

    def is_mentioned(self, url_id: int) -> bool:
        """Say whether some page has an address for a picture, as what it may have been met otherwise before."""
        return self.db.execute("SELECT 1 FROM mentions WHERE url = ? LIMIT 1", (url_id,)).fetchone() is not None

    def as_picture(self, url_id: int) -> None:
        """Ask for what was met as a page as a picture, which is bound otherwise and may be larger."""
        state = self.db.execute("SELECT state FROM urls WHERE id = ?", (url_id,)).fetchone()[0]
        self.db.execute(
            "UPDATE urls SET kind = ?, state = ?, reason = '', detail = '', attempts = 0, not_before = 0 WHERE id = ?",
            (PICTURE, TODO, url_id),
        )
        if state in (REFUSED, FAILED):
            self.tally[STATES[state]] -= 1
            self.tally["to do"] += 1
        self.new_hosts.update(self.db.execute("SELECT host FROM urls WHERE id = ?", (url_id,)).fetchone())

    def _note(self, url_id: int, page: int, about: About) -> bool:
        """Keep a mention; say whether its page said something else before, or nothing."""
        text = about.as_json()
        known = self.db.execute("SELECT about FROM mentions WHERE url = ? AND page = ?", (url_id, page)).fetchone()
        if known and known[0] == text:
            return False
        self.db.execute("INSERT OR REPLACE INTO mentions VALUES (?, ?, ?)", (url_id, page, text))
        return True

    def pass_on(self, url_id: int, about: About, page: int) -> None:
        """Hand a later mention to the end of a chain of redirects, and out where the picture went out already.

        What was met as a page, and ended as none, becomes a picture to ask for.
        """
        url_id = self.end_of(url_id)
        before = self.mentioned(url_id)
        if not self._note(url_id, page, about):
            return
        state, image_id, reason, kind = self.db.execute(
            "SELECT state, image_id, reason, kind FROM urls WHERE id = ?", (url_id,)
        ).fetchone()
        if kind == PAGE and state in (REFUSED, FAILED) and reason in NO_PAGE:
            self.as_picture(url_id)
        if reason == HANDED_OVER:
            self.db.execute("UPDATE urls SET reason = ? WHERE id = ?", (HANDING_OVER, url_id))
        if (
            state == DONE
            and image_id
            and (set(about.tags) - set(before.tags) or set(about.labels) - set(before.labels))
        ):
            self.send(url_id, about, image_id=image_id)

    def mentioned(self, url_id: int) -> About:
        """Unite what is said of a picture."""
        rows = self.db.execute("SELECT about FROM mentions WHERE url = ? ORDER BY page", (url_id,))
        return About.united(About.from_json(row[0]) for row in rows)

    def receive(self, url: str, hops: int, mentions: Iterable[tuple[int, About]]) -> None:
        """Take in a picture that another part was redirected to, with what its pages say of it."""
        known = self.db.execute("SELECT id FROM urls WHERE url = ?", (url,)).fetchone()
        url_id = known[0] if known else self.insert(url, host_of(url), PICTURE, 0, TODO, "", hops)
        for page, about in mentions:
            self.pass_on(url_id, about, page)

    def refuse_loop(self, url_id: int, to: str) -> None:
        """Refuse an address whose redirect leads back to it."""
        self.tally["refused"] += 1
        self.db.execute(
            "UPDATE urls SET state = ?, reason = 'redirect_loop', detail = ?, target = NULL WHERE id = ?",
            (REFUSED, to[:200], url_id),
        )
        self.send(url_id, self.mentioned(url_id), reason="redirect_loop", detail=to[:200])

    def end_of(self, url_id: int) -> int:
        """Return the last address of a chain of redirects."""
        seen: set[int] = set()
        while url_id not in seen:
            seen.add(url_id)
            row = self.db.execute("SELECT target FROM urls WHERE id = ?", (url_id,)).fetchone()
            if row[0] is None:
                return url_id
            url_id = row[0]
        return url_id

    def send(
        self,
        url_id: int,
        about: About,
        *,
        body: bytes | None = None,
        image_id: str | None = None,
        reason: str | None = None,
        detail: str = "",
    ) -> None:
        """Put a picture into the outbox: bytes, more of what is said of it, or why there are none."""
        fetched_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) if body is not None else ""
        self.db.execute(
            "INSERT INTO outbox (url, about, fetched_at, image_id, reason, detail, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (url_id, about.as_json(), fetched_at, image_id, reason, detail, body),
        )
