"""What an evaluation writes: a summary, a table, a row a tag, and TREC's qrels and run files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from features.inverted_index import InvertedIndex
from train.galleries import Question, qrels_of
from train.metrics import interval

TRAINED = "trained"  # the system that is the run itself
Answers = dict[str, dict[str, np.ndarray]]  # system -> metric -> (Q,)


def summarise(question: Question, answers: Answers, resamples: int) -> dict[str, Any]:
    """Return means with intervals of every system, and paired differences of the run from each floor."""
    trained = answers[TRAINED]
    systems: dict[str, Any] = {}
    differences: dict[str, Any] = {}
    for name, found in answers.items():
        finite = {metric: values for metric, values in found.items() if np.isfinite(values).all()}
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


def per_tag_csv(asked: list[Question], answered: list[Answers], index: InvertedIndex) -> str:
    """Return AP and AUC of every tag, system and question as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["question", "system", "tag", "num_relevant", "num_candidates", "map", "auc"])
    for question, answers in zip(asked, answered, strict=True):
        for system, found in answers.items():
            for query, tag_row in enumerate(question.tag_rows):
                counts = [len(question.relevant[query]), question.num_candidates(query)]
                values = [f"{found[metric][query]:.6f}" for metric in ("map", "auc")]
                writer.writerow([question.name, system, index.tags[tag_row], *counts, *values])
    return stream.getvalue()


def qrels_text(question: Question, index: InvertedIndex) -> str:
    """Return the relevance judgements as TREC's tools read them; short lists name their irrelevant images too."""
    qrels = qrels_of(question, index, judged_wrong=question.lists is not None)
    lines = (f"{query} 0 {image} {grade}\n" for query, images in qrels.items() for image, grade in images.items())
    return "".join(lines)


def run_text(system: str, run: Mapping[str, Mapping[str, float]]) -> str:
    """Return ranked lists, query -> image_id -> strictly falling score, as TREC's tools read them."""
    return "".join(
        f"{query} Q0 {image} {rank} {score:.9g} {system}\n"
        for query, images in run.items()
        for rank, (image, score) in enumerate(images.items(), start=1)
    )
