"""Hinge over all in-batch negatives: Kiros et al., Unifying Visual-Semantic Embeddings, 2014, with masked positives."""

from __future__ import annotations

from torch import Tensor

from train.batches import PairBatch
from train.config import TrainConfig
from train.objectives.base import Objective, keep_hardest, weighted_mean


class Hinge(Objective):
    """Every wrong image and tag of the batch counts, or the hardest share of them."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin
        self._share = cfg.hard_negative_share

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the loss of the scores (B, B) of a batch of pairs."""
        return hinge_loss(scores, batch.blocked, self._margin, batch.weights, self._share)


def violations(scores: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return by how much each pair misses the margin: below its row's paired image, and below its column's paired tag.

    Args:
        scores: (B, B) cosine similarities, tags in rows, images in columns.
        margin: in the unit of `scores`.
    """
    positive = scores.diagonal()
    return (margin + scores - positive[:, None]).clamp(min=0), (margin + scores - positive[None, :]).clamp(min=0)


def hinge_loss(
    scores: Tensor, blocked: Tensor, margin: float, weights: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """Push each paired image above the irrelevant images of the batch by `margin`, and each tag likewise.

    Row i is a tag whose sampled positive is image i. Other images of the batch that carry tag i or a related one are
    neither positives nor negatives, so they are masked out.

    Args:
        scores: (B, B) cosine similarities, tags in rows, images in columns.
        blocked: (B, B) bool, True where the image is no negative of the tag; True on the diagonal.
        margin: in the unit of `scores`.
        weights: (B,) of the pairs.
        share: of the negatives, the hardest first, that count.

    Returns:
        Scalar, mean over the B tag and B image directions of the violations summed over negatives.
    """
    per_tag, per_image = violations(scores, margin)
    per_tag = per_tag.masked_fill(keep_hardest(scores, blocked, share), 0)
    per_image = per_image.masked_fill(keep_hardest(scores.T, blocked.T, share).T, 0)
    return (weighted_mean(per_tag.sum(dim=1), weights) + weighted_mean(per_image.sum(dim=0), weights)) / 2
