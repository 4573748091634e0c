"""Stage `sweep`: train the points of a grid, or those that TPE proposes, and table them by val_map.

Reads   what training reads, of every collection
Writes  runs/<point>-<inputs>-<seed>, ordinary runs; runs/.sweeps/<name>/{definition.yaml, points.json, table.csv,
        best.yaml, manifest.json}, and beside the seal failures/
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from tqdm import tqdm

from configs.artifacts import (
    MANIFEST,
    ArtifactError,
    atomic_write,
    digest,
    exclusive,
    read_manifest,
    remove_partials,
    seal,
)
from configs.compose import (
    Axis,
    ConfigError,
    Paths,
    compose_typed,
    override,
    parse_axis,
    register,
    resolved,
    run_stage,
)
from train.config import SweepConfig, TrainConfig
from train.points import (
    Point,
    Training,
    best_of,
    described,
    experiment_yaml,
    points_json,
    read_points,
    table_csv,
)
from train.search import Chosen, Space, Told, grid_points, grid_size, probes, propose
from train.trainings import InputDigests, Trainings, reason, recipe_digest

log = logging.getLogger(__name__)
SWEEPS = ".sweeps"  # no run has this name, for none starts with a dot
MAX_POINTS = 500  # of a grid: each is composed before the first is trained
FILES = ["definition.yaml", "points.json", "table.csv", "best.yaml"]
NOT_AXES = {  # keys of train that a sweep has its own way for
    "run": "runs are named by their points",
    "paths": "give paths.data, paths.runs or collections=[...]",
}


def open_axes(cfg: SweepConfig) -> tuple[list[Axis], list[int]]:
    """Return what is varied or fixed, and the seeds; `seed=0,1,2` repeats each point, for a seed is not searched.

    Raises:
        ConfigError: nothing to vary, or a key that is no axis.
    """
    types = get_type_hints(TrainConfig)
    axes, seeds = [], cfg.seeds
    for key, text in cfg.axes.items():
        if why := NOT_AXES.get(key.partition(".")[0]):
            raise ConfigError(f"`{key}={text}` is no axis of a sweep: {why}")
        axis = parse_axis(key, text)
        if key == "seed":
            seeds = _seeds(axis, text)
        else:
            axes.append(replace(axis, whole=axis.whole or types.get(key) is int))
    if not any(len(axis.values) != 1 for axis in axes):
        raise ConfigError("nothing to vary: give an axis, such as `margin=0.2,0.3,0.5`, or sweep=<name>")
    return axes, seeds


def _seeds(axis: Axis, text: str) -> list[int]:
    if not axis.values or not all(value.isdecimal() for value in axis.values):
        raise ConfigError(f"seed={text} must be whole numbers, which repeat each point")
    return [int(value) for value in axis.values]


def open_space(axes: list[Axis], cfg: SweepConfig) -> Space:
    """Return the space of a sweep.

    Raises:
        ConfigError: an axis without effect, no end to a grid, or too many points.
    """
    space = Space(axes)
    space.refuse_idle_axes()
    if cfg.sampler == "grid":
        if endless := [axis.key for axis in axes if not axis.values]:
            raise ConfigError(f"{', '.join(endless)} is an interval, which has no grid: give values, or sampler=tpe")
        if (size := grid_size(space)) > MAX_POINTS:
            raise ConfigError(f"the grid has {size} points, more than {MAX_POINTS}: give less values, or sampler=tpe")
    return space


def compose_point(chosen: Mapping[str, str]) -> TrainConfig:
    """Compose what a point trains, all but run, seed and paths."""
    return compose_typed("train", TrainConfig, [f"{key}={value}" for key, value in chosen.items()])


class Sweep:
    """A sweep's points, written down as they come and go."""

    def __init__(self, cfg: SweepConfig, space: Space, seeds: list[int]):
        self.cfg, self.space, self.seeds = cfg, space, seeds
        self.collections = cfg.collections or [cfg.paths.data]
        self.directory = Path(cfg.paths.runs) / SWEEPS / cfg.name
        self.points: list[Point] = []
        self._inputs = InputDigests()

    def definition(self) -> dict[str, Any]:
        """Return what makes this the same sweep another time; more trials are more of the same."""
        names = ("name", "axes", "sampler", *(("sampler_seed",) if self.cfg.sampler == "tpe" else ()))
        return {name: getattr(self.cfg, name) for name in names} | {
            "seeds": self.seeds,
            "collections": self.collections,
        }

    def open(self) -> None:
        """Go on with the points of an earlier start, or lay out those of a grid.

        What will be trained is composed and its inputs are opened first, so that no training starts in vain.

        Raises:
            ArtifactError: the name belongs to another sweep, what a collection holds has changed since, or is missing.
            ConfigError: an unknown key, a value of another type or out of range.
        """
        first = compose_point(next(probes(self.space)))
        inputs = [self.inputs_of(first, collection) for collection in self.collections]
        recipe = digest([self.definition(), recipe_digest(compose_point({})), inputs])
        saved, kept = self.directory / "definition.yaml", self.directory / "points.json"
        text = f"# recipe {recipe}\n{OmegaConf.to_yaml(OmegaConf.create(self.definition()))}"
        if saved.is_file() and (old := saved.read_text(encoding="utf-8")).splitlines()[:1] != text.splitlines()[:1]:
            raise ArtifactError(
                f"sweep '{self.cfg.name}' in '{self.directory}' was another one: {difference(old, text)}. Choose "
                "another one with name=<name>; runs that both have are not trained again."
            )
        remove_partials(self.directory)
        if kept.is_file():
            self.points = read_points(kept.read_text(encoding="utf-8"))
        elif self.cfg.sampler == "grid":
            self.points = self._lay_out()
        else:
            for chosen in probes(self.space):
                self.new_point(0, chosen)
        atomic_write(saved, text)  # after the points are composed, so that a refused sweep leaves no definition
        if self.cfg.retry:
            for point in self.points:
                point.state, point.reason = ("open" if point.state == "failed" else point.state), ""

    def _lay_out(self) -> list[Point]:
        points: dict[str, Point] = {}
        for chosen in grid_points(self.space):
            point = self.new_point(len(points) + 1, chosen)
            points.setdefault(point.name, point)  # two spellings of one config are one point
        return list(points.values())

    def new_point(self, number: int, chosen: Chosen) -> Point:
        """Return a point with its trainings, named by all that shapes them."""
        config = compose_point(chosen)
        name = recipe_digest(config)[:10]
        trainings = [
            Training(collection, seed, f"{name}-{self.inputs_of(config, collection)[:6]}-{seed}")
            for collection in self.collections
            for seed in self.seeds
        ]
        return Point(number, name, chosen, trainings)

    def inputs_of(self, config: TrainConfig, collection: str) -> str:
        """Return the digest of what a config reads from a collection; an ArtifactError where something is missing."""
        return self._inputs.of(replace(config, paths=Paths(collection, self.cfg.paths.runs)))

    def propose(self) -> Point | None:
        """Return a new point of TPE's."""
        told = [Told(point.chosen, point.state, point.value) for point in self.points]
        number = len(self.points) + 1
        chosen = propose(self.space, told, self.cfg.sampler_seed, number)
        if chosen is None:
            return None
        try:
            return self.new_point(number, chosen)
        except ConfigError as error:  # values that go one by one, but not together
            return Point(number, digest(chosen)[:10], chosen, [], "failed", str(error))

    def todo(self) -> Iterator[Point]:
        """Yield points to train: those begun earlier, then, one at a time, new ones of TPE's."""
        yield from [point for point in self.points if point.state == "open"]
        while self.cfg.sampler == "tpe" and len(self.points) < self.cfg.trials:
            if (point := self.propose()) is None:
                log.info("no point is left that was not tried")
                return
            self.points.append(point)
            self.save()
            if point.state == "open":
                yield point

    def save(self) -> None:
        """Write down how things stand."""
        keys = [axis.key for axis in [*self.space.steering, *self.space.others]]
        atomic_write(self.directory / "points.json", points_json(self.points))
        atomic_write(self.directory / "table.csv", table_csv(self.points, keys, self.collections))

    def save_best(self, best: Point) -> None:
        """Write the best point as the text of an experiment."""
        names = ", ".join(Path(collection).name for collection in self.collections)  # paths are this machine's
        over = f"mean over seeds {', '.join(map(str, self.seeds))} of {names}"
        done = sum(point.state == "done" for point in self.points)
        found = f"val_map {best.value:.4f}, {over}; best of {done} points of {self.cfg.sampler}"
        atomic_write(self.directory / "best.yaml", experiment_yaml(self.cfg.name, best.chosen, found))

    def finish(self) -> None:
        """Seal the sweep.

        Raises:
            ArtifactError: no point was trained.
        """
        best = best_of(self.points)
        if best is None:
            raise ArtifactError(
                f"no point of {len(self.points)} could be trained, the first: {self.points[0].reason}. All that the "
                f"trainings printed lies in '{self.directory / 'failures'}'; with retry=true they are tried again."
            )
        self.save_best(best)
        rows = [[point.name, point.state, point.chosen, point.value] for point in self.points]
        seal(
            self.directory,
            "sweep",
            config=resolved(self.cfg),
            files=FILES,
            content={"definition": self.definition(), "points": rows},  # without seconds
            facts={"num_points": len(self.points), "val_map": best.value},
        )


def difference(old: str, new: str) -> str:
    """Say which fields of two definitions differ."""
    was, now = (dict(OmegaConf.to_container(OmegaConf.create(text))) for text in (old, new))  # type: ignore[arg-type]
    changed = [f"{key}: {was.get(key)} -> {value}" for key, value in now.items() if was.get(key) != value]
    return "; ".join(changed) or "what a collection holds, or a default of train, has changed"


def train_point(point: Point, runs: str, trainings: Trainings) -> tuple[Point, str]:
    """Train what a point still lacks, and return it with what the training that failed printed."""
    done: list[Training] = []
    for training in point.trainings:
        ended, printed = train_one(training, point.chosen, runs, trainings)
        if printed:
            why = f"seed {training.seed} of {training.collection}: {reason(printed)}"
            left = point.trainings[len(done) :]
            return replace(point, trainings=[*done, *left], state="failed", reason=why), printed
        done.append(ended)
    return replace(point, trainings=done, state="done"), ""


def train_one(training: Training, chosen: Chosen, runs: str, trainings: Trainings) -> tuple[Training, str]:
    """Train one run of a point, unless it is finished; return it, and what it printed where it failed."""
    started = time.monotonic()
    run_dir = Paths(runs=runs).run(training.run)
    was_there = read_manifest(run_dir) is not None
    paths = [override("paths.data", training.collection), override("paths.runs", runs)]
    overrides = [f"{key}={value}" for key, value in chosen.items()]
    manifest, printed = trainings.train(run_dir, [*overrides, f"run={training.run}", f"seed={training.seed}", *paths])
    if manifest is None:
        return training, printed
    if not math.isfinite(manifest.facts["val_map"]):
        return training, f"error: val_map is {manifest.facts['val_map']}"
    seconds = training.seconds if was_there else time.monotonic() - started
    facts = {"val_map": manifest.facts["val_map"], "epochs": manifest.facts["num_epochs"]}
    return replace(training, seconds=seconds, **facts), ""


def train_points(book: Sweep) -> None:
    """Train all that is to do, `jobs` points side by side, and write down each as it ends."""
    cfg, trainings, todo = book.cfg, Trainings(book.cfg.jobs), book.todo()
    total = cfg.trials if cfg.sampler == "tpe" else len(book.points)
    ended = sum(point.state != "open" for point in book.points)
    running: dict[Future[tuple[Point, str]], Point] = {}
    with (
        ThreadPoolExecutor(cfg.jobs) as pool,
        tqdm(total=total, initial=ended, desc="points", mininterval=1.0) as bar,
    ):
        try:
            while True:
                for point in todo if len(running) < cfg.jobs else ():
                    running[pool.submit(train_point, point, cfg.paths.runs, trainings)] = point
                    if len(running) == cfg.jobs:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    note(book, *future.result())
                    bar.update()
        finally:
            trainings.stop()


def note(book: Sweep, point: Point, printed: str) -> None:
    """Write down a point that ended, and say how it stands beside the best."""
    book.points[point.number - 1] = point
    book.save()
    if printed:
        failures = book.directory / "failures"
        failures.mkdir(exist_ok=True)
        atomic_write(failures / f"{point.name}.txt", printed)
    best = best_of(book.points)
    if best is point:
        book.save_best(best)
    outcome = f"failed: {point.reason}" if point.value is None else f"val_map {point.value:.4f}"
    so_far = f"; best {best.value:.4f}, point {best.number}" if best and best.number != point.number else ""
    log.info("point %d, %s: %s%s", point.number, described(point.chosen), outcome, so_far)
    if book.cfg.keep == "best":
        for each in book.points:
            if each.state != "open" and each is not best:
                strip(each, book.cfg.paths)


def strip(point: Point, paths: Paths) -> None:
    """Remove checkpoints and logs of a point's runs; what is sealed stays."""
    for training in point.trainings:
        for folder in ("checkpoints", "logs"):
            shutil.rmtree(paths.run(training.run) / folder, ignore_errors=True)


def sweep(cfg: SweepConfig) -> Path:
    """Run a sweep to its end and return its directory. Callable from tests without Hydra."""
    axes, seeds = open_axes(cfg)
    book = Sweep(cfg, open_space(axes, cfg), seeds)
    with exclusive(book.directory):
        book.open()
        sealed = read_manifest(book.directory) is not None
        enough = cfg.sampler == "grid" or len(book.points) >= cfg.trials
        if sealed and enough and all(point.state != "open" for point in book.points):
            log.info("already done: %s\n%s", book.directory, (book.directory / "best.yaml").read_text(encoding="utf-8"))
            return book.directory
        (book.directory / MANIFEST).unlink(missing_ok=True)
        book.save()
        log.info(
            "sweep %s: %s points over seeds %s of %s",
            cfg.name,
            len(book.points) if cfg.sampler == "grid" else f"up to {cfg.trials}",
            ", ".join(map(str, seeds)),
            ", ".join(book.collections),
        )
        train_points(book)
        book.finish()
    best = (book.directory / "best.yaml").read_text(encoding="utf-8")
    log.info("sweep: %s\nthe best, to be kept as configs/experiment/%s.yaml:\n%s", book.directory, cfg.name, best)
    return book.directory


register("sweep", SweepConfig)

if __name__ == "__main__":
    run_stage(sweep, SweepConfig, "sweep", rest="axes")
