"""Hinge over all in-batch negatives: Kiros et al., Unifying Visual-Semantic Embeddings, 2014, with masked positives."""

from __future__ import annotations

from torch import Tensor


def hinge_loss(scores: Tensor, relevant: Tensor, margin: float) -> Tensor:
    """Push each paired image above the irrelevant images of the batch by `margin`, and each tag likewise.

    Row i is a tag whose sampled positive is image i. Other images of the batch that carry tag i too are neither
    positives nor negatives, so they are masked out.

    Args:
        scores: (B, B) cosine similarities, tags in rows, images in columns.
        relevant: (B, B) bool, True where the image carries the tag; True on the diagonal.
        margin: in the unit of `scores`.

    Returns:
        Scalar, mean over the B tag and B image directions of the violations summed over negatives.
    """
    positive = scores.diagonal()
    per_tag = (margin + scores - positive[:, None]).clamp(min=0).masked_fill(relevant, 0)
    per_image = (margin + scores - positive[None, :]).clamp(min=0).masked_fill(relevant, 0)
    return (per_tag.sum(dim=1).mean() + per_image.sum(dim=0).mean()) / 2
