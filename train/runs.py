"""A run with the artifacts of its spaces: what training writes, and evaluation and publishing read."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property

import numpy as np
import torch

from configs.artifacts import Manifest, open_artifact, require_match
from configs.compose import Paths
from crawl.tags import normalise_tag
from features.config import BackboneConfig, FeatureSpaceConfig
from features.image_features import FeatureStore, open_store
from features.inverted_index import InvertedIndex, open_index
from features.tag_vectors import TagVectors, open_tag_vectors
from train.ranking import top_k
from train.towers import TwoTowers, embed, embed_tags, load_towers


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

    def features_at(self, image_rows: np.ndarray) -> np.ndarray:
        """Return (n, W) float16 of some images; where not all are read already, these alone are."""
        if "features" in self.__dict__:
            return np.asarray(self.features[image_rows])
        return self.store.gather(np.asarray(self.index.image_ids)[image_rows])


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
    kept = {name: run.config[name] for name in ("precision", "pca") if name in run.config}  # younger than some runs
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


@dataclass(frozen=True)
class Gallery:
    """A run before all images of its index, to be asked from a notebook."""

    towers: TwoTowers
    inputs: Inputs

    @cached_property
    def embeddings(self) -> np.ndarray:
        """Return (N, D) float32, row r is image row r; computed when first asked for."""
        return np.asarray(embed(self.towers.image, torch.from_numpy(self.inputs.features)).numpy())

    def embed(self, tag: str) -> np.ndarray:
        """Return the embedding (D,) of a tag.

        Raises:
            ValueError: no image of the index carries it, or it has no vector.
        """
        name = normalise_tag(tag)
        row = self.inputs.index.tag_row(name)
        if row is None:
            close = ", ".join(get_close_matches(name, self.inputs.index.tags)) or "nothing"
            raise ValueError(f"no image is tagged '{name}'; close to it: {close}")
        if not self.inputs.vectors.known[row]:
            raise ValueError(f"the tag '{name}' has no word vector, so towers know nothing of it")
        vector = torch.from_numpy(np.array(self.inputs.vectors.vectors[[row]]))
        return np.asarray(embed_tags(self.towers, [name], vector)[0].numpy())

    def search(self, tag: str, k: int = 10) -> list[tuple[str, float]]:
        """Return the image_ids of the k best images for a tag with cosines, best first, carrying it or not; no votes.

        Raises:
            ValueError: as `embed`.
        """
        scores = self.embeddings @ self.embed(tag)
        return [(self.inputs.index.image_id(row), float(scores[row])) for row in top_k(scores, k)]


def open_gallery(paths: Paths, run: str) -> Gallery:
    """Open a finished run to search with.

    Raises:
        ArtifactError: as `open_run`.
    """
    towers, _, inputs = open_run(paths, run)
    return Gallery(towers, inputs)
