"""A calibration that was fitted, by itself: what answers searches reads it, and needs nothing that fits or draws.

M bins of scores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.artifacts import ArtifactError

CALIBRATION = "calibration.json"


def bins_of(scores: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Return for each score the last bin whose lowest score is at most it, or the first bin."""
    return np.maximum(np.searchsorted(lowest, scores.astype(np.float32), side="right") - 1, 0)


@dataclass(frozen=True)
class Calibration:
    """Scores ascending, with what each promises; probability and precision never fall from one to the next."""

    scores: np.ndarray  # (M,) float32, the lowest of each bin
    probability: np.ndarray  # (M,) that a result of this bin is right
    precision: np.ndarray  # (M,) share of the results at or above the score that is right
    kept: np.ndarray  # (M,) share of all right results that lies at or above the score

    def probability_of(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability that results of these scores (n,) are right."""
        return np.asarray(self.probability[bins_of(scores, self.scores)])

    def threshold(self, precision: float) -> float | None:
        """Return the lowest score at or above which this share of the results is right, or None where none is."""
        enough = np.flatnonzero(self.precision >= precision - 1e-9)  # sums of shares are a rounding below their share
        return float(self.scores[enough[0]]) if len(enough) else None


def read_calibration(path: Path) -> Calibration:
    """Read what `calibration.json` holds.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        names = ("probability", "precision", "kept")
        return Calibration(np.array(kept["scores"], dtype=np.float32), *(np.array(kept[name]) for name in names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error
