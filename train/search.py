"""Which points a sweep tries: all of a grid, or those that TPE proposes after what it was told.

A point is a mapping from train's keys to values as overrides have them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from configs.compose import Axis, ConfigError, compose_typed
from train.config import OBJECTIVES, TrainConfig

KNOBS = frozenset().union(*OBJECTIVES.values())
STEERING = ("experiment", "objective")  # they decide which knobs mean something
ATTEMPTS = 50  # at a point not yet tried, before a space counts as exhausted

Chosen = dict[str, str]

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would log a line a study


@dataclass(frozen=True)
class Told:
    """What came of a point."""

    chosen: Chosen
    state: str  # open, done, failed
    value: float | None = None  # higher is better


class Space:
    """Axes, where a knob belongs to a point only if the point's objective looks at it."""

    def __init__(self, axes: Sequence[Axis]):
        self.steering = [axis for axis in axes if axis.key in STEERING]
        self.others = [axis for axis in axes if axis.key not in STEERING]
        self._objectives: dict[tuple[str, ...], str] = {}

    def bases(self) -> list[Chosen]:
        """Return each choice of experiment and objective."""
        keys = [axis.key for axis in self.steering]
        return [dict(zip(keys, values, strict=True)) for values in product(*(axis.values for axis in self.steering))]

    def meaningful(self, chosen: Mapping[str, str]) -> list[Axis]:
        """Return the axes beside the steering ones that mean something to what was chosen there."""
        steered = tuple(f"{axis.key}={chosen[axis.key]}" for axis in self.steering)
        if steered not in self._objectives:
            self._objectives[steered] = compose_typed("train", TrainConfig, list(steered)).objective
        knobs = OBJECTIVES[self._objectives[steered]]
        return [axis for axis in self.others if axis.key not in KNOBS or axis.key in knobs]

    def refuse_idle_axes(self) -> None:
        """Refuse an axis that means nothing to any objective of the space."""
        used = {axis.key for base in self.bases() for axis in self.meaningful(base)}
        for axis in self.others:
            if axis.key not in used:
                objectives = sorted(set(self._objectives.values()))
                raise ConfigError(f"{axis.key} means nothing to objective={', '.join(objectives)}, so it is no axis")


def grid_size(space: Space) -> int:
    """Return how many points a grid has."""
    return sum(math.prod(len(axis.values) for axis in space.meaningful(base)) for base in space.bases())


def grid_points(space: Space) -> Iterator[Chosen]:
    """Yield every point of a grid, the last axis fastest."""
    for base in space.bases():
        axes = space.meaningful(base)
        for values in product(*(axis.values for axis in axes)):
            yield base | dict(zip((axis.key for axis in axes), values, strict=True))


def probes(space: Space) -> Iterator[Chosen]:
    """Yield points that hold every value and both ends of every interval once for each objective."""
    for base in space.bases():
        axes = space.meaningful(base)
        first = base | {axis.key: ends(axis)[0] for axis in axes}
        yield first
        for axis in axes:
            yield from (first | {axis.key: value} for value in ends(axis)[1:])


def ends(axis: Axis) -> tuple[str, ...]:
    """Return the values of an axis, or the ends of its interval."""
    return axis.values or (_text(axis, axis.low), _text(axis, axis.high))


def _text(axis: Axis, number: float) -> str:
    return str(int(number)) if axis.whole else repr(float(number))


def propose(space: Space, told: Sequence[Told], seed: int, number: int) -> Chosen | None:
    """Return TPE's next point, or None where no new one is found.

    The study is built anew from what was told, and every number has random numbers of its own: so a sweep that was
    killed proposes what it would have proposed. Points that failed count as worse than all others, open ones as
    Optuna's constant liar has them.
    """
    tried = [each.chosen for each in told]
    for attempt in range(ATTEMPTS):
        stream = int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])
        # What TPE proposes again and again is left to chance.
        sampler = optuna.samplers.RandomSampler(stream) if attempt else optuna.samplers.TPESampler(seed=stream)
        chosen = _ask(space, told, sampler)
        if chosen not in tried:
            return chosen
    return None


def _ask(space: Space, told: Sequence[Told], sampler: optuna.samplers.BaseSampler) -> Chosen:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_frozen(space, each) for each in told])
    trial = study.ask()
    chosen: Chosen = {}
    for axis in space.steering:
        chosen[axis.key] = _suggest(trial, axis)
    for axis in space.meaningful(chosen):
        chosen[axis.key] = _suggest(trial, axis)
    return chosen


def _frozen(space: Space, told: Told) -> FrozenTrial:
    axes = {axis.key: axis for axis in [*space.steering, *space.others] if axis.key in told.chosen}
    states = {"open": TrialState.RUNNING, "done": TrialState.COMPLETE, "failed": TrialState.PRUNED}
    return create_trial(
        state=states[told.state],
        value=told.value if told.state == "done" else None,
        params={key: _inner(axis, told.chosen[key]) for key, axis in axes.items()},
        distributions={key: _distribution(axis) for key, axis in axes.items()},
    )


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.ordered:
        return IntDistribution(0, len(axis.values) - 1)  # places, so that uneven steps are even
    if axis.values:
        return CategoricalDistribution(axis.values)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _inner(axis: Axis, value: str) -> str | int | float:
    """Return a value as Optuna holds it."""
    if axis.ordered:
        return axis.values.index(value)
    if axis.values:
        return value
    return int(value) if axis.whole else float(value)


def _suggest(trial: optuna.Trial, axis: Axis) -> str:
    distribution = _distribution(axis)
    if isinstance(distribution, CategoricalDistribution):
        return str(trial.suggest_categorical(axis.key, axis.values))
    if isinstance(distribution, IntDistribution):
        found = trial.suggest_int(axis.key, distribution.low, distribution.high, log=distribution.log)
        return axis.values[found] if axis.ordered else str(found)
    exact = trial.suggest_float(axis.key, axis.low, axis.high, log=axis.log)
    rounded = float(f"{exact:.3g}")  # a recipe that can be read; no val_map knows the difference
    return repr(min(max(rounded, axis.low), axis.high))
