"""Stage `reduce`: project features onto their principal components.

Reads   data/index, data/image_features/<backbone>-<8 hex of the feature space>
Writes  data/bases/<name of that store>-pca<pca>/{components.npy, variance.npy, manifest.json}
        data/image_features/<backbone>-pca<pca>-<8 hex>/{<digest>.npy, <digest>.ids, ..., manifest.json}

n rows, W width of a feature before, k after. The basis is fitted once, on the train split, and then frozen.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from configs.artifacts import (
    ArtifactError,
    Manifest,
    exclusive,
    map_array,
    read_manifest,
    remove_partials,
    require_match,
    save_array,
    seal,
    verify,
)
from configs.compose import register, resolved, run_stage
from crawl.records import TRAIN
from crawl.tombstones import Tombstones
from features.config import FeatureSpaceConfig, ReduceConfig
from features.image_features import FeatureStore, is_sealed, open_store, seal_store
from features.inverted_index import InvertedIndex, open_index
from features.neighbours import NEIGHBOURS, neighbours_kept, unit_rows
from features.spaces import basis_directory, extracted_space, feature_space, overrides, store_directory, width_of

log = logging.getLogger(__name__)

CHUNK_ROWS = 2048  # in float32 at once
SCANNED_IMAGES = 20_000  # at most, to time a search
SCANS = 20  # of which the median counts


def moments(chunks: Iterable[np.ndarray]) -> tuple[int, np.ndarray]:
    """Return number and covariance (W, W) float64 of rows that come in chunks, whatever their number.

    Sums are taken about the mean of the first chunk, because about 0 a covariance small beside the mean would cancel.
    Within a chunk they are in float32, which is twice as fast and right to 1e-6 of the largest variance.

    Args:
        chunks: (n, W) each, none empty.
    """
    count, origin, sums, products = 0, np.zeros(0), np.zeros(0), np.zeros(0)
    for chunk in chunks:
        rows = chunk.astype(np.float32)
        if not count:
            origin = rows.mean(axis=0)
            sums, products = np.zeros(len(origin)), np.zeros((len(origin), len(origin)))
        rows -= origin
        count += len(rows)
        sums += rows.sum(axis=0, dtype=np.float64)
        products += rows.T @ rows
    return count, (products - np.outer(sums, sums) / count) / (count - 1)


def principal_components(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variances (W,), largest first, and components (W, W), one a row, of which the largest entry is positive.

    Exact at every size, so that there is no randomness to seed and nothing to choose.
    """
    variance, columns = np.linalg.eigh(covariance)
    components = columns.T[::-1]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return np.maximum(variance[::-1], 0), components * np.sign(largest)


def num_components(variance: np.ndarray, pca: float) -> int:
    """Return k: as many as asked for, or the fewest that have a share of the variance."""
    if pca >= 1:
        return int(pca)
    return min(int(np.searchsorted(variance.cumsum(), pca * variance.sum())) + 1, len(variance))


def project(features: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Return (n, k) float32 coordinates on the components.

    The mean is not taken off. Variances and differences are the same with it, but the angles between features, by which
    neighbours are found, are nearly kept: on the sample at k = 256 for 91 % of the neighbours, and without it for 75 %.
    """
    return np.asarray(features.astype(np.float32) @ components.T)


def train_chunks(store: FeatureStore, train_ids: np.ndarray) -> Iterator[np.ndarray]:
    """Yield features of images (ascending ids) as they lie in the store, a bounded number at a time."""
    for part in tqdm(store.parts(), desc="fitting", unit="part", mininterval=1.0):
        part_ids = store.ids(part)
        at = np.minimum(np.searchsorted(train_ids, part_ids), len(train_ids) - 1)
        rows = store.rows(part)[train_ids[at] == part_ids]
        for start in range(0, len(rows), CHUNK_ROWS):
            yield rows[start : start + CHUNK_ROWS]


def fit_basis(cfg: ReduceConfig, index: InvertedIndex, store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """Return components (k, W) float32 and the variances (W,) float64 of all.

    Raises:
        ArtifactError: more components are asked for than there are, or the features are all alike.
    """
    train_ids = np.array(index.image_ids[np.asarray(index.splits) == TRAIN])
    most = min(store.width, len(train_ids) - 1)
    if most < max(cfg.pca, 1):
        raise ArtifactError(
            f"pca={cfg.pca:g}, but features of {store.width} numbers of {len(train_ids)} train images have at most "
            f"{max(most, 0)} components. Ask for fewer, or for a share of the variance such as pca=0.95."
        )
    _, covariance = moments(train_chunks(store, train_ids))
    variance, components = principal_components(covariance)
    if not variance.sum():
        raise ArtifactError(f"all {len(train_ids)} train images have the same feature: there is nothing to reduce")
    return components[: num_components(variance, cfg.pca)].astype(np.float32), variance


def judge(cfg: ReduceConfig, index: InvertedIndex, store: FeatureStore, components: np.ndarray) -> dict[str, Any]:
    """Return how many neighbours held-out images keep; their ids are hashes, so the first of them are a sample."""
    held_out = np.flatnonzero(np.asarray(index.splits) != TRAIN)[: cfg.judged_images]
    if len(held_out) <= NEIGHBOURS:
        return {"judged_images": 0}
    before = store.gather(np.array(index.image_ids[held_out]))
    kept = neighbours_kept(before, project(before, components).astype(np.float16))
    return {"judged_images": len(held_out), "neighbours_kept": round(kept, 4)}


def settle_basis(cfg: ReduceConfig, index: InvertedIndex, index_manifest: Manifest, source: FeatureStore) -> Manifest:
    """Return the basis, fitted now where there is none yet."""
    gate = index_manifest.must_match["gate"]
    directory, space = basis_directory(cfg, gate), {"feature_space": extracted_space(cfg, gate)}
    with exclusive(directory):
        found = read_manifest(directory)
        if found is not None:
            require_match(found.must_match, space, f"the basis '{directory}'", f"'{source.directory}'")
            return found
        log.info("fitting pca=%g on the train split of %d images", cfg.pca, index.num_images)
        remove_partials(directory)
        components, variance = fit_basis(cfg, index, source)
        save_array(directory / "components.npy", components)
        save_array(directory / "variance.npy", variance)
        return seal(
            directory,
            "basis",
            config=resolved(cfg),
            files=["components.npy", "variance.npy"],
            must_match=space,
            provenance={"index": index_manifest.content_id},
            facts={
                "width": len(components),
                "explained_variance": round(float(variance[: len(components)].sum() / variance.sum()), 6),
                "num_train_images": int((np.asarray(index.splits) == TRAIN).sum()),
                **judge(cfg, index, source, components),
            },
        )


def open_components(cfg: FeatureSpaceConfig, gate: str, width: int) -> np.ndarray:
    """Return components (k, W) float32; a damaged basis would mix two feature spaces unseen, so its bytes are checked.

    Raises:
        ArtifactError: the basis is missing or damaged.
    """
    directory = basis_directory(cfg, gate)
    if problems := verify(directory):
        raise ArtifactError(
            f"{problems[0]}. Bring the basis back from a copy, or delete '{directory}' and run "
            f'`make reduce ARGS="{overrides(cfg)}"`: a feature space of its own, on which runs are trained anew.'
        )
    return map_array(directory / "components.npy", "<f4", (width_of(cfg, gate), width))


def open_source(cfg: ReduceConfig, index: InvertedIndex, gate: str) -> FeatureStore:
    """Open the features as extracted.

    Raises:
        ArtifactError: there are none, or not of every image of the index.
    """
    extracted = FeatureSpaceConfig(cfg.paths, cfg.backbone, cfg.precision)
    source, _ = open_store(extracted, gate)
    if num_missing := len(source.missing(index)):
        raise ArtifactError(
            f"{num_missing} of {index.num_images} images have no feature in '{source.directory}'. "
            f'Run `make image_features ARGS="{overrides(extracted)}"`.'
        )
    return source


def search_ms(features: np.ndarray) -> float:
    """Return the milliseconds in which one thread finds the nearest of all by a whole scan in float32, median."""
    rows, seconds = torch.from_numpy(unit_rows(features)), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for query in rows[:SCANS]:
            start = time.perf_counter()
            torch.mv(rows, query).topk(min(NEIGHBOURS, len(rows)))
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(seconds)


def show_trade(index: InvertedIndex, source: FeatureStore, reduced: FeatureStore, basis: Manifest) -> None:
    """Log what the reduction costs and saves, as a table."""
    scanned = np.array(index.image_ids[:SCANNED_IMAGES])
    kept = {source: (1.0, 1.0), reduced: (basis.facts["explained_variance"], basis.facts.get("neighbours_kept"))}
    log.info("numbers  bytes/image  variance  neighbours kept  ms/search")
    for store, (variance, neighbours) in kept.items():
        share = "-" if neighbours is None else f"{neighbours:.1%}"
        milliseconds = search_ms(store.gather(scanned))
        log.info("%7d %12d %9.1f%% %16s %10.3f", store.width, 2 * store.width, 100 * variance, share, milliseconds)
    log.info(
        "neighbours: the %d nearest of each of %d val and test images; a search scans %d images on one thread",
        NEIGHBOURS, basis.facts["judged_images"], len(scanned),
    )  # fmt: skip


def reduce(cfg: ReduceConfig) -> Path:
    """Bring the reduced store up to the index and return its directory. Callable from tests without Hydra."""
    index, index_manifest = open_index(cfg.paths)
    gate = index_manifest.must_match["gate"]
    source = open_source(cfg, index, gate)
    basis = settle_basis(cfg, index, index_manifest, source)
    components = open_components(cfg, gate, source.width)
    store = FeatureStore(store_directory(cfg, gate), len(components))
    store.directory.mkdir(parents=True, exist_ok=True)
    remove_partials(store.directory)
    store.drop(Tombstones(cfg.paths.artifact("collection")).image_ids)
    waiting = sorted(set(source.parts()) - set(store.parts()))  # a part has the same images and name in both
    if not waiting and is_sealed(store):
        log.info("already done: %s", store.directory)
        return store.directory
    log.info("projecting %d parts from %d to %d numbers an image", len(waiting), source.width, store.width)
    for part in tqdm(waiting, desc=f"pca={cfg.pca:g}", unit="part", mininterval=1.0):
        store.add(source.ids(part), project(source.rows(part), components))
    seal_store(store, cfg, feature_space(cfg, gate), index_manifest)
    show_trade(index, source, store, basis)
    log.info("features: %s", store.directory)
    return store.directory


register("reduce", ReduceConfig)

if __name__ == "__main__":
    run_stage(reduce, ReduceConfig, "reduce")
