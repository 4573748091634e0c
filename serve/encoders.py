"""From a picture to its embedding in a run's space: the gate for strangers' bytes, the backbone, the image tower.

Opened when first needed, because most servers are never asked, and networks take a second and some memory.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch

from configs.artifacts import ArtifactError, open_artifact
from configs.compose import Paths
from crawl.config import GateOptions
from crawl.ingest import Accepted, IsolatedGate, Refused
from features.single_picture import SinglePicture
from features.spaces import feature_space
from serve.busy import Queue
from train.runs import features_of
from train.towers import TwoTowers, embed, load_towers

MAX_UPLOAD_BYTES = 16 * 2**20
WAITING = 4  # pictures that wait while one is looked at; half a second each
UPLOAD_TIMEOUT_S = 5.0  # of the gate, for one picture of a person who waits


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


class Encoders:
    """The encoders of all runs behind one queue; safe from several threads."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._opened: dict[str, RunEncoder] = {}
        self._gate: IsolatedGate | None = None
        self._lock = threading.Lock()
        self._closing = ExitStack()
        self.queue = Queue(WAITING)

    def of(self, run: str) -> RunEncoder:
        """Return the encoder of a run.

        Raises:
            ArtifactError: the run, its backbone or its towers cannot be opened.
        """
        with self._lock:
            if run not in self._opened:
                self._opened[run] = RunEncoder(self._paths, run)
            return self._opened[run]

    def ingest(self, content: bytes) -> Accepted | Refused:
        """Judge a stranger's bytes in a process of their own, by the gate that the collection passed.

        Raises:
            ArtifactError: there is no collection to tell its gate.
        """
        return self._open_gate().ingest(content)

    def _open_gate(self) -> IsolatedGate:
        with self._lock:
            if self._gate is None:
                config = open_artifact(self._paths.artifact("collection"), "collection", make="make crawl").config
                options = replace(GateOptions(**config["gate"]), max_bytes=MAX_UPLOAD_BYTES, timeout_s=UPLOAD_TIMEOUT_S)
                self._gate = self._closing.enter_context(IsolatedGate(options, workers=1))
            return self._gate

    def close(self) -> None:
        """End the gate's process."""
        with self._lock:
            self._closing.close()
            self._gate = None
