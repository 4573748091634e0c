"""Weighted approximate-rank pairwise loss: Weston, Bengio and Usunier, WSABIE, IJCAI 2011, over in-batch negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from train.config import TrainConfig
from train.objectives.base import Objective, Way
from train.objectives.hinge import violations


class Warp(Objective):
    """Negatives are tried in random order until one misses the margin; the sooner, the worse the rank it tells of."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin

    def losses(self, way: Way) -> Tensor:
        """Return what each row costs, (n,)."""
        return warp_losses(way.scores, way.own, way.barrier, torch.rand_like(way.scores), self._margin)


def warp_losses(scores: Tensor, own: Tensor, barrier: Tensor, order: Tensor, margin: float) -> Tensor:
    """Push the positive of each row above the first negative tried that misses the margin.

    With N negatives of which the t-th tried is the first to miss it, the positive's rank is about N // t, and the
    violation weighs 1 + 1/2 + ... + 1/rank: a step near the top of the ranking counts more than one far down.

    Args:
        scores: (n, m) cosine similarities.
        own: (n,) score of each row with its positive.
        barrier: (n, m), 0 where there is a negative, BLOCKED elsewhere.
        order: (n, m), the negatives of a row are tried by rising value.
        margin: in the unit of `scores`.

    Returns:
        (n,), 0 where no negative misses the margin.
    """
    violation, negative = violations(scores, own, barrier, margin), barrier == 0
    first, wrong = order.masked_fill(violation == 0, torch.inf).min(dim=1, keepdim=True)
    tried = ((order <= first) & negative).sum(dim=1, keepdim=True).clamp(min=1)
    rank = negative.sum(dim=1, keepdim=True) // tried
    harmonic = torch.arange(scores.shape[1] + 1, device=scores.device).to(scores.dtype).clamp(min=1).reciprocal()
    harmonic[0] = 0
    return (harmonic.cumsum(0)[rank] * violation.gather(1, wrong))[:, 0]
