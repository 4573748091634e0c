"""Stage `tag_vectors`: a unit vector a tag, zero and listed where nothing is known."""

import numpy as np
import pytest

from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import Paths
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.tag_vectors import open_tag_vectors
from tests.tiny import bury, tagged, write_collection

RECORDS = [tagged(0, "dog", "qwzxv"), tagged(1, "dog", "polar bear"), tagged(2, "qwzxv", "xxqqvv")]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "words.txt").write_text("3 2\ndog 3 4\npolar 1 0\nbear 0 1\n")
    paths = Paths(data=str(tmp_path))
    write_collection(tmp_path / "collection", RECORDS)
    build(IndexConfig(paths=paths))
    return TagVectorsConfig(paths=paths, words=WordsConfig(name="word2vec", path=str(tmp_path / "words.txt")))


def vectors_of(config):
    index = read_manifest(build(IndexConfig(paths=config.paths)))
    return open_tag_vectors(config.paths, index.content_id)


def test_known_tags_get_unit_vectors_and_the_others_zero(config):
    embed(config)
    found, _ = vectors_of(config)
    assert found.vectors == pytest.approx(np.array([[0.6, 0.8], [0.5**0.5, 0.5**0.5], [0, 0], [0, 0]]))
    assert found.known.tolist() == [True, True, False, False]


def test_unknown_tags_are_listed_and_the_frequent_one_logged(config, caplog):
    with caplog.at_level("INFO"):
        directory = embed(config)
    assert (directory / "unknown.txt").read_text() == "qwzxv\nxxqqvv\n"
    assert "2 of 4 tags have no vector (qwzxv, xxqqvv)" in caplog.text


def test_the_artifact_verifies_and_names_its_space(config):
    directory = embed(config)
    assert verify(directory) == []
    assert read_manifest(directory).must_match.keys() == {"word_space", "tag_rules"}


def test_the_same_tags_are_not_looked_up_twice(config):
    assert embed(config) == embed(config)


def test_another_table_is_another_generation(config, tmp_path):
    first = embed(config)
    (tmp_path / "words.txt").write_text("1 2\ndog 1 0\n")
    assert embed(config) != first


def test_vectors_of_another_index_are_refused(config):
    embed(config)
    with pytest.raises(ArtifactError, match=r"holds vectors of index .* the index in force is 000000000000"):
        open_tag_vectors(config.paths, "0" * 64)


def test_a_collection_without_tags_has_no_vectors(config, tmp_path):
    bury(tmp_path / "collection", f"{0:016x}", f"{1:016x}")
    write_collection(tmp_path / "untagged" / "collection", [tagged(5)])
    config.paths = Paths(data=str(tmp_path / "untagged"))
    build(IndexConfig(paths=config.paths))
    embed(config)
    assert vectors_of(config)[0].vectors.shape == (0, 2)
