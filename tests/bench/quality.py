"""Train and judge three seeds beside every floor: `make bench B=quality ARGS="--data data/sample --runs runs/quality"`.

A tag's value is its mean over the seeds; the interval is a bootstrap over tags of these means, and the spread is the
standard deviation of the seeds' own means. Floors do not depend on the seed. Finished runs are not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from tests.bench.result import finish
from train.metrics import interval

SEEDS = (0, 1, 2)
Values = dict[tuple[str, str], dict[str, list[float]]]  # (question, system) -> tag -> one value a seed


def stage(module: str, *overrides: str) -> None:
    """Run one stage to its end."""
    subprocess.run([sys.executable, "-m", module, *overrides], check=True)


def train_and_judge(experiment: str, seed: int, paths: list[str], overrides: list[str]) -> str:
    """Train one run and evaluate it on test; return its name."""
    run = f"{experiment}-{seed}"
    chosen = [] if experiment == "default" else [f"experiment={experiment}"]
    stage("train.fit", *chosen, f"run={run}", f"seed={seed}", *paths, *overrides)
    stage("train.evaluate", f"run={run}", *paths)
    return run


def collect(values: dict[str, Values], table: Path, experiment: str) -> None:
    """Add a run's per-tag values; the run itself goes under its experiment's name."""
    with table.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            system = experiment if row["system"] == "trained" else row["system"]
            for metric in ("map", "auc"):
                values[metric][row["question"], system][row["tag"]].append(float(row[metric]))


def summary(by_tag: dict[str, list[float]]) -> dict[str, float]:
    """Return mean, interval over tags and spread over seeds."""
    means = np.array([statistics.fmean(each) for each in by_tag.values()])
    found = interval(means, resamples=2000)
    seeds = [statistics.fmean(each) for each in zip(*by_tag.values(), strict=True)]
    spread = statistics.stdev(seeds) if len(seeds) > 1 else 0.0
    return {"mean": found.mean, "low": found.low, "high": found.high, "spread": spread, "tags": len(means)}


def difference(values: Values, question: str, system: str, floor: str) -> str:
    """Say by how much a system is above a floor, paired by tag."""
    paired = [
        statistics.fmean(each) - statistics.fmean(values[question, floor][tag])
        for tag, each in values[question, system].items()
    ]
    found = interval(np.array(paired), resamples=2000)
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def main() -> None:
    """Train, evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="data/sample", help="paths.data with features of the collection")
    parser.add_argument("--runs", default="runs/quality", help="paths.runs for the runs of this benchmark")
    parser.add_argument("--experiments", default="default", help="names of configs/experiment, comma between")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every run")
    arguments = parser.parse_args()
    paths = [f"paths.data={arguments.data}", f"paths.runs={arguments.runs}"]
    experiments = arguments.experiments.split(",")
    values: dict[str, Values] = {metric: defaultdict(lambda: defaultdict(list)) for metric in ("map", "auc")}
    for experiment in experiments:
        for seed in SEEDS:
            run = train_and_judge(experiment, seed, paths, arguments.overrides)
            collect(values, Path(arguments.runs) / run / "evaluation" / "test" / "per_tag.csv", experiment)
    figures: dict[str, dict[str, float]] = {}
    for question, system in values["map"]:
        for metric in ("map", "auc"):
            by_tag = values[metric][question, system]
            figures[f"{question}/{system}/{metric}"] = summary(by_tag)
    show(values, figures, experiments)
    finish("quality", {}, json.loads(json.dumps(figures, default=float)))


def show(values: dict[str, Values], figures: dict[str, dict[str, float]], experiments: list[str]) -> None:
    """Print one table a question, in Markdown."""
    questions = list(dict.fromkeys(question for question, _ in values["map"]))
    for question in questions:
        systems = [system for asked, system in values["map"] if asked == question]
        tags = figures[f"{question}/{systems[0]}/map"]["tags"]
        print(f"\n{question}, {tags} tags\n\n| system | mAP | seeds | AUC | mAP over class mean | mAP over ridge |")
        print("| --- | --- | --- | --- | --- | --- |")
        for system in systems:
            ap, auc = figures[f"{question}/{system}/map"], figures[f"{question}/{system}/auc"]
            over = [
                difference(values["map"], question, system, floor)
                if system in experiments and (question, floor) in values["map"]
                else ""
                for floor in ("class_mean", "ridge")
            ]
            print(
                f"| {system} | {ap['mean']:.3f} ({ap['low']:.3f}-{ap['high']:.3f}) | +-{ap['spread']:.3f} "
                f"| {auc['mean']:.3f} ({auc['low']:.3f}-{auc['high']:.3f}) | {over[0]} | {over[1]} |"
            )


if __name__ == "__main__":
    main()
