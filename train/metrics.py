"""Metrics a tag, their values for a random order, and intervals over tags.

R relevant and C candidates of a query, k a cut-off. Metrics at a cut-off are trec_eval's, by way of ir_measures; what
needs the whole ranking (AP, median rank, AUC) is computed from the exact ranks of the relevant images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from ir_measures import AP, RR, P, R, Success, nDCG
from scipy import stats

# Our names, and trec_eval's measures. AP@k divides by R; recall@k is the literature's mAR@k; hit_rate@k its R@K.
LIBRARY = {"map": AP, "precision": P, "recall": R, "hit_rate": Success, "ndcg": nDCG}
# Of reverse search at every k. AP@k is told by both its denominators: R, and min(R, k) as papers on images have it.
CURVES = ("map", "map_capped", "recall")


@dataclass(frozen=True)
class Interval:
    """A mean over tags with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    num_queries: int


def average_precision(ranks: np.ndarray) -> float:
    """AP over the whole ranking: mean over the R relevant images of the precision at their rank."""
    ordered = np.sort(ranks)
    return float(np.mean(np.arange(1, len(ordered) + 1) / ordered))


def auc(ranks: np.ndarray, num_candidates: int) -> float:
    """Share of (relevant, irrelevant) pairs in the right order: Mann-Whitney U from the ranks of the relevant."""
    num_relevant = len(ranks)
    num_irrelevant = num_candidates - num_relevant
    inversions = ranks.sum() - num_relevant * (num_relevant + 1) / 2
    return float(1 - inversions / (num_relevant * num_irrelevant))


def at_cutoffs(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], cutoffs: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Compute the metrics at cut-offs and MRR by query with trec_eval.

    Args:
        run: query -> candidate -> strictly falling score.
        qrels: query -> candidate -> 0 or 1; every query has a relevant candidate.
        cutoffs: ranks to cut at.

    Returns:
        Metric such as `precision@10` -> query -> value.
    """
    measures = {measure @ k: f"{name}@{k}" for name, measure in LIBRARY.items() for k in cutoffs} | {RR: "mrr"}
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in measures.values()}
    for metric in ir_measures.iter_calc(list(measures), qrels, run):
        values[measures[metric.measure]][metric.query_id] = float(metric.value)
    return values


def random_order(num_relevant: int, num_candidates: int, cutoffs: Sequence[int]) -> dict[str, float]:
    """Expected value of every metric for an order drawn at random, in closed form."""
    r, c = num_relevant, num_candidates
    rank = np.arange(1, c + 1)
    terms = _random_precisions(r, c)
    none_within = np.cumprod(1 - np.minimum(r / (c - rank + 1), 1))  # chance of no relevant image up to a rank
    none_before = np.concatenate([[1.0], none_within[:-1]])
    gains = 1 / np.log2(rank + 1)
    values = {
        "map": float(terms.sum() / r),
        "mrr": float(((none_before - none_within) / rank).sum()),
        "median_rank": float("nan"),
        "auc": 0.5,
    }
    for k in cutoffs:
        cut = min(k, c)
        values[f"map@{k}"] = float(terms[:cut].sum() / r)
        values[f"precision@{k}"] = cut * (r / c) / k
        values[f"recall@{k}"] = cut / c
        values[f"hit_rate@{k}"] = float(1 - none_within[cut - 1])
        values[f"ndcg@{k}"] = float(gains[:cut].sum() * (r / c) / gains[: min(k, r)].sum())
    return values


def _random_precisions(num_relevant: int, num_candidates: int) -> np.ndarray:
    """Return (C,) expected precision at each rank, counted only where a relevant image stands there.

    That happens with chance R/C, and then the precision at rank r is expected to be (1 + (r - 1)(R - 1)/(C - 1)) / r.
    """
    rank = np.arange(1, num_candidates + 1)
    precision_at_hit = (1 + (rank - 1) * (num_relevant - 1) / max(num_candidates - 1, 1)) / rank
    return np.asarray(precision_at_hit * (num_relevant / num_candidates))


def curves(ranks: np.ndarray, depth: int) -> dict[str, np.ndarray]:
    """Return one query's AP@k, AP@k by min(R, k) and recall@k for every k, each (depth,).

    Args:
        ranks: (R,) of all relevant images, in any order.
        depth: the last k.
    """
    hits = np.zeros(depth)
    hits[ranks[ranks <= depth] - 1] = 1
    found = np.cumsum(hits)
    return _at_every_k(found, hits * found / np.arange(1, depth + 1), len(ranks))


def random_curves(num_relevant: int, num_candidates: int, depth: int) -> dict[str, np.ndarray]:
    """Return what `curves` is expected to be for an order drawn at random, in closed form; depth is C at most."""
    found = np.arange(1, depth + 1) * (num_relevant / num_candidates)
    return _at_every_k(found, _random_precisions(num_relevant, num_candidates)[:depth], num_relevant)


def _at_every_k(found: np.ndarray, precisions: np.ndarray, num_relevant: int) -> dict[str, np.ndarray]:
    """Divide relevant images found (depth,) and the precisions where they stand (depth,) as each metric does."""
    total, k = np.cumsum(precisions), np.arange(1, len(found) + 1)
    values = (total / num_relevant, total / np.minimum(num_relevant, k), found / num_relevant)
    return dict(zip(CURVES, values, strict=True))


def interval(values: np.ndarray, resamples: int, seed: int = 0) -> Interval:
    """Return mean and 95 % percentile bootstrap interval over queries; NaN bounds for fewer than two."""
    mean = float(np.mean(values)) if len(values) else float("nan")
    if len(values) < 2 or np.ptp(values) == 0:
        bound = mean if len(values) > 1 else float("nan")
        return Interval(mean, bound, bound, len(values))
    rng = np.random.default_rng(seed)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, method="percentile", rng=rng, batch=max(1, 10**7 // len(values))
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(values))
