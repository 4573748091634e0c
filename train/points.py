"""The points of a sweep as they are written down: rows, a table for people, the best one as an experiment."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import OmegaConf

from configs.compose import CONFIG_DIR, compose_typed, recipe_config
from train.config import TrainConfig
from train.search import Chosen


@dataclass
class Training:
    """One run of a point: a collection and a seed."""

    collection: str
    seed: int
    run: str
    val_map: float | None = None  # nothing where it is not trained yet
    epochs: int = 0
    seconds: float = 0.0  # of training by this sweep, 0 where the run was there already


@dataclass
class Point:
    """Overrides of train, and what came of them."""

    number: int  # from 1, in the order they came up
    name: str  # digest of the config
    chosen: Chosen
    trainings: list[Training]
    state: str = "open"  # open, done, failed
    reason: str = ""  # of a failure

    @property
    def value(self) -> float | None:
        """Mean val_map over collections and seeds, once all are trained."""
        found = [each.val_map for each in self.trainings if each.val_map is not None]
        return statistics.fmean(found) if self.state == "done" else None

    def by(self, key: str) -> dict[Any, float]:
        """Return the mean val_map by `collection` or by `seed`, of what is trained."""
        groups: dict[Any, list[float]] = {}
        for each in self.trainings:
            if each.val_map is not None:
                groups.setdefault(getattr(each, key), []).append(each.val_map)
        return {group: statistics.fmean(found) for group, found in groups.items()}

    @property
    def spread(self) -> float | None:
        """Standard deviation of the seeds' means, where there are several."""
        seeds = list(self.by("seed").values())
        return statistics.stdev(seeds) if self.state == "done" and len(seeds) > 1 else None


def points_json(points: Sequence[Point]) -> str:
    """Return points as their file holds them."""
    return json.dumps([asdict(point) for point in points], indent=1, ensure_ascii=False) + "\n"


def read_points(text: str) -> list[Point]:
    """Read what `points_json` wrote."""
    rows = json.loads(text)
    return [Point(**{**row, "trainings": [Training(**each) for each in row["trainings"]]}) for row in rows]


def ranked(points: Sequence[Point]) -> list[Point]:
    """Return points best first, those without a value last, ties by number."""
    return sorted(points, key=lambda each: (math.inf if each.value is None else -each.value, each.number))


def best_of(points: Sequence[Point]) -> Point | None:
    """Return the point of the highest value, the earliest of equals."""
    done = [point for point in points if point.state == "done"]
    return ranked(done)[0] if done else None


def table_csv(points: Sequence[Point], keys: Sequence[str], collections: Sequence[str]) -> str:
    """Return the table: a row a point, best first, with its overrides as columns."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["number", "point", "state", "val_map", "spread", *collections, "epochs", "seconds", *keys, "reason"]
    )
    for point in ranked(points):
        by_collection = point.by("collection")
        epochs = [each.epochs for each in point.trainings if each.val_map is not None]
        writer.writerow(
            [
                point.number,
                point.name,
                point.state,
                _figure(point.value),
                _figure(point.spread),
                *(_figure(by_collection.get(collection)) for collection in collections),
                f"{statistics.fmean(epochs):.1f}" if epochs else "",
                f"{sum(each.seconds for each in point.trainings):.1f}",
                *(point.chosen.get(key, "") for key in keys),
                point.reason,
            ]
        )
    return stream.getvalue()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def described(chosen: Mapping[str, str]) -> str:
    """Return overrides as a command line has them."""
    return " ".join(f"{key}={value}" for key, value in chosen.items())


def experiment_yaml(name: str, chosen: Chosen, found: str) -> str:
    """Return a point as the text of `configs/experiment/<name>.yaml`.

    Groups are overridden as groups, so that the command line still wins over them; of the rest, what differs from
    the defaults, an experiment that the point itself stands on included.
    """
    config = compose_typed("train", TrainConfig, [f"{key}={value}" for key, value in chosen.items()])
    groups = {key: value for key, value in chosen.items() if (CONFIG_DIR / key).is_dir() and key != "experiment"}
    groups |= {"objective": config.objective} if config.objective != TrainConfig().objective else {}
    plain = compose_typed("train", TrainConfig, [f"{key}={value}" for key, value in groups.items()])
    delta = _difference(recipe_config(plain), recipe_config(config))
    for key in ("run", "seed", "device"):
        delta.pop(key, None)
    header = [
        "# @package _global_",
        f"# Question: which recipe has the highest val_map of those in the sweep {name}?",
        f'# Command:  make train ARGS="experiment={name}"',
        f"# Expect:   {found}",
    ]
    defaults = ["defaults:", *(f"  - override /{key}: {value}" for key, value in sorted(groups.items()))]
    body = OmegaConf.to_yaml(OmegaConf.create({"run": name, **delta})).rstrip()
    return "\n".join([*header, *(defaults if groups else []), body]) + "\n"


def _difference(plain: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a nested mapping differs from another of the same keys."""
    changed = {}
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(plain[key], dict):
            if inner := _difference(plain[key], value):
                changed[key] = inner
        elif value != plain[key]:
            changed[key] = value
    return changed
