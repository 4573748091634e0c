"""An uploaded picture's embedding: the same as that of the stored one, in the run's own space or not at all."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.artifacts import ArtifactError, seal
from configs.compose import Paths
from crawl.ingest import Accepted
from crawl.shards import JpegReader
from features.config import FeatureSpaceConfig
from features.image_features import open_store
from features.inverted_index import open_index
from serve.encoders import Encoders
from serve.generation import KIND, SCHEMA_VERSION
from tests.stub_searcher import StubSearcher
from tests.tiny import HISTOGRAM, picture
from train.towers import TwoTowers, embed, save_towers


def write_run(paths, space):
    torch.manual_seed(0)
    towers = TwoTowers(tag_dim=200, image_dim=99, embed_dim=16, depth=1).eval()
    run, served = paths.run("small"), Path(paths.data) / "served" / "small" / "one"
    for directory, kind, version in ((run, "run", 1), (served, KIND, SCHEMA_VERSION)):
        directory.mkdir(parents=True, exist_ok=True)
        save_towers(towers, directory / "towers.safetensors")
        config = {"run": "small", "backbone": asdict(HISTOGRAM)}
        must_match = {"feature_space": space}
        seal(
            directory,
            kind,
            config=config,
            files=["towers.safetensors"],
            must_match=must_match,
            schema_version=version,
        )
    return towers


@pytest.fixture
def paths(tiny_data, tmp_path):
    for each in tiny_data.iterdir():
        (tmp_path / each.name).symlink_to(each)
    return Paths(data=str(tmp_path), runs=str(tmp_path / "runs"))


def served(generation="one"):
    searcher = StubSearcher("small")
    searcher.generation = generation
    return searcher


def test_picture_of_the_collection_gets_the_embedding_of_its_stored_feature(paths):
    index, manifest = open_index(paths)
    store, features = open_store(FeatureSpaceConfig(paths, HISTOGRAM), manifest.must_match["gate"])
    towers = write_run(paths, features.must_match["feature_space"])
    jpegs = JpegReader(paths.artifact("collection"))
    jpeg = jpegs.read(index.locations[3], index.image_id(3))
    jpegs.close()
    stored = embed(towers.image, torch.from_numpy(store.gather(np.asarray(index.image_ids))[[3]]))[0].numpy()
    np.testing.assert_allclose(Encoders(paths).of(served()).embedding(jpeg), stored, atol=2e-3)  # stored as float16


def test_run_of_another_feature_space_is_refused(paths):
    write_run(paths, "of another backbone")
    with pytest.raises(ArtifactError, match="make publish"):
        Encoders(paths).of(served())


def test_newly_published_generation_brings_its_own_towers(paths):
    _, manifest = open_index(paths)
    _, features = open_store(FeatureSpaceConfig(paths, HISTOGRAM), manifest.must_match["gate"])
    write_run(paths, features.must_match["feature_space"])
    (paths.artifact("served") / "small" / "two").symlink_to(paths.artifact("served") / "small" / "one")
    encoders = Encoders(paths)
    first = encoders.of(served())
    assert encoders.of(served()) is first
    assert encoders.of(served("two")) is not first
    assert encoders.of(served("two")).pictures is first.pictures


def test_bytes_of_strangers_pass_the_gate_of_the_collection_in_a_process_of_its_own(paths):
    encoders = Encoders(paths)
    try:
        verdict = encoders.ingest(picture(5))
        refused = encoders.ingest(b"no picture")
    finally:
        encoders.close()
    assert isinstance(verdict, Accepted)
    assert refused.reason == "not_an_image"
