"""Whose turn it is: gaps, rules and waits of hosts, by a clock that the test sets."""

from contextlib import closing
from itertools import pairwise

import pytest

from configs.artifacts import ArtifactError
from crawl.config import FetchOptions
from crawl.fetch.database import SCHEMA_VERSION, get_meta, opened, set_meta, transaction
from crawl.fetch.found import SITEMAP, Link
from crawl.fetch.frontier import MAX_SITES_BYTES, PASSED_AT_ONCE, Frontier
from crawl.fetch.manners import ROBOTS_AGE_S
from crawl.fetch.register import bounds_of
from crawl.fetch.state import Answered, State

DELAY = b"User-agent: *\nCrawl-delay: 30\n"


class Clockwork:
    """A crawl whose answers come at once; `asked` has time and address of each request."""

    def __init__(self, path, robots=None, **options):
        self.options = FetchOptions(opt_outs=False, throttle=0.0, **options)
        self.robots = robots or {}  # origin -> status, body, redirect, Retry-After
        self.state = State(path, bounds_of(self.options))
        self.state.recover()
        self.frontier = Frontier(self.state, self.options)
        self.now = 1_000_000.0
        self.asked = []

    def list(self, *urls):
        self.state.add_entries([Link(url) for url in urls], 0, False)

    def turn(self):
        """Ask the next one, moving the clock to it; say whether there was one."""
        for _ in range(1000):
            if job := self.frontier.next(self.now):
                self.asked.append((self.now, job.url))
                self._answer(job)
                return True
            at = self.frontier.ready_at()
            if at is None:
                return False
            self.now = max(self.now, at)
        raise AssertionError("nobody's turn comes")

    def run(self):
        while self.turn():
            pass
        return self

    def _answer(self, job):
        if not job.errand_of:
            self.state.finish_page(job, [], Answered(200))
            self.frontier.finished(job.host, self.now, 0.0)
            return
        status, body, location, retry_after_s = self.robots.get(job.url, (404, b"", "", None))
        self.frontier.errand_done(job.errand_of, status, body, location, self.now, retry_after_s)

    def times(self, part):
        return [at for at, url in self.asked if part in url]

    def gaps(self, part):
        times = self.times(part)
        return [later - earlier for earlier, later in pairwise(times)]

    def close(self):
        self.state.close()


@pytest.fixture
def clockwork(tmp_path):
    made = []

    def make(robots=None, **options):
        made.append(Clockwork(tmp_path / "state.sqlite", robots, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_host_that_had_nothing_to_do_for_a_while_owes_its_crawl_delay_again(clockwork):
    crawl = clockwork({"http://a.test/robots.txt": (200, DELAY, "", None)})
    crawl.list("http://a.test/1")
    crawl.run()
    crawl.now += 1000
    crawl.list("http://a.test/2", "http://a.test/3", "http://a.test/4")
    crawl.run()
    assert crawl.gaps("a.test")[-2:] == [30.0, 30.0]


def test_robots_txt_is_asked_for_again_after_a_day(clockwork):
    crawl = clockwork()
    crawl.list("http://a.test/1", "http://a.test/2")
    crawl.turn(), crawl.turn()
    crawl.robots["http://a.test/robots.txt"] = (200, b"User-agent: *\nDisallow: /", "", None)
    crawl.now += ROBOTS_AGE_S + 1
    crawl.run()
    assert [url for _, url in crawl.asked] == [
        "http://a.test/robots.txt",
        "http://a.test/1",
        "http://a.test/robots.txt",
    ]


def test_a_busy_robots_txt_is_waited_for_as_long_as_it_asks(clockwork):
    crawl = clockwork({"http://a.test/robots.txt": (503, b"", "", 600.0)}, wait_s=30.0)
    crawl.list("http://a.test/1")
    crawl.run()
    assert crawl.gaps("robots") == [600.0, 600.0]
    assert crawl.times("/1") == []


def test_hosts_whose_rules_lie_on_one_host_do_not_crowd_it(clockwork):
    """Parked names do so: each of them leads to the same robots.txt."""
    names = [f"http://n{number}.test" for number in range(5)]
    parked = "http://parked.test/robots.txt"
    crawl = clockwork({f"{name}/robots.txt": (301, b"", parked, None) for name in names})
    crawl.list(*(f"{name}/1" for name in names), "http://parked.test/1")
    crawl.run()
    assert len(crawl.times("parked.test")) == 5 + 2
    assert min(crawl.gaps("parked.test")) >= 1.0
    assert len(crawl.times("/1")) == 6


def test_a_gap_is_kept_across_a_restart(clockwork):
    robots = {"http://a.test/robots.txt": (200, DELAY, "", None)}
    first = clockwork(robots)
    first.list("http://a.test/1", "http://a.test/2")
    first.turn(), first.turn()
    second = clockwork(robots)
    second.now = first.now + 3
    second.run()
    assert second.times("/2") == [first.times("/1")[0] + 30.0]


def test_what_a_server_asks_us_to_wait_holds_across_a_restart(clockwork):
    first = clockwork(max_wait_s=900.0)
    first.list("http://a.test/1", "http://a.test/2")
    first.turn()
    job = first.frontier.next(first.now + 1)
    first.frontier.finished(job.host, first.now + 1, None, first.frontier.wait_of("status_429", 500.0, 1))
    second = clockwork()
    second.now = first.now + 3
    second.run()
    assert min(second.times("a.test")) == first.now + 1 + 500.0


def test_a_clock_that_was_wrong_keeps_nobody_waiting_for_ever(clockwork):
    first = clockwork()
    first.now += 10**8
    first.list("http://a.test/1", "http://a.test/2")
    first.turn(), first.turn()
    second = clockwork(max_wait_s=900.0)
    second.run()
    assert second.times("/2") == [1_000_000.0 + 900.0]


def test_rules_of_many_sites_take_little_memory(clockwork):
    long = b"User-agent: *\n" + b"#" * (MAX_SITES_BYTES // 3)
    hosts = [f"http://h{number}.test" for number in range(6)]
    crawl = clockwork({f"{host}/robots.txt": (200, long, "", None) for host in hosts})
    crawl.list(*(f"{host}/{number}" for host in hosts for number in range(3)))
    crawl.run()
    assert len(crawl.frontier.sites) == 2
    assert len(crawl.times("robots.txt")) == 6
    assert len(crawl.asked) == 6 + 18


def test_sitemaps_that_lead_to_further_sitemaps_come_to_an_end(clockwork):
    crawl = clockwork(max_depth=2, max_per_host=5)
    told = [crawl.state.add(Link(f"http://a.test/{depth}.xml", SITEMAP), 1, depth) for depth in range(5)]
    assert not any(told)
    crawl.state.add(Link("http://b.test/0.xml", SITEMAP), 1, 0)
    for number in range(10):
        crawl.state.add(Link(f"http://c.test/{number}.xml", SITEMAP), 1, 1)
    rows = crawl.state.db.execute("SELECT host, reason, COUNT(*) FROM urls GROUP BY host, reason ORDER BY host, reason")
    assert rows.fetchall() == [
        *[("a.test", "", 3), ("a.test", "depth", 2), ("b.test", "", 1)],
        *[("c.test", "", 5), ("c.test", "host_limit", 5)],
    ]


def test_a_database_of_an_earlier_version_is_brought_up_to_date_and_a_later_one_refused(tmp_path):
    path = tmp_path / "state.sqlite"
    with closing(opened(path)) as db:
        db.execute("INSERT INTO asked VALUES ('a.test', 7, 1, 1, 0, 0, 0, NULL)")
        db.execute("ALTER TABLE asked DROP COLUMN ready_at")
        set_meta(db, "version", 1)
    with closing(opened(path)) as db:
        assert get_meta(db, "version") == SCHEMA_VERSION
        assert db.execute("SELECT requests, ready_at FROM asked").fetchall() == [(7, None)]
        set_meta(db, "version", SCHEMA_VERSION + 1)
    with pytest.raises(ArtifactError, match=f"version {SCHEMA_VERSION + 1}"):
        opened(path)


def test_many_addresses_that_are_forbidden_do_not_hold_up_answers(clockwork):
    crawl = clockwork({"http://a.test/robots.txt": (200, b"User-agent: *\nDisallow: /", "", None)})
    crawl.list(*(f"http://a.test/{number}" for number in range(2 * PASSED_AT_ONCE + 100)))
    crawl.turn()
    crawl.now += 10
    left = []
    while not crawl.frontier.is_empty():
        assert crawl.frontier.next(crawl.now) is None
        assert crawl.frontier.is_empty() or crawl.frontier.ready_at() <= crawl.now
        left.append(crawl.state.num_to_do())
    assert left[:3] == [PASSED_AT_ONCE + 100, 100, 0]


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path):
    with closing(opened(tmp_path / "state.sqlite")) as db:
        set_meta(db, "kept", 1)
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(ArtifactError, match=r"cannot be written \(database or disk is full\)"), transaction(db):
            set_meta(db, "kept", 2)
            db.execute("INSERT INTO outbox (url, about, body) VALUES (1, '', zeroblob(1000000))")
        assert get_meta(db, "kept") == 1


def test_a_damaged_database_is_told(tmp_path):
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(ArtifactError, match="delete its directory"):
        opened(path)
