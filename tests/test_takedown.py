"""A takedown reaches every store, proves it, and is finished by running it again."""

import importlib
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import configs.artifacts
import crawl.takedown
from configs.artifacts import ArtifactError, atomic_write, read_manifest, save_array, seal, verify
from configs.compose import Paths, compose_typed
from configs.generations import current_generation, generations
from configs.verify import artifacts, lost_pointers
from crawl.config import ForgetConfig, TakedownConfig
from crawl.fetch.database import opened
from crawl.fetch.found import About
from crawl.ingest import Accepted
from crawl.ingest.wire import pack_verdict
from crawl.records import TEST, image_id_of
from crawl.shards import Collection
from crawl.takedown import FORGETTING, takedown
from crawl.tombstones import Tombstone, Tombstones, address_digest, jpeg_digest
from crawl.traces import row_digest, search, tells
from features.inverted_index import open_index
from serve.config import JudgementsConfig, PublishConfig
from serve.judgements import STORE, Judgement, Judgements, Vote, export
from serve.publish import publish
from serve.searchers.current import CurrentSearcher
from tests.synthetic import copy_line, evaluate_config, train_config, write_line, write_synthetic_collection
from tests.test_compare import compare_config
from tests.tiny import Killed, killed_after, picture, tagged, write_collection
from train.compare import compare
from train.config import ReverseConfig
from train.evaluate import evaluate
from train.fit import fit
from train.reverse import reverse

pytestmark = pytest.mark.usefixtures("one_thread")
GENERATIONS = ("index", "audit", "served/first", "served/second")


def in_this_process(module, cfg):
    importlib.import_module(module).forget(ForgetConfig(cfg.paths))
    return 0


@pytest.fixture(autouse=True)
def no_processes(monkeypatch):
    """Let later packages do their part here, where a kill can reach them."""
    monkeypatch.setattr(crawl.takedown, "_status", in_this_process)


@pytest.fixture(scope="module", autouse=True)
def few_flips():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.significance.SIGN_FLIPS", 1000)
        yield


def shown(paths):
    """An image that a comparison shows, and that therefore evaluations name, too."""
    found = json.loads((paths.run(".comparisons") / "second-vs-first" / "comparison.json").read_text())
    rows = [row for each in found["movers"] for row in (*each["gained"], *each["lost"])]
    return rows[0]["top"]["first"][0]["image_id"]


def audit_that_names(paths, image_id):
    """Let the audit in force leave an image out; its recipe stays."""
    directory = current_generation(paths.artifact("audit"), make="make audit")
    made = read_manifest(directory)
    atomic_write(directory / "left_out.txt", f"{image_id}\n")
    seal(
        directory, "audit", config=made.config, files=made.files, provenance=made.provenance, facts=made.facts,
        recipe=made.recipe,
    )  # fmt: skip


@pytest.fixture(scope="module")
def line(tmp_path_factory, one_thread) -> Paths:
    """Two runs, judged, compared, served and spoken of; moved since, so that its copies are as good."""
    root = tmp_path_factory.mktemp("takedown")
    paths = write_line(root / "made", jpeg=lambda record: picture(int(record.image_id, 16)))
    for run, rate in {"first": 0.01, "second": 1e-4}.items():
        fit(train_config(paths, run=run, max_epochs=1, learning_rate=rate))
        evaluate(evaluate_config(paths, run=run))
    compare(compare_config(paths, "second", "first"))
    for run in ("first", "second"):
        publish(PublishConfig(paths, run))
    reverse(ReverseConfig(paths, run="first", queries=0, cutoffs=[1], resamples=100))
    image_id = shown(paths)
    judgements = Judgements(paths)
    judgements.add(Judgement("dog", "dog", image_id, 1, 1, "first", "0", "ada"))
    judgements.add(Judgement("dog", "dog", "c" * 16, 1, 2, "first", "0", "ada"))
    judgements.add(Vote(f"like:{image_id}", "first", "second", "0", "1", "first", "ada"))
    export(JudgementsConfig(paths))
    calibration = paths.artifact("calibrations") / "synthetic-00000000-bf16"
    calibration.mkdir(parents=True)
    atomic_write(calibration / "judged.txt", f"{image_id}\n{'c' * 16}\n")
    seal(calibration, "calibration", config={}, files=["judged.txt"], content={"precision": "bf16"})
    audit_that_names(paths, image_id)
    (root / "made").rename(root / "moved")
    return Paths(str(root / "moved" / "data"), str(root / "moved" / "runs"))


@pytest.fixture
def own(line, tmp_path) -> Paths:
    return copy_line(line, tmp_path)


def asked(paths, *images, **values):
    return TakedownConfig(paths, images=list(images), reason="asked", **values)


def telling(paths, image_id):
    roots = [Path(paths.data), Path(paths.runs)]
    files = (path for root in roots for path in root.rglob("*") if path.is_file())
    return sorted(path.relative_to(Path(paths.data).parent).as_posix() for path in files if tells(path, [image_id]))


def sound(paths):
    roots = [Path(paths.data), Path(paths.runs)]
    return [line for each in artifacts(roots) for line in verify(each)] + lost_pointers(roots)


@pytest.fixture(scope="module")
def down(line, tmp_path_factory, one_thread):
    """The line after a takedown of an image that all stores held, and that image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crawl.takedown, "_status", in_this_process)
        paths = copy_line(line, tmp_path_factory.mktemp("down"))
        image_id = shown(paths)
        takedown(asked(paths, image_id))
    return paths, image_id


def test_every_kind_of_store_held_the_image_before(line):
    told = telling(line, shown(line))
    kinds = {
        "data/collection", "data/index", "data/image_features", "data/thumbnails", "data/audit", "data/calibrations",
        "data/served", "runs/first/evaluation/test", "runs/first/evaluation/reverse-labels-test", "runs/.comparisons",
        "runs/.judgements",
    }  # fmt: skip
    assert {kind for kind in kinds if not any(name.startswith(kind) for name in told)} == set()
    assert any(name.endswith("comparison.html") for name in told)
    assert any(name.endswith(STORE) or name.endswith(f"{STORE}-wal") for name in told)


def test_after_it_only_the_tombstone_names_the_image(down):
    paths, image_id = down
    assert telling(paths, image_id) == ["data/collection/tombstones"]


def test_everything_is_sound_and_complete_afterwards(down, line):
    paths, _ = down
    assert sound(paths) == []
    before, after = (
        {
            path.relative_to(Path(root).parent).as_posix()
            for root in (p.data, p.runs)
            for path in artifacts([Path(root)])
        }
        for p in (line, paths)
    )
    lasting = {name for name in before if not any(f"data/{kind}/" in name for kind in (*GENERATIONS, "tag_vectors"))}
    assert lasting <= after
    assert all(len(generations(Path(paths.data) / kind)) == 1 for kind in GENERATIONS)


def test_the_index_has_one_image_less_and_searches_go_on(down, line):
    paths, image_id = down
    assert open_index(paths)[0].num_images == open_index(line)[0].num_images - 1
    searcher = CurrentSearcher(paths, "first")()
    assert searcher.jpeg(image_id) is None


def test_what_was_said_of_other_images_stays(down):
    paths, _ = down
    with sqlite3.connect(paths.run(".judgements") / STORE) as store:
        assert [row[0] for row in store.execute("SELECT image_id FROM judgements")] == ["c" * 16]
        assert store.execute("SELECT COUNT(*) FROM votes").fetchone() == (0,)
    assert (paths.run(".judgements") / "judgements.qrels").read_text() == f"dog 0 {'c' * 16} 1\n"


def test_evaluations_and_comparisons_are_made_again_without_it(down):
    paths, _ = down
    directory = paths.run("first") / "evaluation" / "test"
    assert read_manifest(directory).provenance["index"] == open_index(paths)[1].content_id
    assert (paths.run(".comparisons") / "second-vs-first" / "comparison.html").is_file()
    assert "mAP" in (paths.run("first") / "README.md").read_text()


def test_features_of_the_others_are_kept_bit_for_bit(down, line):
    paths, image_id = down
    for store in ("image_features", "thumbnails"):
        for before in sorted((Path(line.data) / store).iterdir()):
            (old,), (new,) = (list((Path(root.data) / store / before.name).glob("*.npy")) for root in (line, paths))
            ids = old.with_suffix(".ids").read_text().split()
            kept = [row for row, each in enumerate(ids) if each != image_id]
            assert np.array_equal(np.load(new), np.load(old)[kept])
            assert new.with_suffix(".ids").read_text().split() == [ids[row] for row in kept]


def test_a_calibration_keeps_its_verdict(down, line):
    name = Path("calibrations") / "synthetic-00000000-bf16"
    paths, _ = down
    assert (Path(paths.data) / name / "judged.txt").read_text() == "c" * 16 + "\n"
    one, two = (read_manifest(Path(root.data) / name) for root in (line, paths))
    assert one.content_id == two.content_id


def test_a_tombstone_tells_why_and_when_and_holds_digests_alone(down):
    paths, image_id = down
    (stone,) = Tombstones(paths.artifact("collection")).all
    assert (stone.image_id, stone.reason) == (image_id, "asked")
    assert stone.date.endswith("+00:00")
    assert len(stone.jpeg) == 64
    assert len(stone.features) == 5  # two stores, thumbnails, and embeddings of two runs
    assert {len(each) for each in stone.features} == {64}


def test_running_it_again_without_arguments_changes_nothing_and_proves_it_again(down, caplog):
    paths, _ = down
    before = {path: path.stat().st_mtime_ns for path in Path(paths.data).rglob("*") if path.is_file()}
    caplog.set_level("INFO")
    takedown(TakedownConfig(paths))
    assert {path: path.stat().st_mtime_ns for path in Path(paths.data).rglob("*") if path.is_file()} == before
    assert "1 images: 1 tables decoded, 558 members of tars" in caplog.text


@pytest.mark.parametrize("after", [9, 60, 110])
def test_a_takedown_killed_at_any_write_is_finished_by_running_it_again(after, own, down, monkeypatch):
    undisturbed, image_id = down
    with monkeypatch.context() as patch:
        killed_after(patch, after, configs.artifacts)
        with pytest.raises(Killed):
            takedown(asked(own, image_id))
    takedown(TakedownConfig(own))
    assert telling(own, image_id) == ["data/collection/tombstones"]
    assert sound(own) == []
    for name in GENERATIONS:
        one, two = (current_generation(Path(each.data) / name, make="").name for each in (own, undisturbed))
        assert one.split("-")[0] == two.split("-")[0]


def test_an_unknown_image_is_a_slip_and_nothing_is_done(own):
    with pytest.raises(ArtifactError, match="holds no image 0123456789abcdef"):
        takedown(asked(own, "0123456789abcdef"))
    assert Tombstones(own.artifact("collection")).all == ()


def test_a_trace_that_no_stage_knows_of_fails_the_proof(down, tmp_path):
    paths, image_id = down
    own = copy_line(paths, tmp_path)
    (Path(own.data) / "notes.txt").write_text(f"see {image_id}")
    with pytest.raises(ArtifactError, match=r"notes\.txt' names"):
        takedown(TakedownConfig(own))


@pytest.fixture
def small(tmp_path) -> Paths:
    """A collection alone: two pictures of one page, a third with the same JPEG as the second, and a fourth."""
    paths = Paths(str(tmp_path / "data"), str(tmp_path / "runs"))
    page = "https://example.org/page"
    records = [tagged(number, "a") for number in range(1, 5)]
    sources = [f"https://example.org/{number}.jpg" for number in range(1, 5)]
    records = [replace(each, source_url=url) for each, url in zip(records, sources, strict=True)]
    records = [replace(each, page_url=page) if at < 2 else each for at, each in enumerate(records)]
    jpegs = {"1": b"one", "2": b"two", "3": b"two", "4": b"for"}
    write_synthetic_collection(
        paths.artifact("collection"), shards=[records], jpeg=lambda record: jpegs[record.image_id[-1]]
    )
    return paths


def left(paths):
    return [image_id[-1] for image_id in Collection(paths.artifact("collection")).table([])["image_id"].to_pylist()]


def test_by_url_in_any_spelling(small):
    takedown(TakedownConfig(small, urls=["http://EXAMPLE.org/1.jpg#top"], reason="asked"))
    assert left(small) == ["2", "3", "4"]
    assert Tombstones(small.artifact("collection")).is_taken_down(urls=["https://example.org/1.jpg"])


def test_by_page_all_its_pictures_go_and_it_is_never_asked_for(small):
    takedown(TakedownConfig(small, pages=["https://example.org/page"], reason="asked"))
    assert left(small) == ["4"]  # the third, too: it shows what the second showed
    stones = Tombstones(small.artifact("collection"))
    assert stones.is_taken_down(urls=["https://example.org/page"])
    assert stones.is_taken_down(urls=["https://example.org/2.jpg"])
    assert not stones.is_taken_down(urls=["https://example.org/4.jpg"])


def crawled(paths, name, urls, mentions=()):
    """Write the state of a crawl: rows of id, address, redirect and picture, and of picture, page and text."""
    database = paths.artifact("crawls") / name / "state.sqlite"
    database.parent.mkdir(parents=True)
    with closing(opened(database)) as db:
        for url_id, url, target, number in urls:
            image_id = f"{number:016x}" if number else None
            db.execute("INSERT INTO urls (id, url, host, kind, state, target, image_id) VALUES (?, ?, '', 2, 2, ?, ?)",
                       (url_id, url, target, image_id))  # fmt: skip
        db.executemany("INSERT INTO mentions VALUES (?, ?, ?)", mentions)


@pytest.mark.parametrize(
    "asked_for",
    [
        {"urls": ["https://cdn.test/equal.jpg"]},  # whose bytes came before from another address
        {"urls": ["https://example.org/moved"]},
        {"urls": ["https://part.test/away"]},  # through two parts
        {"urls": ["https://example.org/p%6fsitively/../mov%65d"]},
        {"pages": ["https://blog.test/"]},
        {"pages": ["https://old.test/"]},
        {"pages": ["https://rows.test/page"]},
    ],
)
def test_what_came_from_several_places_goes_by_any_of_them(small, asked_for):
    said = '[[], [], {"page_url": "https://rows.test/page"}, {}]'
    first = [(1, "https://example.org/1.jpg", None, 1), (2, "https://cdn.test/equal.jpg", None, 1)]
    moved = [(3, "https://example.org/moved", 1, None), (4, "https://blog.test/", None, None)]
    crawled(small, "web", [*first, *moved, (5, "https://old.test/", 4, None)], [(3, 4, "[]"), (2, -1, said)])
    crawled(
        small, "urls/parts/0", [(1, "https://part.test/away", 2, None), (2, "https://cdn.test/equal.jpg", None, None)]
    )
    takedown(TakedownConfig(small, reason="asked", **asked_for))
    assert left(small) == ["2", "3", "4"]
    stones = Tombstones(small.artifact("collection"))
    for url in (first[1][1], first[0][1], *asked_for.get("urls", ()), *asked_for.get("pages", ())):
        assert stones.is_taken_down(urls=[url])


@pytest.mark.parametrize("spelling", ["https://münchen.test/ü.jpg", "https://xn--mnchen-3ya.test/%c3%bc.jpg"])
def test_an_address_is_taken_down_as_browsers_and_crawls_write_it(small, spelling):
    takedown(TakedownConfig(small, urls=[spelling], reason="asked"))
    assert Tombstones(small.artifact("collection")).is_taken_down(urls=["https://xn--mnchen-3ya.test/%C3%BC.jpg"])


def test_a_crawl_forgets_what_it_fetched_and_keeps_its_address_as_refused(small):
    database = small.artifact("crawls") / "web-00000000" / "state.sqlite"
    database.parent.mkdir(parents=True)
    gone, waiting = f"{1:016x}", b"bytes that wait for the gate"
    with closing(opened(database)) as db:
        for number, image_id in ((1, gone), (2, f"{2:016x}"), (3, None)):
            url = f"https://example.org/{number}.jpg"
            db.execute("INSERT INTO urls (id, url, host, kind, state, image_id) VALUES (?, ?, '', 2, 2, ?)",
                       (number, url, image_id))  # fmt: skip
            db.execute("INSERT INTO mentions VALUES (?, 9, ?)", (number, f"about {number}"))
        db.execute("INSERT INTO outbox (url, about, image_id) VALUES (1, 'secret', ?)", (gone,))
        db.execute("INSERT INTO outbox (url, about, body) VALUES (3, 'secret', ?)", (waiting,))
    Tombstones(small.artifact("collection")).add([Tombstone(image_id_of(waiting))])
    takedown(asked(small, gone))
    with closing(opened(database)) as db:
        assert db.execute("SELECT state, reason, image_id FROM urls ORDER BY id").fetchall() == [
            (3, "taken_down", None), (2, "", f"{2:016x}"), (2, "", None),
        ]  # fmt: skip
        assert db.execute("SELECT url FROM mentions ORDER BY url").fetchall() == [(2,), (3,)]
        assert db.execute("SELECT reason, image_id, body FROM outbox").fetchall() == [("taken_down", None, None)] * 2
    for path in database.parent.iterdir():
        assert not any(each in path.read_bytes() for each in (gone.encode(), waiting, b"secret", b"about 1"))


def test_bytes_that_a_crawl_has_dropped_go_even_where_a_takedown_was_killed_before(small):
    database = small.artifact("crawls") / "urls-00000000" / "state.sqlite"
    database.parent.mkdir(parents=True)
    Tombstones(small.artifact("collection")).add([Tombstone(f"{5:016x}")])
    with closing(opened(database)) as db:
        db.execute("INSERT INTO urls (url, host, kind, state, reason) VALUES ('https://a/5', 'a', 3, 3, 'taken_down')")
        db.execute("INSERT INTO outbox (url, about, body) VALUES (1, '', ?)", (b"pixels" * 5000,))
        db.execute("DELETE FROM outbox")
    assert any(b"pixels" in path.read_bytes() for path in database.parent.iterdir())
    takedown(TakedownConfig(small))
    assert not any(b"pixels" in path.read_bytes() for path in database.parent.iterdir())


def test_a_part_of_a_crawl_forgets_what_the_gate_has_made_already(small):
    """By address, by the bytes that came, and by the JPEG that the gate made of other bytes."""
    database = small.artifact("crawls") / "urls-00000000" / "parts" / "001" / "state.sqlite"
    database.parent.mkdir(parents=True)
    made = {number: pack_verdict(Accepted(b"JPEG %d" % number, 1, 1, "png", 1, 1, 9)) for number in (5, 6, 7, 8)}
    with closing(opened(database)) as db:
        for number, verdict in made.items():
            db.execute("INSERT INTO urls (id, url, host, kind, state, image_id) VALUES (?, ?, 'a', 3, 2, ?)",
                       (number, f"https://example.org/{number}.jpg", f"{number:016x}"))  # fmt: skip
            db.execute("INSERT INTO outbox (seq, url, about) VALUES (?, ?, ?)", (number, number, About().as_json()))
            db.execute("INSERT INTO gated VALUES (?, ?)", (number, verdict))
    stones = [Tombstone(f"{5:016x}"), Tombstone(addresses=(address_digest("https://example.org/6.jpg"),))]
    Tombstones(small.artifact("collection")).add([*stones, Tombstone(jpeg=jpeg_digest(b"JPEG 7"))])
    takedown(TakedownConfig(small))
    with closing(opened(database)) as db:
        assert db.execute("SELECT seq FROM gated").fetchall() == [(8,)]
        assert db.execute("SELECT seq, reason FROM outbox").fetchall() == [
            *((number, "taken_down") for number in (5, 6, 7)), (8, None),
        ]  # fmt: skip
    for path in database.parent.iterdir():
        assert not any(b"JPEG %d" % number in path.read_bytes() for number in (5, 6, 7))


def test_an_address_that_nothing_came_from_is_never_asked_for(small):
    takedown(TakedownConfig(small, urls=["https://example.org/other.jpg"], reason="asked"))
    assert left(small) == ["1", "2", "3", "4"]
    (stone,) = Tombstones(small.artifact("collection")).all
    assert (stone.image_id, stone.addresses) == ("", (address_digest("https://example.org/other.jpg"),))
    takedown(TakedownConfig(small, urls=["https://example.org/other.jpg"], reason="asked"))
    assert len(Tombstones(small.artifact("collection")).all) == 1


def test_the_last_picture_of_a_collection_may_go(small):
    takedown(asked(small, *(f"{number:016x}" for number in range(1, 5))))
    assert left(small) == []
    assert sound(small) == []


def test_the_proof_finds_a_jpeg_a_name_and_a_feature(tmp_path):
    row = np.arange(4, dtype=np.float16)
    write_collection(tmp_path / "c", [tagged(1, "a")], jpeg=b"the picture")
    save_array(tmp_path / "rows.npy", np.stack([row + 1, row]))
    (tmp_path / "abcdefabcdefabcd.txt").write_text("")
    stones = [
        Tombstone("f" * 16, jpeg="", features=("x",)),
        Tombstone("abcdefabcdefabcd"),
        Tombstone(jpeg=jpeg_digest(b"the picture")),
        Tombstone(features=(row_digest(row),)),
    ]
    searched = search([tmp_path], stones)
    assert len(searched.found) == 3
    assert searched.num_tables == 1


def test_a_compressed_table_is_looked_into(tmp_path):
    table = write_collection(tmp_path / "c", [tagged(7, "a")]) / "00000.parquet"
    assert tells(table, [f"{7:016x}"])
    assert pq.read_table(table).num_rows == 1
    assert not tells(table, ["f" * 16])


@pytest.mark.parametrize("at", [0, 2**24 - 8, 2**24 - 16, 2**24, 2**24 + 5])
def test_a_name_is_found_wherever_it_stands_in_a_large_file(at, tmp_path):
    content = bytearray(b"z" * (2**24 + 100))
    content[at : at + 16] = b"0123456789abcdef"
    (tmp_path / "large").write_bytes(content)
    assert tells(tmp_path / "large", ["0123456789abcdef"]) == {"0123456789abcdef"}
    many = [f"{number:016x}" for number in range(40)]
    assert tells(tmp_path / "large", ["0123456789abcdef", *many]) == {"0123456789abcdef"}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("images=[dog]", "16 hex digits"),
        ("urls=[example.org]", "whole addresses"),
        ("images=[0123456789abcdef]", "reason"),
    ],
)
def test_what_cannot_be_meant_is_refused(override, told):
    with pytest.raises(ValueError, match=told):
        compose_typed("takedown", TakedownConfig, [override])


def test_later_packages_do_their_part_by_these_modules():
    assert [importlib.import_module(module).forget.__module__ for module in FORGETTING] == list(FORGETTING)


def test_the_held_out_image_is_a_test_image(line):
    index, _ = open_index(line)
    assert index.splits[index.image_row(shown(line))] == TEST
