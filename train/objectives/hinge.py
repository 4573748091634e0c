"""Hinge over all in-batch negatives: Kiros et al., Unifying Visual-Semantic Embeddings, 2014, with masked positives."""

from __future__ import annotations

from torch import Tensor

from train.config import TrainConfig
from train.objectives.base import Objective, Way, keep_hardest


class Hinge(Objective):
    """Every wrong image and tag of the batch counts, or the hardest share of them."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin
        self._share = cfg.hard_negative_share
        self.additive = cfg.hard_negative_share == 1

    def losses(self, way: Way) -> Tensor:
        """Return what each row costs, (n,)."""
        return violations(way.scores, way.own, keep_hardest(way.scores, way.barrier, self._share), self._margin).sum(
            dim=1
        )


def violations(scores: Tensor, own: Tensor, barrier: Tensor, margin: float) -> Tensor:
    """Return by how much each row's own score misses the margin above those of negatives.

    Row i is a tag whose sampled positive is image i, or the other way round. Other images of the batch that carry tag i
    or a related one are neither positives nor negatives, so they are masked out.

    Args:
        scores: (n, m) cosine similarities.
        own: (n,) score of each row with its own of the pair.
        barrier: (n, m), 0 where there is a negative, BLOCKED elsewhere.
        margin: in the unit of `scores`.

    Returns:
        (n, m), 0 where there is no negative, or one that keeps the margin.
    """
    return (scores + barrier).add_((margin - own)[:, None]).relu_()
