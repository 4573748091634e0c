"""What lies in a published generation: records, columns, products of halves, and whether it is the one to serve."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import serve.generation
from configs.artifacts import ArtifactError, save_array
from configs.generations import current_generation
from crawl.records import Record
from crawl.shards import LOCATION
from serve.generation import (
    Column,
    Generation,
    Records,
    as_float32,
    cosines,
    is_published,
    related_rows,
    write_columns,
    write_records,
)
from tests.synthetic import copy_line, records
from tests.test_publish import index_again, published


@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1))
def test_halves_become_the_same_floats_as_numpy_makes_of_them(values):
    halves = np.array(values, dtype=np.float16)
    found = as_float32(halves)
    assert found.tolist() == halves.astype(np.float32).tolist()
    assert np.signbit(found).tolist() == np.signbit(halves).tolist()


def test_all_halves_become_their_floats():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    assert np.array_equal(as_float32(finite), finite.astype(np.float32))


@pytest.fixture
def own(trained, tmp_path):
    return copy_line(trained, tmp_path)


def opened(paths):
    return Generation(current_generation(paths.artifact("served") / "small", make=""))


@pytest.mark.parametrize(("few", "many"), [(1000, 1000), (0, 1000), (0, 7)])
def test_products_are_the_same_however_embeddings_are_read(trained, monkeypatch, few, many):
    monkeypatch.setattr(serve.generation, "SMALL_BYTES", 0)
    monkeypatch.setattr(serve.generation, "FEW_ROWS", few)
    monkeypatch.setattr(serve.generation, "MANY_ROWS", many)
    generation = opened(trained)
    rows, vectors = np.array([3, 200, 41, 3, 100, 1, 2, 7, 9]), np.eye(16, dtype=np.float32)[:2]
    expected = np.array(generation.embeddings)[rows].astype(np.float32) @ vectors.T
    np.testing.assert_allclose(generation.cosines(rows, vectors), expected, atol=1e-6)
    np.testing.assert_allclose(cosines(generation.embeddings, slice(None), vectors)[rows], expected, atol=1e-6)


awkward = Record(
    "f" * 16,
    "g",
    ("Traffic_Light", "猫", 'say "hi"\n', "traffic light"),
    title="two\nlines \u2028",
    extra={"half": "\ud800", "large": 2**70},
)


def test_records_are_read_back_by_row_whatever_they_hold(tmp_path):
    write_records(tmp_path, [Record("0" * 16, "g", width=3, height=2, licence="CC0", author="Ada"), awkward])
    found = Records(tmp_path, 2)
    assert found.shown(0) == ["0" * 16, 3, 2, "", [], "Ada", "CC0"]
    assert found.shown(1)[3:5] == ["two\nlines \u2028", ['say "hi"', "traffic light", "猫"]]
    assert found.whole(1) == json.loads(json.dumps(vars(awkward)))


def test_records_that_were_cut_are_refused(tmp_path):
    write_records(tmp_path, [awkward])
    os.truncate(tmp_path / "records.jsonl", 10)
    with pytest.raises(ArtifactError, match="does not have the size"):
        Records(tmp_path, 1)


def test_columns_hold_values_and_the_order_of_age(tmp_path):
    locations = np.array([(0, 10, 1), (1, 5, 1), (0, 20, 1), (1, 7, 1)], dtype=LOCATION)
    dates = ["2024-05-01T00:00:00+00:00", "", "2025-01-01T00:00:00+00:00", ""]
    write_columns(tmp_path, ["b", "a", "b", ""], ["x"] * 4, dates, locations)
    assert json.loads((tmp_path / "facets.json").read_text()) == {
        "licences": {"": 1, "a": 1, "b": 2},
        "kinds": {"x": 4},
    }
    assert np.load(tmp_path / "licences.npy").tolist() == [2, 1, 2, 0]
    assert np.load(tmp_path / "newest.npy").tolist() == [1, 3, 0, 2]  # 2025, 2024, then the last that came


def test_a_column_counts_and_filters():
    column = Column({"a": 1, "b": 3}, np.array([1, 0, 1, 1], dtype=np.int32))
    assert list(column.counts(np.array([0, 1, 2]))) == [("b", 2), ("a", 1)]
    assert list(column.counts(np.array([0]))) == [("b", 1)]
    assert column.among(np.array([0, 1]), ["b", "none"]).tolist() == [True, False]
    assert column.total(["b", "b", "none"]) == 3


class Named:
    """An index that knows the rows of its tags alone."""

    def __init__(self, *tags):
        self.tags = tags

    def tag_row(self, tag):
        return self.tags.index(tag) if tag in self.tags else None


def test_names_find_their_aliases_plurals_and_what_is_narrower():
    relations = {
        "alias": {"auto": {"car"}, "car": {"auto"}},
        "broader": {"puppy": {"dog"}, "dog": {"animal"}, "gone": {"nothing"}},
        "plural": {"dogs": {"dog"}},
    }
    found = related_rows(Named("animal", "car", "dog", "dogs", "puppy"), relations)
    assert found == {"animal": [0, 2, 3, 4], "auto": [1], "dog": [2, 3, 4], "dogs": [2, 3, 4]}


def test_relations_that_go_in_circles_end():
    found = related_rows(Named("a", "b"), {"broader": {"a": {"b"}, "b": {"a"}}})
    assert found == {"a": [0, 1], "b": [0, 1]}


def test_what_is_served_is_up_to_date_until_something_it_is_made_of_changes(own):
    assert is_published(own, "small")
    index_again(own, [records()[:-1]])
    assert not is_published(own, "small")
    published(own)
    assert is_published(own, "small")
    (own.artifact("collection") / "tag_relations.csv").write_text("tag,relation,other\nautomobile,alias,car\n")
    assert not is_published(own, "small")


def test_an_evaluation_that_came_later_is_taken_in(own):
    (own.run("small") / "evaluation" / "test" / "manifest.json").unlink()
    assert not is_published(own, "small")
    without = Generation(published(own))
    assert without.calibration is None
    assert without.quality is None
    assert is_published(own, "small")


def test_a_run_without_calibration_says_how_to_make_one(own, caplog):
    (own.run("small") / "evaluation" / "test" / "manifest.json").unlink()
    published(own)
    assert 'make evaluate ARGS="run=small"' in caplog.text


def test_a_generation_of_an_older_format_names_the_way_out(own):
    directory = current_generation(own.artifact("served") / "small", make="")
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(ArtifactError, match=r"format 1 of served.*make publish"):
        Generation(directory)


@pytest.mark.parametrize("name", ["related.json", "facets.json", "calibration.json"])
def test_damage_is_named(own, name):
    directory = current_generation(own.artifact("served") / "small", make="")
    (directory / name).write_text("{")
    with pytest.raises(ArtifactError, match=name):
        Generation(directory)


def test_arrays_of_another_shape_are_refused(own):
    directory = current_generation(own.artifact("served") / "small", make="")
    (directory / "scores.npy").unlink()  # a link to nothing else, but the copy may be one
    save_array(directory / "scores.npy", np.zeros(3, np.float32))
    with pytest.raises(ArtifactError, match="scores"):
        Generation(directory)


def test_records_of_equal_bytes_give_equal_files(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
        write_records(directory, [awkward, replace(awkward, title="other")])
    assert (one / "records.jsonl").read_bytes() == (two / "records.jsonl").read_bytes()
