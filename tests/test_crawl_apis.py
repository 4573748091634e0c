"""Sources over APIs from the config to the collection, over loopback: what is kept, what is asked, what is not."""

import json
import re
import signal
import sqlite3
from collections import Counter

import pytest

from configs.artifacts import ArtifactError
from configs.compose import Paths
from crawl.collect import collect
from crawl.config import CrawlConfig, FetchOptions
from crawl.fetch.database import STATES
from crawl.fetch.found import KINDS
from crawl.fetch.process import FetchProcess
from crawl.shards import Collection
from crawl.source_config import FlickrSource, OpenverseSource, WikimediaSource
from crawl.sources.network import DATABASE, crawl_directory
from tests.photo_apis import KEY, TOKEN, PhotoServer, Reply
from tests.test_photo_apis import CC_BY_SA, file, lagged, photo, result

QUICK = {
    "contact": "https://crawler.test/",
    "gap_s": 0.0,
    "throttle": 0.0,
    "wait_s": 0.1,
    "read_s": 5.0,
    "total_s": 9.0,
}
COLUMNS = ("tags", "title", "caption", "source_url", "page_url", "licence", "author", "group", "extra")


@pytest.fixture
def server():
    with PhotoServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(quick_crawl, monkeypatch):
    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    monkeypatch.delenv("OPENVERSE_TOKEN", raising=False)


def config(server, data, source, **values):
    fetch = FetchOptions(**{**QUICK, "allow_hosts": [server.host], **values.pop("fetch", {})})
    return CrawlConfig(paths=Paths(data=str(data)), fetch=fetch, workers=1, source=source, **values)


def flickr_source(server, **values):
    return FlickrSource(**{"api": f"{server.url}/services/rest/", "search": ["cat"], **values})


def openverse_source(server, **values):
    return OpenverseSource(**{"api": f"{server.url}/v1/images/", "search": ["cat"], **values})


def rows_of(directory):
    rows = Collection(directory).table(list(COLUMNS)).to_pylist()
    return {
        row["source_url"]: {name: row[name] for name in COLUMNS} | {"extra": json.loads(row["extra"])} for row in rows
    }


def outcomes(cfg):
    db = sqlite3.connect(crawl_directory(cfg) / DATABASE)
    try:
        rows = db.execute("SELECT kind, state, reason FROM urls").fetchall()
        return Counter((KINDS[kind], STATES[state], reason) for kind, state, reason in rows)
    finally:
        db.close()


def test_files_of_a_wiki_become_a_collection(server, tmp_path):
    cat = {"title": "Cat 1.jpg", "categories": ["Black cats", "Katzen"], "metadata": CC_BY_SA, "user": "Ann"}
    fair = file("Fair.jpg", licence="Fair use")
    server.wiki.categories = {"Category:Cats": [7, 8, "Category:Kittens"], "Category:Kittens": [9, 7]}
    server.wiki.files = {7: cat, 8: fair, 9: file("Kitten.jpg", "Kittens", licence="CC0")}
    server.wiki.first = [lagged()]
    source = WikimediaSource(project=server.url, categories=["Cats"], depth=1)
    rows = rows_of(collect(config(server, tmp_path, source, fetch={"max_wait_s": 1.0})))
    pictures = f"{server.url}/pictures"
    wiki = server.host
    assert rows == {
        f"{pictures}/thumb/7.jpg": {
            "tags": ["Black cats", "Katzen"],
            "title": "Sleeping cat",
            "caption": "A cat. Asleep.",
            "source_url": f"{pictures}/thumb/7.jpg",
            "page_url": f"{server.url}/wiki/File:Cat_1.jpg",
            "licence": "CC BY-SA 4.0",
            "author": "Ann & Bob",
            "group": f"{wiki}/Ann",
            "extra": {"licence_url": CC_BY_SA["LicenseUrl"], "original_url": f"{pictures}/7.jpg"},
        },
        f"{pictures}/thumb/9.jpg": {
            "tags": ["Kittens"],
            "title": "Kitten",
            "caption": "",
            "source_url": f"{pictures}/thumb/9.jpg",
            "page_url": f"{server.url}/wiki/File:Kitten.jpg",
            "licence": "CC0",
            "author": "Uploader",
            "group": f"{wiki}/Uploader",
            "extra": {"original_url": f"{pictures}/9.jpg"},
        },
    }
    assert (
        server.wiki.log[1][""]["at"] - server.wiki.log[0][""]["at"] > 0.95
    )  # five seconds are asked for, one is the cap
    assert [path for path, _ in server.asked if "/8.jpg" in path] == []


def test_results_of_openverse_become_a_collection(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENVERSE_TOKEN", TOKEN)
    server.openverse.results = [result(number, url=f"{server.url}/pictures/{number}.jpg") for number in range(1, 46)]
    server.openverse.first = [Reply({"detail": "Request was throttled."}, 429, {"Retry-After": "1"})]
    cfg = config(server, tmp_path, openverse_source(server, page_size=30))
    rows = rows_of(collect(cfg))
    assert len(rows) == 45
    row = rows[f"{server.url}/pictures/1.jpg"]
    assert (row["tags"], row["licence"], row["author"]) == (["cat"], "CC BY 2.0", "Ann")
    assert (row["page_url"], row["group"]) == ("https://pages.test/1", "https://pages.test/ann")
    assert [asked["page"] for asked in server.openverse.log] == ["1", "1", "2"]
    assert server.openverse.log[1][""]["at"] - server.openverse.log[0][""]["at"] > 0.95
    assert {asked[""]["Authorization"] for asked in server.openverse.log} == {f"Bearer {TOKEN}"}
    assert not [path for path, headers in server.asked if "Authorization" in headers or TOKEN in path]
    assert_nowhere(TOKEN, tmp_path)


def assert_nowhere(secret, directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert [path for path in files if path.name == DATABASE]
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_photos_of_flickr_become_a_collection_without_the_key(server, tmp_path, capfd, caplog):
    urls = {number: f"{server.url}/pictures/{number}.jpg" for number in (1, 2, 3)}
    server.flickr.photos = [photo(number, url_l=url) for number, url in urls.items()]
    server.flickr.photos[1] |= {"license": "12", "tags": "dog", "title": {"_content": "Second"}}
    cfg = config(server, tmp_path, flickr_source(server))
    with caplog.at_level("DEBUG"):
        rows = rows_of(collect(cfg))
    assert {number: (rows[url]["tags"], rows[url]["licence"]) for number, url in urls.items()} == {
        1: (["cat", "tabby"], "CC BY-SA 2.0"),
        2: (["dog"], "CC BY-SA 4.0"),
        3: (["cat", "tabby"], "CC BY-SA 2.0"),
    }
    assert rows[urls[2]]["title"] == "Second"
    assert rows[urls[2]]["page_url"] == "https://www.flickr.com/photos/12037949754@N01/2"
    assert_nowhere(KEY, tmp_path)
    assert KEY not in caplog.text + "".join(capfd.readouterr())
    assert not [path for path, _ in server.asked if KEY in path]


def test_a_redirect_of_an_api_that_repeats_the_key_is_neither_followed_nor_kept(server, tmp_path):
    moved = {"Location": f"{server.url}/elsewhere?api_key={KEY}"}
    server.flickr.first = [Reply(b"", 302, moved)]
    server.flickr.photos = [photo(1, url_l=f"{server.url}/pictures/1.jpg")]
    cfg = config(server, tmp_path, flickr_source(server))
    with pytest.raises(ArtifactError):
        collect(cfg)
    assert server.asked == []
    assert_nowhere(KEY, tmp_path)


@pytest.mark.parametrize("name", ["wikimedia", "openverse", "flickr"])
def test_nothing_is_asked_without_a_contact(server, tmp_path, name):
    sources = {
        "wikimedia": WikimediaSource(project=server.url, categories=["Cats"]),
        "openverse": openverse_source(server),
        "flickr": flickr_source(server),
    }
    with pytest.raises(ArtifactError, match=r"fetch\.contact is empty"):
        collect(config(server, tmp_path, sources[name], fetch={"contact": ""}))
    assert server.wiki.log == server.openverse.log == server.flickr.log == []


def test_nothing_is_asked_without_a_key(server, tmp_path, monkeypatch):
    monkeypatch.delenv("FLICKR_API_KEY")
    with pytest.raises(ArtifactError, match="environment variable FLICKR_API_KEY"):
        collect(config(server, tmp_path, flickr_source(server)))
    assert server.flickr.log == []


def test_a_crawl_over_an_api_that_is_killed_again_and_again_loses_nothing(server, tmp_path, monkeypatch):
    """Four quarters of a day with pictures; kills strike between halves and among pictures."""
    running, kills, moments = [], 0, [3, 14]
    start = FetchProcess.__init__
    monkeypatch.setattr(FetchProcess, "__init__", lambda self, *order: (start(self, *order), running.append(self))[0])
    server.flickr.crowded_s = 86400 // 4
    day = 1_262_217_600  # 2009-12-31
    urls = {number: f"{server.url}/pictures/{number}.jpg" for number in range(24)}
    server.flickr.photos = [photo(number, dateupload=day + 3600 * number, url_l=url) for number, url in urls.items()]
    answer = server.reply

    def answer_or_kill(path, headers):
        nonlocal kills
        if kills < len(moments) and len(server.flickr.log) + len(server.asked) >= moments[kills]:
            kills += 1
            running[-1]._process.send_signal(signal.SIGKILL)
        return answer(path, headers)

    server.reply = answer_or_kill
    cfg = config(server, tmp_path, flickr_source(server, since="2009-12-31", until="2009-12-31"))
    for _ in range(len(moments)):
        with pytest.raises(ArtifactError, match="run the same command again"):
            collect(cfg)
    rows = rows_of(collect(cfg))
    assert set(rows) == set(urls.values())
    asked = Counter(path for path, _ in server.asked if path.startswith("/pictures/"))
    assert sum(asked.values()) <= 24 + len(moments)  # one in flight at each kill
    # Licences, the day, two halves, four quarters.
    assert outcomes(cfg) == {("api", "done", ""): 8, ("picture", "done", ""): 24}
    assert len(server.flickr.log) <= 8 + len(moments)


def test_a_list_that_breaks_off_is_said_to_be_cut_and_goes_on_when_tried_again(server, tmp_path, caplog):
    server.wiki.categories = {"Category:A": [1], "Category:B": [2]}
    server.wiki.files = {1: file("F1.jpg", "A"), 2: file("F2.jpg", "B")}
    server.wiki.first = [lagged()]
    source = WikimediaSource(project=server.url, categories=["A", "B"])
    cfg = config(server, tmp_path, source, fetch={"max_wait_s": 0.1, "attempts": 1})
    assert len(rows_of(collect(cfg))) == 1
    assert "1 busy (maxlag: Waiting for 10.64.0.1: 6.1 seconds lagged.)" in caplog.text
    assert "retry=busy" in caplog.text
    cfg.retry = "busy"
    assert len(rows_of(collect(cfg))) == 2


def test_a_crawl_that_brought_nothing_begins_anew(server, tmp_path):
    server.openverse.first = [Reply({"detail": "Invalid token."}, 401)]
    server.openverse.results = [result(1, url=f"{server.url}/pictures/1.jpg")]
    cfg = config(server, tmp_path, openverse_source(server))
    with pytest.raises(ArtifactError, match=r"no picture came: 1 status_401 \(Invalid token\.\)"):
        collect(cfg)
    assert len(rows_of(collect(cfg))) == 1


def test_a_host_of_ones_own_is_opened_after_it_was_refused(server, tmp_path):
    server.openverse.results = [result(1, url=f"{server.url}/pictures/1.jpg")]
    closed = config(server, tmp_path, openverse_source(server), fetch={"allow_hosts": []})
    with pytest.raises(ArtifactError, match=r"no picture came: 1 port.*fetch\.allow_hosts=\[<host>:<port>\] opens"):
        collect(closed)
    assert len(rows_of(collect(config(server, tmp_path, openverse_source(server))))) == 1


def test_a_rehearsal_tells_whom_it_would_ask_and_asks_nothing_of_an_api(server, tmp_path, caplog, capfd):
    with caplog.at_level("INFO"):
        collect(config(server, tmp_path, flickr_source(server), dry_run=True))
    assert server.flickr.log == server.asked == []
    told = caplog.text + "".join(capfd.readouterr())
    assert re.search(r"127\.0\.0\.1 +1 +0 +0 ", told)  # one address would be asked, none is forbidden or out of reach
    assert KEY not in told


def test_behind_a_bound_on_pictures_no_more_of_a_list_is_asked_for(server, tmp_path):
    server.wiki.categories = {"Category:Cats": list(range(1, 21))}
    server.wiki.files = {number: file(f"Cat {number}.jpg", "Cats") for number in range(1, 21)}
    server.wiki.list_limit = 2
    source = WikimediaSource(project=server.url, categories=["Cats"])
    cfg = config(server, tmp_path, source, fetch={"max_pictures": 4})
    assert len(rows_of(collect(cfg))) == 4
    asked = len(server.wiki.log)
    assert outcomes(cfg)[("api", "to do", "")] > 0
    cfg.fetch.max_pictures = 0
    assert len(rows_of(collect(cfg))) == 20
    assert asked < len(server.wiki.log) == 20  # ten pieces of the list, and the details of each
    paths = [path for path, _ in server.asked if path.startswith("/pictures/")]
    assert len(paths) == len(set(paths)) == 20
