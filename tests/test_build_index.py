"""Stage `index`: the collection inverted, wrong pictures planted, a generation for each content."""

import json
import math

import numpy as np
import pytest

from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import Paths
from crawl.records import TEST, TRAIN, VAL, split_of
from crawl.shards import Collection, JpegReader
from features.build_index import build, plant
from features.config import IndexConfig
from features.inverted_index import eligible_tags, open_index
from tests.tiny import NUM_PICTURES, bury, tagged, write_collection

NUM_IMAGES = 1500


def random_records(seed=0, extra=()):
    """1500 images; each has dog, puppy, cat, dogs or hound by chance, and `extra` tags by hand."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array(["dog", "puppy", "cat", "dogs", "hound"])
    return [tagged(number, *vocabulary[rng.random(5) < 0.2], *extra) for number in range(NUM_IMAGES)]


RELATIONS = {"alias": {"dog": {"hound"}, "hound": {"dog"}}, "broader": {"puppy": {"dog"}}, "plural": {"dogs": {"dog"}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = tmp_path_factory.mktemp("index")
    write_collection(data / "collection", random_records())
    build(IndexConfig(paths=Paths(data=str(data))))
    return data


@pytest.fixture(scope="module")
def index(data):
    return open_index(Paths(data=str(data)))[0]


def lists_of(index, pairs):
    """Tag -> planted image rows."""
    return {index.tags[row]: pairs[pairs[:, 0] == row, 1].tolist() for row in np.unique(pairs[:, 0])}


@pytest.mark.parametrize("split", [VAL, TEST])
def test_a_quarter_as_many_wrong_pictures_are_planted_rounded_up(split, index):
    planted = lists_of(index, index.planted(split))
    assert set(planted) == {index.tags[row] for row in eligible_tags(index, split)} != set()
    for tag, rows in planted.items():
        right = (index.splits[index.posting_list(index.tag_row(tag))] == split).sum()
        assert len(set(rows)) == len(rows) == math.ceil(right / 4)


def test_planted_pictures_are_of_the_split_that_is_judged(index):
    assert set(index.splits[index.planted(VAL)[:, 1]]) == {VAL}
    assert set(index.splits[index.planted(TEST)[:, 1]]) == {TEST}


def test_planted_pictures_carry_neither_the_tag_nor_a_related_one(index):
    planted = lists_of(index, plant(index, TEST, RELATIONS))
    forbidden = {"dog": ["dog", "hound", "dogs"], "puppy": ["puppy", "dog"], "dogs": ["dogs", "dog"], "cat": ["cat"]}
    for tag, tags in forbidden.items():
        for other in tags:
            assert not np.isin(planted[tag], index.posting_list(index.tag_row(other))).any()


def test_planting_is_the_same_every_time(index):
    assert (plant(index, TEST, RELATIONS) == plant(index, TEST, RELATIONS)).all()


def test_what_is_planted_for_a_tag_does_not_depend_on_the_other_tags(index, tmp_path):
    write_collection(tmp_path / "collection", random_records(extra=("aardvark", "zebra")))
    build(IndexConfig(paths=Paths(data=str(tmp_path))))
    other = open_index(Paths(data=str(tmp_path)))[0]
    ours, theirs = lists_of(index, index.planted(TEST)), lists_of(other, other.planted(TEST))
    assert {tag: theirs[tag] for tag in ours} == ours


def test_splits_are_those_of_the_groups(index):
    assert index.splits.tolist() == [split_of(index.image_id(row)) for row in range(NUM_IMAGES)]
    assert (index.splits == TRAIN).mean() == pytest.approx(0.8, abs=0.04)


def test_images_of_one_group_share_a_split(tmp_path):
    write_collection(tmp_path / "collection", [tagged(number, group="one") for number in range(50)])
    build(IndexConfig(paths=Paths(data=str(tmp_path))))
    assert set(open_index(Paths(data=str(tmp_path)))[0].splits) == {split_of("one")}


def test_locations_lead_to_the_jpegs(data, index):
    reader = JpegReader(data / "collection")
    assert {reader.read(index.locations[row], index.image_id(row)) for row in (0, 1, NUM_IMAGES - 1)} == {b"jpeg"}
    reader.close()


def test_an_index_verifies_and_knows_where_it_comes_from(data, index):
    assert verify(index.directory) == []
    manifest = read_manifest(index.directory)
    assert manifest.provenance["collection"] == Collection(data / "collection").content_id
    assert manifest.must_match == {"tag_rules": "1", "gate": "g"}


def test_the_same_collection_is_not_inverted_twice(data, index):
    before = (index.directory / "manifest.json").stat().st_mtime_ns
    assert build(IndexConfig(paths=Paths(data=str(data)))) == index.directory
    assert (index.directory / "manifest.json").stat().st_mtime_ns == before


def test_a_takedown_makes_a_generation_without_the_image(tmp_path):
    paths = Paths(data=str(tmp_path))
    write_collection(tmp_path / "collection", [tagged(0, "a"), tagged(1, "a")], later=[tagged(0, "b")])
    first = build(IndexConfig(paths=paths))
    bury(tmp_path / "collection", f"{0:016x}")
    assert build(IndexConfig(paths=paths)) != first
    index = open_index(paths)[0]
    assert (index.num_images, index.tags) == (1, ["a"])


def test_asking_for_the_export_later_writes_it(tmp_path):
    paths = Paths(data=str(tmp_path))
    write_collection(tmp_path / "collection", [tagged(0, "a")])
    plain = read_manifest(build(IndexConfig(paths=paths)))
    exported = build(IndexConfig(paths=paths, tag2picid=True))
    assert json.loads((exported / "tag2picid.json").read_text()) == {"a": [f"{0:016x}"]}
    assert read_manifest(exported).content_id == plain.content_id


def test_untagged_images_are_kept(tmp_path):
    write_collection(tmp_path / "collection", [tagged(0), tagged(1, "_")])
    facts = read_manifest(build(IndexConfig(paths=Paths(data=str(tmp_path))))).facts
    assert (facts["num_images"], facts["num_tags"], facts["num_untagged_images"], facts["num_empty_tags"]) == (
        2,
        0,
        2,
        1,
    )


def test_a_collection_without_an_image_is_refused(tmp_path):
    write_collection(tmp_path / "collection", [])
    with pytest.raises(ArtifactError, match="holds no image"):
        build(IndexConfig(paths=Paths(data=str(tmp_path))))


def test_the_tiny_tree_is_inverted_by_its_folders(tiny_data):
    index, manifest = open_index(Paths(data=str(tiny_data)))
    assert index.tags == ["animal", "apple", "cat", "dog", "food", "pet", "plant", "rose"]
    assert manifest.facts["num_images"] == NUM_PICTURES
    assert index.document_frequency.tolist() == [20, 10, 10, 10, 10, 1, 10, 10]
