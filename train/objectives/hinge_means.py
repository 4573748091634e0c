"""Hinge between batch means with one fixed wrong picture a pair, as the original project computed it."""

from __future__ import annotations

from torch import Tensor

from train.batches import Batch
from train.config import TrainConfig
from train.objectives.base import Objective


class HingeMeans(Objective):
    """The batch's right pictures together against its fixed wrong ones, masked by nothing."""

    draws = "fixed_wrong"

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin

    def forward(self, tags: Tensor, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of tags (B, D) and images (2B, D): right ones, then the fixed wrong ones."""
        right, wrong = images[: len(tags)], images[len(tags) :]
        return hinge_means_loss((tags * right).sum(dim=1), (tags * wrong).sum(dim=1), self._margin)


def hinge_means_loss(right: Tensor, wrong: Tensor, margin: float) -> Tensor:
    """Push the mean right score of a batch above the mean wrong one; one easy pair hides one bad pair.

    Args:
        right: (B,) cosine similarities of the pairs.
        wrong: (B,) of each tag with the pair's fixed wrong picture, which may carry it too.
        margin: in the unit of the scores.

    Returns:
        Scalar.
    """
    return (margin - right.mean() + wrong.mean()).clamp(min=0)
