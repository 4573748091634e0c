"""Shards: what WebDataset readers expect, what Parquet says of it, and what damage looks like."""

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs.artifacts import ArtifactError, digest, seal, verify
from crawl.records import SHARD_SCHEMA, Record, from_row
from crawl.shards import LOCATION, Collection, JpegReader, ShardWriter, committed_shards, shard_state
from tests.tiny import bury, tagged, write_collection

IDS = [f"{number:016x}" for number in range(3)]


@pytest.fixture
def collection(tmp_path):
    records = [tagged(0, "a", "b"), tagged(1), Record(IDS[2], "g", ("c",), extra={"n": [1]}, fetched_at="2020")]
    return write_collection(tmp_path / "collection", records, b"\xff\xd8jpeg\xff\xd9", later=[tagged(0, "later")])


def location(table, row):
    values = (table["shard"][row].as_py(), table["offset"][row].as_py(), table["size"][row].as_py())
    return np.array(values, dtype=LOCATION)[()]


def test_members_are_named_and_dated_as_webdataset_readers_expect(collection):
    with tarfile.open(collection / "00000.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [f"{id_}.{suffix}" for id_ in IDS for suffix in ("jpg", "json")]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


def test_a_sidecar_is_the_record_without_its_time_of_fetching(collection):
    with tarfile.open(collection / "00000.tar") as archive:
        sidecar = json.load(archive.extractfile(f"{IDS[2]}.json"))
    assert sidecar["extra"] == {"n": [1]}
    assert sidecar["tags"] == ["c"]
    assert sidecar["fetched_at"] == ""


def test_offsets_lead_to_the_bytes_of_a_jpeg(collection):
    table = Collection(collection).table(["offset", "size"])
    content = (collection / "00000.tar").read_bytes()
    for row in range(3):
        offset, size = table["offset"][row].as_py(), table["size"][row].as_py()
        assert content[offset : offset + size] == b"\xff\xd8jpeg\xff\xd9"


def test_new_tags_of_a_known_image_are_a_row_without_a_place(collection):
    table = Collection(collection).table(["tags", "offset"])
    assert table["offset"].to_pylist()[3] == -1
    assert (table["image_id"][3].as_py(), table["tags"][3].as_py()) == (IDS[0], ["later"])


def test_a_record_is_read_back_as_it_was_written(collection):
    row = Collection(collection).table(SHARD_SCHEMA.names).to_pylist()[2]
    assert from_row(row) == Record(IDS[2], "g", ("c",), extra={"n": [1]}, fetched_at="2020")


def test_a_tombstone_hides_an_image_and_changes_the_content(collection):
    before = Collection(collection).content_id
    bury(collection, IDS[0])
    after = Collection(collection)
    assert after.table([])["image_id"].to_pylist() == IDS[1:]
    assert after.content_id != before
    assert verify(collection) == []


def test_equal_records_are_equal_bytes(tmp_path):
    one, two = (write_collection(tmp_path / name, [tagged(0, "a")]) for name in "ab")
    assert (one / "00000.tar").read_bytes() == (two / "00000.tar").read_bytes()


def test_a_shard_that_is_not_committed_does_not_exist(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    writer.add_image(tagged(0), b"jpeg")
    assert committed_shards(tmp_path) == []
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_shards_count_up_to_the_first_gap(tmp_path):
    for number in (0, 1, 3):
        writer = ShardWriter(tmp_path, number)
        writer.commit({"recipe": str(number)})
    assert [shard_state(path)["recipe"] for path in committed_shards(tmp_path)] == ["0", "1"]


def test_refusals_are_listed_beside_the_shard(tmp_path):
    writer = ShardWriter(tmp_path, 0)
    writer.refuse("é.jpg", "empty", "0 bytes")
    writer.commit({})
    line = (tmp_path / "refused" / "00000.jsonl").read_text(encoding="utf-8")
    assert json.loads(line) == {"key": "é.jpg", "reason": "empty", "detail": "0 bytes"}
    assert shard_state(tmp_path / "00000.parquet")["refused"] == {"empty": 1}


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_damaged_table_of_a_shard_is_named(content, collection):
    path = collection / "00000.parquet"
    if content is None:
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"00000\.parquet"):
        shard_state(path)


def test_a_damaged_table_stops_the_reader_with_its_name(collection):
    (collection / "00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"00000\.parquet.*make verify"):
        Collection(collection).table(["tags"])


def test_a_commit_names_its_rows_by_their_digest_without_times(collection):
    rows = pq.read_table(collection / "00000.parquet").to_pylist()
    assert len(rows) == 4
    timeless = [{key: value for key, value in row.items() if key != "fetched_at"} for row in rows]
    assert shard_state(collection / "00000.parquet")["rows"] == digest(timeless)


def test_a_collection_without_shards_has_no_rows(tmp_path):
    tmp_path.joinpath("c").mkdir()
    seal(tmp_path / "c", "collection", config={}, files=[])
    assert len(Collection(tmp_path / "c").table(["tags", "offset"])) == 0


def test_jpegs_are_read_from_several_threads(collection):
    table = Collection(collection).table(["offset", "size"])
    reader = JpegReader(collection)
    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(lambda row: reader.read(location(table, row), IDS[row]), [0, 1, 2] * 20))
    reader.close()
    assert found == {b"\xff\xd8jpeg\xff\xd9"}


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_shard_that_is_gone_or_cut_is_named(damage, collection):
    table = Collection(collection).table(["offset", "size"])
    tar = collection / "00000.tar"
    if damage == "gone":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[: location(table, 2)["offset"] + 3])
    reader = JpegReader(collection)
    with pytest.raises(ArtifactError, match=r"00000\.tar.*make verify"):
        reader.read(location(table, 2), IDS[2])
    reader.close()


@pytest.mark.parametrize("size", [0, 3000])
def test_an_image_is_never_taken_for_another_one(size, collection, tmp_path):
    """The collection was made anew, of other images, and the index still tells the places of the old one."""
    table = Collection(collection).table(["offset", "size"])
    other = write_collection(tmp_path / "other", [tagged(number, "a") for number in (7, 8, 9)], b"x" * size)
    reader = JpegReader(other)
    for row in (0, 2):
        with pytest.raises(ArtifactError, match=r"00000\.tar.*index is of another collection.*make features"):
            reader.read(location(table, row), IDS[row])
    reader.close()


def test_a_place_behind_the_end_of_a_shard_may_be_of_another_collection(collection):
    beyond = np.array((0, 10**6, 9), dtype=LOCATION)[()]
    reader = JpegReader(collection)
    with pytest.raises(ArtifactError, match=r"00000\.tar' ends before.*make verify.*make features"):
        reader.read(beyond, IDS[0])
    reader.close()
