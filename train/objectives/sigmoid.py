"""Sigmoid over all pairs of the batch: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.batches import Batch
from train.config import TrainConfig
from train.objectives.base import BLOCKED, Objective, Way, keep_hardest

FIRST_BIAS = -10.0  # as there: nearly all pairs are negatives


class Sigmoid(Objective):
    """Each pair is judged by itself; scale and bias of the scores are learned."""

    both_ways = False

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(cfg.temperature)))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))
        self._share = cfg.hard_negative_share

    def forward(self, tags: Tensor, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of tags (B, D) and images (B, D): mean over tags of the sum over images."""
        return self.summed(tags * self.log_scale.exp(), images, self.bias.expand(len(tags)), batch) / len(tags)

    def losses(self, way: Way) -> Tensor:
        """Return what each row costs, (n,); its scores come scaled, and the bias as its own."""
        barrier = keep_hardest(way.scores, way.barrier, self._share)
        return sigmoid_losses(way.scores + way.own[:, None], way.relevant, barrier).sum(dim=1)


def sigmoid_losses(logits: Tensor, relevant: Tensor, barrier: Tensor) -> Tensor:
    """Tell positives from negatives one by one.

    Args:
        logits: (n, m), 0 where a positive is as likely as a negative.
        relevant: (n, m), 1 for positives, 0 elsewhere.
        barrier: (n, m), 0 where there is a negative, BLOCKED elsewhere and for positives.

    Returns:
        (n, m), -log sigmoid(logit) of positives, -log sigmoid(-logit) of negatives, 0 of what is neither.
    """
    neither = barrier - BLOCKED * relevant
    return F.softplus(logits * (1 - 2 * relevant) + neither)
