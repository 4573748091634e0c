"""The database of addresses: what another pass asks again, and what it makes of patterns."""

import pytest

from crawl.fetch.found import PAGE, Link, Picture
from crawl.fetch.outbox import Outbox
from crawl.fetch.register import Bounds
from crawl.fetch.state import Answered, State
from crawl.fetch.urls import BadUrl

BOUNDS = Bounds(max_depth=9, max_per_host=100, max_per_pattern=50, max_barren=5, max_redirects=5)
GALLERY = "https://gallery.test"


@pytest.fixture
def state(tmp_path):
    opened = State(tmp_path / "state.sqlite", BOUNDS)
    yield opened
    opened.close()


def read(state, pages):
    """Read all pages that are to do; each shows its pictures and nothing else."""
    for job in state.jobs("gallery.test", 1e18, 100):
        if job.kind == PAGE:
            state.take(job)
            state.finish_page(job, [Picture(url) for url in pages.get(job.url, ())], Answered(200))


def test_pages_that_are_read_again_leave_room_for_new_ones_of_their_pattern(state, tmp_path):
    pages = {f"{GALLERY}/photo/{number}": [f"{GALLERY}/{number}.jpg"] for number in range(8)}
    state.add_entries([Link(url) for url in pages], 0, True)
    read(state, pages)
    outbox = Outbox(tmp_path / "state.sqlite")
    assert outbox.begin_pass(refresh=True) == 8
    outbox.close()
    read(state, pages)  # eight in a row that show nothing new, more than `max_barren`
    state.add_entries([Link(f"{GALLERY}/photo/8")], 0, True)
    assert [job.url for job in state.jobs("gallery.test", 1e18, 100) if job.kind == PAGE] == [f"{GALLERY}/photo/8"]


def test_pages_of_a_pattern_that_never_show_a_picture_are_still_a_trap(state):
    for number in range(8):
        state.add_entries([Link(f"{GALLERY}/calendar/{number}")], 0, True)
        read(state, {})
    rows = state.db.execute("SELECT url FROM urls WHERE reason = 'barren_pattern'").fetchall()
    assert [url for (url,) in rows] == [f"{GALLERY}/calendar/{number}" for number in (5, 6, 7)]


def test_what_is_no_address_is_not_tried_again(state, tmp_path):
    state.add_entries([BadUrl("scheme", "ftp://gallery.test/1.jpg"), Link("http://")], 0, True)
    outbox = Outbox(tmp_path / "state.sqlite")
    assert outbox.begin_pass(["scheme", "malformed_url"]) == 0
    outbox.close()
    assert state.num_to_do() == 0


def test_pictures_that_lie_in_shards_take_no_room_any_more(state, tmp_path):
    state.add_entries([Picture(f"{GALLERY}/{number}.jpg") for number in range(40)], 0, True)
    for number, job in enumerate(state.jobs("gallery.test", 1e18, 40)):
        state.take(job)
        state.finish_picture(job, f"{number:016x}", bytes(100_000), Answered(200))
    state.close()
    database = tmp_path / "state.sqlite"
    assert database.stat().st_size > 4_000_000
    outbox = Outbox(database)
    outbox.drop(40)
    outbox.seal()
    outbox.close()
    assert database.stat().st_size < 200_000
    state.db = Outbox(database).db  # for the fixture, which closes it
