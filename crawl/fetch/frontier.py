"""Whose turn it is: one gap a host whatever is asked of it, robots.txt before anything else, memory for active hosts.

Times are seconds since 1970, passed in, so that tests need no clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from crawl.fetch.database import transaction
from crawl.fetch.faults import CLOSED_TO_US, TRANSIENT, WAITING
from crawl.fetch.found import API, PICTURE
from crawl.fetch.manners import MAX_ROBOTS_HOPS, ROBOTS_AGE_S, TDM_PATH, Site, read_site
from crawl.fetch.state import Job, State
from crawl.fetch.urls import host_of, origin_of
from crawl.tombstones import TAKEN_DOWN

if TYPE_CHECKING:
    from crawl.config import FetchOptions

MAX_HOSTS = 5_000  # held in memory at a time; the others wait in the database
JOBS_A_HOST = 32  # held in memory
PASSED_AT_ONCE = 500  # addresses that rules forbid; then answers are looked after
MAX_SITES = 20_000  # whose rules are held in memory, and
MAX_SITES_BYTES = 8 * 2**20  # of robots.txt that these have together
ROBOTS, TDM = -1, -2  # kinds of jobs that belong to an origin and lie in no table
_OUT_OF_REACH = ("tls", "bad_answer", "too_large_head", "too_many_bytes")  # no rule of the site, and no rule of ours
_SMOOTHING = 0.5  # of what a host takes to answer, as Scrapy's AutoThrottle has it
_MAX_BACKOFFS = 6
_BUSY_S = 0.1  # before another look at a host that is being asked


@dataclass
class Host:
    """One host that is being asked."""

    name: str
    ready_at: float = 0.0
    active: int = 0
    queue: deque[Job] = field(default_factory=deque)
    scheduled: float | None = None  # when it stands in the heap
    latency_s: float = 0.0
    delay_s: float = 0.0  # crawl-delay of the strictest origin met
    last_at: float | None = None  # start of the last request
    waited_s: float = 0.0  # asked for by the server since the last count
    errand: Errand | None = None  # what must be asked of an origin before anything else


@dataclass
class Errand:
    """The questions for an origin's rules: robots.txt, through redirects, then tdmrep.json."""

    origin: str
    url: str
    kind: int = ROBOTS
    hops: int = 0
    attempts: int = 0
    status: int = 0
    robots: bytes = b""
    running: bool = False
    guest_of: str = ""  # another host that a redirect leads to, while it is asked


class Frontier:
    """Hands out jobs, one host at a time, and learns from what became of them.

    Args:
        state: the database; jobs that rules forbid are refused there without being handed out.
        options: of the fetcher.
        dry: hand out nothing but questions for rules, and pass over the rest.
        is_gone: says of an address that its picture was taken down, so that it is not asked for again.
    """

    def __init__(
        self, state: State, options: FetchOptions, dry: bool = False, is_gone: Callable[[str], bool] = lambda _: False
    ) -> None:
        self.dry = dry
        self.is_gone = is_gone
        self.state = state
        self.options = options
        self.hosts: dict[str, Host] = {}
        self.sites: dict[str, Site] = {}
        self._sites_bytes = 0
        self._num_passed = 0  # addresses that were not to be asked for
        self.active = 0
        self._coming: set[int] = set()  # ids of pictures in flight that did not come before
        self._ready: list[tuple[float, int, str]] = []
        self._order = count()
        self._more = True  # the database may have hosts with something to do that are not in memory

    # Handing out

    def next(self, now: float) -> Job | None:
        """Return what may be asked now and mark it as in flight, or None where all hosts must wait."""
        self._admit(now)
        while self._ready and self._ready[0][0] <= now:
            at, _, name = heapq.heappop(self._ready)
            host = self.hosts.get(name)
            if host is None or host.scheduled != at:
                continue  # it stands elsewhere in the heap
            host.scheduled = None
            if host.active >= self.options.per_host:
                continue  # until one of its requests ends
            if host.ready_at > now:
                self._wait(host)
                continue
            passed = self._num_passed // PASSED_AT_ONCE
            job = self._job_of(host, now)
            if job is not None or self._num_passed // PASSED_AT_ONCE > passed:
                return job  # none, so that answers are heard between so many addresses that nobody is asked for
        return None

    def ready_at(self) -> float | None:
        """Return when some host may be asked again, None where none waits."""
        return self._ready[0][0] if self._ready else None

    @property
    def is_full(self) -> bool:
        """Say whether so many pictures came, or are on their way, as are wanted; then only those come again."""
        return 0 < self.options.max_pictures <= self.state.num_fetched + len(self._coming)

    def is_empty(self) -> bool:
        """Say whether there is nothing to do and nothing in flight."""
        if self.is_full and not self.active and not self.state.hosts("", 1, known=True):
            return True
        return not (self.hosts or self.active or self._more or self.state.new_hosts)

    def _admit(self, now: float) -> None:
        """Take hosts in that have something to do, as far as there is room."""
        room = MAX_HOSTS - len(self.hosts)
        if self.state.new_hosts:
            names = list(self.state.new_hosts)
            self._more = self._more or len(names) > room
            self.state.new_hosts.clear()
        elif self._more and room > MAX_HOSTS // 2:
            names = self.state.hosts("", MAX_HOSTS, self.is_full)
            self._more = len(names) == MAX_HOSTS
        else:
            return
        for name in names:
            if name in self.hosts or len(self.hosts) < MAX_HOSTS:
                self._enter(name, now)

    def _enter(self, name: str, now: float) -> None:
        self._wait(self._host(name, now))

    def _host(self, name: str, now: float) -> Host:
        """Return a host; of one that is new in memory the database knows until when it is to be left alone."""
        host = self.hosts.get(name)
        if host is None:
            longest = now + max(self.options.max_wait_s, self.options.max_gap_s)  # the clock may have been set since
            host = self.hosts[name] = Host(name, ready_at=max(now, min(self.state.ready_at(name), longest)))
        return host

    def _wait(self, host: Host) -> None:
        if host.scheduled is None or host.scheduled > host.ready_at:
            host.scheduled = host.ready_at
            heapq.heappush(self._ready, (host.ready_at, next(self._order), host.name))

    def _job_of(self, host: Host, now: float) -> Job | None:
        """Return the next job of a host that may be asked now, refusing on the way what rules forbid."""
        while True:
            if host.errand is not None:
                return self._started_errand(host, now)
            if self.is_full:
                host.queue = deque(job for job in host.queue if job.is_known)
            if not host.queue:
                host.queue.extend(self.state.jobs(host.name, now, JOBS_A_HOST, self.is_full))
            if not host.queue:
                self._idle(host, now)
                return None
            job = host.queue[0]
            if job.kind != API and not self._knows(host, job, now):
                continue  # there is an errand now
            host.queue.popleft()
            if self._is_passed_over(host, job):
                self._num_passed += 1
                if self._num_passed % PASSED_AT_ONCE == 0:
                    self._wait(host)
                    return None
                continue
            with transaction(self.state.db):
                self.state.take(job)
                self._start(host, now)
            self._coming.update([job.id] if job.kind == PICTURE and not job.is_known else [])
            return job

    def _is_passed_over(self, host: Host, job: Job) -> bool:
        """Say whether an address is not to be asked for, and write down why."""
        if reason := self._forbidden(job):
            self._turn_away(job, reason)
        elif self.dry:
            self.state.pass_over(job, self.gap(host), host.delay_s)
        else:
            return False
        return True

    def _idle(self, host: Host, now: float) -> None:
        """Let a host go that has nothing to do now, or let it wait until its next attempt."""
        later = self.state.next_at(host.name, self.is_full)
        if later is not None and later > now:
            host.ready_at = max(host.ready_at, later)
            self._wait(host)
        elif not host.active:
            del self.hosts[host.name]

    def _knows(self, host: Host, job: Job, now: float) -> bool:
        """Say whether the rules of an origin are known; otherwise send for them."""
        origin = origin_of(job.url)
        if not (self.options.robots or self.options.opt_outs):
            return True
        site = self.sites.get(origin)
        if site is not None and site.asked_at > now - ROBOTS_AGE_S:
            self._heed(host, site)  # it may have been out of memory since
            return True
        stored = self.state.site(origin, now, ROBOTS_AGE_S)
        if stored is None:
            host.errand = self._errand(origin)
            return False
        self._learn(host, origin, *stored)
        return True

    def _errand(self, origin: str) -> Errand:
        if self.options.robots:
            return Errand(origin, f"{origin}/robots.txt")
        return Errand(origin, origin + TDM_PATH, TDM, status=404)

    def _learn(self, host: Host, origin: str, asked_at: float, status: int, robots: bytes, tdm: bytes) -> None:
        self._unlearn(origin)
        site = self.sites[origin] = read_site(status, robots, tdm, self.options.agent)
        site.asked_at, site.num_bytes = asked_at, len(robots)
        self._sites_bytes += site.num_bytes
        while len(self.sites) > 1 and (len(self.sites) > MAX_SITES or self._sites_bytes > MAX_SITES_BYTES):
            self._unlearn(next(iter(self.sites)))  # the oldest; it lies in the database
        self._heed(host, site)

    def _unlearn(self, origin: str) -> None:
        site = self.sites.pop(origin, None)
        self._sites_bytes -= site.num_bytes if site else 0

    def _heed(self, host: Host, site: Site) -> None:
        if site.delay_s <= self.options.max_gap_s:
            host.delay_s = max(host.delay_s, site.delay_s)

    def _forbidden(self, job: Job) -> str:
        if self.is_gone(job.url):
            return TAKEN_DOWN
        site = self.sites.get(origin_of(job.url))
        if site is None or job.kind == API:
            return ""
        if site.delay_s > self.options.max_gap_s:
            return "crawl_delay"
        return site.forbids(job.url, self.options.agent)

    def _turn_away(self, job: Job, reason: str) -> None:
        if reason in TRANSIENT or reason in _OUT_OF_REACH:
            self.state.fail(job, reason, "as robots.txt of its host", 0)
        else:
            self.state.refuse(job, reason, CLOSED_TO_US.get(reason, ""))

    def _start(self, host: Host, now: float) -> None:
        host.active += 1
        self.active += 1
        gap = self.gap(host)
        kept = None if host.last_at is None else now - host.last_at
        host.last_at = now
        host.ready_at = now + gap
        self.state.count(host.name, kept, gap, host.delay_s, host.waited_s, host.ready_at)
        host.waited_s = 0.0
        if host.active < self.options.per_host:
            self._wait(host)

    def gap(self, host: Host) -> float:
        """Return the seconds from one request of a host to the next."""
        return max(self.options.gap_s, host.delay_s, self.options.throttle * host.latency_s)

    # Errands

    def _started_errand(self, host: Host, now: float) -> Job | None:
        errand = host.errand
        if errand is None or errand.running or host.active:
            return None  # it ends first; `done` lets the host wait again
        asked = self._host(host_of(errand.url), now)
        if asked is not host and (asked.active >= self.options.per_host or asked.ready_at > now):
            host.ready_at = max(asked.ready_at, now + _BUSY_S)  # a guest waits for its turn, too
            self._wait(host)
            return None
        errand.running, errand.guest_of = True, asked.name
        self._start(asked, now)
        return Job(0, errand.url, errand.kind, errand_of=host.name)

    def errand_done(
        self, name: str, status: int, body: bytes, location: str, now: float, retry_after_s: float | None = None
    ) -> None:
        """Take in the answer to an errand.

        Args:
            name: of the host.
            status: of HTTP, 0 where there was no answer.
            body: of the answer; without one the kind of failure, which then holds for the whole origin.
            location: absolute address that a redirect names, else empty.
            now: time.
            retry_after_s: what a server that is busy asks for.
        """
        host = self.hosts[name]
        errand = host.errand
        assert errand is not None
        errand.running = False
        errand.attempts += 1
        hopeless = status == 0 and body.decode() not in TRANSIENT
        unreachable = (not 200 <= status < 500 or status == 429) and not hopeless
        again = unreachable and errand.kind == ROBOTS and not location and errand.attempts < self.options.attempts
        asked_for = again or errand.kind == TDM
        wait_s = self.wait_of(f"status_{status}", retry_after_s, errand.attempts) if asked_for else 0.0
        if location and errand.hops < MAX_ROBOTS_HOPS:
            errand.url, errand.hops, errand.attempts = location, errand.hops + 1, 0
        elif again:
            host.ready_at = max(host.ready_at, now + (wait_s or self.backoff(errand.attempts)))
        else:
            self._errand_step(host, errand, 404 if location else status, body, now)
        self.finished(errand.guest_of, now, None, wait_s)
        self._wait(host)

    def _errand_step(self, host: Host, errand: Errand, status: int, body: bytes, now: float) -> None:
        """Go on from robots.txt to tdmrep.json, and from there to the host's pages."""
        if errand.kind == ROBOTS:
            errand.status, errand.robots = status, body
            site = read_site(status, body, b"", self.options.agent)
            url = errand.origin + TDM_PATH
            if self.options.opt_outs and not site.forbids(url, self.options.agent):
                errand.url, errand.kind, errand.hops, errand.attempts = url, TDM, 0, 0
                self._learn(host, errand.origin, now, status, body, b"")  # the delay holds from now on
                return
            body = b""
        tdm = body if 200 <= status < 300 and errand.kind == TDM else b""
        self.state.keep_site(errand.origin, now, errand.status, errand.robots, tdm)
        self._learn(host, errand.origin, now, errand.status, errand.robots, tdm)
        host.errand = None

    # Learning from answers

    def finished(self, name: str, now: float, latency_s: float | None, wait_s: float = 0.0, job_id: int = 0) -> None:
        """Note that a request of a host has ended.

        Args:
            name: of the host.
            now: time.
            latency_s: from the request to the end of the answer, None where there was none.
            wait_s: what the server asks us to wait.
            job_id: of its job, where that lies in a table.
        """
        host = self.hosts[name]
        if job_id in self._coming:
            self._coming.remove(job_id)
            self._more = self._more or not self.is_full  # hosts may have been let go meanwhile
        host.active -= 1
        self.active -= 1
        if latency_s is not None:
            host.latency_s = max(latency_s, (host.latency_s + latency_s) * _SMOOTHING)
        started = host.last_at if host.last_at is not None else now
        host.ready_at = max(host.ready_at, started + self.gap(host), now + wait_s)
        host.waited_s += wait_s
        if wait_s:
            self.state.leave_alone(name, host.ready_at)
        self._wait(host)

    def backoff(self, attempts: int) -> float:
        """Return the seconds before another attempt: `wait_s`, and twice as long each time."""
        return float(min(self.options.max_wait_s, self.options.wait_s * 2 ** min(attempts - 1, _MAX_BACKOFFS)))

    def wait_of(self, kind: str, retry_after_s: float | None, attempts: int) -> float:
        """Return how long a host is left alone after a failure: as long as it asks for, up to `max_wait_s`."""
        if kind not in WAITING:
            return 0.0
        asked = retry_after_s if retry_after_s is not None else self.backoff(attempts)
        return min(asked, self.options.max_wait_s)
