"""Hinge against the hardest negative of the batch: Faghri et al., VSE++, BMVC 2018."""

from __future__ import annotations

from torch import Tensor

from train.config import TrainConfig
from train.objectives.base import Objective, Way
from train.objectives.hinge import violations


class HingeHardest(Objective):
    """One negative a row and a column counts, and in the first epochs, where it would mislead, all of them."""

    way_out = "Raise warmup_epochs, lower margin or learning_rate, or take objective=hinge"

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__()
        self._margin = cfg.margin
        self.settled_at = cfg.warmup_epochs

    def losses(self, way: Way) -> Tensor:
        """Return what each row costs, (n,), which slides from the sum to the hardest."""
        hardest = way.epoch / self.settled_at if way.epoch < self.settled_at else 1.0
        found = violations(way.scores, way.own, way.barrier, self._margin)
        losses = hardest * found.amax(dim=1)
        return losses if hardest == 1 else losses + (1 - hardest) * found.sum(dim=1)
