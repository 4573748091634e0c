"""The database of addresses: what another pass asks again, and what it makes of patterns."""

import pytest

import crawl.fetch.outbox
from crawl.fetch.database import DONE, FAILED, REFUSED, TODO
from crawl.fetch.faults import Refusal
from crawl.fetch.found import PAGE, PICTURE, About, Link, Picture
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


SEEN = About(tags=("seen",))


def job_of(state, url):
    return next(job for job in state.jobs("gallery.test", 1e18, 100) if job.url == url)


def row_of(state, url):
    return state.db.execute("SELECT kind, state, reason FROM urls WHERE url = ?", (url,)).fetchone()


def parcels_of(tmp_path):
    outbox = Outbox(tmp_path / "state.sqlite")
    found = [(parcel.url, parcel.about.tags, parcel.body, parcel.reason) for parcel in outbox.parcels(0)]
    outbox.close()
    return found


@pytest.mark.parametrize(("piece_bytes", "held"), [(10, [2, 2, 1, 0]), (1, [1, 1, 1, 1, 1, 0]), (1000, [5, 0])])
def test_few_large_pictures_are_held_at_a_time(piece_bytes, held, state, tmp_path, monkeypatch):
    monkeypatch.setattr(crawl.fetch.outbox, "_PIECE_BYTES", piece_bytes)
    state.add_entries([Picture(f"{GALLERY}/{number}.jpg") for number in range(5)], 0, True)
    for number, job in enumerate(state.jobs("gallery.test", 1e18, 100)):
        state.take(job)
        state.finish_picture(job, f"{number:016x}", bytes(5), Answered(200))
    pieces, read = [], Outbox._piece
    monkeypatch.setattr(Outbox, "_piece", lambda self, after: (pieces.append(read(self, after)), pieces[-1])[1])
    assert [url for url, *_ in parcels_of(tmp_path)] == [f"{GALLERY}/{number}.jpg" for number in range(5)]
    assert list(map(len, pieces)) == held


@pytest.mark.parametrize("reason", ["wrong_type", "too_many_bytes"])
def test_what_ended_as_no_page_becomes_a_picture_to_ask_for_when_it_is_embedded(reason, state):
    url = f"{GALLERY}/view/7"
    state.add_entries([Link(url)], 0, True)
    state.take(job := job_of(state, url))
    state.fail(job, reason, "", 200)
    assert row_of(state, url) == (PAGE, FAILED, reason)
    state.new_hosts.clear()
    state.add_entries([Picture(url, SEEN)], 1, True)
    assert row_of(state, url) == (PICTURE, TODO, "")
    assert state.new_hosts == {"gallery.test"}
    assert (state.tally["failed"], state.tally["to do"]) == (0, 1)
    assert state.mentioned(job.id) == SEEN
    state.fail(job_of(state, url), "status_404", "", 404)
    state.add_entries([Picture(url, About(tags=("again",)))], 2, True)
    assert row_of(state, url) == (PICTURE, FAILED, "status_404")


def test_what_lies_beyond_a_bound_on_pages_is_asked_for_as_a_picture(state):
    state.add_entries([Link(f"{GALLERY}/view/{number}") for number in range(60)], 0, True)
    url = f"{GALLERY}/view/55"
    assert row_of(state, url) == (PAGE, REFUSED, "pattern_limit")
    state.add_entries([Picture(url, SEEN)], 60, True)
    assert row_of(state, url) == (PICTURE, TODO, "")


@pytest.mark.parametrize(("reason", "ended"), [("robots", REFUSED), ("noai", REFUSED), ("status_404", FAILED)])
def test_what_is_forbidden_or_missing_stays_so_as_a_picture(reason, ended, state):
    url = f"{GALLERY}/view/7"
    state.add_entries([Link(url)], 0, True)
    (state.refuse if ended == REFUSED else state.fail)(job_of(state, url), reason, "", 0)
    state.add_entries([Picture(url, SEEN)], 1, True)
    assert row_of(state, url) == (PAGE, ended, reason)


def test_a_page_that_is_embedded_and_turns_out_too_large_for_a_page_is_asked_for_as_a_picture(state):
    url = f"{GALLERY}/view/7"
    state.add_entries([Link(url), Picture(url, SEEN)], 0, True)
    state.take(job := job_of(state, url))
    assert job.kind == PAGE
    state.fail(job, "too_many_bytes", "", 200)
    assert row_of(state, url) == (PICTURE, TODO, "")
    assert (state.tally["failed"], state.tally["to do"]) == (0, 1)


def test_an_answer_to_a_page_that_is_a_picture_counts_as_one_where_it_is_embedded(state, tmp_path):
    url = f"{GALLERY}/view/7"
    state.add_entries([Link(url), Picture(url, SEEN)], 0, True)
    state.take(job := job_of(state, url))
    assert state.is_mentioned(job.id)
    state.finish_picture(state.taken_as_picture(job), "0" * 16, b"bytes", Answered(200))
    assert row_of(state, url) == (PICTURE, DONE, "")
    assert parcels_of(tmp_path) == [(url, ("seen",), b"bytes", "")]


def test_a_page_that_moves_to_a_picture_hands_over_what_is_said_of_it(state, tmp_path):
    state.add_entries([Link(f"{GALLERY}/view/7"), Picture(f"{GALLERY}/7.jpg", About(tags=("seven",)))], 0, True)
    state.take(picture := job_of(state, f"{GALLERY}/7.jpg"))
    state.finish_picture(picture, "0" * 16, b"bytes", Answered(200))
    state.take(job := job_of(state, f"{GALLERY}/view/7"))
    with pytest.raises(Refusal, match="moved to"):
        state.move(job, f"{GALLERY}/7.jpg", 302)
    state.add_entries([Picture(f"{GALLERY}/view/7", SEEN)], 2, True)
    state.move(job, f"{GALLERY}/7.jpg", 302)
    assert [tags for _, tags, _, _ in parcels_of(tmp_path)] == [("seven",), ("seen",)]


def test_a_picture_that_moves_to_what_was_no_page_is_asked_for_there(state):
    state.add_entries([Link(f"{GALLERY}/view/7"), Picture(f"{GALLERY}/7.jpg", SEEN)], 0, True)
    state.take(page := job_of(state, f"{GALLERY}/view/7"))
    state.take(job := job_of(state, f"{GALLERY}/7.jpg"))
    with pytest.raises(Refusal, match="moved to"):
        state.move(job, f"{GALLERY}/view/7", 302)
    state.fail(page, "wrong_type", "", 200)
    state.move(job, f"{GALLERY}/view/7", 302)
    assert row_of(state, f"{GALLERY}/view/7") == (PICTURE, TODO, "")
    assert state.mentioned(page.id) == SEEN


def test_pages_that_embed_what_was_met_as_a_page_are_no_trap(state):
    state.add_entries([Link(f"{GALLERY}/view/{number}") for number in range(8)], 0, True)
    for number in range(8):
        state.add_entries([Link(f"{GALLERY}/page/{number}")], 8 + number, True)
        state.take(job := job_of(state, f"{GALLERY}/page/{number}"))
        state.finish_page(job, [Picture(f"{GALLERY}/view/{number}")], Answered(200))


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


def test_what_two_processes_ask_at_once_ends_once(state, tmp_path):
    """The fetching process of a killed crawl still waits for its answers when the next one begins."""
    state.add_entries([Picture(f"{GALLERY}/1.jpg")], 0, True)
    (job,) = state.jobs("gallery.test", 1e18, 9)
    state.take(job)
    later = State(tmp_path / "state.sqlite", BOUNDS)
    later.recover()
    (again,) = later.jobs("gallery.test", 1e18, 9)
    later.take(again)
    state.fail(job, "status_404", "", 404)
    later.fail(again, "status_404", "", 404)
    assert later.db.execute("SELECT COUNT(*) FROM outbox").fetchone() == (1,)
    assert later.num_to_do() == later.tally["to do"] == 0
    later.close()
