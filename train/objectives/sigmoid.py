"""Sigmoid over all pairs of the batch: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.batches import PairBatch
from train.config import TrainConfig
from train.objectives.base import Objective, keep_hardest, weighted_mean

FIRST_BIAS = -10.0  # as there: nearly all pairs are negatives


class Sigmoid(Objective):
    """Each pair is judged by itself; scale and bias of the scores are learned."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(cfg.temperature)))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))
        self._share = cfg.hard_negative_share

    def loss(self, scores: Tensor, batch: PairBatch) -> Tensor:
        """Return the loss of the scores (B, B) of a batch of pairs."""
        logits = scores * self.log_scale.exp() + self.bias
        blocked = keep_hardest(scores, batch.blocked, self._share)
        return weighted_mean(sigmoid_losses(logits, batch.relevant, blocked).sum(dim=1), batch.weights)


def sigmoid_losses(logits: Tensor, relevant: Tensor, blocked: Tensor) -> Tensor:
    """Tell positives from negatives one by one.

    Args:
        logits: (B, C), 0 where a positive is as likely as a negative.
        relevant: (B, C) bool, True for positives.
        blocked: (B, C) bool, True where there is no negative; True for positives.

    Returns:
        (B, C), -log sigmoid(logit) of positives, -log sigmoid(-logit) of negatives, 0 of what is neither.
    """
    return F.softplus(torch.where(relevant, -logits, logits)).masked_fill(blocked & ~relevant, 0)
