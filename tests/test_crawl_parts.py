"""Lists in parts: the same collection as from one loop, each host asked by one worker, nothing lost in between."""

import json
import os
import signal
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import crawl.collect
import crawl.fetch.process
import crawl.parts.source
import crawl.parts.worker
from configs.artifacts import ArtifactError, read_manifest
from configs.compose import Paths
from configs.executors import ExecutorConfig, map_parts
from crawl.collect import collect
from crawl.config import CrawlConfig, GateOptions
from crawl.fetch.database import united
from crawl.fetch.shares import Share, part_of, site_of
from crawl.parts.split import PartRows, split
from crawl.shards import Collection, ShardWriter
from crawl.source_config import FolderSource, PartSource, UrlsSource
from crawl.sources.network import DATABASE, crawl_directory
from crawl.sources.url_list import UrlList
from tests.forked import QuickProcesses
from tests.gallery_server import PICTURES
from tests.test_crawl_state import list_config
from tests.test_crawl_web import fetch_options, tags_of
from tests.tiny import QuickGate

NAMES = [f"s{number}" for number in range(12)]  # of hosts that nothing is special about
PARTS = 3


@pytest.fixture
def quick(quick_crawl, monkeypatch):
    """Run parts in a loop here, too."""
    monkeypatch.setattr(crawl.parts.worker, "IsolatedGate", QuickGate)
    monkeypatch.setattr(
        crawl.parts.source, "map_parts", lambda work, parts, _: map_parts(work, parts, ExecutorConfig())
    )


def options(**values):
    given = fetch_options()
    names = [f"{name}.test" for name in (*NAMES, "www.s1")]
    return fetch_options(
        **{
            "resolve": [*given.resolve, *(f"{name}:127.0.0.1" for name in names)],
            "allow_hosts": [*given.allow_hosts, *names],
            **values,
        }
    )


def parted(web, folder, rows, **values):
    return list_config(
        web, folder, rows, **{"fetch": options(), "executor": ExecutorConfig("ray"), "parts": PARTS, **values}
    )


def through(web, *hosts):
    """An address that leads from host to host before there is a picture."""
    url = web.url("cdn", "/p/60.jpg")
    for host in hosts:
        url = web.url(host, f"/to/{quote(url, safe='')}")
    return url


def rows_of(web, count):
    """Pictures over all hosts, and everything that may become of a row."""
    rows = [
        {"url": web.url(NAMES[number % len(NAMES)], f"/p/{number}.jpg"), "tags": ["all", f"n{number}"]}
        for number in range(count)
    ]
    rows += [
        {"url": rows[0]["url"], "tags": ["again"], "author": "Ann"},  # mentioned twice
        {"url": web.url("s7", "/p/1.jpg"), "tags": ["seven"]},  # the bytes of another host's
        {"url": web.url("s2", f"/to/{quote(web.url('cdn', '/p/50.jpg'))}"), "tags": ["moved", "far"]},
        {"url": web.url("s3", f"/to/{quote(web.url('cdn', '/p/50.jpg'))}"), "tags": ["moved too"]},
        {"url": web.url("s4", f"/to/{quote(web.url('s5', '/to/' + quote(web.url('s6', '/p/51.jpg'))))}")},
        {"url": web.url("s8", f"/to/{quote(web.url('s9', '/p/9.jpg'))}"), "tags": ["and elsewhere"]},  # of the list
        {"url": web.url("gallery", "/round"), "tags": ["never"]},
        {"url": through(web, "s1", "s2", "s3", "s4", "s5", "s6", "s7"), "tags": ["too far"]},
        {"url": web.url("s1", "/none.jpg"), "tags": ["missing"]},
        {"url": web.url("rules", "/noai.jpg")},
        {"url": "ftp://s1.test/1.jpg"},
        {"tags": "no address"},
    ]
    return rows


def told(directory):
    """What a collection tells of its pictures, whatever their order, and of what is not in it."""
    columns = ["tags", "author", "source_url", "original_bytes", "width"]
    rows = {}
    for row in Collection(directory).table(columns).to_pylist():
        entry = rows.setdefault(row["image_id"], {"tags": set(), "url": set()})
        entry["tags"] |= set(row["tags"])
        entry |= {name: row[name] for name in ("author", "original_bytes", "width") if row[name]}
    facts = read_manifest(directory).facts
    refused = Counter()
    for path in sorted((directory / "refused").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            refused[(row.get("key"), row["reason"])] += 1
    return rows, facts["num_images"], facts["refused"], refused


@given(st.from_regex(r"([a-z]{1,5}\.){0,3}[a-z]{1,6}(\.co\.uk|\.com|\.test)", fullmatch=True), st.integers(1, 256))
def test_a_host_belongs_to_one_part_with_all_of_its_site(host, parts):
    owners = [number for number in range(parts) if Share(number, parts).owns(host)]
    assert owners == [part_of(host, parts)] == [part_of(f"www.{site_of(host)}", parts)]


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("www.example.co.uk", "example.co.uk"),
        ("a.b.example.com", "example.com"),
        ("ann.github.io", "ann.github.io"),  # whose neighbours are strangers
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("[::1]", "[::1]"),
    ],
)
def test_a_site_is_what_may_redirect_to_itself(host, site):
    assert site_of(host) == site


def test_parts_bring_what_one_loop_brings(web, tmp_path, quick):
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    rows = rows_of(web, 30)
    one = told(collect(list_config(web, tmp_path / "one", rows, fetch=options())))
    before = len(web.asked)
    config = parted(web, tmp_path / "many", rows)
    assert told(collect(config)) == one
    asked = Counter((each.host, each.path) for each in web.asked[before:] if "/robots" not in each.path)
    assert asked == Counter((each.host, each.path) for each in web.asked[:before] if "/robots" not in each.path)
    assert set(asked.values()) == {1}
    assert one[2] == {
        "bad_row": 1,
        "noai": 1,
        "redirect_loop": 1,
        "scheme": 1,
        "status_404": 1,
        "too_many_redirects": 1,
    }
    report = (crawl_directory(config) / "report.txt").read_text()
    assert "redirect_loop" in report
    assert "handed over" not in report
    again = len(web.asked)
    collect(config)  # nothing is left to do
    assert len(web.asked) == again


def test_a_host_is_asked_by_one_worker_that_keeps_its_gap(web, tmp_path, quick):
    rows = [{"url": web.url(name, f"/p/{number}.jpg")} for name in NAMES[:2] for number in range(4)]
    config = parted(web, tmp_path, rows, fetch=options(gap_s=0.15))
    collect(config)
    with closing(united(crawl_directory(config).rglob(DATABASE))) as db:
        asked = db.execute("SELECT host, requests, min_gap FROM asked ORDER BY host").fetchall()
    assert [(host, requests) for host, requests, _ in asked] == [("s0.test", 6), ("s1.test", 6)]  # 2 of rules
    assert min(least for _, _, least in asked) >= 0.15


def test_what_failed_is_asked_again_in_its_part_and_nothing_else(web, tmp_path, quick):
    rows = [*rows_of(web, 6)[:6], {"url": web.url("busy", "/500.jpg")}, {"url": web.url("busy", "/410.jpg")}]
    config = parted(web, tmp_path, rows)
    collect(config)
    before = len(web.asked)
    config.retry = "status_500"
    directory = collect(config)
    assert [each.path for each in web.asked[before:] if each.path.endswith(".jpg")] == ["/500.jpg"] * 3
    assert read_manifest(directory).facts["refused"] == {"status_410": 1, "status_500": 2}
    before = len(web.asked)
    collect(config)
    assert {each.path for each in web.asked[before:] if each.path.endswith(".jpg")} == {"/500.jpg"}


def test_a_refresh_asks_every_part_what_has_changed(web, tmp_path, quick, monkeypatch):
    rows = [*rows_of(web, 6)[:6], {"url": web.url("s2", f"/to/{quote(web.url('cdn', '/p/50.jpg'))}"), "tags": ["far"]}]
    config = parted(web, tmp_path, rows)
    collect(config)
    config.refresh = True
    before = len(web.asked)
    directory = collect(config)
    again = [each for each in web.asked[before:] if each.path.startswith("/p/")]
    assert len(again) == 7
    assert all("if-none-match" in each.headers for each in again)
    monkeypatch.setitem(PICTURES, 50, PICTURES[90])
    monkeypatch.setattr("tests.gallery_server.ETAG", "new")
    assert collect(config) == directory
    assert tags_of(directory)[90] == {"far"}


def test_a_list_that_has_grown_costs_its_new_rows(web, tmp_path, quick):
    collect(parted(web, tmp_path, rows_of(web, 4)[:4]))
    before = len(web.asked)
    directory = collect(parted(web, tmp_path, rows_of(web, 6)[:6], parts=0))
    assert {each.path for each in web.asked[before:] if each.path.endswith(".jpg")} == {"/p/4.jpg", "/p/5.jpg"}
    assert set(tags_of(directory)) == set(range(6))
    with pytest.raises(ArtifactError, match="crawled in 3 parts, not in 7"):
        collect(parted(web, tmp_path, rows_of(web, 6), parts=7))


def test_a_crawl_goes_on_as_it_began(web, tmp_path, quick):
    rows = rows_of(web, 2)[:2]
    collect(list_config(web, tmp_path, rows, fetch=options()))
    with pytest.raises(ArtifactError, match="executor=local began it"):
        collect(parted(web, tmp_path, rows))
    with pytest.raises(ArtifactError, match="holds this crawl in parts; go on with executor=ray"):
        config = parted(web, tmp_path, rows, paths=Paths(data=str(tmp_path / "other")))
        split(UrlList(config.source), crawl_directory(config), 2)
        collect(replace(config, executor=ExecutorConfig()))
    with pytest.raises(ArtifactError, match="is for source=urls; leave it out with source=folder"):
        collect(CrawlConfig(paths=Paths(data=str(tmp_path)), source=FolderSource(), executor=ExecutorConfig("ray")))


def test_a_bound_on_pictures_is_for_one_loop(web, tmp_path):
    with pytest.raises(ArtifactError, match=r"fetch\.max_pictures=9 is for executor=local"):
        collect(parted(web, tmp_path, rows_of(web, 1), fetch=options(max_pictures=9)))


def test_a_dry_run_tells_of_all_parts_and_asks_for_rules_alone(web, tmp_path, quick, caplog):
    with caplog.at_level("INFO"):
        collect(parted(web, tmp_path, rows_of(web, 12), dry_run=True))
    assert {each.path for each in web.asked} == {"/robots.txt", "/.well-known/tdmrep.json"}
    told = {line.split()[0]: line.split()[1] for line in caplog.text.splitlines() if ".test " in line}
    assert {name: told[f"{name}.test"] for name in NAMES} == {name: "1" for name in NAMES} | {
        "s1": "2",  # with what is not there
        **dict.fromkeys(("s2", "s3", "s4", "s8"), "2"),
        "s7": "3",  # with the end of what leads too far
    }
    assert not list(tmp_path.rglob("dry.sqlite*"))


def test_what_one_gate_judged_is_not_mixed_with_anothers(web, tmp_path, quick, monkeypatch):
    config = parted(web, tmp_path, rows_of(web, 4)[:4])
    with monkeypatch.context() as broken:
        broken.setattr(crawl.parts.source.PartedList, "items", lambda self, start: (1 / 0 for _ in "x"))
        with pytest.raises(ZeroDivisionError):
            collect(config)
    with pytest.raises(ArtifactError, match=r"another gate.*: max_side_px=512\. Go on with that"):
        collect(replace(config, gate=GateOptions(max_side_px=64)))
    assert set(tags_of(collect(config))) == set(range(4))


def test_a_part_without_rows_takes_no_worker(web, tmp_path, quick, monkeypatch):
    given = []
    start = crawl.parts.worker.PartCrawler.__call__
    monkeypatch.setattr(
        crawl.parts.worker.PartCrawler, "__call__", lambda self, part: (given.append(part), start(self, part))[1]
    )
    directory = collect(parted(web, tmp_path, rows_of(web, 1)[:1], parts=40))
    assert len(given) == 1
    assert set(tags_of(directory)) == {0}


class Killed(BaseException):
    pass


def test_kills_between_the_steps_of_collecting_lose_nothing(web, tmp_path, quick, monkeypatch):
    """The collector dies before or after each of its commits, and while it seals part by part."""
    rows = rows_of(web, 24)
    config = parted(web, tmp_path, rows, shard_size=5)
    steps = [(ShardWriter, "commit"), (crawl.parts.source.PartedList, "committed"), (crawl.parts.source.Outbox, "seal")]
    kills = 0

    def deadly(original):
        def step(*given):
            nonlocal kills
            done = original(*given)
            if kills < 12:
                kills += 1
                raise Killed
            return done

        return step

    for kind, name in steps:
        monkeypatch.setattr(kind, name, deadly(getattr(kind, name)))
    for _ in range(20):
        try:
            directory = collect(config)
            break
        except Killed:
            continue
    assert kills == 12
    asked = Counter((each.host, each.path) for each in web.asked if each.path.endswith(".jpg"))
    assert set(asked.values()) == {1}
    monkeypatch.undo()
    (tmp_path / "one").mkdir()
    monkeypatch.setattr(crawl.collect, "IsolatedGate", QuickGate)
    assert told(directory) == told(collect(list_config(web, tmp_path / "one", rows, fetch=options())))


def worker_pids():
    """Processes of Ray that hold a worker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_Actor"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_ray_brings_the_same_though_workers_are_killed_midway(web, tmp_path, cluster, monkeypatch):
    rows = rows_of(web, 36)
    asked, kills = web.asked, []

    class Deadly(list):
        def append(self, each):
            super().append(each)
            if len(kills) < 2 and len(self) >= 25 * (len(kills) + 1) and (pids := worker_pids()):
                kills.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

    web.asked = Deadly(asked)
    config = parted(web, tmp_path, rows, executor=ExecutorConfig(**cluster))
    directory = collect(config)
    assert len(kills) == 2
    web.asked = []
    (tmp_path / "one").mkdir()
    monkeypatch.setattr(crawl.fetch.process, "subprocess", QuickProcesses)
    monkeypatch.setattr(crawl.collect, "IsolatedGate", QuickGate)
    assert told(directory) == told(collect(list_config(web, tmp_path / "one", rows, fetch=options())))


def test_rows_of_parts_are_those_of_the_list(tmp_path):
    rows = [{"url": f"http://h{n % 7}.test/{n}", "tags": ["a", f"{n}"], "x": n} for n in range(50)] + [{"no": 1}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    listed = UrlList(UrlsSource(path=str(tmp_path / "list.jsonl")))
    parts = split(listed, tmp_path, 5)
    found = [
        list(PartRows(PartSource(path=str(tmp_path / part.directory / "rows.jsonl"))).entries(0)) for part in parts
    ]
    assert [len(each) for each in found] == [part.num_rows for part in parts]
    assert Counter(map(repr, listed.entries(0))) == Counter(repr(entry) for each in found for entry in each)
    for number, each in enumerate(found):
        assert {part_of(entry.url.split("/")[2], 5) for entry in each if hasattr(entry, "about")} <= {number}
    assert split(listed, tmp_path, 0) == parts
