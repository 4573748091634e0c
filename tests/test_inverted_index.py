"""Posting lists: what the arrays say, and the algebra on them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.artifacts import ArtifactError
from configs.compose import Paths
from crawl.tags import normalise_tag
from features.build_index import build, invert
from features.config import IndexConfig
from features.inverted_index import eligible_tags, exclude, intersect, open_index, unite
from tests.tiny import tagged, write_collection

ROWS = st.lists(st.integers(0, 30), unique=True).map(lambda rows: np.array(sorted(rows), dtype=np.int32))
TAGS = st.lists(st.sampled_from(["a", "A", "b", "c_d", "c d", "_", "é"]), max_size=4)


@pytest.fixture
def index(tmp_path):
    """Images 0 to 3 with the tags a b, b, none, a c."""
    first = [tagged(3, "c", "a"), tagged(0, "B"), tagged(2), tagged(1, "b")]
    write_collection(tmp_path / "collection", first, later=[tagged(0, "A", "_")])
    build(IndexConfig(paths=Paths(data=str(tmp_path))))
    return open_index(Paths(data=str(tmp_path)))[0]


def test_a_picture_with_several_tags_is_in_each_list(index):
    assert index.tags == ["a", "b", "c"]
    assert [index.posting_list(row).tolist() for row in range(3)] == [[0, 3], [0, 1], [3]]


def test_the_index_reads_the_other_way_round(index):
    offsets, tag_rows = index.by_image
    assert [part.tolist() for part in np.split(tag_rows, offsets[1:-1])] == [[0, 1], [1], [], [0, 2]]


def test_frequencies_count_images(index):
    assert index.document_frequency.tolist() == [2, 2, 1]
    by_split = sum(index.split_frequency(split) for split in range(3))
    assert by_split.tolist() == [2, 2, 1]


def test_rows_are_found_by_name_and_nothing_else(index):
    assert [index.tag_row(tag) for tag in ("a", "c", "", "aa", "z")] == [0, 2, None, None, None]
    assert index.image_row(f"{3:016x}") == 3
    assert index.image_id(3) == f"{3:016x}"
    for name in ("", "0", f"{4:016x}", "0" * 17, "é" * 16, f"{3:016x}\0"):
        assert index.image_row(name) is None


def test_looking_an_image_up_does_not_copy_all_ids(index, monkeypatch):
    monkeypatch.setattr(np, "searchsorted", None)
    assert index.image_row(f"{1:016x}") == 1


def test_tags_are_found_by_their_beginning(index):
    assert [index.tags[row] for row in index.tags_from("b")] == ["b"]
    assert list(index.tags_from("")) == [0, 1, 2]


def test_the_export_names_pictures_by_tag(index, tmp_path):
    index.export_tag2picid(tmp_path / "t.json")
    ids = [f"{row:016x}" for row in range(4)]
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": [ids[0], ids[3]], "b": ids[:2], "c": [ids[3]]}


@pytest.mark.parametrize("name", ["image_ids.txt", "tags.txt", "postings.npy"])
def test_an_index_without_one_of_its_files_is_an_artifact_error(name, index, tmp_path):
    (index.directory / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        open_index(Paths(data=str(tmp_path)))


@pytest.mark.parametrize("name", ["image_ids.txt", "postings.npy"])
def test_an_index_with_a_cut_file_is_an_artifact_error(name, index, tmp_path):
    path = index.directory / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=name):
        open_index(Paths(data=str(tmp_path)))


@given(st.lists(TAGS, max_size=8), st.data())
def test_inversion_equals_a_dictionary(lists, data):
    about = [data.draw(st.integers(0, 5)) for _ in lists]
    column = pa.chunked_array([pa.array(lists, pa.list_(pa.string()))])
    tags, offsets, postings, num_empty = invert(column, np.array(about, dtype=np.int64))
    expected = {}
    for row, given_tags in zip(about, lists, strict=True):
        for tag in given_tags:
            expected.setdefault(normalise_tag(tag), set()).add(row)
    expected.pop("", None)
    found = {tag: postings[offsets[row] : offsets[row + 1]].tolist() for row, tag in enumerate(tags)}
    assert found == {tag: sorted(expected[tag]) for tag in sorted(expected)}
    assert num_empty == sum(tag == "_" for given_tags in lists for tag in given_tags)


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_and_is_the_intersection_of_sets(lists):
    expected = sorted(set.intersection(*(set(rows.tolist()) for rows in lists)))
    assert intersect(lists).tolist() == expected


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_or_is_the_union_of_sets(lists):
    assert unite(lists).tolist() == sorted(set().union(*(rows.tolist() for rows in lists)))


@given(ROWS)
def test_not_is_the_complement(rows):
    assert exclude(rows, 31).tolist() == sorted(set(range(31)) - set(rows.tolist()))


@given(ROWS, ROWS)
def test_the_laws_of_de_morgan_hold(one, two):
    either = exclude(unite([one, two]), 31)
    assert either.tolist() == intersect([exclude(one, 31), exclude(two, 31)]).tolist()


def test_eligible_tags_have_images_to_be_judged_and_one_to_learn_from(tiny_data):
    index, _ = open_index(Paths(data=str(tiny_data)))
    for split in (1, 2):
        expected = [
            row
            for row in range(index.num_tags)
            if (index.splits[index.posting_list(row)] == split).sum() >= 3
            and (index.splits[index.posting_list(row)] == 0).any()
        ]
        assert eligible_tags(index, split).tolist() == expected
