"""Stage `reverse`: images ask for the others of their class, by raw features and by a run's embeddings.

Reads   data/index, data/collection (labels or kinds), all of data/image_features, runs/<run> where one is named
Writes  data/reverse/<classes>-<split>/, with a run runs/<run>/evaluation/reverse-<classes>-<split>/:
        {metrics.json, curves.csv, curves.svg, per_query.csv, table.txt, manifest.json}
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.artifacts import (
    MANIFEST,
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    exclusive,
    read_manifest,
    remove_partials,
    seal,
)
from configs.compose import Paths, recipe_config, register, resolved, run_stage
from crawl.records import SPLITS
from crawl.shards import Collection
from features.backbones import HISTOGRAM
from features.image_features import FeatureStore, open_store
from features.inverted_index import InvertedIndex, open_index
from train.audit import left_out_images
from train.baselines import unit_rows
from train.classes import Classes, Judged, classes_of, draw_queries, judge, random_answers, ranked_answers
from train.config import ReverseConfig
from train.metrics import CURVES, interval
from train.panels import Line, Panel, svg
from train.ranking import Scorer
from train.report import TRAINED
from train.runs import features_of, open_run
from train.towers import embed

log = logging.getLogger(__name__)
REVERSE_VERSION = 1  # raised when the same features would get other numbers
TABLE = "table.txt"
RANDOM = "random"
POINTS = 120  # of a drawn curve
HEADINGS = {"map": "mAP@k by R", "map_capped": "mAP@k by min(R, k)", "recall": "mAR@k"}


def stores(
    paths: Paths, index: InvertedIndex, gate: str, wanted: list[str]
) -> dict[str, tuple[FeatureStore, Manifest]]:
    """Return the features at hand by name, such as `resnet50-pca256`, that all images of the index have.

    What other weights or another gate made is left out.

    Raises:
        ArtifactError: one that is wanted is not there.
    """
    found = {}
    for directory in sorted(paths.artifact("image_features").glob("*")):
        manifest = read_manifest(directory)
        if manifest is None or manifest.kind != "image_features":
            continue
        try:
            store, manifest = open_store(features_of(manifest, paths), gate)
            missing = len(store.missing(index))
        except ArtifactError as error:
            log.warning("without '%s': %s", directory, error)
            continue
        if missing:
            log.warning("without '%s': %d images have no feature there; run `%s`", directory, missing, store.make)
        elif store.directory == directory:
            found[directory.name] = (store, manifest)
    heads = Counter(name.rpartition("-")[0] for name in found)
    named = {head if heads[head := name.rpartition("-")[0]] == 1 else name: found[name] for name in found}
    if absent := sorted(set(wanted) - named.keys()):
        raise ArtifactError(
            f"no features '{absent[0]}' in '{paths.artifact('image_features')}', "
            f"which has {', '.join(named) or 'none'}. "
            f'Run `make image_features ARGS="backbone={absent[0]}"`.'
        )
    return {name: store for name, store in named.items() if not wanted or name in wanted}


Rows = Callable[[np.ndarray], np.ndarray]  # image rows (C,) -> vectors (C, D), scored by their cosine


def features_of_rows(store: FeatureStore, index: InvertedIndex, rows: np.ndarray) -> np.ndarray:
    """Return the features (C, W) of image rows."""
    return store.gather(np.asarray(index.image_ids)[rows])


def systems_of(
    cfg: ReverseConfig, index: InvertedIndex, gate: str
) -> tuple[dict[str, Rows], dict[str, str], dict[str, str]]:
    """Return what can rank images: the run first, then every kind of features.

    Returns:
        By name the vectors that are compared, content_ids for the recipe, and the run's for the provenance.
    """
    found: dict[str, Rows] = {}
    content, run = {}, {}
    if cfg.run:
        towers, manifest, inputs = open_run(cfg.paths, cfg.run)
        found[TRAINED] = lambda rows: embed(towers.image, torch.from_numpy(inputs.features[rows])).numpy()
        run = {"run": manifest.content_id}
    for name, (store, sealed) in stores(cfg.paths, index, gate, cfg.features).items():
        found[name] = partial(features_of_rows, store, index)
        content[name] = sealed.content_id
    return found, content, run


def reverse(cfg: ReverseConfig) -> Path:
    """Judge reverse search by class and return the directory. Callable from tests without Hydra."""
    index, manifest = open_index(cfg.paths)
    collection = Collection(cfg.paths.artifact("collection"))
    systems, content, run = systems_of(cfg, index, collection.manifest.must_match["gate"])
    if cfg.run and cfg.split != "all":  # it learnt from copies of these
        rows, left_out = left_out_images(cfg.paths, index)
        index, content = index.without(rows), {**content, **left_out}
    splits = np.asarray(index.splits)
    gallery = np.flatnonzero(splits == SPLITS.index(cfg.split)) if cfg.split != "all" else np.arange(len(splits))
    classes = classes_of(cfg.classes, index, gallery, collection)
    provenance = {"index": manifest.content_id, "collection": collection.content_id, **run}
    recipe = digest([REVERSE_VERSION, {**recipe_config(cfg), "classes": classes.name}, provenance, content])
    name = f"{classes.name}-{cfg.split}"
    runs = cfg.paths.run(cfg.run) / "evaluation" / f"reverse-{name}"
    directory = runs if cfg.run else cfg.paths.artifact("reverse") / name
    with exclusive(directory):
        earlier = read_manifest(directory)
        if earlier is not None and earlier.recipe == recipe:
            log.info("already done: %s\n%s", directory, (directory / TABLE).read_text(encoding="utf-8"))
            return directory
        for file in [MANIFEST, *(earlier.files if earlier else ())]:
            (directory / file).unlink(missing_ok=True)  # a minute of work from sealed inputs, so it may be made anew
        remove_partials(directory)
        files = write_reverse(cfg, index, classes, len(gallery), systems, directory)
        spaces = manifest.must_match
        config = resolved(cfg)
        seal(directory, "reverse", config=config, files=files, must_match=spaces, provenance=provenance, recipe=recipe)
    log.info("reverse search: %s\n%s", directory, (directory / TABLE).read_text(encoding="utf-8"))
    return directory


def write_reverse(
    cfg: ReverseConfig,
    index: InvertedIndex,
    classes: Classes,
    num_images: int,
    systems: Mapping[str, Rows],
    directory: Path,
) -> list[str]:
    """Ask all systems and write what they answered; return the names of the files."""
    queries = draw_queries(classes, cfg.queries, cfg.seed)
    if not len(queries):
        raise ArtifactError(
            f"no image of split={cfg.split} has one of its class beside it and one of another: classes={classes.name} "
            f"has {len(classes.members)} classes on {len(classes.gallery)} of {num_images} images. "
            "Choose classes=labels, tags or kind."
        )
    num_candidates = len(classes.gallery) - 1
    depth = min(cfg.depth, num_candidates)
    cutoffs = [k for k in cfg.cutoffs if k <= depth]
    log.info("%d of %d images ask for the others of their %s", len(queries), num_images, classes.name)
    judged = {}
    for name, rows_of in systems.items():
        rows = unit_rows(rows_of(classes.gallery))
        judged[name] = judge(ranked_answers(classes, queries, Scorer(name, rows[queries], rows), depth), depth, cutoffs)
    judged[RANDOM] = judge(random_answers(classes, queries, depth), depth, cutoffs)
    metrics = {
        "run": cfg.run,
        "split": cfg.split,
        "classes": classes.name,
        "relevant": "the other images that share a class",
        "num_classes": len(classes.members),
        "num_images": num_images,
        "num_queries": len(queries),
        "num_candidates": num_candidates,
        "mean_relevant": float(np.mean([len(classes.others(query)) for query in queries])),
        **summarise(judged, cfg.resamples),
    }
    texts = {
        "metrics.json": json.dumps(metrics, indent=1) + "\n",
        "curves.csv": curves_csv(judged, depth),
        "curves.svg": curves_svg(judged, metrics, cutoffs, depth),
        "per_query.csv": per_query_csv(judged, [index.image_id(row) for row in classes.gallery[queries]]),
        TABLE: table(metrics, cutoffs),
    }
    for name, text in texts.items():
        atomic_write(directory / name, text)
    return list(texts)


def summarise(judged: Mapping[str, Judged], resamples: int) -> dict[str, Any]:
    """Return means with intervals over the queries, and paired differences from the colour histogram."""
    systems = {
        name: {metric: vars(interval(values, resamples)) for metric, values in each.values.items()}
        for name, each in judged.items()
    }
    floor = judged.get(HISTOGRAM)
    above = {
        name: {metric: vars(interval(each.values[metric] - floor.values[metric], resamples)) for metric in floor.values}
        for name, each in judged.items()
        if floor is not None and name not in (HISTOGRAM, RANDOM)
    }
    return {"systems": systems, "minus_histogram": above}


def curves_csv(judged: Mapping[str, Judged], depth: int) -> str:
    """Return the mean of every metric at every k, a row a system and k."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["system", "k", *CURVES])
    for name, each in judged.items():
        columns = [each.curves[metric] for metric in CURVES]
        for k in range(1, depth + 1):
            writer.writerow([name, k, *(f"{column[k - 1]:.6f}" for column in columns)])
    return stream.getvalue()


def per_query_csv(judged: Mapping[str, Judged], image_ids: list[str]) -> str:
    """Return all metrics of every query and system."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    metrics = list(next(iter(judged.values())).values)
    writer.writerow(["system", "image_id", *metrics])
    for name, each in judged.items():
        for query, image_id in enumerate(image_ids):
            writer.writerow([name, image_id, *(f"{each.values[metric][query]:.6f}" for metric in metrics)])
    return stream.getvalue()


def curves_svg(judged: Mapping[str, Judged], metrics: Mapping[str, Any], cutoffs: list[int], depth: int) -> str:
    """Draw the curves, with intervals at the cut-offs."""
    k = np.unique(np.geomspace(1, depth, POINTS).round().astype(int))
    panels = []
    for metric, heading in HEADINGS.items():
        lines = [Line(name, k, each.curves[metric][k - 1]) for name, each in judged.items()]
        for name, found in metrics["systems"].items():
            mean, low, high = ([found[f"{metric}@{cut}"][end] for cut in cutoffs] for end in ("mean", "low", "high"))
            lines.append(Line(name, cutoffs, mean, low, high))
        panels.append(Panel(heading, "k", "mean over queries", lines, log_x=True))
    return svg(panels, "reverse", f"Reverse image search by {metrics['classes']}: mAP@k and mAR@k over k")


def table(metrics: Mapping[str, Any], cutoffs: list[int]) -> str:
    """Return the terminal's table."""
    shown = ["map", *(f"{metric}@{cutoffs[len(cutoffs) // 2]}" for metric in CURVES)] if cutoffs else ["map"]
    head = (
        f"reverse search by {metrics['classes']} on {metrics['split']}: {metrics['num_queries']} images ask "
        f"{metrics['num_candidates']} others, of which {metrics['mean_relevant']:.1f} share a class on average\n"
        "map@k divides by R, map_capped@k by min(R, k), recall@k (mAR@k) by R; 95 % intervals over those that ask\n"
    )
    lines = [f"{'system':20}" + "".join(f"{metric:>21}" for metric in shown)]
    for name, found in metrics["systems"].items():
        cells = (f"{found[m]['mean']:.3f} ({found[m]['low']:.3f}-{found[m]['high']:.3f})" for m in shown)
        lines.append(f"{name:20}" + "".join(f"{cell:>21}" for cell in cells))
    return head + "\n".join(lines) + "\n"


register("reverse", ReverseConfig)

if __name__ == "__main__":
    run_stage(reverse, ReverseConfig, "reverse")
