"""Runs as systems to compare: the seeds of a recipe together, with what evaluation found for each tag.

S seeds of a system, T tags of a question.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from configs.artifacts import ArtifactError, Manifest, open_artifact, read_manifest
from configs.compose import ConfigError, Paths, check_name, resolved
from features.config import BackboneConfig
from train.config import CompareConfig, EvaluateConfig, TrainConfig
from train.evaluate import evaluate
from train.report import TRAINED

log = logging.getLogger(__name__)
NEVER_TOLD = ("run", "paths.data", "paths.runs")  # differ without a meaning
ANY_RECIPE = ("seed", "device")  # keys in which runs of one recipe may differ
METRICS = ("map", "auc")


@dataclass(frozen=True)
class Judged:
    """A finished run with its evaluation on a split."""

    name: str
    run: Manifest
    evaluation: Manifest
    directory: Path  # of the evaluation


@dataclass(frozen=True)
class System:
    """One recipe: a run, or its runs with several seeds."""

    name: str
    members: tuple[Judged, ...]

    @property
    def runs(self) -> list[str]:
        """Return the names of its runs."""
        return [member.name for member in self.members]


@dataclass(frozen=True)
class Asked:
    """A question for the tags that all systems compared on it were judged on."""

    name: str
    tags: list[str]
    num_relevant: np.ndarray  # (T,) int64
    values: dict[str, dict[str, np.ndarray]]  # system -> metric -> (S, T)
    left_out: int  # tags that only some of these systems were judged on


def finished_runs(runs: Path) -> list[str]:
    """Return the names of the finished runs below a directory, ascending."""
    return sorted(path.parent.name for path in runs.glob("*/towers.safetensors") if read_manifest(path.parent))


def members_of(text: str, paths: Paths) -> list[str]:
    """Return the runs that a text such as `best`, `best-0+best-1` or `best-*` names, each once.

    Raises:
        ArtifactError: a pattern that no finished run fits, with those there are.
        ConfigError: a name that leads out of paths.runs.
    """
    named: list[str] = []
    for part in text.split("+"):
        if not set(part) & set("*?["):
            try:
                check_name("a run", part)
            except ValueError as error:
                raise ConfigError(f"runs: {error}; several seeds are joined by '+', or named by a pattern") from error
            named.append(part)
            continue
        finished = finished_runs(Path(paths.runs))
        fitting = [name for name in finished if fnmatchcase(name, part)]
        if not fitting:
            raise ArtifactError(f"no finished run in '{paths.runs}' fits '{part}'; there are {', '.join(finished)}")
        named += fitting
    return list(dict.fromkeys(named))


def shared_name(names: Sequence[str]) -> str:
    """Return what the runs of a system have in common: `best` for best-0 and best-1, else their names joined."""
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    start = "".join(letters[0] for letters in alike)
    if any(name[len(start) : len(start) + 1].isdecimal() for name in names):
        start = start.rstrip("0123456789")  # of the number that tells them apart
    return start.rstrip("-_.") or "+".join(names)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested config as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def config_difference(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return key -> name -> value for the keys in which the configs of runs differ.

    A key younger than a run stands at its default, which is how the run was made; one that no longer is, at None.
    """
    defaults = flat(resolved(TrainConfig()))
    flattened = {name: defaults | flat(config) for name, config in configs.items()}
    keys = dict.fromkeys(key for config in flattened.values() for key in config if key not in NEVER_TOLD)
    rows = {key: {name: config.get(key) for name, config in flattened.items()} for key in keys}
    return {key: row for key, row in rows.items() if any(value != next(iter(row.values())) for value in row.values())}


def require_one_recipe(name: str, runs: Mapping[str, Manifest]) -> None:
    """Refuse a system whose runs differ in more than their seed."""
    differing = config_difference({run: manifest.config for run, manifest in runs.items()})
    other = {key: row for key, row in differing.items() if key not in ANY_RECIPE}
    if other:
        told = "; ".join(f"{key}={', '.join(map(str, row.values()))}" for key, row in other.items())
        raise ArtifactError(
            f"'{name}' should be seeds of one recipe, but {', '.join(runs)} have {told}. "
            f"Compare them as systems of their own: runs=[{','.join(runs)}]"
        )


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a stage's own table out of the log, where six of them would hide what is compared."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def evaluate_options(cfg: CompareConfig, run: str) -> EvaluateConfig:
    """Return how a run is evaluated: as it was before, else with the defaults."""
    earlier = read_manifest(cfg.paths.run(run) / "evaluation" / cfg.split)
    options: dict[str, Any] = {"histogram": cfg.histogram}
    if earlier is not None:
        known = {each.name for each in fields(EvaluateConfig)}
        options = {key: value for key, value in earlier.config.items() if key in known}
        options["histogram"] = BackboneConfig(**options["histogram"])
    return EvaluateConfig(**{**options, "paths": cfg.paths, "run": run, "split": cfg.split})


def open_finished(paths: Paths, run: str) -> Manifest:
    """Return the manifest of a finished run; the error names the runs that may have been meant."""
    make = f'make train ARGS="run={run}"'
    if seeds := [name for name in finished_runs(Path(paths.runs)) if name.startswith(run) and name != run]:
        make += f"` or compare its seeds {', '.join(seeds)} by the pattern `{run}*"
    return open_artifact(paths.run(run), "run", make=make)


def judged(cfg: CompareConfig, run: str, manifest: Manifest) -> Judged:
    """Return a run with its evaluation, which is made where it is missing or older than its inputs.

    Raises:
        ArtifactError: data that the run does not fit to.
    """
    options = evaluate_options(cfg, run)
    earlier = read_manifest(cfg.paths.run(run) / "evaluation" / cfg.split)
    if earlier is None:
        log.info("evaluating run=%s on %s first", run, cfg.split)
    with quiet("train.evaluate"):
        directory = evaluate(options)
    evaluation = open_artifact(directory, "evaluation", make=f'make evaluate ARGS="run={run} split={cfg.split}"')
    if earlier is not None and earlier.seal != evaluation.seal:
        log.info("evaluated run=%s on %s anew, because its inputs had changed", run, cfg.split)
    return Judged(run, manifest, evaluation, directory)


def name_systems(cfg: CompareConfig) -> dict[str, list[str]]:
    """Return system -> its runs, in the order given.

    Raises:
        ArtifactError: a pattern that no run fits.
        ConfigError: a system is named twice, or the baseline is none of them.
    """
    groups = [members_of(text, cfg.paths) for text in cfg.runs]
    names = [shared_name(group) for group in groups]
    names = [name if names.count(name) == 1 else text for name, text in zip(names, cfg.runs, strict=True)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"runs names {', '.join(twice)} twice; a run compared with itself tells nothing")
    baseline_of(cfg, names)
    return dict(zip(names, groups, strict=True))


def baseline_of(cfg: CompareConfig, names: Sequence[str]) -> str:
    """Return the system that the others are compared with; it may be given as in `runs` or as it is shown."""
    if not cfg.baseline:
        return names[0]
    found = [name for text, name in zip(cfg.runs, names, strict=True) if cfg.baseline in (text, name)]
    if not found:
        raise ConfigError(f"baseline must be one of {', '.join(names)}, got '{cfg.baseline}'")
    return found[0]


def open_systems(cfg: CompareConfig) -> list[System]:
    """Open what is compared, in the order given; whatever can be refused is refused before the first evaluation.

    Raises:
        ArtifactError: a run is missing, a system is no one recipe, or evaluations are of different indexes.
        ConfigError: see `name_systems`.
    """
    named = name_systems(cfg)
    manifests = {run: open_finished(cfg.paths, run) for runs in named.values() for run in runs}
    for name, runs in named.items():
        require_one_recipe(name, {run: manifests[run] for run in runs})
    opened = {run: judged(cfg, run, manifest) for run, manifest in manifests.items()}
    require_one_index(list(opened.values()))
    return [System(name, tuple(opened[run] for run in runs)) for name, runs in named.items()]


def require_one_index(members: Sequence[Judged]) -> None:
    """Refuse evaluations on different pictures: their numbers have nothing to do with each other."""
    first = members[0]
    for other in members[1:]:
        for artifact in ("index", "collection"):
            ids = [each.evaluation.provenance.get(artifact, "none")[:12] for each in (first, other)]
            if ids[0] != ids[1]:
                raise ArtifactError(
                    f"run '{first.name}' was judged on {artifact} {ids[0]}, run '{other.name}' on {ids[1]}: they "
                    f'cannot be compared. Run `make evaluate ARGS="run={other.name}"` for both, then compare again.'
                )


Row = dict[str, str]  # of per_tag.csv
Rows = dict[str, dict[str, Row]]  # question -> tag -> row


def per_tag(member: Judged) -> Rows:
    """Read what an evaluation found for every tag, of the run itself."""
    path = member.directory / "per_tag.csv"
    found: Rows = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["system"] == TRAINED:
                    found.setdefault(row["question"], {})[row["tag"]] = row
    except (OSError, KeyError, csv.Error) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error
    return found


def align(systems: Sequence[System]) -> tuple[list[Asked], dict[str, list[str]]]:
    """Return the questions that two systems or more answer, each for the tags that all of these were judged on.

    Returns:
        The questions, and question -> the systems that were not asked it.

    Raises:
        ArtifactError: a tag has other candidates or relevant images in one evaluation than in another.
    """
    rows = {system.name: [per_tag(member) for member in system.members] for system in systems}
    names = dict.fromkeys(question for found in rows.values() for each in found for question in each)
    asked, absent = [], {}
    for question in names:
        present = {name: found for name, found in rows.items() if all(question in each for each in found)}
        tags, left_out = shared_tags([each[question] for found in present.values() for each in found])
        if missing := [system.name for system in systems if system.name not in present]:
            absent[question] = missing
        if len(present) >= 2 and tags:
            asked.append(read_asked(question, tags, left_out, present))
    if not asked:
        raise ArtifactError("there is no tag that all these runs were judged on, so nothing can be compared")
    return asked, absent


def shared_tags(found: Sequence[Mapping[str, object]]) -> tuple[list[str], int]:
    """Return the tags of all, in the order of the first, and how many only some have."""
    tags = [tag for tag in (found[0] if found else ()) if all(tag in each for each in found)]
    return tags, len(set().union(*found)) - len(tags) if found else 0


def read_asked(question: str, tags: list[str], left_out: int, present: Mapping[str, Sequence[Rows]]) -> Asked:
    """Take a question's values out of the rows of its systems."""
    rows = {name: [each[question] for each in found] for name, found in present.items()}
    first = next(iter(rows.values()))[0]
    for name, seeds in rows.items():
        for seed in seeds:
            require_one_gallery(question, (next(iter(rows)), first), (name, seed), tags)
    values = {
        name: {metric: np.array([[float(seed[tag][metric]) for tag in tags] for seed in seeds]) for metric in METRICS}
        for name, seeds in rows.items()
    }
    return Asked(question, tags, np.array([int(first[tag]["num_relevant"]) for tag in tags]), values, left_out)


def require_one_gallery(
    question: str, one: tuple[str, Mapping[str, Row]], other: tuple[str, Mapping[str, Row]], tags: Sequence[str]
) -> None:
    """Refuse evaluations in which a tag has other images to find, or others to find them among."""
    for tag in tags:
        (r1, c1), (r2, c2) = ((rows[tag]["num_relevant"], rows[tag]["num_candidates"]) for _, rows in (one, other))
        if (r1, c1) != (r2, c2):
            raise ArtifactError(
                f"'{tag}' has {r1} relevant of {c1} images in {question} of {one[0]}, and {r2} of {c2} of {other[0]}: "
                "these are other galleries. Run `make evaluate` for both, then compare again."
            )


def top_lists(member: Judged, question: str, depth: int) -> dict[str, list[str]]:
    """Return query -> the image_ids that a run ranks first, best first, from its TREC run file."""
    path = member.directory / f"{question}.{TRAINED}.run"
    found: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                query, _, image_id, rank, _ = line.split(" ", 4)
                if int(rank) <= depth:
                    found.setdefault(query, []).append(image_id)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error
    return found


def relevant_images(member: Judged, question: str) -> dict[str, set[str]]:
    """Return query -> the image_ids that are relevant, from the TREC qrels of an evaluation."""
    path = member.directory / f"{question}.qrels"
    found: dict[str, set[str]] = {}
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                query, _, image_id, grade = line.split()
                if grade != "0":
                    found.setdefault(query, set()).add(image_id)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error
    return found


def read_history(run_dir: Path) -> dict[str, list[float]]:
    """Return the columns of a run's training history."""
    path = run_dir / "history.csv"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {key: [float(row[key]) for row in rows] for key in ("epoch", "train_loss", "val_map")}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error
