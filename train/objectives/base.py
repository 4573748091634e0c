"""What the objectives share: their shape, the mean over a batch, and which of its negatives are hard."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.batches import Batch, PairBatch


class Objective(nn.Module):
    """What training minimises; what it learns beside the towers is no part of them and is not published.

    `draws` says what batches are made of: `pairs`, pairs with a `fixed_wrong` picture each, or `images`.
    """

    draws = "pairs"
    way_out = "Lower learning_rate, or take objective=hinge"  # of embeddings that collapsed

    def forward(self, tags: Tensor, images: Tensor, batch: Batch) -> Tensor:
        """Return the scalar loss of embeddings.

        Args:
            tags: (B, D) of the batch's tag rows, unit length.
            images: (C, D) of the batch's image rows, unit length.
            batch: whose rows these are.
        """
        assert isinstance(batch, PairBatch)  # where it learns from images, the objective has a forward of its own
        return self.loss(tags @ images.T, batch)

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the scalar loss of the scores (B, C) of a batch of pairs."""
        raise NotImplementedError


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of losses (B,), each times its pair's weight."""
    return losses.mean() if weights is None else (losses * weights).mean()


def keep_hardest(scores: Tensor, blocked: Tensor, share: float) -> Tensor:
    """Block the easy negatives too.

    Args:
        scores: (B, C), higher is harder.
        blocked: (B, C) bool, True where there is no negative.
        share: of the negatives of each row that stay, rounded, at least one; of equal scores the left one is harder.

    Returns:
        (B, C) bool, True where there is no negative or an easy one.
    """
    if share == 1:
        return blocked
    order = scores.detach().masked_fill(blocked, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    kept = ((~blocked).sum(dim=1, keepdim=True).double() * share).round().clamp(min=1)
    return blocked | (places >= kept)
