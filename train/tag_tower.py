"""The tag tower in numpy, so that what answers searches need not load torch; `train/towers.py` writes the file.

n words, D width of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from configs.artifacts import ArtifactError

LAYER_NORM_EPS = 1e-5  # torch's default


class TagTower:
    """Weights of the tag side of a run.

    Raises:
        ArtifactError: the file is missing, damaged, or no towers.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="np") as stored:
                shape = json.loads((stored.metadata() or {})["shape"])
                names = [name for name in stored.keys() if name.startswith("tag.")]  # noqa: SIM118 - no mapping
                self._weights = {name.removeprefix("tag."): stored.get_tensor(name) for name in names}
                residual_tags = shape.get("residual_tags", [])
                self._residual = stored.get_tensor("residual") if residual_tags else None
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"'{path}' holds no towers: {error}") from error
        self._residual_row = {tag: row for row, tag in enumerate(residual_tags)}
        self._rectified = shape["activation"] == "relu"

    def embed(self, words: Sequence[str], vectors: np.ndarray) -> np.ndarray:
        """Embed words by name and word vector (n, tag_dim) as `train.towers.embed_tags`; returns (n, D) float32."""
        weights = self._weights
        values = (vectors.astype(np.float32) - weights["centre"]) / weights["spread"]
        hidden = ["hidden"] if "hidden.weight" in weights else []
        hidden += [f"deeper.{number}" for number in range(sum(name.startswith("deeper.") for name in weights) // 2)]
        for number, name in enumerate(hidden):
            values = self._linear(values, name)
            if f"norms.{number}.weight" in weights:
                values = self._normed(values, f"norms.{number}")
            values = np.maximum(values, 0) if self._rectified else values
        embeddings = _unit(self._linear(values, "out"))
        if self._residual is None:
            return embeddings
        rows = [self._residual_row.get(word, -1) for word in words]
        return _unit(embeddings + np.where(np.array(rows)[:, None] >= 0, self._residual[rows], 0))

    def _linear(self, values: np.ndarray, name: str) -> np.ndarray:
        return np.asarray(values @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"])

    def _normed(self, values: np.ndarray, name: str) -> np.ndarray:
        centred = values - values.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + LAYER_NORM_EPS)
        return np.asarray(scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float32)
