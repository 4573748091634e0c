"""What training minimises: one objective a file, with its paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train.config import TrainConfig
from train.objectives.base import Objective
from train.objectives.full_vocabulary import FullVocabulary
from train.objectives.hinge import Hinge
from train.objectives.hinge_hardest import HingeHardest
from train.objectives.hinge_means import HingeMeans
from train.objectives.hinge_random import HingeRandom
from train.objectives.infonce import InfoNCE
from train.objectives.sigmoid import Sigmoid
from train.objectives.warp import Warp


def open_objective(cfg: TrainConfig, prior: np.ndarray) -> Objective:
    """Return the objective that a config names; `prior` (V,) is the share of images that carry each tag trained on."""
    objectives: dict[str, Callable[[TrainConfig], Objective]] = {
        "hinge": Hinge,
        "hinge_random": HingeRandom,
        "hinge_hardest": HingeHardest,
        "hinge_means": HingeMeans,
        "warp": Warp,
        "infonce": InfoNCE,
        "sigmoid": Sigmoid,
        "full_vocabulary": lambda cfg: FullVocabulary(cfg, prior),
    }
    return objectives[cfg.objective](cfg)


__all__ = ["Objective", "open_objective"]
