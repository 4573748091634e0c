"""Hinge against one random wrong picture a pair: Collobert and Weston, 2008, as the original project meant it."""

from __future__ import annotations

import torch
from torch import Tensor


def hinge_random_loss(scores: Tensor, relevant: Tensor, margin: float) -> Tensor:
    """Push each paired image above one irrelevant image of the batch, drawn at random.

    Args:
        scores: (B, B) cosine similarities, tags in rows, images in columns.
        relevant: (B, B) bool, True where the image carries the tag; True on the diagonal.
        margin: in the unit of `scores`.

    Returns:
        Scalar, mean over the pairs that have an irrelevant image in the batch; 0 where none has.
    """
    draw = torch.rand_like(scores).masked_fill(relevant, -1)
    chance, wrong = draw.max(dim=1)
    violation = (margin + scores.gather(1, wrong[:, None])[:, 0] - scores.diagonal()).clamp(min=0)
    usable = (chance >= 0).to(scores.dtype)
    return (violation * usable).sum() / usable.sum().clamp(min=1)
