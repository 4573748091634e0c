"""Stage `crawl`: every item accounted for, equal bytes one image, and kills that leave no trace."""

import json
import tarfile
import weakref

import pyarrow.parquet as pq
import pytest

import crawl.collect
from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import Paths
from crawl.collect import collect
from crawl.config import CrawlConfig, GateOptions
from crawl.ingest import GATE_VERSION, IsolatedGate, ingest
from crawl.records import image_id_of
from crawl.shards import Collection, ShardWriter
from crawl.source_config import FolderSource, WebDatasetSource
from crawl.sources.item import Ledger, SourceItem
from crawl.tombstones import Tombstone, Tombstones, jpeg_digest
from tests.tiny import NUM_PICTURES, crawl_config, picture, write_tree

pytestmark = pytest.mark.usefixtures("quick_gate")


@pytest.fixture
def tree(tmp_path):
    """Six pictures, one of them twice; a text and its double, an empty file and a link."""
    root = write_tree(tmp_path / "tree", count=6)
    for name, content in {"a.txt": b"text", "b.txt": b"text", "empty.jpg": b""}.items():
        (root / name).write_bytes(content)
    (root / "link.jpg").symlink_to(root / "a.txt")
    return root


def facts(directory):
    return read_manifest(directory).facts


def content_id(directory):
    return read_manifest(directory).content_id


def tags_of(directory):
    tags = {}
    for row in Collection(directory).table(["tags"]).to_pylist():
        tags.setdefault(row["image_id"], set()).update(row["tags"])
    return tags


def test_every_item_is_accounted_for(tree, tmp_path):
    found = facts(collect(crawl_config(tmp_path / "d", tree)))
    assert found["num_items"] == 11
    assert (found["num_images"], found["num_duplicates"]) == (6, 1)
    assert found["refused"] == {"empty": 1, "link": 1, "not_an_image": 2}


@pytest.mark.parametrize("shard_size", [1, 2, 3, 6, 7])
def test_totals_hold_at_every_size_of_shard(shard_size, tree, tmp_path):
    found = facts(collect(crawl_config(tmp_path / "d", tree, shard_size=shard_size)))
    assert found["num_items"] == 11
    assert found["num_images"] + found["num_duplicates"] + sum(found["refused"].values()) == 11


def test_duplicates_behind_the_last_full_shard_are_counted(tmp_path):
    tree = write_tree(tmp_path / "tree", count=6)
    (tree / "plant" / "rose" / "last.jpg").write_bytes(picture(2))
    found = facts(collect(crawl_config(tmp_path / "d", tree, shard_size=6)))
    assert (found["num_items"], found["num_images"], found["num_duplicates"]) == (8, 6, 2)


def test_equal_bytes_are_one_image_with_their_tags_united(tree, tmp_path):
    directory = collect(crawl_config(tmp_path / "d", tree))
    assert tags_of(directory)[image_id_of(picture(0))] == {"animal", "dog", "pet"}


def test_a_double_of_something_refused_is_refused_for_the_same_reason(tree, tmp_path):
    directory = collect(crawl_config(tmp_path / "d", tree))
    lines = (directory / "refused" / "00000.jsonl").read_text().splitlines()
    reasons = {entry["key"]: entry["reason"] for entry in map(json.loads, lines)}
    assert reasons == {"a.txt": "not_an_image", "b.txt": "not_an_image", "empty.jpg": "empty", "link.jpg": "link"}


def test_the_isolated_gate_gives_the_same_collection(tree, tmp_path, monkeypatch):
    quick = collect(crawl_config(tmp_path / "a", tree))
    monkeypatch.setattr(crawl.collect, "IsolatedGate", IsolatedGate)
    assert content_id(collect(crawl_config(tmp_path / "b", tree))) == content_id(quick)


def test_a_finished_collection_verifies(tree, tmp_path):
    assert verify(collect(crawl_config(tmp_path / "d", tree))) == []


def everything(directory):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


def test_the_same_command_again_changes_nothing(tree, tmp_path, caplog):
    directory = collect(crawl_config(tmp_path / "d", tree))
    before = everything(directory)
    with caplog.at_level("INFO"):
        collect(crawl_config(tmp_path / "d", tree))
    assert everything(directory) == before
    assert "already done" in caplog.text


def test_ten_new_pictures_add_one_shard(tree, tmp_path):
    directory = collect(crawl_config(tmp_path / "d", tree))
    before = everything(directory)
    write_tree(tree, count=16)
    collect(crawl_config(tmp_path / "d", tree))
    added = {path.name for path in everything(directory).keys() - before.keys()}
    assert added == {"00001.tar", "00001.parquet", "00001.jsonl"}
    assert pq.read_table(directory / "00001.parquet").num_rows == 10
    assert everything(directory)[directory / "00000.tar"] == before[directory / "00000.tar"]


def test_new_tags_of_a_known_image_are_a_row_of_the_next_shard(tree, tmp_path):
    directory = collect(crawl_config(tmp_path / "d", tree))
    (tree / "star").mkdir()
    (tree / "star" / "again.jpg").write_bytes(picture(3))
    collect(crawl_config(tmp_path / "d", tree))
    rows = pq.read_table(directory / "00001.parquet").to_pylist()
    assert [(row["image_id"], row["tags"], row["offset"]) for row in rows] == [(image_id_of(picture(3)), ["star"], -1)]


def test_another_source_is_refused_until_it_is_asked_for(tree, tmp_path):
    collect(crawl_config(tmp_path / "d", tree))
    other = write_tree(tmp_path / "other", count=8)
    with pytest.raises(ArtifactError, match=r"append=true.*paths\.data="):
        collect(crawl_config(tmp_path / "d", other))
    assert facts(collect(crawl_config(tmp_path / "d", other, append=True)))["num_images"] == 8


def test_going_back_to_a_source_that_is_in_already_changes_nothing(tree, tmp_path):
    collect(crawl_config(tmp_path / "d", tree))
    directory = collect(crawl_config(tmp_path / "d", write_tree(tmp_path / "other", count=8), append=True))
    before = everything(directory)
    collect(crawl_config(tmp_path / "d", tree))
    assert everything(directory) == before


def test_another_gate_is_refused_with_the_options_that_fit(tree, tmp_path):
    collect(crawl_config(tmp_path / "d", tree))
    with pytest.raises(ArtifactError, match=r"gate\.max_side_px=512 gate\.quality=90"):
        collect(crawl_config(tmp_path / "d", tree, gate=GateOptions(quality=80)))


class Killed(BaseException):
    pass


def dying(monkeypatch, at, after):
    """Let `ShardWriter.commit` die the `at`-th time: before it does anything, or when all is done."""
    commit, count = ShardWriter.commit, iter(range(1000))

    def commit_or_die(self, state):
        last = next(count) == at
        if last and not after:
            raise Killed
        commit(self, state)
        if last:
            raise Killed

    monkeypatch.setattr(ShardWriter, "commit", commit_or_die)


@pytest.mark.parametrize("after", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("at", range(3))
def test_a_crawl_killed_at_any_shard_ends_the_same(at, after, tree, tmp_path, monkeypatch):
    undisturbed = collect(crawl_config(tmp_path / "a", tree, shard_size=2))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying(patch, at, after)
        collect(crawl_config(tmp_path / "b", tree, shard_size=2))
    assert read_manifest(tmp_path / "b" / "collection") is None
    again = collect(crawl_config(tmp_path / "b", tree, shard_size=2))
    assert content_id(again) == content_id(undisturbed)
    assert facts(again) == facts(undisturbed)
    assert not list(again.rglob(".partial-*"))


def test_a_kill_between_the_files_of_a_shard_leaves_no_trace(tree, tmp_path, monkeypatch):
    undisturbed = collect(crawl_config(tmp_path / "a", tree, shard_size=4))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(pq, "write_table", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
        collect(crawl_config(tmp_path / "b", tree, shard_size=4))
    assert content_id(collect(crawl_config(tmp_path / "b", tree, shard_size=4))) == content_id(undisturbed)


def test_another_version_of_the_gate_is_refused_and_named(tree, tmp_path, monkeypatch):
    collect(crawl_config(tmp_path / "d", tree))
    monkeypatch.setattr("crawl.ingest.gate.GATE_VERSION", GATE_VERSION + 1)
    monkeypatch.setattr(crawl.collect, "GATE_VERSION", GATE_VERSION + 1)
    versions = rf"version {GATE_VERSION} of the gate, this one is version {GATE_VERSION + 1}\..*another folder"
    with pytest.raises(ArtifactError, match=versions):
        collect(crawl_config(tmp_path / "d", tree))


@pytest.mark.parametrize("change", [{"gate": GateOptions(quality=80)}, {"source": FolderSource(path="other")}])
def test_an_unfinished_crawl_is_not_mixed_with_another_gate_or_source(change, tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "other", count=3)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying(patch, 0, after=True)
        collect(crawl_config(tmp_path / "d", tree, shard_size=2))
    changed = crawl_config(tmp_path / "d", tree, shard_size=2)
    for name, value in change.items():
        setattr(changed, name, value)
    with pytest.raises(ArtifactError, match=r"gate\.quality=90|append=true"):
        collect(changed)


def test_a_collection_can_be_crawled_as_webdataset(tree, tmp_path):
    first = collect(crawl_config(tmp_path / "a", tree))
    source = WebDatasetSource(path=str(first))
    second = collect(CrawlConfig(paths=Paths(data=str(tmp_path / "b")), source=source))
    ours, theirs = (Collection(each).table(["tags", "offset"]).to_pylist() for each in (second, first))
    assert [row["tags"] for row in ours] == [row["tags"] for row in theirs if row["offset"] >= 0]
    with tarfile.open(second / "00000.tar") as one, tarfile.open(first / "00000.tar") as two:
        assert [one.extractfile(m).read() for m in one if m.name.endswith("jpg")] == [
            two.extractfile(m).read() for m in two if m.name.endswith("jpg")
        ]


def test_a_shard_ends_before_refusals_or_new_tags_fill_the_memory(tmp_path):
    tree = write_tree(tmp_path / "tree", count=3)
    for number in range(20):
        (tree / f"text{number:02d}.txt").write_text("text")
    config = crawl_config(tmp_path / "d", tree, shard_size=2)
    directory = collect(config)
    assert max(listed_by(directory)) == 8
    assert facts(directory)["num_items"] == sum(listed_by(directory)) == 24
    for name in ("one", "two", "three"):
        (tree / name).mkdir()
        for number in range(3):
            (tree / name / f"{number}.jpg").write_bytes(picture(number))
    collect(config)
    assert max(listed_by(directory)) == 8
    assert facts(directory)["num_images"] == 3
    assert facts(directory)["num_items"] == 24 + 33


def listed_by(directory):
    """Rows and refusals of each shard."""
    refusals = (path.read_text().count("\n") for path in sorted((directory / "refused").iterdir()))
    rows = (pq.read_table(path).num_rows for path in sorted(directory.glob("*.parquet")))
    return list(map(sum, zip(refusals, rows, strict=True)))


def test_a_double_of_what_was_taken_down_by_its_pixels_tells_nothing_either(tmp_path):
    tree = write_tree(tmp_path / "tree", count=2)
    stored = ingest(picture(0), GateOptions())
    (tmp_path / "d" / "collection").mkdir(parents=True)
    Tombstones(tmp_path / "d" / "collection").add([Tombstone(jpeg=jpeg_digest(stored.jpeg))])
    directory = collect(crawl_config(tmp_path / "d", tree))
    assert facts(directory)["refused"] == {"taken_down": 2}
    lines = [json.loads(line) for line in (directory / "refused" / "00000.jsonl").read_text().splitlines()]
    assert lines == [{"key": "", "reason": "taken_down", "detail": ""}] * 2


ALIVE = weakref.WeakSet()


class Counted(SourceItem):
    """An item whose life can be watched."""

    def __hash__(self):
        return id(self)


def test_known_images_are_not_held_while_others_are_awaited(tmp_path, monkeypatch):
    tree = write_tree(tmp_path / "tree", count=4)
    collect(crawl_config(tmp_path / "d", tree))
    most = 0

    def many(config, max_bytes):
        class Doubles(Ledger):
            def fingerprint(self):
                return "doubles"

            def items(self, start=0):
                nonlocal most
                for number in range(500):
                    item = Counted(str(number), picture(number % 4))
                    ALIVE.add(item)
                    most = max(most, len(ALIVE))
                    yield item

        return Doubles()

    monkeypatch.setattr(crawl.collect, "open_source", many)
    monkeypatch.setattr(crawl.collect, "IsolatedGate", IsolatedGate)
    assert facts(collect(crawl_config(tmp_path / "d", tree)))["num_duplicates"] == 501
    assert most < 50


def test_relations_are_laid_beside_the_collection(tree, tmp_path):
    (tmp_path / "r.csv").write_text("tag,relation,other\ndog,broader,animal\n")
    directory = collect(crawl_config(tmp_path / "d", tree, relations=str(tmp_path / "r.csv")))
    assert (directory / "tag_relations.csv").read_text() == (tmp_path / "r.csv").read_text()
    assert "tag_relations.csv" in read_manifest(directory).files


@pytest.mark.parametrize(("content", "words"), [(None, "is no file"), ("tag,relation,other\na,b,c\n", "line 2")])
def test_bad_relations_stop_before_anything_is_written(content, words, tree, tmp_path):
    if content:
        (tmp_path / "r.csv").write_text(content)
    with pytest.raises(ArtifactError, match=words):
        collect(crawl_config(tmp_path / "d", tree, relations=str(tmp_path / "r.csv")))
    assert not (tmp_path / "d").exists()


def test_the_tiny_collection_of_the_other_tests_is_whole(tiny_data):
    assert facts(tiny_data / "collection")["num_images"] == NUM_PICTURES
