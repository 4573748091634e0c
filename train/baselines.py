"""Floors that need no training of towers: class means, ridge regression to tags, and ConSE for unseen tags.

N images, W width of a feature, E tags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from train.ranking import Scorer

CHUNK = 16384  # rows of features in float32 at once
CONSE_TEMPERATURE = 0.1
RIDGE_STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # times the mean eigenvalue of the covariance


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows to unit length in float32; a zero row stays zero."""
    rows = rows.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


class Standardiser:
    """Mean and spread of each column over the train images, without which class means all point the same way."""

    def __init__(self, features: np.ndarray, train_rows: np.ndarray, chunk: int = CHUNK) -> None:
        total, squares = np.zeros(features.shape[1]), np.zeros(features.shape[1])
        for start in range(0, len(train_rows), chunk):
            rows = features[train_rows[start : start + chunk]].astype(np.float64)
            total += rows.sum(axis=0)
            squares += np.square(rows).sum(axis=0)
        mean = total / len(train_rows)
        self.mean = mean.astype(np.float32)
        self.spread = np.sqrt(np.maximum(squares / len(train_rows) - mean**2, 1e-12)).astype(np.float32)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n, W) in standard units, float32."""
        return np.asarray((rows.astype(np.float32) - self.mean) / self.spread)


def _sum(rows: np.ndarray, scaled: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the sum (W,) float64 of `scaled(rows)` by chunks; a head tag has half a million rows."""
    parts = (scaled(rows[at : at + CHUNK]).sum(axis=0, dtype=np.float64) for at in range(0, len(rows), CHUNK))
    return np.asarray(sum(parts))


def class_mean(
    name: str,
    features: np.ndarray,
    standard: Standardiser,
    train_lists: Sequence[np.ndarray],
    gallery: np.ndarray,
) -> Scorer:
    """Score an image by the cosine of its feature with the mean of the tag's train images: Rocchio, 1971.

    Features are in standard units first, which makes this floor higher.

    Args:
        name: of the scorer.
        features: (N, W).
        standard: of these features.
        train_lists: for each of E tags the rows of its train images.
        gallery: (C,) rows to score.
    """
    sums = np.stack([_sum(rows, lambda part: unit_rows(standard(features[part]))) for rows in train_lists])
    return Scorer(name, unit_rows(sums), unit_rows(standard(features[gallery])))


def conse(means: Scorer, seen_vectors: np.ndarray, vectors: np.ndarray, chunk: int = CHUNK) -> Scorer:
    """Score images for tags that nothing was trained on: ConSE, Norouzi et al., ICLR 2014.

    An image stands where the word vectors of the seen tags stand on average, each weighted by its probability, and is
    scored by the cosine with the asked tag's. Probabilities are a softmax of the class means' cosines over
    CONSE_TEMPERATURE, over all seen tags: on validation no worse than the paper's ten best.

    Args:
        means: class means of S seen tags as queries, (C, W) images as candidates.
        seen_vectors: (S, V) word vectors of the seen tags.
        vectors: (E, V) word vectors of the asked tags.
        chunk: images at once.
    """
    parts = []
    for start in range(0, len(means.candidates), chunk):
        cosines = means.candidates[start : start + chunk] @ means.queries.T
        weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / CONSE_TEMPERATURE)
        parts.append(unit_rows(weights @ seen_vectors))  # their sum cancels in the cosine
    return Scorer("conse", unit_rows(vectors), np.concatenate(parts))


class Ridge:
    """Ridge regression from centred features to tag indicators, for any strength from one eigendecomposition.

    Hoerl and Kennard, Technometrics 1970. The intercept moves no ranking within a tag and is left out.
    """

    def __init__(self, features: np.ndarray, train_rows: np.ndarray, chunk: int = CHUNK) -> None:
        self._features = features
        self._mean = Standardiser(features, train_rows, chunk).mean
        gram = np.zeros((features.shape[1],) * 2, dtype=np.float64)
        for start in range(0, len(train_rows), chunk):
            rows = self._centred(train_rows[start : start + chunk])
            gram += rows.T @ rows
        self._eigenvalues, self._basis = np.linalg.eigh(gram)

    def _centred(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._features[rows].astype(np.float32) - self._mean)

    def scorers(
        self, train_lists: Sequence[np.ndarray], gallery: np.ndarray, strengths: Sequence[float] = RIDGE_STRENGTHS
    ) -> dict[float, Scorer]:
        """Fit the tags at every strength.

        Args:
            train_lists: for each of E tags the rows of its train images.
            gallery: (C,) rows to score.
            strengths: of the penalty, in units of the mean eigenvalue.
        """
        sums = np.stack([_sum(rows, self._centred) for rows in train_lists]) @ self._basis  # (E, W)
        images = (self._centred(gallery) @ self._basis).astype(np.float32)
        scale = float(self._eigenvalues.mean())
        return {
            strength: Scorer("ridge", (sums / (self._eigenvalues + strength * scale)).astype(np.float32), images)
            for strength in strengths
        }


def choose_ridge(
    ridge: Ridge, train_lists: Sequence[np.ndarray], gallery: np.ndarray, judge: Callable[[Scorer], float]
) -> float:
    """Return the strength that `judge` likes best on the validation split, the weaker one of equals."""
    scorers = ridge.scorers(train_lists, gallery)
    return max(scorers, key=lambda strength: (judge(scorers[strength]), -strength))
