"""The fetcher's turn-taking: when it reads on in a list, and when it waits."""

from types import SimpleNamespace

import pytest

import crawl.fetch.spider
from crawl.config import FetchOptions
from crawl.fetch.found import Picture
from crawl.fetch.spider import LIST_PIECE, POLL_S, Fetcher
from crawl.fetch.state import State
from crawl.fetch.urls import BadUrl
from tests.photo_apis import BOUNDS

NOW = 1e10
FREE = {"gap_s": 0.0, "throttle": 0.0, "robots": False, "opt_outs": False}


@pytest.fixture
def fetcher(tmp_path):
    """Return a fetcher of a list; nothing is asked, because no reactor runs."""
    opened = []

    def make(entries, **options):
        opened.append(State(tmp_path / "state.sqlite", BOUNDS))
        finder = SimpleNamespace(entries=lambda start: iter(entries[start:]))
        order = SimpleNamespace(collection=str(tmp_path), dry=False)
        return Fetcher(opened[0], FetchOptions(**FREE | options), finder, order)

    yield make
    opened[0].close()


def pictures(count, hosts=1):
    return [Picture(f"https://host{number % hosts}.test/{number}.jpg") for number in range(count)]


def turn(fetcher):
    fetcher._list_more()
    return fetcher._next()


def test_what_is_never_asked_for_does_not_slow_a_list_down(fetcher):
    bad = [BadUrl("scheme", f"ftp://host.test/{number}") for number in range(3 * LIST_PIECE)]
    ours = fetcher(bad)
    for _ in range(3):
        assert turn(ours) is None
        assert ours._pause_s(NOW) == 0
    assert turn(ours) is None
    assert ours._pause_s(NOW) == POLL_S


def test_a_list_is_read_ahead_only_so_far(fetcher, monkeypatch):
    monkeypatch.setattr(crawl.fetch.spider, "LIST_AHEAD", 2 * LIST_PIECE)
    ours = fetcher(pictures(4 * LIST_PIECE))
    assert [turn(ours) is None for _ in range(3)] == [False, True, True]
    assert ours.crawl.num_to_do() == 2 * LIST_PIECE - 1
    assert ours._pause_s(NOW) == POLL_S


def test_a_list_is_not_read_on_behind_a_bound_on_pictures(fetcher):
    ours = fetcher(pictures(2 * LIST_PIECE), max_pictures=1)
    assert turn(ours) is not None
    assert turn(ours) is None
    assert ours.crawl.num_to_do() == LIST_PIECE - 1
    assert ours._pause_s(NOW) == POLL_S


def test_hosts_that_are_ready_wait_for_an_answer_where_all_connections_are_taken(fetcher):
    ours = fetcher(pictures(9, hosts=9), concurrent=2)
    assert [turn(ours) is None for _ in range(3)] == [False, False, True]
    assert ours.frontier.ready_at() < NOW
    assert ours._pause_s(NOW) == POLL_S
