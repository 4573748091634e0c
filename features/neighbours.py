"""Nearest neighbours among features, and how many of them a change of the features keeps.

N images, W width of a feature.
"""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 10
_CHUNK = 1024  # images whose scores with all others are in memory at once


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Return (N, W) float32 rows of length 1, zero rows as they are."""
    rows = features.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny))


def nearest(features: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Return (N, k) rows of the nearest others of each image by cosine, unordered."""
    rows = unit_rows(features)
    found = np.empty((len(rows), k), dtype=np.int64)
    for start in range(0, len(rows), _CHUNK):
        scores = rows[start : start + _CHUNK] @ rows.T
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf  # itself
        found[start : start + len(scores)] = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return found


def neighbours_kept(before: np.ndarray, after: np.ndarray, k: int = NEIGHBOURS) -> float:
    """Return the mean share of each image's k nearest others before that are so after, too.

    Args:
        before: (N, W) features.
        after: (N, any) features of the same images.
        k: how many neighbours, below N.
    """
    pairs = zip(nearest(before, k), nearest(after, k), strict=True)
    return float(np.mean([np.isin(one, other).mean() for one, other in pairs]))
