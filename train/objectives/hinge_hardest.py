"""Hinge against the hardest negative of the batch: Faghri et al., VSE++, BMVC 2018."""

from __future__ import annotations

from torch import Tensor

from train.batches import PairBatch
from train.config import TrainConfig
from train.objectives.base import Objective, weighted_mean
from train.objectives.hinge import hinge_loss, violations


class HingeHardest(Objective):
    """One negative a row and a column counts, and in the first epochs, where it would mislead, all of them."""

    way_out = "Raise warmup_epochs, lower margin or learning_rate, or take objective=hinge"

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin
        self._warmup_epochs = cfg.warmup_epochs

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the loss of the scores (B, B) of a batch of pairs, which slides from the sum to the hardest."""
        hardest = min(1.0, batch.epoch / self._warmup_epochs) if self._warmup_epochs else 1.0
        loss = hardest * hinge_hardest_loss(scores, batch.blocked, self._margin, batch.weights)
        if hardest < 1:
            loss = loss + (1 - hardest) * hinge_loss(scores, batch.blocked, self._margin, batch.weights)
        return loss


def hinge_hardest_loss(scores: Tensor, blocked: Tensor, margin: float, weights: Tensor | None = None) -> Tensor:
    """Push each paired image above the most violating image of the batch by `margin`, and each tag likewise.

    Args:
        scores: (B, B) cosine similarities, tags in rows, images in columns.
        blocked: (B, B) bool, True where the image is no negative of the tag; True on the diagonal.
        margin: in the unit of `scores`.
        weights: (B,) of the pairs.

    Returns:
        Scalar, mean over the B tag and B image directions of the largest violation.
    """
    per_tag, per_image = (violation.masked_fill(blocked, 0) for violation in violations(scores, margin))
    return (weighted_mean(per_tag.amax(dim=1), weights) + weighted_mean(per_image.amax(dim=0), weights)) / 2
