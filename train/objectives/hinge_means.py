"""Hinge between batch means with one fixed wrong picture a pair, as the original project computed it."""

from __future__ import annotations

from torch import Tensor

from train.batches import PairBatch
from train.config import TrainConfig
from train.objectives.base import Objective


class HingeMeans(Objective):
    """The batch's right pictures together against its fixed wrong ones, masked by nothing."""

    draws = "fixed_wrong"

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the loss of the scores (B, 2B) of a batch of pairs and their wrong pictures."""
        return hinge_means_loss(scores, self._margin)


def hinge_means_loss(scores: Tensor, margin: float) -> Tensor:
    """Push the mean right score of a batch above the mean wrong one; one easy pair hides one bad pair.

    Args:
        scores: (B, 2B) cosine similarities; column i is the right picture of pair i, column B + i its fixed wrong one,
            which may carry the tag too.
        margin: in the unit of `scores`.

    Returns:
        Scalar.
    """
    size = len(scores)
    right, wrong = scores[:, :size].diagonal().mean(), scores[:, size:].diagonal().mean()
    return (margin - right + wrong).clamp(min=0)
