"""Stage `evaluate`: judge a run and its floors on the gallery (A) and within the tag (B).

Reads   runs/<run>, data/index, data/tag_vectors, data/image_features, data/collection (kinds and labels)
Writes  runs/<run>/evaluation/<split>/{metrics.json, per_tag.csv, table.txt, <question>.qrels, <question>.<system>.run,
        manifest.json}
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from configs.artifacts import (
    MANIFEST,
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    open_artifact,
    read_manifest,
    remove_partials,
    require_match,
    seal,
)
from configs.compose import Paths, register, resolved, run_stage
from crawl.records import TEST, TRAIN, VAL
from crawl.shards import RELATIONS_FILE, Collection
from crawl.tags import normalise_tag, read_relations
from features.config import BackboneConfig
from features.image_features import open_features, store_directory
from features.inverted_index import InvertedIndex
from train.baselines import Ridge, Standardiser, choose_ridge, class_mean
from train.batches import is_withheld
from train.config import EvaluateConfig
from train.fit import Inputs, open_inputs
from train.galleries import (
    Answer,
    Question,
    answer,
    gallery_question,
    label_question,
    mean_average_precision,
    qrels_of,
    random_answer,
    train_lists,
    within_tag_question,
)
from train.metrics import interval
from train.ranking import Scorer
from train.towers import TwoTowers, embed, load_towers

log = logging.getLogger(__name__)
MIN_KIND_SHARE = 0.05  # of the gallery, for a kind to get a table of its own
TRAINED = "trained"
UNSEEN = "unseen_tags"  # no kind's question has this name, they all start with `gallery_`


@dataclass(frozen=True)
class Systems:
    """Everything that can score images of this run's spaces."""

    inputs: Inputs
    towers: TwoTowers
    standard: Standardiser
    histograms: tuple[np.ndarray, Standardiser] | None
    ridge: Ridge
    ridge_strength: float

    def scorers(self, question: Question) -> list[Scorer]:
        """Return the run and its floors for a question's tags and gallery."""
        index, features = self.inputs.index, self.inputs.features
        lists = train_lists(index, question.tag_rows)
        tags = torch.from_numpy(np.array(self.inputs.vectors.vectors[question.tag_rows]))
        images = torch.from_numpy(features[question.gallery])
        found = [
            Scorer(TRAINED, embed(self.towers.tag, tags).numpy(), embed(self.towers.image, images).numpy()),
            class_mean("class_mean", features, self.standard, lists, question.gallery),
            self.ridge.scorers(lists, question.gallery, [self.ridge_strength])[self.ridge_strength],
        ]
        if self.histograms is not None:
            found.append(class_mean("class_mean_histogram", *self.histograms, lists, question.gallery))
        return found


def backbone_of(run: Manifest) -> BackboneConfig:
    """Return the backbone that a run was trained on, as its config keeps it."""
    return BackboneConfig(**run.config["backbone"])


def open_run(paths: Paths, run: str) -> tuple[TwoTowers, Manifest, Inputs]:
    """Open a finished run with the inputs of its own spaces.

    Raises:
        ArtifactError: no such run, or artifacts of another feature or word space.
    """
    run_dir = paths.run(run)
    manifest = open_artifact(run_dir, "run", make=f'make train ARGS="run={run}"')
    inputs = open_inputs(paths, backbone_of(manifest))
    require_match(inputs.spaces, manifest.must_match, "the data", f"run '{run}'")
    return load_towers(run_dir / "towers.safetensors"), manifest, inputs


def histogram_features(
    cfg: EvaluateConfig, index: InvertedIndex, gate: str, train_rows: np.ndarray
) -> tuple[np.ndarray, Standardiser] | None:
    """Return colour histograms of the index's images, or None where they were not extracted."""
    try:
        histograms, _ = open_features(cfg.paths, cfg.histogram, gate, index.image_ids)
    except ArtifactError as error:
        log.warning("without the floor of colour histograms: %s", error)
        return None
    return histograms, Standardiser(histograms, train_rows)


def questions(inputs: Inputs, split: int, withhold: float, collection: Collection) -> list[Question]:
    """Return what is asked: A, A by kind, A for withheld tags, B by planted images, B by labels."""
    index, known = inputs.index, np.asarray(inputs.vectors.known)
    withheld = np.array([is_withheld(tag, withhold) for tag in index.tags], dtype=bool)
    seen = known & ~withheld
    asked = [gallery_question(index, split, seen)]
    gallery = asked[0].gallery
    kinds, labels = judgements(collection, index, gallery)
    for kind in sorted(set(kinds.tolist()) - {""}):
        if MIN_KIND_SHARE <= (kinds == kind).mean() < 1:
            name = f"gallery_{quote(kind, safe='')}"  # of files too, so no slash may stand in it
            asked.append(gallery_question(index, split, seen, gallery[kinds == kind], name))
    if withheld.any():
        asked.append(gallery_question(index, split, known & withheld, name=UNSEEN))
    asked.append(within_tag_question(index, split, seen))
    plurals = read_relations(collection.directory / RELATIONS_FILE)["plural"]
    asked.append(label_question(index, split, seen, labels, plurals))
    return [question for question in asked if len(question.tag_rows)]


def judgements(
    collection: Collection, index: InvertedIndex, gallery: np.ndarray
) -> tuple[np.ndarray, dict[int, set[str]]]:
    """Return the kinds (C,) of a gallery's images, and image row -> labels; empty for images taken down since."""
    table = collection.table(["kind", "labels", "offset"])
    ids = np.array(table.column("image_id").to_pylist(), dtype="S16")
    asked = index.image_ids[gallery]  # ascending
    at = np.minimum(np.searchsorted(asked, ids), len(asked) - 1)
    wanted = (asked[at] == ids) & (table.column("offset").to_numpy() >= 0)
    rows = table.select(["kind", "labels"]).filter(pa.array(wanted)).to_pylist()
    kinds = np.full(len(gallery), "", dtype=object)
    labels: dict[int, set[str]] = {int(row): set() for row in gallery}
    for place, row in zip(at[wanted].tolist(), rows, strict=True):
        kinds[place] = row["kind"] or ""
        labels[int(gallery[place])] = {normalise_tag(label) for label in row["labels"] or ()}
    return kinds, labels


def judge(question: Question, systems: Systems, cfg: EvaluateConfig) -> dict[str, Answer]:
    """Answer a question by every system that may: only the run and chance know nothing of unseen tags."""
    answers = {
        scorer.name: answer(question, scorer, systems.inputs.index, cfg.cutoffs, cfg.depth)
        for scorer in systems.scorers(question)
        if question.name != UNSEEN or scorer.name == TRAINED
    }
    return {**answers, "random": Answer(random_answer(question, cfg.cutoffs), {})}


def summarise(question: Question, answers: Mapping[str, Answer], resamples: int) -> dict[str, Any]:
    """Return means with intervals of every system, and paired differences of the run from each floor."""
    trained = answers[TRAINED].values
    systems: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for name, found in answers.items():
        finite = {metric: values for metric, values in found.values.items() if np.isfinite(values).all()}
        systems[name] = {metric: vars(interval(values, resamples)) for metric, values in finite.items()}
        if name != TRAINED:
            paired = {metric: trained[metric] - values for metric, values in finite.items() if metric in ("map", "auc")}
            differences[name] = {metric: vars(interval(values, resamples)) for metric, values in paired.items()}
    return {
        "num_queries": len(question.tag_rows),
        "num_candidates": len(question.gallery),
        "mean_list": float(np.mean([question.num_candidates(q) for q in range(len(question.tag_rows))])),
        "mean_relevant": float(np.mean([len(rows) for rows in question.relevant])),
        "systems": systems,
        "trained_minus": differences,
    }


def table(metrics: Mapping[str, Any], cutoffs: list[int]) -> str:
    """Return the terminal's table of all questions."""
    k = cutoffs[len(cutoffs) // 2]
    columns = [f"map@{k}", f"precision@{k}", f"recall@{k}", f"hit_rate@{k}", f"ndcg@{k}", "mrr"]
    heads = "".join(f"  {column:>6}" for column in columns)
    lines = []
    for name, summary in metrics["questions"].items():
        lines.append(
            f"\n{name}: {summary['num_queries']} tags, {summary['num_candidates']} images, "
            f"lists of {summary['mean_list']:.0f} with {summary['mean_relevant']:.1f} relevant on average"
        )
        lines.append(f"{'system':20}{'mAP (95 % interval)':>21}{'AUC (95 % interval)':>21}{heads}")
        for system, values in summary["systems"].items():
            cells = "".join(f"  {_mean(values, column):>{max(len(column), 6)}}" for column in columns)
            lines.append(f"{system:20}{_with_interval(values, 'map'):>21}{_with_interval(values, 'auc'):>21}{cells}")
    return "\n".join(lines) + "\n"


def _mean(values: Mapping[str, Any], metric: str) -> str:
    return f"{values[metric]['mean']:.3f}" if metric in values else "-"


def _with_interval(values: Mapping[str, Any], metric: str) -> str:
    if metric not in values:
        return "-"
    found = values[metric]
    return f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def per_tag_csv(asked: list[Question], answered: list[dict[str, Answer]], index: InvertedIndex) -> str:
    """Return AP and AUC of every tag, system and question as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["question", "system", "tag", "num_relevant", "num_candidates", "map", "auc"])
    for question, answers in zip(asked, answered, strict=True):
        for system, found in answers.items():
            for query, tag_row in enumerate(question.tag_rows):
                counts = [len(question.relevant[query]), question.num_candidates(query)]
                values = [f"{found.values[metric][query]:.6f}" for metric in ("map", "auc")]
                writer.writerow([question.name, system, index.tags[tag_row], *counts, *values])
    return stream.getvalue()


def write_trec(directory: Path, question: Question, answers: Mapping[str, Answer], index: InvertedIndex) -> list[str]:
    """Write qrels and one run file a system as TREC's tools read them; return their names."""
    judged_wrong = question.lists is not None
    qrels = qrels_of(question, index, judged_wrong)
    lines = (f"{query} 0 {image} {grade}\n" for query, images in qrels.items() for image, grade in images.items())
    names = [f"{question.name}.qrels"]
    atomic_write(directory / names[0], "".join(lines))
    for system, found in answers.items():
        if found.run:
            rows = (
                f"{query} Q0 {image} {rank} {score:.9g} {system}\n"
                for query, images in found.run.items()
                for rank, (image, score) in enumerate(images.items(), start=1)
            )
            names.append(f"{question.name}.{system}.run")
            atomic_write(directory / names[-1], "".join(rows))
    return names


def open_systems(cfg: EvaluateConfig, towers: TwoTowers, inputs: Inputs, gate: str) -> Systems:
    """Prepare the run and its floors; the ridge's strength is the best of seven on the validation split."""
    index, known = inputs.index, np.asarray(inputs.vectors.known)
    train_rows = np.flatnonzero(index.splits == TRAIN)
    ridge = Ridge(inputs.features, train_rows)
    val = gallery_question(index, VAL, known)
    strength = choose_ridge(
        ridge, train_lists(index, val.tag_rows), val.gallery, lambda scorer: mean_average_precision(val, scorer)
    )
    log.info("ridge strength %g, chosen on val", strength)
    histograms = histogram_features(cfg, index, gate, train_rows)
    return Systems(inputs, towers, Standardiser(inputs.features, train_rows), histograms, ridge, strength)


def evaluate(cfg: EvaluateConfig) -> Path:
    """Judge a run on a split and return the evaluation's directory. Callable from tests without Hydra."""
    towers, run, inputs = open_run(cfg.paths, cfg.run)
    directory = cfg.paths.run(cfg.run) / "evaluation" / cfg.split
    collection = Collection(cfg.paths.artifact("collection"))
    gate = collection.manifest.must_match["gate"]
    histograms = read_manifest(store_directory(cfg.paths, cfg.histogram, gate))  # without it a floor is missing
    content = {**inputs.content, "collection": collection.content_id}
    recipe = digest([resolved(cfg), run.content_id, content, histograms.content_id if histograms else ""])
    earlier = read_manifest(directory)
    if earlier is not None and earlier.recipe == recipe:
        log.info("already done: %s\n%s", directory, (directory / "table.txt").read_text(encoding="utf-8"))
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    for name in [MANIFEST, *(earlier.files if earlier else ())]:
        (directory / name).unlink(missing_ok=True)  # minutes of work from sealed inputs, so it may be made anew
    remove_partials(directory)
    index = inputs.index
    systems = open_systems(cfg, towers, inputs, gate)
    asked = questions(inputs, VAL if cfg.split == "val" else TEST, run.config["withhold_tags"], collection)
    answered = [judge(question, systems, cfg) for question in tqdm(asked, desc="questions", mininterval=1.0)]
    metrics = {
        "run": cfg.run,
        "split": cfg.split,
        "seed": run.config["seed"],
        "ridge_strength": systems.ridge_strength,
        "questions": {q.name: summarise(q, found, cfg.resamples) for q, found in zip(asked, answered, strict=True)},
    }
    texts = {
        "metrics.json": json.dumps(metrics, indent=1) + "\n",
        "per_tag.csv": per_tag_csv(asked, answered, index),
        "table.txt": table(metrics, cfg.cutoffs),
    }
    for name, text in texts.items():
        atomic_write(directory / name, text)
    files = [*texts]
    for question, found in zip(asked, answered, strict=True):
        files += write_trec(directory, question, found, index)
    seal(
        directory,
        "evaluation",
        config=resolved(cfg),
        files=files,
        must_match=inputs.spaces,
        provenance={"run": run.content_id, **content},
        recipe=recipe,
    )
    log.info("evaluation: %s\n%s", directory, texts["table.txt"])
    return directory


register("evaluate", EvaluateConfig)

if __name__ == "__main__":
    run_stage(evaluate, EvaluateConfig, "evaluate")
