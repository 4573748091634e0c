"""Ranking of the whole gallery by meaning: exact while that is quick, beyond that by an index and exact at its end.

N images, D width of an embedding, K directions of a query.
"""

from __future__ import annotations

import numpy as np

from serve.generation import Generation, all_cosines
from train.ranking import top_k


class Gallery:
    """Finds the images whose embeddings lie nearest to the directions of a query."""

    def __init__(self, generation: Generation) -> None:
        self._embeddings = generation.embeddings
        self.exact = True

    def best(self, vectors: np.ndarray, allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and scores (n,) of at most k images, best first, ties by ascending row.

        Args:
            vectors: (K, D) float32; the best product of an image's embedding with one of them is its score.
            allowed: (N,) bool, the images that may be among them.
            k: how many are wanted.
        """
        scores = all_cosines(self._embeddings, vectors).max(axis=1)
        rows = np.flatnonzero(allowed)
        best = rows[top_k(scores[rows], k)]
        return best, scores[best]
