"""A run with the artifacts of its spaces: what training writes, and evaluation and publishing read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from configs.artifacts import Manifest, open_artifact, require_match
from configs.compose import Paths
from features.config import BackboneConfig, FeatureSpaceConfig
from features.image_features import FeatureStore, open_store
from features.inverted_index import InvertedIndex, open_index
from features.tag_vectors import TagVectors, open_tag_vectors
from train.towers import TwoTowers, load_towers


@dataclass(frozen=True)
class Inputs:
    """What training and evaluation read, checked to fit together."""

    index: InvertedIndex
    vectors: TagVectors
    store: FeatureStore
    spaces: dict[str, str]  # feature space, word space, tag rules
    content: dict[str, str]  # content_ids, provenance only
    left_out: dict[str, int] = field(default_factory=dict)  # images of val and test that straddle the splits

    @cached_property
    def features(self) -> np.ndarray:
        """Return (N, W) float16, row r is image row r; read when first asked for, because it is gigabytes."""
        return self.store.gather(np.asarray(self.index.image_ids))


def open_inputs(cfg: FeatureSpaceConfig) -> Inputs:
    """Open index, tag vectors and image features.

    Raises:
        ArtifactError: one is missing, unfinished, or made for another than the others. Images without a feature
            are found out when the features are read.
    """
    index, index_manifest = open_index(cfg.paths)
    vectors, words = open_tag_vectors(cfg.paths, index_manifest.content_id)
    store, features = open_store(cfg, index_manifest.must_match["gate"])
    require_match(words.must_match, index_manifest.must_match, "the tag vectors", "the index")
    spaces = {**words.must_match, **features.must_match}
    content = {"index": index_manifest.content_id, "tag_vectors": words.content_id}
    return Inputs(index, vectors, store, spaces, content)


def features_of(run: Manifest, paths: Paths) -> FeatureSpaceConfig:
    """Return which features a run was trained on, as its config keeps it."""
    younger = ("precision", "views", "pca")  # than some runs
    kept = {name: run.config[name] for name in younger if name in run.config}
    return FeatureSpaceConfig(paths, BackboneConfig(**run.config["backbone"]), **kept)


def open_run(paths: Paths, run: str) -> tuple[TwoTowers, Manifest, Inputs]:
    """Open a finished run with the inputs of its own spaces.

    Raises:
        ArtifactError: no such run, or artifacts of another feature or word space.
    """
    run_dir = paths.run(run)
    manifest = open_artifact(run_dir, "run", make=f'make train ARGS="run={run}"')
    inputs = open_inputs(features_of(manifest, paths))
    require_match(inputs.spaces, manifest.must_match, "the data", f"run '{run}'")
    return load_towers(run_dir / "towers.safetensors"), manifest, inputs
