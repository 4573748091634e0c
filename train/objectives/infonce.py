"""Softmax over in-batch negatives: van den Oord et al., Contrastive Predictive Coding, 2018, with several positives.

The mean over positives stands outside the logarithm, as in Khosla et al., Supervised Contrastive Learning, 2020. Other
than there, a positive's softmax holds the negatives and itself alone, so that no positive counts as wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from train.batches import PairBatch
from train.config import TrainConfig
from train.objectives.base import Objective, keep_hardest, weighted_mean


class InfoNCE(Objective):
    """Every image of the batch that carries the tag is a positive of it, not that of the pair alone."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._temperature = cfg.temperature
        self._share = cfg.hard_negative_share

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the loss of the scores (B, B) of a batch of pairs, mean of tag and image direction."""
        logits = scores / self._temperature
        per_tag = infonce_losses(logits, batch.relevant, keep_hardest(scores, batch.blocked, self._share))
        per_image = infonce_losses(logits.T, batch.relevant.T, keep_hardest(scores.T, batch.blocked.T, self._share))
        return (weighted_mean(per_tag, batch.weights) + weighted_mean(per_image, batch.weights)) / 2


def infonce_losses(logits: Tensor, relevant: Tensor, blocked: Tensor) -> Tensor:
    """Tell each positive of a row from all its negatives.

    Args:
        logits: (B, C) scores divided by the temperature.
        relevant: (B, C) bool, True for positives, at least one a row.
        blocked: (B, C) bool, True where there is no negative; True for positives.

    Returns:
        (B,), mean over a row's positives p of -log(exp(p) / (exp(p) + sum of exp(n) over its negatives n)).
    """
    negatives = logits.masked_fill(blocked, -torch.inf).logsumexp(dim=1, keepdim=True)
    return F.softplus(negatives - logits).masked_fill(~relevant, 0).sum(dim=1) / relevant.sum(dim=1)
