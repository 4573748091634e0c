"""The Scrapy spider: asks what the frontier hands out, and writes down what became of it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from scrapy import Request, Spider
from scrapy.core.scheduler import BaseScheduler
from scrapy.http import Response
from scrapy.utils.defer import maybe_deferred_to_future
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from configs.artifacts import ArtifactError
from crawl.config import FetchOptions
from crawl.fetch.codings import ACCEPTED
from crawl.fetch.database import DatabaseError, get_meta
from crawl.fetch.faults import TRANSIENT, Fault, Refusal
from crawl.fetch.found import API, MAX_SITEMAP_BYTES, PAGE, PICTURE, SITEMAP, Answer, Entry, Finder, Found
from crawl.fetch.frontier import ROBOTS, Frontier
from crawl.fetch.manners import header_nofollow, header_opt_out, retry_after_s
from crawl.fetch.process import TOLD, Order
from crawl.fetch.state import Answered, Job, State
from crawl.fetch.urls import BadUrl, canonical
from crawl.records import image_id_of
from crawl.tombstones import Tombstones

log = logging.getLogger(__name__)

LIST_AHEAD = 20_000  # addresses of a list that wait in the database
LIST_PIECE = 500
MAX_ROBOTS_BYTES = 4 * 2**20  # that come; of these fewer are read
POLL_S = 1.0  # between two looks at what waits for the gate
_OK = (200, 203)
_MOVED = (301, 302, 303, 307, 308)
_EPOCH = time.time() - time.monotonic()
_ACCEPT = {PICTURE: "image/*,*/*;q=0.5", API: "application/json"}


def clock() -> float:
    """Return seconds since 1970 by a clock that nobody sets while we run."""
    return _EPOCH + time.monotonic()


@contextmanager
def telling() -> Iterator[None]:
    """End this process with one sentence where a list or the disk is at fault: the state is whole at any moment."""
    try:
        yield
    except (ArtifactError, DatabaseError) as error:
        is_ours = isinstance(error, ArtifactError)
        told = str(error) if is_ours else f"the state of the crawl cannot be read or written: {error}"
        print(f"error: {told}", file=sys.stderr, flush=True)
        os._exit(TOLD)


class Line(BaseScheduler):
    """Scrapy's queue, which holds nothing: whose turn it is the frontier has decided already."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def has_pending_requests(self) -> bool:
        """Say whether a request waits."""
        return bool(self._requests)

    def enqueue_request(self, request: Request) -> bool:
        """Take a request in."""
        self._requests.append(request)
        return True

    def next_request(self) -> Request | None:
        """Hand it on."""
        return self._requests.pop(0) if self._requests else None


class Fetcher(Spider):
    """Runs one crawl until nothing is left to do, or until it is asked to stop."""

    name = "tagtower"

    def __init__(self, state: State, options: FetchOptions, finder: Finder, order: Order, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.crawl = state
        self.options = options
        self.finder = finder
        tombstones = Tombstones(Path(order.collection))
        self.frontier = Frontier(state, options, order.dry, lambda url: tombstones.is_taken_down(urls=[url]))
        self.stopping = False
        self.came_to_an_end = False  # rather than broken off by an error
        self._looked_at = -POLL_S
        self._full = False
        self._sleeping: Deferred[None] | None = None
        self._position = get_meta(state.db, "position")
        self._listed = bool(get_meta(state.db, "listed"))
        self._entries = None if self._listed else finder.entries(self._position)

    # Handing out

    async def start(self) -> AsyncIterator[Request]:
        """Yield one request after another, waiting until some host may be asked again."""
        while not self.stopping:
            self._list_more()
            job = self._next()
            if job is not None:
                yield self._request(job)
            elif (self._listed or self.frontier.is_full) and self.frontier.is_empty():
                break
            else:
                await self._sleep()
        self.came_to_an_end = True

    def stop(self) -> None:
        """Hand out nothing more; the crawl ends with the last answer that is on its way."""
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """Look again what may be asked."""
        sleeping, self._sleeping = self._sleeping, None
        if sleeping is not None:
            sleeping.callback(None)

    async def _sleep(self) -> None:
        from twisted.internet import reactor as installed

        reactor: Any = installed
        self._sleeping = Deferred()
        timer = reactor.callLater(self._pause_s(clock()), self.wake)
        await maybe_deferred_to_future(self._sleeping)
        if timer.active():
            timer.cancel()

    def _pause_s(self, now: float) -> float:
        """Return how long there is nothing to hand out, unless an answer comes."""
        if self._may_list:
            return 0.0  # a list may hold much that is not asked for
        at = self.frontier.ready_at()
        if at is None or self._full or self._is_busy:
            return POLL_S
        return min(POLL_S, max(0.0, at - now))

    @property
    def _may_list(self) -> bool:
        """Say whether more of the list is wanted."""
        is_ahead = self.crawl.tally["to do"] >= LIST_AHEAD
        return not (self._listed or is_ahead or self._full or self.frontier.is_full)

    @telling()
    def _list_more(self) -> None:
        if self._entries is None or not self._may_list:
            return
        piece: list[Entry] = list(islice(self._entries, LIST_PIECE))
        self._listed = len(piece) < LIST_PIECE
        self.crawl.add_entries(piece, self._position, self._listed)
        self._position += len(piece)
        if self._listed:
            self._entries = None

    @telling()
    def _next(self) -> Job | None:
        if self._is_busy or self._is_full():
            return None
        return self.frontier.next(clock())

    @property
    def _is_busy(self) -> bool:
        return self.frontier.active >= self.options.concurrent

    def _is_full(self) -> bool:
        """Say whether more pictures wait for the gate than may."""
        if time.monotonic() - self._looked_at >= POLL_S:
            self._looked_at = time.monotonic()
            self.crawl.save_tally()
            self._full = self.crawl.waiting_bytes() > self.options.spool_mb * 2**20
        return self._full

    def _request(self, job: Job) -> Request:
        url, headers = self.finder.asked_as(job.url) if job.kind == API else (job.url, {})
        headers = {"User-Agent": self.options.user_agent, "Accept": _ACCEPT.get(job.kind, "*/*"), **headers}
        headers["Accept-Encoding"] = "identity" if job.kind == PICTURE else ACCEPTED
        if job.etag:
            headers["If-None-Match"] = job.etag
        if job.modified:
            headers["If-Modified-Since"] = job.modified
        limits = {PICTURE: self.options.max_bytes, SITEMAP: MAX_SITEMAP_BYTES, ROBOTS: MAX_ROBOTS_BYTES}
        limit = limits.get(job.kind, self.options.max_page_bytes)
        meta = {"job": job, "started": clock(), "max_bytes": limit}
        return Request(url, headers=headers, meta=meta, callback=self.answered, errback=self.broken, dont_filter=True)

    # Writing down

    @telling()
    def answered(self, response: Response) -> None:
        """Take in an answer."""
        assert response.request is not None
        job: Job = response.request.meta["job"]
        if job.errand_of:
            self._errand_answered(job, response)
            return
        wait_s = 0.0
        try:
            wait_s = self._take(job, response)
        except Fault as fault:
            wait_s = self._not_usable(job, fault, response)
        self._finished(job, response.request, wait_s)

    @telling()
    def broken(self, failure: Failure) -> None:
        """Take in that there is no answer."""
        request: Request = failure.request  # type: ignore[attr-defined]
        job: Job = request.meta["job"]
        fault = failure.value
        if not isinstance(fault, Fault):
            failure.raiseException()
        if job.errand_of:
            self.frontier.errand_done(job.errand_of, 0, fault.kind.encode(), "", clock())
            self.wake()
            return
        self._not_usable(job, fault, None)
        self._finished(job, request, 0.0, answered=False)

    def _finished(self, job: Job, request: Request, wait_s: float, answered: bool = True) -> None:
        now = clock()
        latency = now - request.meta["started"] if answered else None
        self.frontier.finished(job.host, now, latency, wait_s, job.id)
        self.wake()

    def _not_usable(self, job: Job, fault: Fault, response: Response | None) -> float:
        """Write a fault down; return how long its host asks to be left alone."""
        status = response.status if response is not None else 0
        if isinstance(fault, Refusal):
            self.crawl.refuse(job, fault.kind, fault.detail, status)
            return 0.0
        now, attempts = clock(), job.attempts + 1
        asked = _retry_after_s(response, now) if response is not None else None
        wait_s = self.frontier.wait_of(fault.kind, asked, attempts)
        again = fault.kind in TRANSIENT and attempts < self.options.attempts
        delay = wait_s if wait_s else self.frontier.backoff(attempts)
        self.crawl.fail(job, fault.kind, fault.detail, status, now + delay if again else None)
        return wait_s

    def _errand_answered(self, job: Job, response: Response) -> None:
        location = ""
        status = response.status
        if status in _MOVED:
            try:
                location = self._location(job, response)
            except (BadUrl, Fault):
                status = 404  # it leads nowhere, so there is none
        now = clock()
        self.frontier.errand_done(job.errand_of, status, response.body, location, now, _retry_after_s(response, now))
        self.wake()

    @staticmethod
    def _location(job: Job, response: Response) -> str:
        location = response.headers.get("Location")
        if not location:
            raise Fault("bad_redirect", "no Location")
        return canonical(location.decode("utf-8", "replace"), job.url)

    def _take(self, job: Job, response: Response) -> float:
        """Write an answer down; return how long its host asks to be left alone."""
        if response.status == 304 and (job.etag or job.modified):
            self.crawl.finish_unchanged(job)
        elif response.status in _MOVED:
            self._move(job, response)
        elif response.status not in _OK:
            answer = Answer(job.url, job.kind, _headers(response), response.body)
            raise Fault(f"status_{response.status}", self.finder.complaint(answer) if job.kind == API else "")
        elif job.kind == PICTURE:
            self._take_picture(job, response)
        else:
            return self._take_page(job, response)
        return 0.0

    def _move(self, job: Job, response: Response) -> None:
        if job.kind == API:  # the new address may repeat the key, which is for the old one alone
            raise Refusal("api_moved", "an API that redirects is not followed; give its new address")
        try:
            url = self._location(job, response)
        except BadUrl as bad:
            raise Refusal(bad.reason, f"redirect to {bad.url}") from None
        if job.kind == PAGE and not self.finder.may_read(url):
            raise Refusal("other_host", f"redirect to {url}, whose host is not among source.hosts"[:200])
        self.crawl.move(job, url, response.status)

    def _found(self, answer: Answer) -> Found:
        try:
            return self.finder.read(answer)
        except Fault:
            raise
        except (
            Exception
        ) as error:  # parsers of several libraries, on pages of strangers: one page is lost, not the crawl
            log.warning("%s could not be read: %r", answer.url, error)
            raise Fault("unreadable_page", f"{type(error).__name__}: {error}"[:200]) from error

    def _take_picture(self, job: Job, response: Response) -> None:
        if self.options.opt_outs and (directive := header_opt_out(_headers(response), self.options.agent)):
            raise Refusal(directive, "by a header of the picture")
        self.crawl.finish_picture(job, image_id_of(response.body), response.body, _answered(response))

    def _may_be_picture(self, job: Job, fault: Fault, headers: dict[str, list[str]]) -> bool:
        if job.kind != PAGE or fault.kind != "wrong_type":
            return False
        is_image = "".join(headers.get("content-type", ())).strip().lower().startswith("image/")
        return self.crawl.is_mentioned(job.id) or (is_image and self.crawl.is_led_to(job.id))

    def _take_page_as_picture(self, job: Job, response: Response) -> None:
        """Take an answer for what some page has it: the gate says what it is."""
        job = self.crawl.taken_as_picture(job)
        try:
            self._take_picture(job, response)
        except Refusal as refusal:
            self.crawl.refuse(job, refusal.kind, refusal.detail, response.status)

    def _take_page(self, job: Job, response: Response) -> float:
        headers = _headers(response)
        try:
            found = self._found(Answer(job.url, job.kind, headers, response.body))
        except Fault as fault:
            if not self._may_be_picture(job, fault, headers) or self.frontier.is_full:
                raise
            self._take_page_as_picture(job, response)
            return 0.0
        if job.kind == API:  # its answer is no page for a search engine to keep, whatever a framework says of it
            headers.pop("x-robots-tag", None)
        agent, out, closed = self.options.agent, "", False
        if self.options.opt_outs:
            out = header_opt_out(headers, agent, found.reserved) or found.opt_out
            closed = out == "tdm_reserved" or found.nofollow or header_nofollow(headers, agent)
        entries: list[Entry] = [] if out else [*found.pictures, *found.refused]
        entries += [] if closed else found.links
        behind = [] if out or closed else found.behind
        self.crawl.finish_page(job, entries, _answered(response), out, behind)
        return min(found.wait_s, self.options.max_wait_s)


def _headers(response: Response) -> dict[str, list[str]]:
    return {
        name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
        for name, values in response.headers.items()
    }


def _retry_after_s(response: Response, now: float) -> float | None:
    given = response.headers.get("Retry-After")
    return retry_after_s(given.decode("latin-1"), now) if given else None


def _answered(response: Response) -> Answered:
    etag, modified = response.headers.get("ETag") or b"", response.headers.get("Last-Modified") or b""
    return Answered(response.status, etag.decode("latin-1"), modified.decode("latin-1"))
