"""Weighted approximate-rank pairwise loss: Weston, Bengio and Usunier, WSABIE, IJCAI 2011, over in-batch negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from train.batches import PairBatch
from train.config import TrainConfig
from train.objectives.base import Objective, weighted_mean


class Warp(Objective):
    """Negatives are tried in random order until one misses the margin; the sooner, the worse the rank it tells of."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the loss of the scores (B, B) of a batch of pairs, mean of tag and image direction."""
        order = torch.rand_like(scores)
        per_tag = warp_losses(scores, batch.blocked, order, self._margin)
        per_image = warp_losses(scores.T, batch.blocked.T, order.T, self._margin)
        return (weighted_mean(per_tag, batch.weights) + weighted_mean(per_image, batch.weights)) / 2


def warp_losses(scores: Tensor, blocked: Tensor, order: Tensor, margin: float) -> Tensor:
    """Push the positive of each row above the first negative tried that misses the margin.

    With n negatives of which the t-th tried is the first to miss it, the positive's rank is about n // t, and the
    violation weighs 1 + 1/2 + ... + 1/rank: a step near the top of the ranking counts more than one far down.

    Args:
        scores: (B, B) cosine similarities, positives on the diagonal.
        blocked: (B, B) bool, True where there is no negative; True on the diagonal.
        order: (B, B), the negatives of a row are tried by rising value.
        margin: in the unit of `scores`.

    Returns:
        (B,), 0 where no negative misses the margin.
    """
    violation = (margin + scores - scores.diagonal()[:, None]).clamp(min=0).masked_fill(blocked, 0)
    first, wrong = order.masked_fill(violation == 0, torch.inf).min(dim=1, keepdim=True)
    tried = ((order <= first) & ~blocked).sum(dim=1, keepdim=True).clamp(min=1)
    rank = (~blocked).sum(dim=1, keepdim=True) // tried
    harmonic = torch.arange(len(scores) + 1, device=scores.device).to(scores.dtype).clamp(min=1).reciprocal()
    harmonic[0] = 0
    return (harmonic.cumsum(0)[rank] * violation.gather(1, wrong))[:, 0]
