"""Fixtures shared by all tests: a tiny tree of pictures, and its way through the stages before training."""

import pytest

import crawl.collect
from configs.compose import Paths
from crawl.collect import collect
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.extract import extract
from tests.synthetic import line, one_thread, trained  # noqa: F401 - fixtures
from tests.tiny import QuickGate, crawl_config, histogram_config, write_tree


@pytest.fixture(scope="session")
def tiny_tree(tmp_path_factory):
    """40 pictures below a folder a tag; read-only."""
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def tiny_data(tiny_tree, tmp_path_factory):
    """The data directory of the tiny tree after crawl, index, tag_vectors and colour histograms; read-only."""
    data = tmp_path_factory.mktemp("tiny") / "data"
    collect(crawl_config(data, tiny_tree))
    paths = Paths(data=str(data))
    build(IndexConfig(paths=paths))
    embed(TagVectorsConfig(paths=paths, words=WordsConfig(name="carried")))
    extract(histogram_config(data))
    return data


@pytest.fixture
def quick_gate(monkeypatch):
    """Run the gate in this process."""
    monkeypatch.setattr(crawl.collect, "IsolatedGate", QuickGate)
