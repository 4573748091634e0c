"""The network and the image tower of a published run, for a picture now and then."""

from __future__ import annotations

import numpy as np
import torch

from configs.artifacts import ArtifactError, open_artifact
from configs.compose import Paths
from features.single_picture import SinglePicture
from features.spaces import feature_space
from serve.generation import KIND, MAKE, SCHEMA_VERSION, TOWERS
from train.runs import features_of
from train.towers import TwoTowers, embed, load_towers


class RunEncoder:
    """A backbone before the image tower of one generation, so that embeddings fit those that are served."""

    def __init__(self, pictures: SinglePicture, towers: TwoTowers) -> None:
        self.pictures = pictures
        self.towers = towers

    def embedding(self, jpeg: bytes) -> np.ndarray:
        """Return the embedding (D,) float32 of a stored JPEG."""
        feature = torch.from_numpy(self.pictures.feature(jpeg)[None])
        return np.asarray(embed(self.towers.image, feature)[0].numpy())


def open_encoder(paths: Paths, run: str, generation: str, networks: dict[str, SinglePicture]) -> RunEncoder:
    """Open the encoder of a generation; runs of one feature space share a network of `networks`.

    Raises:
        ArtifactError: the generation or its run is gone, or the run's features are not those it was published with.
    """
    directory = paths.artifact("served") / run / generation
    space = open_artifact(directory, KIND, MAKE, SCHEMA_VERSION).must_match["feature_space"]
    if space not in networks:
        manifest = open_artifact(paths.run(run), "run", make=f'make train ARGS="run={run}"')
        gate = open_artifact(paths.artifact("collection"), "collection", make="make crawl").must_match["gate"]
        features = features_of(manifest, paths)
        if feature_space(features, gate) != space:
            raise ArtifactError(
                f"run '{run}' is served with features of another gate or backbone than '{paths.run(run)}' says; "
                f'run `make publish ARGS="run={run}"`'
            )
        networks[space] = SinglePicture(features, gate)
    return RunEncoder(networks[space], load_towers(directory / TOWERS))
