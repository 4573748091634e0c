"""Run the tables of results again from their commands and compare: OK, CLOSE or DIFFERS by row.

Reads   train/results.yaml, what README says as data: rows, the overrides that train them, and their figures
Writes  runs/.reproduced/, a run for each row and seed with its evaluation, and results.yaml with the figures found

A tag's value is its mean over the seeds; the interval is a bootstrap over tags of these values, the spread the standard
deviation of the seeds' own means.
"""

from __future__ import annotations

import csv
import logging
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.artifacts import ArtifactError, Manifest, atomic_write, digest, exclusive
from configs.compose import ConfigError, Paths, compose_typed, override, register, run_stage
from train.config import EvaluateConfig, ReproduceConfig, TrainConfig
from train.evaluate import evaluate
from train.metrics import interval
from train.report import TRAINED
from train.trainings import InputDigests, Trainings, reason, recipe_digest

log = logging.getLogger(__name__)
REPRODUCED = ".reproduced"  # below paths.runs, where no run has such a name
RESAMPLES = 2000
VERDICTS = ["NEW", "OK", "CLOSE", "DIFFERS", "FAILED"]  # a row's is the last of its figures
LAST_DIGIT = 0.001  # of what is printed
OVER = " over "  # between a column and the row that is subtracted
Values = dict[tuple[str, str, str], dict[str, list[float]]]  # (question, system, metric) -> tag -> one value a seed


@dataclass
class Figure:
    """A mean over tags, with its 95 % interval, the spread of the seeds' means, and how many tags."""

    mean: float
    low: float
    high: float
    spread: float  # over seeds; 0 of a floor
    tags: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f}-{self.high:.3f})"

    def signed(self) -> str:
        """Return a difference as it is printed."""
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass
class Column:
    """What a column of a table shows."""

    collection: str
    question: str  # of the evaluation, such as gallery, within_tag, labels, unseen_tags
    metric: str  # map, auc
    title: str  # {tags} stands for how many there are

    @property
    def key(self) -> str:
        """Name the column among the figures of a row."""
        return f"{self.collection}/{self.question}/{self.metric}"


@dataclass
class Row:
    """A system of a table, with what it should reach."""

    name: str
    title: str
    train: list[str] | None = None  # overrides of its training; none: a floor, which every evaluation has
    collections: list[str] = field(default_factory=list)  # where it is judged; none: everywhere
    figures: dict[str, Figure] = field(default_factory=dict)  # by the keys of columns


@dataclass
class Table:
    """A table of README."""

    name: str
    columns: list[Column]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    over: list[str] = field(default_factory=list)  # rows that trained ones are compared with, tag by tag
    rows: list[Row] = field(default_factory=list)


@dataclass
class Results:
    """All tables, and where the collections lie that everyone has."""

    collections: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)


def read_results(path: Path) -> Results:
    """Read tables from YAML.

    Raises:
        ConfigError: no such file, or not in this form.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Results), OmegaConf.load(path))
        results = OmegaConf.to_object(merged)
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}' with tables of results") from None
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        at = f" at {error.full_key}" if getattr(error, "full_key", "") else ""
        raise ConfigError(f"'{path}' is no file of results{at}: {str(error).splitlines()[0]}") from error
    assert isinstance(results, Results)
    return results


def write_results(path: Path, results: Results, header: str = "") -> None:
    """Write tables as YAML, a figure a line."""
    body = yaml.safe_dump(_compact(asdict(results)), sort_keys=False, default_flow_style=None, width=200)
    atomic_write(path, header + body)


def _compact(tree: Any) -> Any:
    """Leave out what is empty; an empty list of overrides is the default config, though."""
    if isinstance(tree, dict):
        kept = {
            key: value for key, value in tree.items() if value not in (None, [], {}) or (key, value) == ("train", [])
        }
        return {key: _compact(value) for key, value in kept.items()}
    return [_compact(each) for each in tree] if isinstance(tree, list) else tree


def header_of(path: Path) -> str:
    """Return the comment that a YAML file opens with."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return "".join(lines[: next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))])


def markdown(table: Table) -> str:
    """Return a table as README shows it."""
    titles = [column.title.format(tags=_tags(table, column)) for column in table.columns]
    lines = ["| " + " | ".join(["system", *titles]) + " |", "| --- |" + " --- |" * len(titles)]
    for row in table.rows:
        cells = [str(row.figures[column.key]) if column.key in row.figures else "-" for column in table.columns]
        lines.append("| " + " | ".join([f"{row.title} `{row.name}`", *cells]) + " |")
    return "\n".join(lines)


def _tags(table: Table, column: Column) -> str:
    found = [row.figures[column.key].tags for row in table.rows if column.key in row.figures]
    return f"{found[0]:,}" if found else "-"


def add_values(values: Values, per_tag: Path, system: str, floors: bool = True) -> None:
    """Add the values of an evaluation's `per_tag.csv`; the run itself goes under the name of a system."""
    with per_tag.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if floors or row["system"] == TRAINED:
                name = system if row["system"] == TRAINED else row["system"]
                for metric in ("map", "auc"):
                    values[row["question"], name, metric][row["tag"]].append(float(row[metric]))


def new_values() -> Values:
    """Return values without any."""
    return defaultdict(lambda: defaultdict(list))


def figure(by_tag: Mapping[str, Sequence[float]]) -> Figure:
    """Return the mean over tags of values, one a seed, to six digits, as it is recorded."""
    found = interval(np.array([statistics.fmean(each) for each in by_tag.values()]), RESAMPLES)
    seeds = [statistics.fmean(each) for each in zip(*by_tag.values(), strict=True)]
    spread = statistics.stdev(seeds) if len(seeds) > 1 else 0.0
    mean, low, high, spread = (round(float(each), 6) for each in (found.mean, found.low, found.high, spread))
    return Figure(mean, low, high, spread, len(by_tag))


def difference(by_tag: Mapping[str, Sequence[float]], floor: Mapping[str, Sequence[float]]) -> Figure:
    """Return by how much a system is above another one, paired by tag; one value of a floor stands for all seeds."""
    floors = {tag: statistics.fmean(each) for tag, each in floor.items()}
    return figure({tag: [value - floors[tag] for value in each] for tag, each in by_tag.items() if tag in floors})


def figures_of(table: Table, collection: str, values: Values) -> dict[str, dict[str, Figure]]:
    """Return row -> key -> figure for all that one collection's evaluations tell."""
    found: dict[str, dict[str, Figure]] = {row.name: {} for row in table.rows}
    for column in (each for each in table.columns if each.collection == collection):
        for row in table.rows:
            of = values.get((column.question, row.name, column.metric))
            if not of:
                continue
            found[row.name][column.key] = figure(of)
            for name in table.over if row.train is not None else []:
                if name != row.name and (floor := values.get((column.question, name, column.metric))):
                    found[row.name][f"{column.key}{OVER}{name}"] = difference(of, floor)
    return found


def verdict(expected: Figure, found: Figure | None) -> str:
    """Return OK where the printed digits are equal, CLOSE within two spreads of the seeds, otherwise DIFFERS."""
    if found is None or found.tags != expected.tags:
        return "DIFFERS"
    if f"{found.mean:.3f}" == f"{expected.mean:.3f}":
        return "OK"
    near = max(LAST_DIGIT, 2 * expected.spread)
    return "CLOSE" if abs(found.mean - expected.mean) <= near + 1e-9 else "DIFFERS"


class Reproduction:
    """Trainings and evaluations of one call, and what came of them."""

    def __init__(self, cfg: ReproduceConfig):
        self.cfg = cfg
        self.directory = Path(cfg.paths.runs) / REPRODUCED
        self.trainings = Trainings(cfg.jobs)
        self.verdicts: list[str] = []
        self._inputs = InputDigests()

    def table(self, table: Table, collection: str, data: str) -> None:
        """Train and judge a table's rows on a collection, say how they compare, and put the new figures in."""
        values, failed = new_values(), dict[str, str]()
        trained = [row for row in table.rows if row.train is not None and _is_asked(row, collection, self.cfg)]
        for row in trained:
            log.info("%s: %s on %s, %s", table.name, row.name, collection, " ".join(row.train or ["as configured"]))
            try:
                for directory in self.judge(row, table.seeds, Paths(data, str(self.directory))):
                    # The floors of all evaluations are the same, so those of the first one count.
                    add_values(values, directory / "per_tag.csv", row.name, floors=not values)
            except Died as error:
                failed[row.name] = str(error)
        found = figures_of(table, collection, values)
        for row in table.rows:
            if row in trained or (row.train is None and values):
                self.compare(row, collection, found[row.name], failed.get(row.name, ""))
                row.figures |= found[row.name]

    def judge(self, row: Row, seeds: Sequence[int], paths: Paths) -> list[Path]:
        """Train a row with each seed and evaluate it on test; return the evaluations' directories.

        Raises:
            Died: a training did not end well.
        """
        where = [override("paths.data", paths.data), override("paths.runs", paths.runs)]
        config = compose_typed("train", TrainConfig, [*(row.train or []), *where])
        name = f"{row.name}-{digest([recipe_digest(config), self._inputs.of(config)])[:8]}"

        def train(seed: int) -> Manifest:
            run = f"{name}-{seed}"
            overrides = [*(row.train or []), f"run={run}", f"seed={seed}", *where]
            manifest, printed = self.trainings.train(paths.run(run), overrides)
            if manifest is None:
                raise Died(f"seed {seed}: {reason(printed)}")
            return manifest

        with ThreadPoolExecutor(self.cfg.jobs) as pool:
            list(pool.map(train, seeds))
        configs = [compose_typed("evaluate", EvaluateConfig, [f"run={name}-{seed}", *where]) for seed in seeds]
        with quiet("train.evaluate"):  # the tables of single runs
            return [evaluate(each) for each in configs]

    def compare(self, row: Row, collection: str, found: Mapping[str, Figure], failure: str) -> None:
        """Say how a row's figures on a collection compare with those recorded."""
        recorded = {key: each for key, each in row.figures.items() if key.startswith(f"{collection}/")}
        verdicts = {key: verdict(each, found.get(key)) for key, each in recorded.items()}
        worst = "FAILED" if failure else max(verdicts.values(), key=VERDICTS.index, default="NEW")
        if not failure and not found and not recorded:
            return
        self.verdicts.append(worst)
        log.info("%-8s %s on %s%s", worst, row.name, collection, f": {failure}" if failure else "")
        for key in dict.fromkeys([*recorded, *found]) if not failure else ():
            told = _beside(key, recorded.get(key), found.get(key))
            log.info("  %-8s %s: %s", verdicts.get(key, "NEW"), key.removeprefix(f"{collection}/"), told)


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Let a module log no more than warnings for a while."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.WARNING)
    try:
        yield
    finally:
        found.setLevel(level)


class Died(RuntimeError):
    """A training did not end well; the message says why."""


def _is_asked(row: Row, collection: str, cfg: ReproduceConfig) -> bool:
    return (not row.collections or collection in row.collections) and (not cfg.rows or row.name in cfg.rows)


def _beside(key: str, recorded: Figure | None, found: Figure | None) -> str:
    both = {"found": found, "recorded": recorded}
    return ", ".join(
        f"{name} {each.signed() if OVER in key else each} of {each.tags} tags" if each else f"not {name}"
        for name, each in both.items()
    )


def places(results: Results, cfg: ReproduceConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Return where each collection lies that is at hand, and for the others why they are skipped.

    Raises:
        ConfigError: a collection of no table, or one that is not where it was said to be.
    """
    names = list(dict.fromkeys(column.collection for table in results.tables for column in table.columns))
    if unknown := sorted(cfg.collections.keys() - set(names)):
        raise ConfigError(f"no table has a collection '{unknown[0]}'; there are {', '.join(names)}")
    given = {name: path.strip("'\"") for name, path in cfg.collections.items()}
    if absent := [f"{name}={path}" for name, path in given.items() if not Path(path).is_dir()]:
        raise ConfigError(f"no such folder: {', '.join(absent)}; name the paths.data of the collection")
    at_hand, skipped = {}, {}
    for name in names:
        path = given.get(name, results.collections.get(name, ""))
        if path and Path(path).is_dir():
            at_hand[name] = path
        else:
            skipped[name] = f"'{path}' is not there; run `make {name}`" if path else f"name it: {name}=<its paths.data>"
    return at_hand, skipped


def selected(results: Results, cfg: ReproduceConfig) -> Iterator[Table]:
    """Yield the tables asked for.

    Raises:
        ConfigError: a table or row that there is not.
    """
    tables = [table.name for table in results.tables]
    rows = {row.name for table in results.tables for row in table.rows if row.train is not None}
    if unknown := [name for name in cfg.tables if name not in tables]:
        raise ConfigError(f"no table '{unknown[0]}'; there are {', '.join(tables)}")
    if unknown := [name for name in cfg.rows if name not in rows]:
        raise ConfigError(f"no row '{unknown[0]}' that is trained; there are {', '.join(sorted(rows))}")
    yield from (table for table in results.tables if not cfg.tables or table.name in cfg.tables)


def reproduce(cfg: ReproduceConfig) -> Path:
    """Run tables again, compare, and return the file with the figures found. Callable from tests without Hydra.

    Raises:
        ArtifactError: a figure differs, and it was not asked to be recorded.
    """
    file = Path(cfg.file)
    results = read_results(file)
    tables, (at_hand, skipped) = list(selected(results, cfg)), places(results, cfg)
    again = Reproduction(cfg)
    with exclusive(again.directory):
        try:
            for table in tables:
                for name in dict.fromkeys(column.collection for column in table.columns):
                    if name in at_hand:
                        again.table(table, name, at_hand[name])
                    else:
                        log.info("SKIPPED  %s on %s: %s", table.name, name, skipped[name])
        finally:
            again.trainings.stop()
        write_results(again.directory / "results.yaml", results)
    return conclude(again, results, tables, file)


def conclude(again: Reproduction, results: Results, tables: Sequence[Table], file: Path) -> Path:
    """Count the verdicts, and record the figures where that was asked for."""
    counts = {name: again.verdicts.count(name) for name in dict.fromkeys(again.verdicts)}
    log.info("%d rows: %s", len(again.verdicts), ", ".join(f"{count} {name}" for name, count in counts.items()) or "-")
    found = again.directory / "results.yaml"
    if again.cfg.record:
        write_results(file, results, header_of(file))
        log.info("recorded in %s; the tables for README:\n\n%s", file, "\n\n".join(map(markdown, tables)))
        return file
    if bad := [name for name in again.verdicts if name in ("DIFFERS", "FAILED")]:
        raise ArtifactError(
            f"{len(bad)} of {len(again.verdicts)} rows differ from '{file}'; those found are in '{found}', "
            "and record=true takes them over"
        )
    return found


register("reproduce", ReproduceConfig)

if __name__ == "__main__":
    run_stage(reproduce, ReproduceConfig, "reproduce", rest="collections")
