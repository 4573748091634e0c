"""Copies of earlier pictures join their group at acceptance; others never do."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs.artifacts import read_manifest, verify
from crawl.collect import collect
from crawl.compact import compact
from crawl.near_groups import NearGroups
from crawl.records import Record, image_id_of
from crawl.shards import ShardWriter
from tests.test_screen import accepted, drawn, jpeg
from tests.tiny import bury, crawl_config

pytestmark = pytest.mark.usefixtures("quick_gate")

COPIES = {
    "recompressed": lambda image: jpeg(image, 50),
    "half as large": lambda image: jpeg(image.resize((80, 60), Image.Resampling.LANCZOS)),
    "twice as large": lambda image: jpeg(image.resize((320, 240), Image.Resampling.BICUBIC)),
    "cut at the right": lambda image: jpeg(image.crop((0, 0, 152, 120))),
    "cut all round": lambda image: jpeg(image.crop((5, 4, 155, 116))),
    "brighter": lambda image: jpeg(image.point(lambda value: min(255, value + 10))),
    "mirrored": lambda image: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def groups(directory):
    """The group of every picture, by image_id."""
    rows = [row for path in sorted(directory.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["image_id"]: row["group"] for row in rows if row["offset"] >= 0}


def tree_of(root, pictures):
    """A folder of pictures that are crawled in their order."""
    (root / "tag").mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(pictures):
        (root / "tag" / f"{number:04d}.jpg").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def ten():
    """Ten pictures, ten copies of each kind of the first seven, and forty others."""
    originals = [jpeg(drawn(seed)) for seed in range(10)]
    copies = [change(drawn(seed)) for seed, change in enumerate(COPIES.values())]
    return originals, copies, [jpeg(drawn(seed)) for seed in range(100, 140)]


@pytest.mark.parametrize("shard_size", [7, 10_000])
def test_copies_join_the_group_of_the_first_and_nothing_else_does(shard_size, ten, tmp_path):
    originals, copies, others = ten
    tree = tree_of(tmp_path / "tree", [*originals, *copies, *others])
    found = groups(collect(crawl_config(tmp_path / "d", tree, shard_size=shard_size, group_copies=True)))
    assert len(found) == len(originals) + len(copies) + len(others)
    joined = {image_id: group for image_id, group in found.items() if image_id != group}
    assert joined == {image_id_of(copy): image_id_of(originals[at]) for at, copy in enumerate(copies)}


def test_a_copy_that_comes_in_a_later_crawl_joins_too_and_the_earlier_keeps_its_group(ten, tmp_path):
    originals, copies, _ = ten
    data = tmp_path / "d"
    directory = collect(crawl_config(data, tree_of(tmp_path / "one", originals), shard_size=4))
    before = groups(directory)
    collect(crawl_config(data, tree_of(tmp_path / "two", copies), append=True, group_copies=True))
    after = groups(directory)
    assert {image_id: after[image_id] for image_id in before} == before
    assert [after[image_id_of(copy)] for copy in copies] == [image_id_of(each) for each in originals[: len(copies)]]
    assert len(list((directory / "near").glob("*.npy"))) == 4
    assert verify(directory) == []


def test_a_crawl_that_is_resumed_gives_the_same_groups(ten, tmp_path, monkeypatch):
    originals, copies, _ = ten
    tree = tree_of(tmp_path / "tree", [*originals, *copies])
    whole = collect(crawl_config(tmp_path / "whole", tree, shard_size=4, group_copies=True))
    commit, commits = ShardWriter.commit, []

    def kill(self, state):
        if len(commits) == 2:
            raise KeyboardInterrupt
        commits.append(1)
        commit(self, state)

    cut = crawl_config(tmp_path / "cut", tree, shard_size=4, group_copies=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "commit", kill)
        collect(cut)
    assert read_manifest(collect(cut)).content_id == read_manifest(whole).content_id


def test_without_the_option_no_picture_is_looked_at(ten, tmp_path):
    originals, copies, _ = ten
    directory = collect(crawl_config(tmp_path / "d", tree_of(tmp_path / "tree", [*originals, *copies])))
    assert all(image_id == group for image_id, group in groups(directory).items())
    assert not (directory / "near").exists()


def test_flat_pictures_are_no_copies_of_each_other(tmp_path):
    flat = [jpeg(Image.new("RGB", (64, 64), (level, level, level))) for level in (10, 90, 200)]
    found = groups(collect(crawl_config(tmp_path / "d", tree_of(tmp_path / "tree", flat), group_copies=True)))
    assert all(image_id == group for image_id, group in found.items())


def test_hashes_of_a_compacted_shard_are_made_anew_and_copies_still_find_their_group(ten, tmp_path):
    originals, copies, _ = ten
    data = tmp_path / "d"
    directory = collect(crawl_config(data, tree_of(tmp_path / "one", originals), group_copies=True))
    bury(directory, image_id_of(originals[0]))
    compact(directory)
    assert not list((directory / "near").glob("*.npy"))
    collect(crawl_config(data, tree_of(tmp_path / "two", copies), append=True, group_copies=True))
    found = groups(directory)
    assert found[image_id_of(copies[0])] == image_id_of(copies[0])
    assert [found[image_id_of(copy)] for copy in copies[1:]] == [image_id_of(each) for each in originals[1:7]]


def test_hashes_move_into_the_table_and_are_found_there(ten, tmp_path, monkeypatch):
    monkeypatch.setattr("crawl.near_groups.RECENT", 3)
    originals, copies, _ = ten
    near, shard = NearGroups(tmp_path), ShardWriter(tmp_path, 0)
    for number, content in enumerate(originals):
        stored = accepted(drawn(number)).jpeg
        assert near.group_of(stored, shard) == ""
        shard.add_image(Record(f"{number:016x}", f"g{number}"), stored)
        assert content
    assert near.group_of(accepted(drawn(4).resize((90, 70))).jpeg, shard) == "g4"
    assert len(near._values) >= 9
    assert np.all(near._values[:9] != 0)
    near.close()
    shard.discard()
    assert copies
