"""Softmax over in-batch negatives: van den Oord et al., Contrastive Predictive Coding, 2018, with several positives.

The mean over positives stands outside the logarithm, as in Khosla et al., Supervised Contrastive Learning, 2020. Other
than there, a positive's softmax holds the negatives and itself alone, so that no positive counts as wrong.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from train.config import TrainConfig
from train.objectives.base import Objective, Way, keep_hardest


class InfoNCE(Objective):
    """Every image of the batch that carries the tag is a positive of it, not that of the pair alone."""

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._temperature = cfg.temperature
        self._share = cfg.hard_negative_share

    def losses(self, way: Way) -> Tensor:
        """Return what each row costs, (n,)."""
        barrier = keep_hardest(way.scores, way.barrier, self._share)
        return infonce_losses(way.scores / self._temperature, way.relevant, barrier)


def infonce_losses(logits: Tensor, relevant: Tensor, barrier: Tensor) -> Tensor:
    """Tell each positive of a row from all its negatives.

    Args:
        logits: (n, m) scores divided by the temperature.
        relevant: (n, m), 1 for positives, at least one a row, 0 elsewhere.
        barrier: (n, m), 0 where there is a negative, BLOCKED elsewhere and for positives.

    Returns:
        (n,), mean over a row's positives p of -log(exp(p) / (exp(p) + sum of exp(n) over its negatives n)).
    """
    negatives = (logits + barrier).logsumexp(dim=1, keepdim=True)
    return (F.softplus(negatives - logits) * relevant).sum(dim=1) / relevant.sum(dim=1)
