"""A bound on the pictures of a crawl: never passed, named at the end, and a later run goes on behind it."""

from collections import Counter

import pytest

from configs.artifacts import read_manifest
from crawl.collect import collect
from crawl.config import FetchOptions
from crawl.fetch.database import set_meta
from crawl.fetch.found import API, Link, Picture
from crawl.fetch.frontier import Frontier
from crawl.fetch.outbox import Outbox, Rest
from crawl.fetch.report import write_report
from crawl.fetch.state import Answered, State
from crawl.sources.network import crawl_directory
from tests.photo_apis import BOUNDS
from tests.test_crawl_state import expected_of, gallery_config, list_config, rows_of
from tests.test_crawl_web import fetch_options, outcomes, tags_of

HOSTS = ("https://one.test", "https://two.test")
pytestmark = pytest.mark.usefixtures("quick_crawl")


@pytest.fixture
def state(tmp_path):
    opened = State(tmp_path / "state.sqlite", BOUNDS)
    yield opened
    opened.close()


def frontier_of(state, bound):
    options = FetchOptions(max_pictures=bound, per_host=100, gap_s=0, throttle=0, robots=False, opt_outs=False)
    return Frontier(state, options)


def handed_out(frontier, now=1e10):
    jobs = []
    while (job := frontier.next(now)) is not None:
        jobs.append(job)
    return jobs


def came(state, frontier, job, body=b""):
    """Let a picture come, or fail where it has no bytes."""
    if body:
        state.finish_picture(job, f"{job.id:016x}", body, Answered(200))
    else:
        state.fail(job, "status_404", "", 404)
    frontier.finished(job.host, 1e10, None, job_id=job.id)


def add_pictures(state, count, position=0):
    state.add_entries([Picture(f"{HOSTS[n % 2]}/{n}.jpg") for n in range(count)], position, True)


@pytest.mark.parametrize("bound", [1, 3, 7])
def test_no_more_is_handed_out_than_may_come(bound, state):
    add_pictures(state, 10)
    frontier = frontier_of(state, bound)
    jobs = handed_out(frontier)
    assert len(jobs) == bound
    came(state, frontier, jobs.pop())
    more = handed_out(frontier)
    assert len(more) == 1
    for job in jobs + more:
        assert not frontier.is_empty()
        came(state, frontier, job, b"picture")
    assert handed_out(frontier) == []
    assert frontier.is_empty()
    assert state.num_to_do() == 10 - bound - 1


def test_without_a_bound_everything_is_handed_out(state):
    add_pictures(state, 10)
    assert len(handed_out(frontier_of(state, 0))) == 10


def test_pictures_of_earlier_runs_count(state, tmp_path):
    add_pictures(state, 5)
    frontier = frontier_of(state, 3)
    for job in handed_out(frontier):
        came(state, frontier, job, b"picture")
    again = State(tmp_path / "state.sqlite", BOUNDS)
    assert handed_out(frontier_of(again, 3)) == []
    assert len(handed_out(frontier_of(again, 4))) == 1
    again.close()


def test_behind_the_bound_a_refresh_asks_for_what_came_and_for_no_page_of_a_list(state, tmp_path):
    add_pictures(state, 5)
    frontier = frontier_of(state, 3)
    first = handed_out(frontier)
    for job in first:
        came(state, frontier, job, b"picture")
    state.add_entries([Link(f"{HOSTS[0]}/api?page=1", API)], 5, True)
    outbox = Outbox(tmp_path / "state.sqlite")
    assert outbox.begin_pass(refresh=True) == 3
    outbox.close()
    frontier = frontier_of(state, 3)
    jobs = handed_out(frontier)
    assert sorted(job.url for job in jobs) == sorted(job.url for job in first)
    for job in jobs:
        state.finish_unchanged(job)
        frontier.finished(job.host, 1e10, None, job_id=job.id)
    assert handed_out(frontier) == []
    assert frontier.is_empty()


def test_a_host_that_must_wait_does_not_hold_up_the_end(state):
    add_pictures(state, 4)
    frontier = frontier_of(state, 1)
    (job,) = handed_out(frontier)
    state.finish_picture(job, "0" * 16, b"picture", Answered(200))
    frontier.finished(job.host, 1e10, None, wait_s=3600, job_id=job.id)
    assert frontier.is_empty()


def test_a_list_stops_at_the_bound_and_a_later_run_goes_on_there(web, tmp_path, caplog):
    fetch = {"max_pictures": 5, "per_host": 4}
    rows = [{"url": web.url("busy", "/410.jpg"), "tags": []}, *rows_of(web, 8)]
    config = list_config(web, tmp_path, rows, fetch=fetch_options(**fetch))
    with caplog.at_level("INFO"):
        directory = collect(config)
    assert len(tags_of(directory)) == len(pictures(web)) == 5
    assert list(outcomes(config).values()).count(("to do", "")) == 3
    told = "fetch.max_pictures=5 is reached: 3 addresses stay to do"
    assert told in caplog.text
    assert reported(config)["to do"] == ("3", "fetch.max_pictures=0")
    caplog.clear()
    before = len(web.asked)
    with caplog.at_level("INFO"):
        collect(config)
    assert len(web.asked) == before
    assert "already done" in caplog.text
    assert told in caplog.text
    config.fetch.max_pictures = 7
    assert len(tags_of(collect(config))) == 7
    config.fetch.max_pictures = 0
    caplog.clear()
    assert tags_of(collect(config)) == {number: {"all", f"number {number}"} for number in range(8)}
    assert "max_pictures" not in caplog.text
    assert sorted(pictures(web)) == sorted(f"/p/{number}.jpg" for number in range(8))
    facts = read_manifest(directory).facts
    assert (facts["num_items"], facts["num_images"], facts["refused"]) == (9, 8, {"status_410": 1})


def pictures(web):
    return [each.path for each in web.asked if each.path.startswith("/p/")]


def reported(config):
    """Outcome -> count and way out, of what the report tells of pictures."""
    text = (crawl_directory(config) / "report.txt").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if line.startswith("picture ")]
    return {" ".join(row[1:3]): (row[-2], row[-1]) for row in rows}


def test_what_of_a_list_was_not_read_is_told(web, tmp_path, caplog):
    config = list_config(web, tmp_path, rows_of(web, 3), fetch=fetch_options(max_pictures=2))
    collect(config)
    outbox = Outbox(crawl_directory(config) / "state.sqlite")
    assert outbox.rest() == Rest(1, None)
    set_meta(outbox.db, "listed", 0)  # as it is where the list is long
    page = write_report(tmp_path, outbox.db, "")
    outbox.close()
    caplog.clear()
    with caplog.at_level("INFO"):
        collect(config)
    assert "1 addresses stay to do, and the list from line 4 on" in caplog.text
    report = page.with_suffix(".txt").read_text(encoding="utf-8")
    assert "list to do from line 4 fetch.max_pictures=0" in {" ".join(line.split()) for line in report.splitlines()}


def test_a_web_crawl_reads_no_page_behind_the_bound(web, tmp_path):
    config = gallery_config(web, tmp_path)
    config.fetch.max_pictures = 12
    collect(config)
    assert len(pictures(web)) == 12
    assert outcomes(config)[web.url("gallery", "/keywords")] == ("to do", "")
    pages = [path for path in web.paths("gallery") if path in {"/", *web.pages}]
    assert len(pages) < 50 < len(web.pages)  # pictures come before further pages, but for those that are in memory
    config.fetch.max_pictures = 0
    assert tags_of(collect(config)) == expected_of(web)
    counts = Counter((each.host, each.path) for each in web.asked)
    assert {where for where, count in counts.items() if count > 1} == {("gallery.test", "/view/72")}  # by need


def test_a_bound_below_nothing_is_refused():
    with pytest.raises(ValueError, match=r"fetch\.max_pictures must be 0 or more"):
        FetchOptions(max_pictures=-1)
