"""What a run's evaluation says, as the quality page shows it: tables, curves, and its best and worst tags."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import Manifest, open_artifact
from configs.compose import Paths

TRAINED = "trained"  # what the evaluation calls the run itself
METRICS = {"map": "mAP", "auc": "AUC", "precision@10": "precision@10", "recall@10": "recall@10", "mrr": "MRR"}
SYSTEMS = {
    TRAINED: "this run",
    "towers": "its towers alone",
    "votes": "its votes alone",
    "ridge": "ridge regression to tags",
    "class_mean": "class mean of the features",
    "class_mean_histogram": "class mean of colour histograms",
    "random": "random order",
}
MIN_RELEVANT = 5  # test pictures of a tag, to be named best or worst
NUM_EXTREMES = 6


@dataclass(frozen=True)
class Row:
    """A system's figures on a question."""

    system: str
    is_run: bool
    figures: tuple[str, ...]  # with intervals, in the order of the table's metrics
    share: float  # the first of them, for a bar


@dataclass(frozen=True)
class Table:
    """A question of the evaluation."""

    title: str
    num_queries: int
    num_candidates: int
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class TagQuality:
    """How well a tag is ranked."""

    tag: str
    ap: float
    num_relevant: int


@dataclass(frozen=True)
class Curve:
    """Points of a line in a plot, x and y in [0, 1] of its frame, y upwards, with what a legend says."""

    name: str
    points: tuple[tuple[float, float], ...]
    marks: tuple[tuple[float, float, float, float], ...] = ()  # x, y, low, high

    @property
    def path(self) -> str:
        """Return the line as an SVG path in a frame of 100 by 100."""
        return " ".join(
            f"{'L' if at else 'M'}{100 * x:.2f} {100 - 100 * y:.2f}" for at, (x, y) in enumerate(self.points)
        )


@dataclass(frozen=True)
class Quality:
    """Everything the page of a run shows."""

    run: str
    config: dict[str, Any]
    tables: tuple[Table, ...]
    best: tuple[TagQuality, ...]
    worst: tuple[TagQuality, ...]
    histogram: tuple[int, ...]  # tags by tenth of AP
    training: tuple[Curve, ...]
    epochs: int
    best_map: float
    cutoffs: tuple[Curve, ...]
    scores: tuple[float, float]  # lowest and highest of the plot of cut-offs
    promises: tuple[dict[str, Any], ...]
    reliability: Curve | None
    error: float | None  # expected calibration error


def open_quality(paths: Paths, run: str) -> Quality:
    """Read a run's evaluation on test.

    Raises:
        ArtifactError: the run was not evaluated.
    """
    directory = paths.run(run) / "evaluation" / "test"
    evaluation = open_artifact(directory, "evaluation", make=f'make evaluate ARGS="run={run}"')
    config = open_artifact(paths.run(run), "run", make=f'make train ARGS="run={run}"').config
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    tags = tags_of(rows_of(directory / "per_tag.csv"))
    judged = [each for each in tags if each.num_relevant >= MIN_RELEVANT] or tags
    history = rows_of(paths.run(run) / "history.csv")
    maps = [float(row["val_map"]) for row in history if row.get("val_map")]
    calibration, cutoffs, scores = calibration_of(directory, evaluation)
    return Quality(
        run,
        config,
        tuple(table_of(name, question) for name, question in metrics["questions"].items()),
        tuple(judged[:NUM_EXTREMES]),
        tuple(reversed(judged[-NUM_EXTREMES:])) if len(judged) > NUM_EXTREMES else (),
        histogram_of([each.ap for each in tags]),
        (Curve("mAP on val", curve_of(maps)),) if len(maps) > 1 else (),
        len(maps),
        max(maps, default=0.0),
        cutoffs,
        scores,
        tuple(calibration.get("promises", ())),
        reliability_of(calibration),
        calibration.get("judged_on", {}).get("ece_15_equal_width"),
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of ours, none where it is not there."""
    try:
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return []


def table_of(name: str, question: dict[str, Any]) -> Table:
    """Return a question's systems, those known first and the run before its floors."""
    from train.comparison_text import title_of, with_interval  # with scipy's statistics, which take seconds to import

    systems = question["systems"]
    order = [each for each in SYSTEMS if each in systems] + sorted(set(systems) - set(SYSTEMS))
    metrics = tuple(metric for metric in METRICS if metric in systems[order[0]])
    rows = (
        Row(
            SYSTEMS.get(system, system.replace("_", " ")),
            system == TRAINED,
            tuple(with_interval(systems[system][metric]) if metric in systems[system] else "" for metric in metrics),
            float(systems[system][metrics[0]]["mean"]),
        )
        for system in order
    )
    return Table(
        title_of(name),
        int(question["num_queries"]),
        int(question["num_candidates"]),
        tuple(METRICS[metric] for metric in metrics),
        tuple(rows),
    )


def tags_of(rows: Sequence[dict[str, str]]) -> list[TagQuality]:
    """Return the gallery's tags by falling AP of the run, ties by spelling."""
    mine = (row for row in rows if row["question"] == "gallery" and row["system"] == TRAINED)
    tags = (TagQuality(row["tag"], float(row["map"]), int(row["num_relevant"])) for row in mine)
    return sorted(tags, key=lambda each: (-each.ap, each.tag))


def histogram_of(aps: Sequence[float]) -> tuple[int, ...]:
    """Count tags by tenth of their AP."""
    counts = [0] * 10
    for ap in aps:
        counts[min(int(10 * ap), 9)] += 1
    return tuple(counts)


def curve_of(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return values in equal steps as points, from 0 to the largest."""
    top = max([*values, 1e-9])
    return tuple((at / max(1, len(values) - 1), value / top) for at, value in enumerate(values))


def calibration_of(
    directory: Path, evaluation: Manifest
) -> tuple[dict[str, Any], tuple[Curve, ...], tuple[float, float]]:
    """Return what the scores promise, what cut-offs keep and hold on test, and the range of scores that is drawn."""
    if "calibration.json" not in evaluation.files:
        return {}, (), (0.0, 0.0)
    calibration: dict[str, Any] = json.loads((directory / "calibration.json").read_text(encoding="utf-8"))
    rows = [row for row in rows_of(directory / "calibration.csv") if float(row["score"]) >= 0]
    if len(rows) < 2:
        return calibration, (), (0.0, 0.0)
    low, high = float(rows[0]["score"]), float(rows[-1]["score"])

    def line(name: str, column: str) -> Curve:
        found = [(float(row["score"]), float(row[column])) for row in rows if row[column]]
        return Curve(name, tuple(((score - low) / (high - low), share) for score, share in found))

    columns = {"promised right": "promise", "right on test": "test_precision", "right ones kept": "test_kept"}
    return calibration, tuple(line(name, column) for name, column in columns.items()), (low, high)


def reliability_of(calibration: dict[str, Any]) -> Curve | None:
    """Return what cut-offs promise against what test has, with intervals."""
    held = [row for row in calibration.get("promises", ()) if row.get("test_precision") is not None]
    if not held:
        return None
    marks = tuple((row["promise"], row["test_precision"], row["test_low"], row["test_high"]) for row in held)
    return Curve("on test", tuple((x, y) for x, y, _, _ in marks), marks)
