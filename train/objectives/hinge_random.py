"""Hinge against one random wrong picture a pair: Collobert and Weston, 2008, as the original project meant it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from train.batches import Batch
from train.config import TrainConfig
from train.objectives.base import Objective, Way, keep_hardest


class HingeRandom(Objective):
    """One wrong picture a pair counts, drawn from the batch's or from the hardest share of them."""

    both_ways = False

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin
        self._share = cfg.hard_negative_share

    def forward(self, tags: Tensor, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of tags (B, D) and images (B, D): mean over the pairs that have a wrong picture."""
        with_wrong = (batch.blocked.counts() < len(images)).sum()
        return self.summed(tags, images, (tags * images).sum(dim=1), batch) / with_wrong.clamp(min=1)

    def losses(self, way: Way) -> Tensor:
        """Return what each row costs, (n,)."""
        return hinge_random_losses(
            way.scores, way.own, keep_hardest(way.scores, way.barrier, self._share), self._margin
        )


def hinge_random_losses(scores: Tensor, own: Tensor, barrier: Tensor, margin: float) -> Tensor:
    """Push each paired image above one irrelevant image of the batch, drawn at random.

    Args:
        scores: (n, m) cosine similarities, tags in rows, images in columns.
        own: (n,) score of each tag with its paired image.
        barrier: (n, m), 0 where there is a negative, BLOCKED elsewhere.
        margin: in the unit of `scores`.

    Returns:
        (n,), 0 where a row has no negative.
    """
    chance, wrong = (torch.rand_like(scores) + barrier).max(dim=1, keepdim=True)
    violation = F.relu(margin + scores.gather(1, wrong)[:, 0] - own)
    return violation * (chance[:, 0] >= 0)
