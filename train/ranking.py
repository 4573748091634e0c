"""Order of candidates: best first, equal scores by ascending row.

Q queries, C candidates, D dimension of a scorer's space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

BLOCK_ENTRIES = 2**24  # scores held at once: 64 MiB in float32


class NotFiniteError(ValueError):
    """A score is NaN or infinite."""


@dataclass(frozen=True)
class Scorer:
    """A system whose score of a query and a candidate is the product of two vectors, and what is added to some.

    Towers, class means and ridge regression all are; a (Q, C) matrix is never held whole.
    """

    name: str
    queries: np.ndarray  # (Q, D)
    candidates: np.ndarray  # (C, D)
    added: sparse.csr_array | None = None  # (Q, C), such as votes; few are not 0

    def scores(self, query: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the scores of one query for all candidates, or for some rows of them.

        Raises:
            NotFiniteError: a score is not finite, which would sort to an arbitrary place.
        """
        candidates = self.candidates if rows is None else self.candidates[rows]
        scores = candidates @ self.queries[query]
        if self.added is not None:
            added = self.added[[query]].toarray()[0]
            scores = scores + (added if rows is None else added[rows])
        return self._finite(scores)

    def each(self, entries: int = BLOCK_ENTRIES) -> Iterator[np.ndarray]:
        """Yield the scores of every query in turn for all candidates, computed by blocks of `entries` scores.

        A product of matrices reads the candidates once a block, where a query at a time would read them every time.
        """
        size = max(1, entries // max(1, len(self.candidates)))
        for start in range(0, len(self.queries), size):
            scores = self.queries[start : start + size] @ self.candidates.T
            if self.added is not None:
                scores = scores + self.added[start : start + size].toarray()
            yield from self._finite(scores)

    def _finite(self, scores: np.ndarray) -> np.ndarray:
        if not np.isfinite(scores).all():
            raise NotFiniteError(
                f"{self.name}: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite"
            )
        return scores


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the rows (min(k, C),) int64 of the best candidates, best first, ties by ascending row."""
    if 0 < k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows = np.flatnonzero(scores >= least)  # ascending, with every candidate tied at the cut
    else:
        rows = np.arange(len(scores))
    return rows[np.argsort(-scores[rows], kind="stable")][:k]


def ranks_of(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the exact 1-based ranks of some candidates, by counting those before them.

    Args:
        scores: (C,) higher is better.
        rows: (R,) candidate rows.

    Returns:
        (R,) int64, in the order of `rows`.
    """
    ascending = np.sort(scores)
    own = scores[rows]
    not_above = np.searchsorted(ascending, own, side="right")
    below = np.searchsorted(ascending, own, side="left")
    ranks = len(scores) - not_above + 1
    for at in np.flatnonzero(not_above - below > 1):  # equal scores: those of lower rows come first
        ranks[at] += int((scores[: rows[at]] == own[at]).sum())
    return np.asarray(ranks, dtype=np.int64)


def strictly_falling(scores: np.ndarray) -> np.ndarray:
    """Lower ranked scores just enough, in float32, that every tool sees our order in them.

    Args:
        scores: (n,) best first, not rising.
    """
    bits = scores.astype(np.float32).view(np.int32).astype(np.int64)
    steps = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # neighbouring floats are neighbouring numbers
    places = np.arange(len(steps))
    falling = np.minimum.accumulate(steps + places) - places
    return np.where(falling < 0, -falling - 2**31, falling).astype(np.int32).view(np.float32)
