"""Images that ask for the others of their class: who asks, who is relevant, and how a system answers.

C images of the gallery, Q of them queries, K the last cut-off of a curve.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crawl.shards import Collection
from features.inverted_index import InvertedIndex
from train.galleries import judgements
from train.metrics import CURVES, average_precision, curves, random_curves
from train.ranking import Scorer, ranks_of


@dataclass(frozen=True)
class Classes:
    """Which images of a gallery share a class; one image may have several."""

    name: str  # labels, tags or kind
    gallery: np.ndarray  # (C,) int64 image rows, ascending, each with a class
    of: list[set[str]]  # the classes of each image of the gallery
    members: dict[str, np.ndarray]  # class -> positions in the gallery, ascending

    def others(self, at: int) -> np.ndarray:
        """Return the positions of the other images that share a class with one, ascending."""
        shares = np.zeros(len(self.gallery), dtype=bool)
        for name in self.of[at]:
            shares[self.members[name]] = True
        shares[at] = False
        return np.flatnonzero(shares)


def classes_of(choice: str, index: InvertedIndex, gallery: np.ndarray, collection: Collection) -> Classes:
    """Return the classes of a gallery's images; images without one are left out of it.

    Args:
        choice: labels, tags or kind; auto takes labels where there are any, else tags.
        index: has the tags.
        gallery: image rows, ascending.
        collection: has labels and kinds.
    """
    kinds, labels = judgements(collection, index, gallery)
    if choice == "auto":
        choice = "labels" if any(labels.values()) else "tags"
    if choice == "tags":
        offsets, tag_rows = index.by_image
        found = [{index.tags[tag] for tag in tag_rows[offsets[row] : offsets[row + 1]]} for row in gallery]
    elif choice == "kind":
        found = [{kind} - {""} for kind in kinds]
    else:
        found = [labels[int(row)] - {""} for row in gallery]
    return members_of(choice, gallery, found)


def members_of(name: str, gallery: np.ndarray, found: list[set[str]]) -> Classes:
    """Turn the classes of each image round, without the images that have none."""
    kept = [at for at, classes in enumerate(found) if classes]
    members = defaultdict(list)
    for place, at in enumerate(kept):
        for each in found[at]:
            members[each].append(place)
    by_class = {each: np.array(places, dtype=np.int32) for each, places in members.items()}
    return Classes(name, gallery[kept], [found[at] for at in kept], by_class)


def draw_queries(classes: Classes, most: int, seed: int) -> np.ndarray:
    """Return the positions (Q,) of the images that ask, ascending: all, or `most` of them drawn at random.

    An image asks where some but not all others share its class; with none or all of them any order is right.
    """
    drawn = []
    for at in np.random.default_rng(seed).permutation(len(classes.gallery)).tolist():
        if 0 < len(classes.others(at)) < len(classes.gallery) - 1:
            drawn.append(at)
        if len(drawn) == most:
            break
    return np.array(sorted(drawn), dtype=np.int64)


@dataclass(frozen=True)
class Judged:
    """How a system answered."""

    values: dict[str, np.ndarray]  # metric -> (Q,)
    curves: dict[str, np.ndarray]  # metric of CURVES -> (K,) mean over the queries


Answer = tuple[float, dict[str, np.ndarray]]  # AP over the whole ranking, and the curves


def ranked_answers(classes: Classes, queries: np.ndarray, scorer: Scorer, depth: int) -> Iterator[Answer]:
    """Yield how a system ranks all other images for each query."""
    for query, scores in zip(queries.tolist(), scorer.each(), strict=True):
        scores[query] = -np.inf  # below all others, so that no rank counts it
        ranks = ranks_of(scores, classes.others(query))
        yield average_precision(ranks), curves(ranks, depth)


def random_answers(classes: Classes, queries: np.ndarray, depth: int) -> Iterator[Answer]:
    """Yield what each query may expect of a random order."""
    num_candidates = len(classes.gallery) - 1
    for query in queries.tolist():
        num_relevant = len(classes.others(query))
        whole = random_curves(num_relevant, num_candidates, num_candidates)
        yield float(whole["map"][-1]), {metric: curve[:depth] for metric, curve in whole.items()}


def judge(answers: Iterator[Answer], depth: int, cutoffs: list[int]) -> Judged:
    """Gather the answers to all queries; curves are summed, so that memory holds one at a time."""
    values: dict[str, list[float]] = defaultdict(list)
    sums = {metric: np.zeros(depth) for metric in CURVES}
    for whole, found in answers:
        values["map"].append(whole)
        for metric, curve in found.items():
            sums[metric] += curve
            for k in cutoffs:
                values[f"{metric}@{k}"].append(float(curve[k - 1]))
    means = {metric: total / len(values["map"]) for metric, total in sums.items()}
    return Judged({metric: np.array(each) for metric, each in values.items()}, means)
