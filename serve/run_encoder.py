"""The network and the image tower of one run, for a picture now and then."""

from __future__ import annotations

import numpy as np
import torch

from configs.artifacts import ArtifactError, open_artifact
from configs.compose import Paths
from features.single_picture import SinglePicture
from features.spaces import feature_space
from train.runs import features_of
from train.towers import TwoTowers, embed, load_towers


class RunEncoder:
    """The network and the image tower of one run."""

    def __init__(self, paths: Paths, run: str) -> None:
        directory = paths.run(run)
        manifest = open_artifact(directory, "run", make=f'make train ARGS="run={run}"')
        gate = open_artifact(paths.artifact("collection"), "collection", make="make crawl").must_match["gate"]
        features = features_of(manifest, paths)
        if feature_space(features, gate) != manifest.must_match["feature_space"]:
            raise ArtifactError(f"run '{run}' was trained on features of another gate or backbone; train it anew")
        self.pictures = SinglePicture(features, gate)
        self.towers: TwoTowers = load_towers(directory / "towers.safetensors")

    def embedding(self, jpeg: bytes) -> np.ndarray:
        """Return the embedding (D,) float32 of a stored JPEG."""
        feature = torch.from_numpy(self.pictures.feature(jpeg)[None])
        return np.asarray(embed(self.towers.image, feature)[0].numpy())
