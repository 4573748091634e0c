"""Fixtures shared by all tests: a tiny tree of pictures, and its way through the stages before training."""

import os

import pytest

import crawl.collect
import crawl.fetch.process
from configs.compose import Paths
from crawl.collect import collect
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.extract import extract
from tests.browsing import browser, open_page, site  # noqa: F401 - fixtures
from tests.forked import QuickProcesses
from tests.gallery_server import Gallery
from tests.synthetic import line, one_thread, trained  # noqa: F401 - fixtures
from tests.tiny import QuickGate, crawl_config, histogram_config, write_tree

WORKERS = {"name": "ray", "cpus": 0.5, "workers": 2}


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


@pytest.fixture
def quick_crawl(quick_gate, monkeypatch):
    """Run the gate in this process, and fork what fetches."""
    monkeypatch.setattr(crawl.fetch.process, "subprocess", QuickProcesses)


@pytest.fixture
def web():
    """A web on loopback."""
    with Gallery() as web:
        yield web


@pytest.fixture(scope="session")
def cluster():
    """The config of workers on a Ray cluster of one node, which listens on loopback alone."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
    ray_cluster = pytest.importorskip("ray.cluster_utils")
    head = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield {**WORKERS, "address": head.address}
    head.shutdown()
