"""Crawls that are killed, tried again and refreshed: nothing lost, nothing twice, nothing asked in vain."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import crawl.collect
import crawl.fetch.process
import crawl.fetch.spider
from configs.artifacts import ArtifactError, read_manifest
from configs.compose import Paths
from crawl.collect import collect
from crawl.config import CrawlConfig
from crawl.fetch.process import TOLD, FetchProcess
from crawl.records import image_id_of
from crawl.shards import Collection, ShardWriter
from crawl.source_config import UrlsSource, WebSource
from crawl.tombstones import Tombstone, Tombstones, address_digest
from tests.forked import LARGEST_FILE
from tests.gallery_server import PICTURES, Gallery
from tests.test_crawl_web import fetch_options, outcomes, tags_of

NUM_KILLS = 20
pytestmark = pytest.mark.usefixtures("quick_crawl")


def list_config(web, folder, rows, **values):
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = UrlsSource(path=str(path))
    paths = Paths(data=str(folder / "data"))
    return CrawlConfig(**{"paths": paths, "fetch": fetch_options(), "workers": 1, "source": source, **values})


def rows_of(web, count, host="cdn"):
    return [{"url": web.url(host, f"/p/{number}.jpg"), "tags": ["all", f"number {number}"]} for number in range(count)]


def test_a_list_of_addresses_becomes_a_collection(web, tmp_path):
    rows = rows_of(web, 5)
    rows[1] |= {"caption": "second", "license": "CC0", "photographer": "Ann", "rating": 5}
    directory = collect(list_config(web, tmp_path, [*rows, {"url": ""}, {"tags": "x"}, {"url": "ftp://x.test/1.jpg"}]))
    assert tags_of(directory) == {number: {"all", f"number {number}"} for number in range(5)}
    columns = ["caption", "licence", "author", "extra", "source_url", "original_bytes"]
    second = Collection(directory).table(columns).to_pylist()[1]
    assert [second[name] for name in columns[:3]] == ["second", "CC0", "Ann"]
    assert json.loads(second["extra"]) == {"rating": 5}
    assert second["source_url"] == rows[1]["url"]
    assert second["original_bytes"] == len(PICTURES[1])
    assert read_manifest(directory).facts["refused"] == {"bad_row": 2, "scheme": 1}


def test_bytes_are_hashed_where_they_come_in_and_nowhere_else(web, tmp_path, monkeypatch):
    monkeypatch.setattr(crawl.collect, "image_id_of", None)
    directory = collect(list_config(web, tmp_path, rows_of(web, 2)))
    ids = Collection(directory).table(["image_id"])["image_id"].to_pylist()
    assert ids == [image_id_of(PICTURES[number]) for number in range(2)]


def test_one_picture_under_two_addresses_and_two_lines_is_one_image(web, tmp_path):
    rows = [{"url": web.url(host, "/p/7.jpg"), "tags": [host, "seven"]} for host in ("cdn", "gallery")]
    rows.append({"url": rows[0]["url"], "tags": ["again"]})
    directory = collect(list_config(web, tmp_path, rows))
    assert tags_of(directory) == {7: {"cdn", "gallery", "seven", "again"}}
    assert len([each for each in web.asked if each.path == "/p/7.jpg"]) == 2


def test_only_the_kind_that_is_named_is_tried_again(web, tmp_path):
    rows = rows_of(web, 2) + [{"url": web.url("busy", path)} for path in ("/500.jpg", "/410.jpg")]
    config = list_config(web, tmp_path, rows)
    collect(config)
    assert outcomes(config)[rows[2]["url"]] == ("failed", "status_500")
    before = len(web.asked)
    config.retry = "status_500"
    directory = collect(config)
    asked = [each.path for each in web.asked[before:] if each.path.endswith(".jpg")]
    assert asked == ["/500.jpg"] * 3
    assert read_manifest(directory).facts["refused"] == {"status_410": 1, "status_500": 2}


def test_retrying_what_never_failed_asks_for_nothing(web, tmp_path):
    config = list_config(web, tmp_path, rows_of(web, 2))
    collect(config)
    before = len(web.asked)
    config.retry = "timeout"
    collect(config)
    assert len(web.asked) == before


def test_a_list_that_has_grown_costs_its_new_lines(web, tmp_path):
    collect(list_config(web, tmp_path, rows_of(web, 3)))
    before = len(web.asked)
    directory = collect(list_config(web, tmp_path, [{"url": "x:y"}, *rows_of(web, 5)]))
    assert {each.path for each in web.asked[before:]} == {"/p/3.jpg", "/p/4.jpg"}
    assert set(tags_of(directory)) == set(range(5))


def test_a_list_that_cannot_be_read_is_no_end_of_a_crawl(web, tmp_path):
    config = list_config(web, tmp_path, rows_of(web, 2))
    (tmp_path / "list.parquet").write_bytes(b"PAR1 is all it says")
    config.source = UrlsSource(path=str(tmp_path / "list.parquet"))
    with pytest.raises(ArtifactError, match="as is told above"):
        collect(config)
    assert not (tmp_path / "data" / "collection" / "manifest.json").exists()


def test_a_refresh_asks_whether_something_changed_and_takes_what_did(web, tmp_path, monkeypatch):
    config = list_config(web, tmp_path, rows_of(web, 3))
    collect(config)
    config.refresh = True
    before = len(web.asked)
    collect(config)
    again = [each for each in web.asked[before:] if each.path.startswith("/p/")]
    assert [each.headers["if-none-match"] for each in again] == [f'"/p/{number}.jpg"' for number in range(3)]
    assert {reason for _, reason in outcomes(config).values()} == {"unchanged"}
    monkeypatch.setitem(PICTURES, 1, PICTURES[90])
    monkeypatch.setattr("tests.gallery_server.ETAG", "new")
    assert tags_of(collect(config)) == {n: {"all", f"number {n if n < 90 else 1}"} for n in (0, 1, 2, 90)}


def test_a_refresh_that_brings_nothing_new_is_no_failure(web, tmp_path, caplog):
    """Though some of the pages that it asks for are missing, as before."""
    config = gallery_config(web, tmp_path)
    config.source = WebSource(start=[web.url("gallery", "/ways/0")])
    collect(config)
    config.refresh = True
    before = len(web.asked)
    assert tags_of(collect(config)) == {0: web.expected[0]}
    assert {each.path for each in web.asked[before:]} == {"/ways/0", "/p/0.jpg"}
    config.refresh, config.retry = False, "timeouts"
    with caplog.at_level("WARNING"):
        collect(config)
    assert "nothing ended as retry=timeouts says; there are: 2 status_404" in caplog.text


def test_pages_without_a_picture_are_told_from_pages_that_were_not_read(web, tmp_path):
    config = gallery_config(web, tmp_path)
    config.source = WebSource(start=[web.url("gallery", "/ways/0")], picture=".none", follow=[])
    with pytest.raises(ArtifactError, match="no picture came: 1 read where the rules of the source find none"):
        collect(config)


def test_a_full_disk_is_told_in_a_sentence_and_loses_nothing(web, tmp_path, monkeypatch):
    """The log of the database may grow no further."""
    rows = rows_of(web, 40)
    config = list_config(web, tmp_path, rows)
    with monkeypatch.context() as full:
        full.setenv(LARGEST_FILE, "150000")
        with pytest.raises(ArtifactError, match="as is told above"):
            collect(config)
    assert set(tags_of(collect(config))) == set(range(40))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ArtifactError("no table"), "error: no table\n"),
        (
            sqlite3.OperationalError("disk is full"),
            "error: the state of the crawl cannot be read or written: disk is full\n",
        ),
    ],
)
def test_what_ends_a_fetching_process_is_told_in_one_line(error, told, monkeypatch, capsys):
    ends = []
    monkeypatch.setattr(crawl.fetch.spider.os, "_exit", ends.append)
    with crawl.fetch.spider.telling():
        raise error
    assert capsys.readouterr().err == told
    assert ends == [TOLD]


def test_an_address_that_was_taken_down_is_not_asked_for(web, tmp_path):
    rows = rows_of(web, 3)
    collection = tmp_path / "data" / "collection"
    collection.mkdir(parents=True)
    Tombstones(collection).add([Tombstone(addresses=(address_digest(rows[1]["url"]),))])
    directory = collect(list_config(web, tmp_path, rows))
    assert set(tags_of(directory)) == {0, 2}
    assert "/p/1.jpg" not in {each.path for each in web.asked}
    assert read_manifest(directory).facts["refused"] == {"taken_down": 1}


def test_certificates_are_verified_by_name_and_by_issuer(tmp_path, monkeypatch):
    """The server's certificate is for cdn.test, and trusted only because the environment says so."""
    rows = [{"url": f"https://{host}.test:{{port}}/p/1.jpg"} for host in ("cdn", "gallery")]
    certificate = write_certificate(tmp_path / "cdn.pem", "cdn.test")
    with Gallery(certificate=certificate) as web:
        rows = [{"url": row["url"].format(port=web.port)} for row in rows]
        config = list_config(web, tmp_path, rows)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        collect(config)
    assert outcomes(config) == {rows[0]["url"]: ("done", ""), rows[1]["url"]: ("failed", "tls")}


def write_certificate(path, name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(encoding))
    return path


def test_a_crawl_without_a_contact_is_refused(web, tmp_path):
    with pytest.raises(ArtifactError, match=r"fetch\.contact"):
        collect(list_config(web, tmp_path, rows_of(web, 1), fetch=fetch_options(contact="")))


def test_a_lost_collection_is_told_from_an_empty_one(web, tmp_path):
    config = list_config(web, tmp_path, rows_of(web, 2))
    (collect(config) / "manifest.json").unlink()
    (tmp_path / "data" / "collection" / "00000.parquet").unlink()
    with pytest.raises(ArtifactError, match="not there any more"):
        collect(config)


class Killed(BaseException):
    pass


def gallery_config(web, data):
    source = WebSource(start=[web.url("gallery", "/")], follow_skip="/faults/")
    return CrawlConfig(paths=Paths(data=str(data)), fetch=fetch_options(), workers=1, source=source, shard_size=10)


def expected_of(web):
    return {number: tags for number, tags in web.expected.items() if number < 100}


def test_a_crawl_whose_fetcher_is_killed_at_twenty_moments_loses_nothing(web, tmp_path, monkeypatch):
    """Each kill strikes when the server has seen eight more requests; sometimes the collector dies in a commit, too."""
    running, kills = [], 0
    start = FetchProcess.__init__
    monkeypatch.setattr(FetchProcess, "__init__", lambda self, order: (start(self, order), running.append(self))[0])
    commit = ShardWriter.commit

    def commit_or_die(self, state):
        commit(self, state)
        if kills % 3 == 1:
            raise Killed  # before the database hears of it

    monkeypatch.setattr(ShardWriter, "commit", commit_or_die)
    asked = web.asked

    class Deadly(list):
        def append(self, each):
            super().append(each)
            if kills < NUM_KILLS and len(self) >= 8 * (kills + 1) and running and running[-1]._process.poll() is None:
                running[-1]._process.send_signal(signal.SIGKILL)

    web.asked = Deadly(asked)
    config = gallery_config(web, tmp_path)
    for _ in range(3 * NUM_KILLS):
        try:
            directory = collect(config)
            break
        except (ArtifactError, Killed):
            kills += 1
    assert kills >= NUM_KILLS
    monkeypatch.setattr(ShardWriter, "commit", commit)
    assert tags_of(directory) == expected_of(web)
    assert not {state for state, _ in outcomes(config).values()} & {"to do", "in flight"}
    twice = len([each for each in web.asked if each.path.startswith("/p/")]) - len(
        {(each.host, each.path) for each in web.asked if each.path.startswith("/p/")}
    )
    assert twice <= kills  # no more than what was in flight


COMMAND = """
import json, sys
import crawl.collect
from tests.tiny import QuickGate
from tests.test_crawl_state import gallery_config
from types import SimpleNamespace
crawl.collect.IsolatedGate = QuickGate
url, data = sys.argv[1:]
crawl.collect.collect(gallery_config(SimpleNamespace(url=lambda host, path: url), data))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the fetching process in /proc")
def test_both_processes_may_be_killed_at_once(web, tmp_path):
    command = [sys.executable, "-c", COMMAND, web.url("gallery", "/"), str(tmp_path)]
    root = Path(__file__).resolve().parent.parent
    for moment in (5, 90):
        process = subprocess.Popen(command, cwd=root)
        deadline = time.monotonic() + 60
        while len(web.asked) < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in [process.pid, *map(int, children)]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert tags_of(collect(gallery_config(web, tmp_path))) == expected_of(web)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the fetching process in /proc")
def test_a_crawl_that_is_asked_to_end_does_so_within_seconds(web, tmp_path):
    config = [sys.executable, "-c", COMMAND, web.url("gallery", "/"), str(tmp_path)]
    process = subprocess.Popen(config, cwd=Path(__file__).resolve().parent.parent)
    deadline = time.monotonic() + 60
    while len(web.asked) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
