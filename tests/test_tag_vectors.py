"""The vector of a tag: its own, or the mean of its parts', and which values of the config choose a table."""

import numpy as np
import pytest

from configs.artifacts import ArtifactError
from configs.compose import Paths
from features.config import TagVectorsConfig, WordsConfig
from features.tag_vectors import open_words, vector_of_tag
from features.word_tables import CarriedWords

WORDS = {"dog": [3.0, 0.0, 0.0], "cat": [0.0, 2.0, 0.0], "new_york": [0.0, 0.0, 1.0]}


class Table:
    dim = 3
    digest = "d"

    def vector(self, word):
        return None if word not in WORDS else np.array(WORDS[word], dtype=np.float32)


@pytest.fixture(scope="module")
def carried():
    return CarriedWords()


def cosine(words, one, two):
    return float(vector_of_tag(one, words) @ vector_of_tag(two, words))


@pytest.mark.parametrize(("near", "far"), [("puppy", "car"), ("cat", "bridge"), ("wolf", "teapot")])
def test_the_carried_table_knows_what_a_dog_is_like(near, far, carried):
    assert cosine(carried, "dog", near) > cosine(carried, "dog", far) + 0.2


@pytest.mark.parametrize(
    ("name", "given"), [("carried", "path"), ("downloader", "path"), ("carried", "model"), ("word2vec", "model")]
)
def test_a_value_that_the_table_does_not_use_is_refused(name, given):
    with pytest.raises(ValueError, match=rf"words\.{given}='x' has no effect with words\.name={name}"):
        WordsConfig(name=name, **{given: "x"})


def test_a_config_of_words_without_a_name_yet_can_be_made():
    assert WordsConfig(path="x", model="y").path == "x"


def test_another_kind_of_table_is_refused():
    with pytest.raises(ArtifactError, match="got 'bert'"):
        open_words(WordsConfig(name="bert"), Paths())


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("dog", [1, 0, 0]),
        ("dog cat", [0.5**0.5, 0.5**0.5, 0]),
        ("dog-cat", [0.5**0.5, 0.5**0.5, 0]),
        ("dog unheard", [1, 0, 0]),
        ("new york", [0, 0, 1]),
        ("new york dog", [1, 0, 0]),
    ],
)
def test_a_phrase_is_found_whole_or_is_the_mean_of_its_parts(tag, expected):
    assert vector_of_tag(tag, Table()) == pytest.approx(expected)


@pytest.mark.parametrize("tag", ["unheard", "un heard", "-", "猫"])
def test_a_tag_of_which_nothing_is_known_has_no_vector(tag):
    assert vector_of_tag(tag, Table()) is None


@pytest.mark.parametrize("values", [[0, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0]])
def test_a_vector_without_direction_is_none(values, monkeypatch):
    monkeypatch.setitem(WORDS, "zero", values)
    assert vector_of_tag("zero", Table()) is None


def test_a_training_knob_of_another_table_is_refused():
    with pytest.raises(ValueError, match=r"words\.epochs='5' has no effect with words\.name=word2vec"):
        WordsConfig(name="word2vec", path="x", epochs=5)


@pytest.mark.parametrize(
    ("knob", "value"), [("dim", 0), ("epochs", 0), ("min_count", 0), ("seed", -1), ("seed", 2**32)]
)
def test_a_training_knob_out_of_range_is_named(knob, value):
    with pytest.raises(ValueError, match=rf"words\.{knob} must .*got {value}"):
        WordsConfig(name="train", **{knob: value})


def test_only_a_trained_table_is_trained_again():
    with pytest.raises(ValueError, match=r"retrain=true has no effect with words\.name=carried"):
        TagVectorsConfig(words=WordsConfig(name="carried"), retrain=True)
