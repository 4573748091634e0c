"""Hinge against one random wrong picture a pair: Collobert and Weston, 2008, as the original project meant it."""

from __future__ import annotations

import torch
from torch import Tensor

from train.batches import PairBatch
from train.config import TrainConfig
from train.objectives.base import Objective, keep_hardest


class HingeRandom(Objective):
    """One wrong picture a pair counts, drawn from the batch's or from the hardest share of them."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin
        self._share = cfg.hard_negative_share

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the loss of the scores (B, B) of a batch of pairs."""
        hard = keep_hardest(scores, batch.blocked, self._share)
        return hinge_random_loss(scores, hard, self._margin, batch.weights)


def hinge_random_loss(scores: Tensor, blocked: Tensor, margin: float, weights: Tensor | None = None) -> Tensor:
    """Push each paired image above one irrelevant image of the batch, drawn at random.

    Args:
        scores: (B, B) cosine similarities, tags in rows, images in columns.
        blocked: (B, B) bool, True where the image is no negative of the tag; True on the diagonal.
        margin: in the unit of `scores`.
        weights: (B,) of the pairs.

    Returns:
        Scalar, mean over the pairs that have an irrelevant image in the batch; 0 where none has.
    """
    draw = torch.rand_like(scores).masked_fill(blocked, -1)
    chance, wrong = draw.max(dim=1)
    violation = (margin + scores.gather(1, wrong[:, None])[:, 0] - scores.diagonal()).clamp(min=0)
    usable = (chance >= 0).to(scores.dtype)
    counted = usable if weights is None else usable * weights
    return (violation * counted).sum() / usable.sum().clamp(min=1)
