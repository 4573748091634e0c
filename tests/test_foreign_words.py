"""Tables of others: their formats, files that would run code, and a conversion that is made once."""

import gzip
import os
import pickle

import gensim.downloader
import numpy as np
import pytest
from gensim.models import KeyedVectors

import features.foreign_words
from configs.artifacts import ArtifactError, file_sha256, verify
from configs.compose import Paths
from features.config import WordsConfig
from features.tag_vectors import open_words, word_space

WORDS = {"dog": [3.0, 0.0, 0.0], "cat": [0.0, 2.0, 0.0], "new_york": [0.0, 0.0, 1.0], "Paris": [1.0, 1.0, 1.0]}


@pytest.fixture
def vectors():
    table = KeyedVectors(vector_size=3)
    table.add_vectors(list(WORDS), np.array(list(WORDS.values()), dtype=np.float32))
    return table


@pytest.fixture
def data(tmp_path):
    return Paths(data=str(tmp_path / "data"))


@pytest.fixture
def opened(data):
    return lambda path, name="word2vec": open_words(WordsConfig(name=name, path=str(path)), data)


def same(words):
    return all(words.vector(word).tolist() == values for word, values in WORDS.items())


@pytest.mark.parametrize("name", ["w.txt", "w.bin", "w.txt.gz", "w.bin.gz", "w-300.gz"])
def test_word2vec_files_are_told_apart_by_content(name, vectors, tmp_path, opened):
    binary = "bin" in name or "300" in name
    vectors.save_word2vec_format(str(tmp_path / "plain"), binary=binary)
    content = (tmp_path / "plain").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert same(opened(tmp_path / name))


@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz"])
def test_a_glove_file_has_no_header(name, tmp_path, opened):
    lines = "".join(f"{word} {' '.join(map(str, values))}\n" for word, values in WORDS.items()).encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    assert same(opened(tmp_path / name))


def test_a_word_that_is_no_text_does_not_spoil_the_table(tmp_path, opened):
    (tmp_path / "w.txt").write_bytes(b"2 2\ncaf\xe9 1 2\ndog 3 4\n")
    assert opened(tmp_path / "w.txt").vector("dog").tolist() == [3, 4]


@pytest.mark.parametrize(
    "content",
    [b"", b"5 3\ndog 1 2 3\n", b"dog a b c\n", b"1 3\ndog 1 2\n", b"\x00\x01\n\x02", b"99999999999 999999999\nd 1\n"],
)
@pytest.mark.parametrize("name", ["w.txt", "w.gz"])
def test_a_file_of_no_words_is_an_artifact_error(name, content, tmp_path, opened):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="no word2vec or GloVe file"):
        opened(tmp_path / name)


@pytest.mark.parametrize("limit", [10**9, 0], ids=["one file", "arrays beside"])
def test_keyed_vectors_come_back_as_they_were_saved(limit, vectors, tmp_path, opened):
    vectors.save(str(tmp_path / "w.kv"), sep_limit=limit)
    assert (tmp_path / "w.kv.vectors.npy").exists() == (limit == 0)
    assert same(opened(tmp_path / "w.kv", "keyed_vectors"))


class Armed:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [(os.system, ("exit 1",)), (eval, ("1/0",)), (getattr, (KeyedVectors, "load"))])
def test_an_armed_file_of_word_vectors_never_fires(call, tmp_path, monkeypatch, opened):
    (tmp_path / "w.kv").write_bytes(pickle.dumps(Armed(*call)))
    with pytest.raises(ArtifactError, match="refused to load"):
        opened(tmp_path / "w.kv", "keyed_vectors")


def test_an_armed_attribute_of_real_word_vectors_never_fires(vectors, tmp_path, opened):
    vectors.note = Armed(os.system, (f"touch {tmp_path}/fired",))
    vectors.save(str(tmp_path / "w.kv"))
    with pytest.raises(ArtifactError, match=r"refused to load (posix|nt|os)\.system"):
        opened(tmp_path / "w.kv", "keyed_vectors")
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04.", pickle.dumps({1}), pickle.dumps([1]), b"\x80\x02}R."])
def test_another_pickle_is_no_table(content, tmp_path, opened):
    (tmp_path / "w.kv").write_bytes(content)
    with pytest.raises(ArtifactError, match="KeyedVectors"):
        opened(tmp_path / "w.kv", "keyed_vectors")


@pytest.mark.parametrize("attribute", ["vectors", "key_to_index"])
def test_word_vectors_with_a_part_missing_are_refused(attribute, vectors, tmp_path, opened):
    setattr(vectors, attribute, None)
    with (tmp_path / "w.kv").open("wb") as stream:
        pickle.dump(vectors, stream)
    with pytest.raises(ArtifactError, match="damaged"):
        opened(tmp_path / "w.kv", "keyed_vectors")


def test_cut_arrays_beside_word_vectors_are_refused(vectors, tmp_path, opened):
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
        open_words(WordsConfig(name="downloader", model="glove"), Paths())


def test_a_downloaded_table_is_read_and_not_run(vectors, tmp_path, monkeypatch, data):
    vectors.save_word2vec_format(str(tmp_path / "m.gz"), binary=True)
    monkeypatch.setattr(gensim.downloader, "load", lambda model, return_path: str(tmp_path / "m.gz"))
    assert same(open_words(WordsConfig(name="downloader", model="m"), data))


@pytest.mark.parametrize("name", ["word2vec", "keyed_vectors"])
def test_a_table_that_is_not_there_is_named(name, opened):
    with pytest.raises(ArtifactError, match=rf"words\.path 'none' is no file; words={name}"):
        opened("none", name)


def test_a_capital_is_tried_where_the_table_has_only_that(vectors, tmp_path, opened):
    vectors.save(str(tmp_path / "w.kv"))
    assert opened(tmp_path / "w.kv", "keyed_vectors").vector("paris").tolist() == [1, 1, 1]


def test_the_word_space_is_that_of_the_bytes(vectors, tmp_path, opened):
    for name in ("one.txt", "two.txt"):
        vectors.save_word2vec_format(str(tmp_path / name))
    vectors.vectors[0] = 7
    vectors.save_word2vec_format(str(tmp_path / "three.txt"))
    one, two, three = (word_space(opened(tmp_path / f"{name}.txt")) for name in ("one", "two", "three"))
    assert one == two != three


def conversions(data):
    return sorted(path.parent for path in data.artifact("words").glob("*/*/manifest.json"))


def test_a_file_is_read_once(opened, data, tmp_path, monkeypatch):
    (tmp_path / "w.txt").write_text("2 2\ndog 1 2\ncat 3 4\n")
    first = opened(tmp_path / "w.txt")
    for name in ("READERS", "file_sha256"):
        monkeypatch.setattr(features.foreign_words, name, None)
    again = opened(tmp_path / "w.txt")
    assert (again.digest, again.vector("cat").tolist()) == (first.digest, [3, 4])
    assert len(conversions(data)) == 1


def test_a_conversion_is_an_artifact_that_names_the_bytes_it_was_read_from(opened, data, tmp_path):
    (tmp_path / "w.txt").write_text("dog 1 2\n")
    assert opened(tmp_path / "w.txt").digest == file_sha256(tmp_path / "w.txt")
    assert verify(conversions(data)[0]) == []


def test_a_changed_file_is_read_anew_even_where_size_and_time_are_as_before(opened, tmp_path):
    path = tmp_path / "w.txt"
    path.write_text("dog 1 2\n")
    before = path.stat()
    assert opened(path).vector("dog").tolist() == [1, 2]
    path.write_text("dog 1 3\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened(path).vector("dog").tolist() == [1, 3]


def test_two_files_are_never_mixed(opened, tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.txt").write_text(f"dog {value} 0\n")
    assert [opened(tmp_path / name / "w.txt").vector("dog")[0] for name in ("one", "two", "one")] == [1, 2, 1]


def test_a_file_that_changes_while_it_is_read_is_refused(opened, data, tmp_path, monkeypatch):
    def read(path):
        table = features.foreign_words.read_word2vec(path)
        path.write_text("cat 1 2\n")
        return table

    (tmp_path / "w.txt").write_text("dog 1 2\n")
    monkeypatch.setitem(features.foreign_words.READERS, "word2vec", read)
    with pytest.raises(ArtifactError, match="changed while it was read"):
        opened(tmp_path / "w.txt")
    assert conversions(data) == []


def test_a_conversion_that_was_stopped_is_made_again(opened, data, tmp_path, monkeypatch):
    (tmp_path / "w.txt").write_text("dog 1 2\n")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("features.word_tables.seal", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        opened(tmp_path / "w.txt")
    assert opened(tmp_path / "w.txt").vector("dog").tolist() == [1, 2]
    assert len(list(conversions(data)[0].parent.iterdir())) == 2  # the generation and `current`


def test_of_a_word_that_comes_twice_the_first_counts(opened, tmp_path):
    (tmp_path / "w.txt").write_text("3 2\ndog 1 2\ndog 3 4\ncat 5 6\n")
    assert opened(tmp_path / "w.txt").vector("dog").tolist() == [1, 2]
    assert opened(tmp_path / "w.txt").vector("cat").tolist() == [5, 6]


@pytest.mark.parametrize("rows", [{"dog": 0, "cat": 0}, {"dog": 0, "cat": 2}, {"dog": 0, 1: 1}, {"dog": 0, "cat": [1]}])
def test_rows_that_are_not_one_a_word_are_refused(rows, opened, tmp_path):
    table = KeyedVectors(vector_size=3)
    table.add_vectors(["dog", "cat"], np.ones((2, 3), dtype=np.float32))
    table.key_to_index = rows
    table.save(str(tmp_path / "w.kv"))
    with pytest.raises(ArtifactError, match="damaged"):
        opened(tmp_path / "w.kv", "keyed_vectors")


def test_a_glove_file_whose_words_hold_blanks_is_read(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2 3\n. . . 4 5 6\nat name@domain.com 7 8 9\nthe 0 0 0\n")
    table = features.foreign_words.read_word2vec(path)
    assert table.words == ["the", ". . .", "at name@domain.com"]
    assert table.vectors.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
