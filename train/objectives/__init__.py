"""What training minimises: one objective a file, all functions of the scores of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from train.config import TrainConfig
from train.objectives.hinge import hinge_loss
from train.objectives.hinge_means import hinge_means_loss
from train.objectives.hinge_random import hinge_random_loss


@dataclass(frozen=True)
class Objective:
    """A loss over (B, C) scores and (B, C) relevance; column i < B is the image of pair i.

    With `fixed_wrong` there are B more columns: column B + i is the fixed wrong picture of pair i.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    fixed_wrong: bool = False


def open_objective(cfg: TrainConfig) -> Objective:
    """Return the objective that a config names."""
    objectives = {
        "hinge": Objective(lambda scores, relevant: hinge_loss(scores, relevant, cfg.margin)),
        "hinge_random": Objective(lambda scores, relevant: hinge_random_loss(scores, relevant, cfg.margin)),
        "hinge_means": Objective(lambda scores, relevant: hinge_means_loss(scores, cfg.margin), fixed_wrong=True),
    }
    return objectives[cfg.objective]
