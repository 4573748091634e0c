"""Stage `image_features`: extract a feature of every image of the index that has none yet.

Reads   data/index, data/collection
Writes  data/image_features/<backbone>-<8 hex of the feature space>/{<digest>.npy, <digest>.ids, ..., manifest.json}
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from configs.artifacts import (
    ArtifactError,
    Manifest,
    read_manifest,
    remove_partials,
    seal,
)
from configs.compose import register, resolved, run_stage
from crawl.shards import JpegReader
from features.backbones import build_backbone, feature_space
from features.config import BackboneConfig, ImageFeaturesConfig
from features.image_features import FeatureStore, store_directory
from features.inverted_index import InvertedIndex, open_index
from features.runtimes import Runtime, open_runtime, resolve

log = logging.getLogger(__name__)


def decode(jpeg: bytes, resize_px: int, crop_px: int) -> np.ndarray:
    """Decode a stored JPEG, resize its shorter side and crop the centre.

    Returns:
        (3, crop_px, crop_px) uint8 RGB.
    """
    picture = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
    resized = F.resize(picture, [resize_px], interpolation=F.InterpolationMode.BILINEAR, antialias=True)
    return np.asarray(F.center_crop(resized, [crop_px, crop_px]).numpy())


class PictureReader:
    """Reads and decodes pictures of an index by row, on threads."""

    def __init__(self, index: InvertedIndex, collection: Path, backbone: BackboneConfig, threads: int) -> None:
        self._index = index
        self._jpegs = JpegReader(collection)
        self._backbone = backbone
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def _picture(self, row: int) -> np.ndarray:
        jpeg = self._jpegs.read(self._index.locations[row], self._index.image_id(row))
        try:
            return decode(jpeg, self._backbone.resize_px, self._backbone.crop_px)
        except RuntimeError as error:
            raise ArtifactError(
                f"image {self._index.image_id(row)} of the collection does not decode ({error}); "
                "the gate let only whole JPEGs in, so the shard is damaged: `make verify` names it"
            ) from error

    def batches(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yield (n, 3, crop, crop) uint8 batches; the next one is decoded while the caller works on this one."""
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        ahead = [self._threads.submit(self._picture, row) for row in chunks[0]] if chunks else []
        for following in [*chunks[1:], rows[:0]]:
            ready, ahead = ahead, [self._threads.submit(self._picture, row) for row in following]
            yield np.stack([picture.result() for picture in ready])

    def close(self) -> None:
        """Stop the threads and close the shards."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._jpegs.close()


def missing_rows(index: InvertedIndex, store: FeatureStore) -> np.ndarray:
    """Return the rows of images without a feature, ascending."""
    return np.flatnonzero(~np.isin(np.asarray(index.image_ids), store.stored_ids()))


def fill(
    store: FeatureStore,
    index: InvertedIndex,
    reader: PictureReader,
    runtime: Runtime,
    cfg: ImageFeaturesConfig,
    rows: np.ndarray,
) -> None:
    """Extract features of rows part by part; parts are fixed chunks, so that a resumed run writes the same ones."""
    with tqdm(total=len(rows), unit="image", desc=cfg.backbone.name, mininterval=1.0) as progress:
        for start in range(0, len(rows), cfg.part_size):
            part = rows[start : start + cfg.part_size]
            features = []
            for batch in reader.batches(part, cfg.batch_size):
                features.append(runtime(batch))
                progress.update(len(batch))
            store.add(np.asarray(index.image_ids[part]), np.concatenate(features))


def files_of(store: FeatureStore) -> list[str]:
    """Names of the files of all parts."""
    return [f"{part}{suffix}" for part in store.parts() for suffix in (".ids", ".npy")]


def seal_store(store: FeatureStore, cfg: ImageFeaturesConfig, space: str, index: Manifest) -> Manifest:
    """Write the manifest over all parts; parts listed before are not hashed again."""
    earlier = read_manifest(store.directory)
    parts = store.parts()
    return seal(
        store.directory,
        "image_features",
        config=resolved(cfg),
        files=files_of(store),
        must_match={"feature_space": space},
        provenance={"index": index.content_id},
        facts={"num_images": len(store.stored_ids()), "width": store.width, "num_parts": len(parts)},
        described=earlier.files if earlier else {},
    )


def extract(cfg: ImageFeaturesConfig) -> Path:
    """Bring the store up to the index and return its directory. Callable from tests without Hydra."""
    index, index_manifest = open_index(cfg.paths)
    gate = index_manifest.must_match["gate"]
    directory = store_directory(cfg.paths, cfg.backbone, gate)
    directory.mkdir(parents=True, exist_ok=True)
    remove_partials(directory)
    store = FeatureStore(directory, cfg.backbone.width)
    rows = missing_rows(index, store)
    earlier = read_manifest(directory)
    if not len(rows) and earlier is not None and set(earlier.files) == set(files_of(store)):
        log.info("already done: %s", directory)
        return directory
    runtime, device = resolve(cfg.runtime, cfg.device, traceable=cfg.backbone.architecture != "color_histogram")
    log.info("extracting %d features with %s by %s on %s", len(rows), cfg.backbone.name, runtime, device)
    if len(rows):
        batch = (cfg.batch_size, 3, cfg.backbone.crop_px, cfg.backbone.crop_px)
        network = open_runtime(build_backbone(cfg.backbone), runtime, device, batch)
        threads = cfg.decode_threads or os.cpu_count() or 1
        reader = PictureReader(index, cfg.paths.artifact("collection"), cfg.backbone, threads)
        try:
            fill(store, index, reader, network, cfg, rows)
        finally:
            reader.close()
    seal_store(store, cfg, feature_space(cfg.backbone, gate), index_manifest)
    log.info("features: %s", directory)
    return directory


register("image_features", ImageFeaturesConfig)

if __name__ == "__main__":
    run_stage(extract, ImageFeaturesConfig, "image_features")
