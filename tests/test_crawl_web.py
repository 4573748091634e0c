"""Source `web` against a whole web on loopback: all pictures with their tags, every fault named, nothing forbidden."""

import socket
import sqlite3
import sys
from collections import Counter

import pytest

import crawl.collect
from configs.artifacts import ArtifactError
from configs.compose import Paths
from crawl.collect import collect
from crawl.config import CrawlConfig, FetchOptions
from crawl.fetch.database import STATES
from crawl.records import image_id_of
from crawl.shards import Collection
from crawl.source_config import UrlsSource, WebSource
from crawl.sources.network import DATABASE, crawl_directory
from tests.gallery_server import HOSTS, MAX_BYTES, PICTURES, Gallery
from tests.network_watch import Watch
from tests.tiny import QuickGate

CLOSED_PORT = 1  # of the gallery's own faults
FETCHER = "-m crawl.fetch"
NAMES = {image_id_of(content): number for number, content in PICTURES.items()}


def fetch_options(**values):
    """Short waits, and names that lead to this machine; foreign ones do so unasked."""
    names = [f"{host}.test" for host in HOSTS]
    foreign = ["evil.test:127.0.0.1", "mixed.test:93.184.216.34", "mixed.test:127.0.0.1", "gone.test:"]
    resolve = [*(f"{name}:127.0.0.1" for name in names), *foreign, "public.test:93.184.216.34"]
    quick = {"gap_s": 0.0, "throttle": 0.0, "wait_s": 0.1, "connect_s": 5.0, "read_s": 3.0, "total_s": 5.0}
    bounds = {
        "max_bytes": MAX_BYTES,
        "max_page_bytes": MAX_BYTES,
        "max_per_pattern": 30,
        "max_barren": 8,
        "max_depth": 24,
    }
    known = {"contact": "https://crawler.test/", "allow_hosts": names, "resolve": resolve}
    return FetchOptions(**(quick | bounds | known | values))


def web_config(web, data, **values):
    source = WebSource(start=[web.url("gallery", "/")], hosts=["gallery.test", "rules.test", "traps.test"])
    return CrawlConfig(
        **{"paths": Paths(data=str(data)), "fetch": fetch_options(), "workers": 1, "source": source, **values}
    )


def outcomes(cfg):
    """Address -> state and reason."""
    db = sqlite3.connect(crawl_directory(cfg) / DATABASE)
    try:
        return {
            url: (STATES[state], reason) for url, state, reason in db.execute("SELECT url, state, reason FROM urls")
        }
    finally:
        db.close()


def tags_of(directory):
    """Number of a picture -> its tags as given."""
    tags = {}
    for row in Collection(directory).table(["tags"]).to_pylist():
        tags.setdefault(NAMES[row["image_id"]], set()).update(row["tags"])
    return tags


class Crawled:
    """One crawl of the whole web, and what it asked of the network."""

    def __init__(self, web, data, watch):
        self.web = web
        self.cfg = web_config(web, data)
        with watch:
            self.directory = collect(self.cfg)
        self.heard = watch.all
        self.asked = list(web.asked)
        self.outcomes = outcomes(self.cfg)

    def times(self, host, path):
        return [each.at for each in self.asked if (each.host, each.path) == (f"{host}.test", path)]


@pytest.fixture(scope="module")
def crawled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, Gallery() as web:
        patch.setattr(crawl.collect, "IsolatedGate", QuickGate)
        yield Crawled(web, tmp_path_factory.mktemp("web"), Watch(tmp_path_factory.mktemp("watch"), patch))


def test_all_pictures_come_with_exactly_their_tags(crawled):
    assert len(crawled.web.expected) >= 60
    assert tags_of(crawled.directory) == crawled.web.expected


def test_every_fault_is_named(crawled):
    assert len(crawled.web.faults) >= 40
    found = {url: crawled.outcomes.get(url, ("unknown", "")) for url in crawled.web.faults}
    expected = {url: (state, reason or found[url][1]) for url, (state, reason) in crawled.web.faults.items()}
    assert found == expected


def test_every_address_came_to_an_end(crawled):
    assert {state for state, _ in crawled.outcomes.values()} == {"done", "refused", "failed"}


def test_the_account_counts_every_picture_once(crawled):
    facts = Collection(crawled.directory).manifest.facts
    assert facts["num_items"] == facts["num_images"] + facts["num_duplicates"] + sum(facts["refused"].values())
    assert facts["num_images"] == len(crawled.web.expected)


def strays(heard, port):
    """What was asked of the network and was not the gallery, and programs besides the fetcher that might do so."""
    allowed = {("socket.connect", ("127.0.0.1", each)) for each in (port, CLOSED_PORT)}
    allowed |= {("subprocess.Popen", program) for program in (sys.executable, "uname", "git")}  # for the manifest
    return {(each.process, each.event, each.about) for each in heard if (each.event, each.about) not in allowed}


def test_no_connection_leads_outside_and_the_system_is_asked_for_no_name(crawled):
    by_fetcher = [each for each in crawled.heard if each.process == FETCHER]
    assert len(by_fetcher) >= len(HOSTS)
    assert strays(crawled.heard, crawled.web.port) == set()


def test_the_watch_hears_a_name_that_is_looked_up_and_a_connection_elsewhere(tmp_path, monkeypatch):
    """Names of this machine, which no server is asked for, and its ports."""
    monkeypatch.setattr(crawl.collect, "IsolatedGate", QuickGate)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
    (tmp_path / "list.txt").write_text(f"http://localhost:{port}/1.jpg\nhttp://127.0.0.1:{port}/1.jpg\n")
    fetch = fetch_options(allow_hosts=[f"127.0.0.1:{port}", "localhost"], attempts=1)
    source = UrlsSource(path=str(tmp_path / "list.txt"))
    config = CrawlConfig(paths=Paths(data=str(tmp_path / "data")), fetch=fetch, workers=1, source=source)
    with Watch(tmp_path, monkeypatch) as watch, pytest.raises(ArtifactError, match="none of 2 items"):
        collect(config)
    asked = {(FETCHER, "socket.getaddrinfo", "localhost"), (FETCHER, "socket.connect", ("127.0.0.1", port))}
    assert strays(watch.all, 0) == asked


def test_robots_txt_is_asked_first_and_kept(crawled):
    first = {}
    for each in crawled.asked:
        first.setdefault(each.host, each.path)
    assert set(first.values()) == {"/robots.txt"}
    forbidden = {("rules.test", "/private/1.jpg"), ("rules.test", "/x.secret"), ("rules.test", "/reserved/1.jpg")}
    forbidden |= {("moves.test", "/forbidden.jpg"), ("closed.test", "/1.jpg")}
    assert not forbidden & {(each.host, each.path) for each in crawled.asked}


def test_what_pages_keep_out_and_smaller_versions_are_not_asked_for(crawled):
    assert [each.path for each in crawled.asked if "never" in each.path or each.path.startswith("/s/")] == []


def test_a_crawl_delay_is_kept(crawled):
    times = [each.at for each in crawled.asked if each.host == "slow.test"]
    assert len(times) == 5
    assert times[-1] - times[1] > 0.6  # three gaps of 0.3; answers may be late, which the report's test does not mind


@pytest.mark.parametrize(("path", "seconds"), [("/seconds.jpg", 0.95), ("/date.jpg", 0.95)])
def test_a_host_that_asks_to_wait_is_left_alone_so_long(path, seconds, crawled):
    asked, again = crawled.times("busy", path)
    between = [each.at for each in crawled.asked if each.host == "busy.test" and asked < each.at < again]
    assert min([again, *between]) - asked > seconds


@pytest.mark.parametrize(
    ("host", "path", "times"),
    [
        ("busy", "/403.jpg", 1),
        ("busy", "/410.jpg", 1),
        ("busy", "/500.jpg", 3),
        ("busy", "/always.jpg", 3),
        ("bodies", "/bomb", 1),
        ("bodies", "/longer", 3),
        ("stalls", "/head", 3),
        ("traps", "/sessions", 1),
        ("closed", "/robots.txt", 3),
    ],
)
def test_what_may_pass_is_asked_three_times_and_what_stays_once(host, path, times, crawled):
    assert len(crawled.times(host, path)) == times


def test_requests_name_the_crawler_and_carry_nothing_else(crawled):
    assert {each.headers["user-agent"] for each in crawled.asked} == {"Tagtower/1.0 (+https://crawler.test/)"}
    names = {name for each in crawled.asked for name in each.headers}
    assert names <= {"user-agent", "accept", "accept-encoding", "host", "connection"}


def test_no_picture_is_asked_for_twice(crawled):
    counts = Counter((each.host, each.path) for each in crawled.asked if each.path.startswith("/p/"))
    assert set(counts.values()) == {1}


def test_a_picture_that_was_met_as_a_page_is_asked_for_again_only_where_its_bytes_were_let_go(crawled):
    times = {number: len(crawled.times("gallery", f"/view/{number}")) for number in (72, 73, 74, 75)}
    assert times == {72: 2, 73: 1, 74: 1, 75: 1}
    assert len(crawled.times("gallery", "/moved-view/74")) == 1
    assert crawled.outcomes[crawled.web.url("gallery", "/view/75")] == ("failed", "wrong_type")  # never embedded


def test_the_same_crawl_again_asks_for_nothing(crawled, caplog):
    before = len(crawled.web.asked)
    with caplog.at_level("INFO"):
        collect(crawled.cfg)
    assert "already done" in caplog.text
    assert len(crawled.web.asked) == before


def test_the_report_counts_by_outcome_host_status_tag_and_licence(crawled):
    text = (crawl_directory(crawled.cfg) / "report.txt").read_text(encoding="utf-8")
    titles = ["By outcome", "By host", "By status of HTTP", "By tag", "By licence", "Politeness"]
    assert [line for line in text.splitlines() if line in titles] == titles
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert {"picture failed stall 2 retry=stall", "picture failed status_410 1 asked once: it stays so"} <= lines
    assert {"embedded 22", "https://l.test/by 1", "503 1"} & lines == {"embedded 22", "https://l.test/by 1"}
    page = (crawl_directory(crawled.cfg) / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "src=" not in page


def test_the_politeness_report_shows_what_was_owed_and_kept(crawled):
    lines = (crawl_directory(crawled.cfg) / "report.txt").read_text(encoding="utf-8").splitlines()
    slow = next(line.split() for line in lines[lines.index("Politeness") :] if line.startswith("slow.test"))
    assert slow[1:4] == ["5", "0.3", "0.3"]
    assert float(slow[4]) >= 0.299
    busy = next(line.split() for line in lines[lines.index("Politeness") :] if line.startswith("busy.test"))
    assert int(busy[5]) >= 3
    assert float(busy[6]) > 1.2


def test_a_dry_run_asks_for_rules_alone(crawled, tmp_path, caplog):
    before = len(crawled.web.asked)
    start = [crawled.web.url("rules", path) for path in ("/private/1.html", "/meta-noai")] + [
        crawled.web.url("slow", "/")
    ]
    config = web_config(crawled.web, tmp_path, dry_run=True, source=WebSource(start=start))
    with caplog.at_level("INFO"):
        collect(config)
    assert {each.path for each in crawled.web.asked[before:]} == {"/robots.txt", "/.well-known/tdmrep.json"}
    told = {" ".join(line.split()) for line in caplog.text.splitlines()}
    assert {"rules.test 1 1 0 0.0 0.0", "slow.test 1 0 0 0.3 0.0"} <= told
    assert not (tmp_path / "collection" / "manifest.json").exists()
