"""Compaction: shards without what was taken down, an account that holds, and kills that leave no trace."""

import json
import tarfile

import pyarrow.parquet as pq
import pytest

import configs.artifacts
import crawl.shards
from configs.artifacts import ArtifactError, read_manifest, verify
from crawl.collect import collect
from crawl.compact import compact
from crawl.records import image_id_of
from crawl.shards import Collection, JpegReader
from crawl.tombstones import Tombstone, Tombstones, address_digest, jpeg_digest
from tests.tiny import Killed, bury, crawl_config, killed_after, picture, write_tree

pytestmark = pytest.mark.usefixtures("quick_gate")
GONE = image_id_of(picture(1))


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "tree", count=6)


@pytest.fixture
def collection(tree, tmp_path):
    """Six pictures in three shards; the first has tags of a second folder."""
    return collect(crawl_config(tmp_path / "d", tree, shard_size=2))


def names(directory):
    found = []
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as archive:
            found += archive.getnames()
    return found


def content(directory):
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.suffix in (".tar", ".jsonl")}


def test_a_picture_that_was_taken_down_leaves_tar_and_table_and_the_others_are_read_as_before(collection):
    bury(collection, GONE)
    assert compact(collection) == 1
    assert [name for name in names(collection) if name.startswith(GONE)] == []
    assert len(names(collection)) == 10
    reader = JpegReader(collection)
    for number, path in enumerate(sorted(collection.glob("*.parquet"))):
        for row in pq.read_table(path).to_pylist():
            if row["offset"] >= 0:
                place = {"shard": number, "offset": row["offset"], "size": row["size"]}
                assert reader.read(place, row["image_id"])
    assert len(Collection(collection).table(["tags"])) == 6
    assert verify(collection) == []


def test_what_was_taken_down_counts_as_refused(collection):
    bury(collection, GONE)
    compact(collection)
    facts = read_manifest(collection).facts
    assert (facts["num_items"], facts["num_images"], facts["num_duplicates"]) == (7, 5, 1)
    assert facts["refused"] == {"taken_down": 1}
    assert GONE not in (collection / "manifest.json").read_text()


def test_later_tags_of_it_go_as_well(collection):
    bury(collection, image_id_of(picture(0)))
    compact(collection)
    assert image_id_of(picture(0)) not in Collection(collection).table([])["image_id"].to_pylist()
    assert read_manifest(collection).facts["num_duplicates"] == 1


def test_compacting_again_rewrites_nothing(collection):
    bury(collection, GONE)
    compact(collection)
    before = (collection / "manifest.json").read_bytes()
    assert compact(collection) == 0
    assert (collection / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("after", range(8))
def test_a_compaction_killed_at_any_write_ends_the_same(after, collection, tree, tmp_path, monkeypatch):
    undisturbed = collect(crawl_config(tmp_path / "other", tree, shard_size=2))
    for directory in (collection, undisturbed):
        bury(directory, GONE, image_id_of(picture(4)))
    compact(undisturbed)
    with monkeypatch.context() as patch:
        written = killed_after(patch, after, configs.artifacts, crawl.shards)
        try:
            compact(collection)
        except Killed:
            pass
        else:
            assert len(written) == after == 7
    compact(collection)
    assert content(collection) == content(undisturbed)
    assert read_manifest(collection).content_id == read_manifest(undisturbed).content_id
    assert read_manifest(collection).facts == read_manifest(undisturbed).facts
    assert verify(collection) == []


def test_a_compacted_collection_has_the_content_of_its_shards_alone(collection):
    bury(collection, GONE)
    pending = Collection(collection).content_id
    compact(collection)
    assert Collection(collection).content_id == read_manifest(collection).content_id != pending


def test_equal_bytes_are_never_accepted_again(collection, tree, tmp_path):
    bury(collection, GONE)
    (tree / "again").mkdir()
    (tree / "again" / "1.jpg").write_bytes(picture(1))
    collect(crawl_config(tmp_path / "d", tree, shard_size=2))
    assert GONE not in Collection(collection).table([])["image_id"].to_pylist()
    assert read_manifest(collection).facts["refused"]["taken_down"] == 3  # compacted, and twice refused


def test_the_same_picture_with_other_bytes_around_it_is_not_accepted(collection, tree, tmp_path):
    jpeg = JpegReader(collection)
    row = next(row for row in pq.read_table(collection / "00000.parquet").to_pylist() if row["image_id"] == GONE)
    stored = jpeg.read({"shard": 0, "offset": row["offset"], "size": row["size"]}, GONE)
    Tombstones(collection).add([Tombstone(GONE, jpeg=jpeg_digest(stored))])
    commented = picture(1)[:2] + b"\xff\xfe\x00\x09comment" + picture(1)[2:]
    (tree / "commented.jpg").write_bytes(commented)
    collect(crawl_config(tmp_path / "d", tree, shard_size=2))
    assert image_id_of(commented) not in Collection(collection).table([])["image_id"].to_pylist()


def test_a_refusal_that_tells_of_it_keeps_its_reason_alone(tmp_path):
    tree = write_tree(tmp_path / "tree", count=2)
    (tree / f"{GONE}.txt").write_bytes(b"text")
    collection = collect(crawl_config(tmp_path / "d", tree))
    bury(collection, GONE)
    compact(collection)
    refused = [json.loads(line) for line in (collection / "refused" / "00000.jsonl").read_text().splitlines()]
    assert refused == [
        {"key": "", "reason": "not_an_image", "detail": ""},
        {"key": "", "reason": "taken_down", "detail": ""},
    ]


def test_what_a_killed_crawl_left_of_a_shard_is_removed(collection):
    (collection / "00003.tar").write_bytes(b"half a shard")
    compact(collection)
    assert not (collection / "00003.tar").exists()


@pytest.mark.parametrize(
    "same", ["http://Example.org/a.jpg?b=1", "https://example.org:443/a.jpg?b=1", " https://example.org/a.jpg?b=1#c"]
)
def test_an_address_is_recognised_however_it_is_spelt(same):
    assert address_digest(same) == address_digest("https://example.org/a.jpg?b=1")


@pytest.mark.parametrize("other", ["https://example.org/A.jpg?b=1", "https://example.org/a.jpg", "http://[broken"])
def test_another_address_is_another_one(other):
    assert address_digest(other) != address_digest("https://example.org/a.jpg?b=1")


def test_tombstones_are_asked_for_images_addresses_and_pictures(tmp_path):
    stones = Tombstones(tmp_path).add([Tombstone(GONE, addresses=(address_digest("http://a.b/c"),), jpeg="0" * 64)])
    assert stones.is_taken_down(image_id=GONE)
    assert stones.is_taken_down(urls=["", "https://a.b/c"])
    assert not stones.is_taken_down(image_id="0" * 16, urls=["http://a.b/d"], jpeg=b"jpeg")
    assert not stones.is_taken_down()


def test_damaged_tombstones_stop_everything(tmp_path):
    (tmp_path / "tombstones").write_text('{"image_id": "1"}\nhalf a li')
    with pytest.raises(ArtifactError, match="line 2"):
        Tombstones(tmp_path)
