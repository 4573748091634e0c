"""What the processes of a distributed training are given to do in tests; they import it."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import torch

from configs.artifacts import ArtifactError
from train.distributed import Rank, gather_rows

if TYPE_CHECKING:  # what trains imports it itself, so that the others start sooner
    from configs.compose import Paths
    from train.config import TrainConfig
    from train.module import TwoTowerModule

# Plain gradient descent, because Adam blows differences of rounding up where gradients are small.
PLAIN = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "learning_rate": 0.03,
    "feature_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_epochs": 2,
}
OBJECTIVES = {
    "hinge": {"features_in": "stream", "shuffle_buffer": 60},
    "infonce": {"frequency_weighting": 0.5},
    "sigmoid": {"learning_rate": 0.001},
    "full_vocabulary": {"learning_rate": 0.003, "tag_residual": 0.5, "weight_averaging": 0.9},
}
WITH_DRAWS = {"objective": "hinge_random", "features_in": "stream", "shuffle_buffer": 60, "weight_averaging": 0.9}


class Killed(BaseException):
    """Ends a training where a signal would."""


def plain_config(paths: Paths, objective: str) -> TrainConfig:
    """Return a training in which nothing is drawn but the order."""
    from tests.synthetic import train_config

    values = {**PLAIN, **OBJECTIVES[objective]}
    return train_config(paths, run=f"both-{objective}", objective=objective, devices=2, **values)


def train_all(rank: Rank, paths: Paths) -> None:
    """Train by each objective, then by one with dropout as a whole and in two halves, each in a run of its own."""
    from tests.synthetic import train_config
    from train.fit import train_part

    with patched("on_train_epoch_end", require_equal_weights):
        for objective in OBJECTIVES:
            train_part(rank, plain_config(paths, objective), paths.run(f"both-{objective}"))
        cfg = train_config(paths, devices=2, **WITH_DRAWS)
        train_part(rank, cfg, paths.run("both-whole"))
        with patched("on_train_epoch_start", kill_at_epoch_2), contextlib.suppress(Killed):
            train_part(rank, cfg, paths.run("both-halves"))
        train_part(rank, cfg, paths.run("both-halves"))


@contextlib.contextmanager
def patched(name, first):
    """Let something come before a method of the module."""
    from train.module import TwoTowerModule

    real = getattr(TwoTowerModule, name)

    def both(module):
        first(module)
        real(module)

    setattr(TwoTowerModule, name, both)
    yield
    setattr(TwoTowerModule, name, real)


def require_equal_weights(module: TwoTowerModule) -> None:
    weights = torch.cat([each.detach().reshape(-1) for each in module.parameters()])
    first, second = gather_rows(weights[None], module._rank)
    if not torch.equal(first, second):
        raise ArtifactError(f"the processes differ by {float((first - second).abs().max())}")


def kill_at_epoch_2(module: TwoTowerModule) -> None:
    if module.current_epoch == 2:
        raise Killed


def die(rank: Rank) -> None:
    """Let process 1 be killed while the other waits for it."""
    if rank.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gather_rows(torch.zeros(1), rank)
