"""What a comparison finds: means, differences, bands of frequency, tags that moved, hubs and curves, as plain values.

T tags of a question, S seeds of a system.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np
from scipy import stats

from crawl.records import TEST, TRAIN, VAL
from features.inverted_index import InvertedIndex
from train.config import CompareConfig
from train.galleries import query_name
from train.metrics import interval
from train.significance import (
    ALPHA,
    holm,
    is_told_apart,
    paired_difference,
    smallest_detectable,
    verdict,
)
from train.systems import (
    METRICS,
    Asked,
    System,
    align,
    baseline_of,
    config_difference,
    read_history,
    relevant_images,
    top_lists,
)

HUB_DEPTH = 10  # k of the k-occurrences
BANDS = ("head", "middle", "tail")
BY_AUC = ("within_tag", "labels")  # short lists; all other questions are judged by AP
BANDED = ("gallery", "within_tag")
Lists = Mapping[str, Mapping[str, Sequence[str]]]  # run -> query -> image_ids, best first


def metric_of(question: str) -> str:
    """Return the metric that a question's verdict stands on."""
    return "auc" if question in BY_AUC else "map"


def pairs_of(names: Sequence[str], baseline: str, pairs: str) -> list[tuple[str, str]]:
    """Return (system, reference) for every comparison."""
    if pairs == "all":
        return [(other, reference) for reference, other in combinations([baseline, *_without(names, baseline)], 2)]
    return [(name, baseline) for name in _without(names, baseline)]


def _without(names: Sequence[str], baseline: str) -> list[str]:
    return [name for name in names if name != baseline]


def means(asked: Asked) -> dict[str, dict[str, Any]]:
    """Return system -> metric -> mean over tags with its interval, and the spread over seeds where there are some."""
    found: dict[str, dict[str, Any]] = {}
    for system, values in asked.values.items():
        found[system] = {}
        for metric in METRICS:
            by_seed = values[metric].mean(axis=1)
            each = interval(values[metric].mean(axis=0), resamples=2000)
            spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
            found[system][metric] = {**finite(vars(each)), "spread": spread}
    return found


def judge_pairs(asked: Sequence[Asked], pairs: Sequence[tuple[str, str]], resamples: int) -> list[dict[str, Any]]:
    """Compare every pair on every question that both answer, corrected for all of these comparisons together."""
    shown = [(each, *pair) for each in asked for pair in pairs if set(pair) <= each.values.keys()]
    found = []
    for each, system, reference in shown:
        metric = metric_of(each.name)
        found.append(paired_difference(each.values[system][metric], each.values[reference][metric], resamples))
    corrected = holm(np.array([difference.p for difference in found]))
    rows = []
    for (each, system, reference), difference, p in zip(shown, found, corrected.tolist(), strict=True):
        detectable = smallest_detectable(difference, len(shown))
        rows.append(
            {
                "question": each.name,
                "system": system,
                "reference": reference,
                "metric": metric_of(each.name),
                **finite(vars(difference)),
                "corrected_p": p,
                "detectable": detectable if isfinite(detectable) else None,
                "told_apart": is_told_apart(difference, p),
                "verdict": verdict(difference, p, len(shown)),
            }
        )
    return rows


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers as JSON has them, which knows no infinity: the bounds of a single tag."""
    return {key: value if isfinite(value) else None for key, value in values.items()}


def bands_of(frequency: np.ndarray) -> list[np.ndarray]:
    """Split tags into three bands of equally many, the most frequent first, ties by place.

    Args:
        frequency: (T,) train images of each tag.

    Returns:
        The places of head, middle and tail; bands without a tag are left out.
    """
    order = np.argsort(-frequency, kind="stable")
    return [np.sort(band) for band in np.array_split(order, len(BANDS)) if len(band)]


def judge_bands(
    asked: Asked, frequency: np.ndarray, pairs: Sequence[tuple[str, str]], resamples: int
) -> list[dict[str, Any]]:
    """Return head, middle and tail with means and differences; a band's share of a difference is what it adds to it."""
    metric, rows = metric_of(asked.name), []
    for name, at in zip(BANDS, bands_of(frequency), strict=False):
        differences = []
        for system, reference in pairs:
            ours, theirs = (asked.values[each][metric][:, at] for each in (system, reference))
            found = paired_difference(ours, theirs, resamples)
            share = found.mean * len(at) / len(asked.tags)
            differences.append({"system": system, "reference": reference, "share": share, **finite(vars(found))})
        rows.append(
            {
                "band": name,
                "num_tags": len(at),
                "most_images": int(frequency[at].max()),
                "least_images": int(frequency[at].min()),
                "means": {system: float(values[metric][:, at].mean()) for system, values in asked.values.items()},
                "differences": differences,
            }
        )
    return rows


def movers(asked: Asked, frequency: np.ndarray, system: str, reference: str, count: int) -> dict[str, Any]:
    """Return the tags that gained most and lost most, ties by place, and how many of all gained, lost and stayed."""
    metric = metric_of(asked.name)
    ours, theirs = (asked.values[each][metric].mean(axis=0) for each in (system, reference))
    differences = ours - theirs

    def row(at: int) -> dict[str, Any]:
        return {
            "tag": asked.tags[at],
            "difference": float(differences[at]),
            "values": {reference: float(theirs[at]), system: float(ours[at])},
            "num_relevant": int(asked.num_relevant[at]),
            "train_images": int(frequency[at]),
        }

    order = np.argsort(-differences, kind="stable")
    return {
        "system": system,
        "reference": reference,
        "gained": [row(at) for at in order[:count] if differences[at] > 0],
        "lost": [row(at) for at in order[::-1][:count] if differences[at] < 0],
        "num_gained": int((differences > 0).sum()),
        "num_lost": int((differences < 0).sum()),
        "num_equal": int((differences == 0).sum()),
        "sorted": sorted(differences.tolist(), reverse=True),
    }


def hubness(lists: Mapping[str, Sequence[str]], queries: Sequence[str], gallery: int) -> dict[str, float]:
    """Return the skewness of the k-occurrences: how unequally images share the places in top lists.

    Radovanovic, Nanopoulos and Ivanovic, "Hubs in Space" (JMLR 11, 2010): N_k of an image is in how many lists it
    stands. Its distribution over the gallery has skewness 0 where it is even, and a large one where hubs fill the
    lists.

    Args:
        lists: query -> image_ids, at most k.
        queries: those that count.
        gallery: images that could have stood in a list.
    """
    occurrences = Counter(image_id for query in queries for image_id in lists[query])
    counts = np.zeros(gallery)
    counts[: len(occurrences)] = sorted(occurrences.values(), reverse=True)
    skew = float(stats.skew(counts)) if np.ptp(counts) else 0.0
    return {"skew": skew, "never": gallery - len(occurrences), "most": int(counts[0])}


def random_hubness(num_lists: int, depth: int, gallery: int) -> dict[str, float]:
    """Return what lists drawn at random would give: N_k is binomial."""
    chance = min(1.0, depth / gallery)
    skew = (1 - 2 * chance) / np.sqrt(num_lists * chance * (1 - chance)) if chance < 1 else 0.0
    return {"skew": float(skew), "never": gallery * (1 - chance) ** num_lists}


def judge_hubs(asked: Asked, systems: Sequence[System], lists: Lists, gallery: int) -> dict[str, Any]:
    """Return the hubness of every system, as a mean over its seeds, beside that of chance."""
    queries = [query_name(tag) for tag in asked.tags]
    found: dict[str, Any] = {}
    for system in systems:
        each = [hubness(lists[run], queries, gallery) for run in system.runs]
        found[system.name] = {key: float(np.mean([seed[key] for seed in each])) for key in each[0]}
        found[system.name]["spread"] = float(np.std([seed["skew"] for seed in each], ddof=1)) if len(each) > 1 else None
    depth = max(len(lists[run][query]) for system in systems for run in system.runs for query in queries)
    return {
        "depth": depth,
        "gallery": gallery,
        "systems": found,
        "random": random_hubness(len(queries), depth, gallery),
    }


def histories(systems: Sequence[System], cfg: CompareConfig) -> list[dict[str, Any]]:
    """Return the training curves of every run."""
    runs = [(system.name, member.name) for system in systems for member in system.members]
    return [{"system": name, "run": run, **read_history(cfg.paths.run(run))} for name, run in runs]


def compared(cfg: CompareConfig, systems: Sequence[System], index: InvertedIndex) -> dict[str, Any]:
    """Compare systems on everything they were judged on; return what `comparison.json` holds."""
    asked, absent = align(systems)
    baseline = baseline_of(cfg, [system.name for system in systems])
    pairs = pairs_of([system.name for system in systems], baseline, cfg.pairs)
    train_images = index.split_frequency(TRAIN)
    frequency = {each.name: np.array([train_images[index.tag_row(tag)] for tag in each.tags]) for each in asked}
    banded = [each for each in asked if each.name in BANDED and len(each.values) == len(systems)]
    return {
        "split": cfg.split,
        "baseline": baseline,
        "systems": [
            {"name": s.name, "runs": s.runs, "seeds": [member.run.config["seed"] for member in s.members]}
            for s in systems
        ],
        "alpha": ALPHA,
        "config": differing_config(systems),
        "questions": [asked_json(each, absent.get(each.name, [])) for each in asked],
        "not_shared": {name: missing for name, missing in absent.items() if name not in {each.name for each in asked}},
        "differences": judge_pairs(asked, pairs, cfg.resamples),
        "bands": {each.name: judge_bands(each, frequency[each.name], pairs, cfg.resamples) for each in banded},
        **judge_lists(cfg, asked[0], frequency[asked[0].name], systems, baseline, index),
        "histories": histories(systems, cfg),
    }


def asked_json(asked: Asked, absent: Sequence[str]) -> dict[str, Any]:
    """Return a question with the means of its systems."""
    return {
        "name": asked.name,
        "metric": metric_of(asked.name),
        "num_tags": len(asked.tags),
        "left_out": asked.left_out,
        "absent": list(absent),
        "means": means(asked),
    }


def judge_lists(
    cfg: CompareConfig,
    asked: Asked,
    frequency: np.ndarray,
    systems: Sequence[System],
    baseline: str,
    index: InvertedIndex,
) -> dict[str, Any]:
    """Return what the ranked lists of the first question tell: tags that moved with their best images, and hubs."""
    answering = [system for system in systems if system.name in asked.values]
    depth = max(HUB_DEPTH, cfg.pictures)
    lists = {m.name: top_lists(m, asked.name, depth) for system in answering for m in system.members}
    relevant = relevant_images(answering[0].members[0], asked.name)
    moved = [movers(asked, frequency, name, baseline, cfg.tags) for name in _without([*asked.values], baseline)]
    first_runs = {system.name: system.runs[0] for system in answering}
    for row in (row for each in moved for row in (*each["gained"], *each["lost"])):
        query = query_name(row["tag"])
        row["top"] = {
            name: [
                {"image_id": image_id, "relevant": image_id in relevant[query]}
                for image_id in lists[first_runs[name]][query][: cfg.pictures]
            ]
            for name in row["values"]
        }
    gallery = int((index.splits == (VAL if cfg.split == "val" else TEST)).sum())
    at_depth = {run: {query: ids[:HUB_DEPTH] for query, ids in found.items()} for run, found in lists.items()}
    return {"moved_on": asked.name, "movers": moved, "hubs": judge_hubs(asked, answering, at_depth, gallery)}


def differing_config(systems: Sequence[System]) -> dict[str, dict[str, Any]]:
    """Return the keys in which systems differ; a key that differs among seeds shows all its values."""
    rows = config_difference({m.name: m.run.config for system in systems for m in system.members})
    rows |= {"commit": {m.name: m.run.commit[:10] for system in systems for m in system.members}}
    found: dict[str, dict[str, Any]] = {}
    for key, row in rows.items():
        values = {s.name: list(dict.fromkeys(str(row[run]) for run in s.runs)) for s in systems}
        if any(value != values[systems[0].name] for value in values.values()):
            found[key] = {name: ", ".join(value) for name, value in values.items()}
    return found
