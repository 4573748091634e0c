"""Which part of a picture earned its score.

The score is a cosine: e.z / |z| of the query's embedding e and the image tower's projection z of the feature. Where z
is linear but for a constant, and the feature a mean over places, the score falls apart without a rest: each place has
the value that it would give alone at the same |z|, and the mean of the values is the score. That is the class
activation map of Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016, through the tower.

H rows and V columns of places, W width of a feature, D of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from crawl.ingest.drawn import overlay_png
from features.single_picture import Box, SinglePicture
from train.towers import Tower

COVERED_PLACES = 6  # a side, where squares of the picture are greyed out one by one
RAISES, LOWERS = (224, 62, 24), (38, 84, 160)  # colours of places above and below the middle
MAX_COVER = 0.78  # opacity of the strongest place

Way = Literal["exact", "linearised", "covered"]


@dataclass(frozen=True)
class Shares:
    """What each place of a picture gives."""

    cells: np.ndarray  # (H, V) float32: its value, or where places were covered how far the score falls without it
    score: float
    way: Way

    @property
    def middle(self) -> float:
        """Return the value that neither raises nor lowers: the score, which is the mean, or no fall at all."""
        return 0.0 if self.way == "covered" else self.score


def shares_of(pictures: SinglePicture, tower: Tower, jpeg: bytes, query: np.ndarray) -> Shares:
    """Return what the places of a stored JPEG give for a query's embedding (D,) of length 1."""
    places = pictures.feature_map(jpeg)
    if places is not None:
        return linear_shares(tower, places, query)
    score = score_of(tower, pictures.feature(jpeg)[None], query)[0]
    covered = pictures.covered(jpeg, COVERED_PLACES)
    without = score_of(tower, covered.reshape(-1, covered.shape[-1]), query).reshape(covered.shape[:2])
    return Shares(score - without, float(score), "covered")


def linear_shares(tower: Tower, places: np.ndarray, query: np.ndarray) -> Shares:
    """Split a score over places (H, V, W); a tower that is not linear is taken as its tangent at this picture."""
    feature = torch.from_numpy(places.mean(axis=(0, 1))).requires_grad_()
    with torch.enable_grad():
        projected = tower.project(feature[None])[0].float()
        length = projected.norm().clamp(min=1e-12)
        raw = projected @ torch.from_numpy(query)
        (slope,) = torch.autograd.grad(raw, feature)
    weights = (slope / length.detach()).numpy()
    score = float(raw.detach() / length.detach())
    constant = score - float(feature.detach().numpy() @ weights)
    return Shares(places @ weights + constant, score, "exact" if tower.is_linear else "linearised")


@torch.inference_mode()
def score_of(tower: Tower, features: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return (n,) float32 cosines of features (n, W) with a query's embedding."""
    return np.asarray((tower(torch.from_numpy(features)) @ torch.from_numpy(query)).numpy())


def overlay(shares: Shares, width: int, height: int, box: Box) -> bytes:
    """Draw shares as a PNG to lie over the picture: warm where they raise the score, cold where they lower it."""
    return overlay_png(colours(shares), (width, height), (box.left, box.top, box.right, box.bottom))


def colours(shares: Shares) -> np.ndarray:
    """Return (H, V, 4) uint8 RGBA; the strongest place is covered most, one at the middle not at all."""
    away = shares.cells - shares.middle
    strength = np.abs(away) / max(float(np.abs(away).max()), 1e-9)
    cells = np.empty((*away.shape, 4), dtype=np.uint8)
    cells[..., :3] = np.where((away > 0)[..., None], RAISES, LOWERS)
    cells[..., 3] = (255 * MAX_COVER * strength).round()
    return cells
