"""Stage `image_features`: extract a feature of every image of the index that has none yet.

Reads   data/index, data/collection, data/calibrations
Writes  data/image_features/<backbone>-<8 hex of the feature space>/{<digest>.npy, <digest>.ids, ..., manifest.json}
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs.artifacts import ArtifactError, remove_partials
from configs.compose import Paths, register, run_stage
from configs.executors import map_parts
from crawl.tombstones import Tombstones
from features.backbones import settle
from features.calibrate import calibrate
from features.config import ImageFeaturesConfig
from features.extractor import PartExtractor, batch_shape, runtime_of
from features.image_features import FeatureStore, is_sealed, seal_store
from features.inverted_index import open_index
from features.spaces import extracted_directory, extracted_space

log = logging.getLogger(__name__)

PROBED_BATCHES = 4  # timed before a long extraction, to say how long it will take


def fill(cfg: ImageFeaturesConfig, store: FeatureStore, missing: np.ndarray) -> None:
    """Extract features of images part by part; parts are fixed chunks, so that a resumed run writes the same ones."""
    parts = [missing[start : start + cfg.part_size] for start in range(0, len(missing), cfg.part_size)]
    _check_room(store, len(missing))
    if cfg.executor.name == "ray" and runtime_of(cfg)[1] == "cuda" and not cfg.executor.gpus:
        raise ArtifactError("all workers would crowd onto one card: say executor.gpus=1, or device=cpu")
    if cfg.executor.name == "local":
        _fill_here(cfg, parts, missing)
    else:
        with _progress(cfg, missing) as progress:
            for done in map_parts(partial(PartExtractor, _anywhere(cfg)), parts, cfg.executor):
                progress.update(done)


def _fill_here(cfg: ImageFeaturesConfig, parts: list[np.ndarray], missing: np.ndarray) -> None:
    """Extract in this process, where the progress of each batch can be shown and the time be told before."""
    worker = PartExtractor(cfg)
    _say_time(cfg, worker, missing)
    with _progress(cfg, missing) as progress:
        worker.advance = progress.update
        for _ in map_parts(lambda: worker, parts, cfg.executor):
            pass


def _progress(cfg: ImageFeaturesConfig, missing: np.ndarray) -> tqdm:
    return tqdm(total=len(missing), unit="image", desc=cfg.backbone.name, mininterval=1.0)


def _check_room(store: FeatureStore, images: int) -> None:
    """Say how much disk the features will take.

    Raises:
        ArtifactError: there is less.
    """
    needed = images * (store.width * 2 + 17)  # float16, and a line of the ids
    free = shutil.disk_usage(store.directory).free
    if needed > free:
        raise ArtifactError(
            f"{images} features need {needed / 2**20:,.0f} MiB in '{store.directory}', where {free / 2**20:,.0f} MiB "
            "are free. Make room, or set paths.data to a larger disk; nothing was written."
        )
    log.info("%d images to extract, %.1f MiB of disk in %s", images, needed / 2**20, store.directory)


def _say_time(cfg: ImageFeaturesConfig, worker: PartExtractor, missing: np.ndarray) -> None:
    """Time a few batches before a long extraction and say how long all will take."""
    probe = missing[: PROBED_BATCHES * batch_shape(cfg)[0]]
    if len(missing) > 10 * len(probe):
        rate = worker.rate(probe)
        log.info("%.0f images a second on this machine: about %s", rate, tqdm.format_interval(len(missing) / rate))


def _anywhere(cfg: ImageFeaturesConfig) -> ImageFeaturesConfig:
    """Return the config with paths that a worker in another directory finds, too."""
    paths = Paths(*(str(Path(path).resolve()) for path in (cfg.paths.data, cfg.paths.runs)))
    folder = Path(cfg.backbone.architecture)
    model = str(folder.resolve()) if folder.is_dir() else cfg.backbone.architecture
    return replace(cfg, paths=paths, backbone=replace(cfg.backbone, architecture=model))


def extract(cfg: ImageFeaturesConfig) -> Path:
    """Bring the store up to the index and return its directory. Callable from tests without Hydra."""
    index, index_manifest = open_index(cfg.paths)
    gate = index_manifest.must_match["gate"]
    if cfg.precision != "f32":
        calibrate(cfg, index, gate)
    store = FeatureStore(extracted_directory(cfg, gate), settle(cfg.backbone).width)
    store.directory.mkdir(parents=True, exist_ok=True)
    remove_partials(store.directory)
    store.drop(Tombstones(cfg.paths.artifact("collection")).image_ids)
    missing = store.missing(index)
    if not len(missing) and is_sealed(store):
        log.info("already done: %s", store.directory)
        return store.directory
    log.info("extracting %s %s by %s on %s", cfg.precision, cfg.backbone.name, *runtime_of(cfg))
    if len(missing):
        fill(cfg, store, missing)
    seal_store(store, cfg, extracted_space(cfg, gate), index_manifest)
    log.info("features: %s", store.directory)
    return store.directory


register("image_features", ImageFeaturesConfig)

if __name__ == "__main__":
    run_stage(extract, ImageFeaturesConfig, "image_features")
