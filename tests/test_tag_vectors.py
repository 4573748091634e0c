"""Word tables of every kind, phrases by their parts, and files that would run code."""

import gzip
import os
import pickle

import gensim.downloader
import numpy as np
import pytest
from gensim.models import KeyedVectors

from configs.artifacts import ArtifactError
from features.config import WordsConfig
from features.tag_vectors import CarriedWords, open_words, vector_of_tag, word_space

WORDS = {"dog": [3.0, 0.0, 0.0], "cat": [0.0, 2.0, 0.0], "new_york": [0.0, 0.0, 1.0], "Paris": [1.0, 1.0, 1.0]}


class Table:
    dim = 3
    digest = "d"

    def vector(self, word):
        return None if word not in WORDS else np.array(WORDS[word], dtype=np.float32)


@pytest.fixture(scope="module")
def carried():
    return CarriedWords()


@pytest.fixture
def vectors():
    table = KeyedVectors(vector_size=3)
    table.add_vectors(list(WORDS), np.array(list(WORDS.values()), dtype=np.float32))
    return table


def cosine(words, one, two):
    return float(vector_of_tag(one, words) @ vector_of_tag(two, words))


def opened(path, name="word2vec"):
    return open_words(WordsConfig(name=name, path=str(path)))


def same(words):
    return all(words.vector(word).tolist() == values for word, values in WORDS.items())


@pytest.mark.parametrize(("near", "far"), [("puppy", "car"), ("cat", "bridge"), ("wolf", "teapot")])
def test_the_carried_table_knows_what_a_dog_is_like(near, far, carried):
    assert cosine(carried, "dog", near) > cosine(carried, "dog", far) + 0.2


def test_the_carried_table_is_what_it_says(carried):
    assert carried.vector("dog").shape == (200,)
    assert carried.vector("dog").dtype == np.float32
    assert carried.vector("no such word") is None


@pytest.mark.parametrize("name", ["w.txt", "w.bin", "w.txt.gz", "w.bin.gz", "w-300.gz"])
def test_word2vec_files_are_told_apart_by_content(name, vectors, tmp_path):
    binary = "bin" in name or "300" in name
    vectors.save_word2vec_format(str(tmp_path / "plain"), binary=binary)
    content = (tmp_path / "plain").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert same(opened(tmp_path / name))


@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz"])
def test_a_glove_file_has_no_header(name, tmp_path):
    lines = "".join(f"{word} {' '.join(map(str, values))}\n" for word, values in WORDS.items()).encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    assert same(opened(tmp_path / name))


def test_a_word_that_is_no_text_does_not_spoil_the_table(tmp_path):
    (tmp_path / "w.txt").write_bytes(b"2 2\ncaf\xe9 1 2\ndog 3 4\n")
    assert opened(tmp_path / "w.txt").vector("dog").tolist() == [3, 4]


@pytest.mark.parametrize(
    "content",
    [b"", b"5 3\ndog 1 2 3\n", b"dog a b c\n", b"1 3\ndog 1 2\n", b"\x00\x01\n\x02", b"99999999999 999999999\nd 1\n"],
)
@pytest.mark.parametrize("name", ["w.txt", "w.gz"])
def test_a_file_of_no_words_is_an_artifact_error(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="no word2vec or GloVe file"):
        opened(tmp_path / name)


@pytest.mark.parametrize("limit", [10**9, 0], ids=["one file", "arrays beside"])
def test_keyed_vectors_come_back_as_they_were_saved(limit, vectors, tmp_path):
    vectors.save(str(tmp_path / "w.kv"), sep_limit=limit)
    assert (tmp_path / "w.kv.vectors.npy").exists() == (limit == 0)
    assert same(opened(tmp_path / "w.kv", "keyed_vectors"))


class Armed:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [(os.system, ("exit 1",)), (eval, ("1/0",)), (getattr, (KeyedVectors, "load"))])
def test_an_armed_file_of_word_vectors_never_fires(call, tmp_path, monkeypatch):
    (tmp_path / "w.kv").write_bytes(pickle.dumps(Armed(*call)))
    with pytest.raises(ArtifactError, match="refused to load"):
        opened(tmp_path / "w.kv", "keyed_vectors")


def test_an_armed_attribute_of_real_word_vectors_never_fires(vectors, tmp_path):
    vectors.note = Armed(os.system, (f"touch {tmp_path}/fired",))
    vectors.save(str(tmp_path / "w.kv"))
    with pytest.raises(ArtifactError, match=r"refused to load (posix|nt|os)\.system"):
        opened(tmp_path / "w.kv", "keyed_vectors")
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04.", pickle.dumps({1}), pickle.dumps([1]), b"\x80\x02}R."])
def test_another_pickle_is_no_table(content, tmp_path):
    (tmp_path / "w.kv").write_bytes(content)
    with pytest.raises(ArtifactError, match="KeyedVectors"):
        opened(tmp_path / "w.kv", "keyed_vectors")


@pytest.mark.parametrize("attribute", ["vectors", "key_to_index"])
def test_word_vectors_with_a_part_missing_are_refused(attribute, vectors, tmp_path):
    setattr(vectors, attribute, None)
    with (tmp_path / "w.kv").open("wb") as stream:
        pickle.dump(vectors, stream)
    with pytest.raises(ArtifactError, match="damaged"):
        opened(tmp_path / "w.kv", "keyed_vectors")


def test_cut_arrays_beside_word_vectors_are_refused(vectors, tmp_path):
    vectors.save(str(tmp_path / "w.kv"), sep_limit=0)
    beside = tmp_path / "w.kv.vectors.npy"
    beside.write_bytes(beside.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"w\.kv\.vectors\.npy"):
        opened(tmp_path / "w.kv", "keyed_vectors")


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("Incorrect model"), ConnectionError("reset")])
def test_without_network_the_way_by_hand_is_named(error, monkeypatch):
    def load(model, return_path):
        raise error

    monkeypatch.setattr(gensim.downloader, "load", load)
    with pytest.raises(ArtifactError, match=r"no 'glove'.*words=word2vec words\.path=<file>"):
        open_words(WordsConfig(name="downloader", model="glove"))


def test_a_downloaded_table_is_read_and_not_run(vectors, tmp_path, monkeypatch):
    vectors.save_word2vec_format(str(tmp_path / "m.gz"), binary=True)
    monkeypatch.setattr(gensim.downloader, "load", lambda model, return_path: str(tmp_path / "m.gz"))
    assert same(open_words(WordsConfig(name="downloader", model="m")))


@pytest.mark.parametrize("name", ["word2vec", "keyed_vectors"])
def test_a_table_that_is_not_there_is_named(name):
    with pytest.raises(ArtifactError, match=rf"words\.path 'none' is no file; words={name}"):
        opened("none", name)


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
        opened("none", "bert")


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


def test_a_capital_is_tried_where_the_table_has_only_that(vectors, tmp_path):
    vectors.save(str(tmp_path / "w.kv"))
    assert opened(tmp_path / "w.kv", "keyed_vectors").vector("paris").tolist() == [1, 1, 1]


def test_the_word_space_is_that_of_the_bytes(vectors, tmp_path):
    for name in ("one.txt", "two.txt"):
        vectors.save_word2vec_format(str(tmp_path / name))
    vectors.vectors[0] = 7
    vectors.save_word2vec_format(str(tmp_path / "three.txt"))
    one, two, three = (word_space(opened(tmp_path / f"{name}.txt")) for name in ("one", "two", "three"))
    assert one == two != three
