"""Word tables on disk: every word is found with its vector, and what is cut is refused."""

import numpy as np
import pytest

from configs.artifacts import ArtifactError, verify
from features.word_tables import FILES, CarriedWords, StoredWords, Table, parts, seal_table, spellings

ALPHABET = "ab_-A\u00e9\u0436\u732b\ud83d\U0001f431 \n"


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(0)
    words = list({"".join(rng.choice(list(ALPHABET), size=rng.integers(0, 6))): None for _ in range(400)})
    vectors = rng.normal(size=(len(words), 4)).astype(np.float32)
    seal_table(tmp_path, Table(words, vectors, "d"), "r", config={})
    return tmp_path, dict(zip(words, vectors, strict=True))


def test_every_word_is_found_as_in_a_dictionary_and_no_other(stored):
    words = StoredWords(stored[0])
    assert (words.dim, words.digest) == (4, "d")
    for word, vector in stored[1].items():
        assert words.vector(word).tolist() == vector.tolist()
    for absent in (word + "z" for word in stored[1]):
        assert words.vector(absent) is None


def test_a_vector_is_float32_and_stays_as_it_is(stored):
    vector = StoredWords(stored[0]).vector(next(iter(stored[1])))
    assert vector.dtype == np.float32
    assert not vector.flags.writeable


def test_vectors_of_double_precision_are_stored_in_single(tmp_path):
    seal_table(tmp_path, Table(["dog"], np.array([[0.1, 0.2]]), "d"), "r", config={})
    assert StoredWords(tmp_path).vector("dog").tolist() == np.array([0.1, 0.2], np.float32).tolist()


def test_a_table_verifies(stored):
    assert verify(stored[0]) == []


def test_a_table_outlives_its_files(stored):
    words = StoredWords(stored[0])
    for name in FILES:
        (stored[0] / name).unlink()
    for word, vector in stored[1].items():
        assert words.vector(word).tolist() == vector.tolist()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_damaged_table_is_refused(name, damage, stored):
    path = stored[0] / name
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-1]}.get(damage, b""))
    if damage == "removed":
        path.unlink()
    with pytest.raises(ArtifactError, match=name):
        StoredWords(stored[0])


def test_an_unfinished_table_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no finished words artifact"):
        StoredWords(tmp_path)


def test_the_carried_table_is_what_it_says():
    carried = CarriedWords()
    assert carried.vector("dog").shape == (200,)
    assert carried.vector("dog").dtype == np.float32
    assert carried.vector("no such word") is None


@pytest.mark.parametrize(
    ("tag", "whole", "pieces"),
    [
        ("dog", ["dog"], ["dog"]),
        ("new york", ["new_york", "new-york"], ["new", "york"]),
        ("t-shirt", ["t-shirt"], ["t", "shirt"]),
        ("-", ["-"], []),
    ],
)
def test_a_tag_is_spelt_whole_and_in_parts(tag, whole, pieces):
    assert (spellings(tag), parts(tag)) == (whole, pieces)
