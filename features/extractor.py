"""From images of the index to their features: reading, decoding and the network in one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from configs.artifacts import ArtifactError, Manifest, verify
from features.backbones import UNTRACED, build_backbone, settle
from features.config import ImageFeaturesConfig
from features.image_features import FeatureStore
from features.inverted_index import InvertedIndex, open_index
from features.pictures import PictureReader
from features.runtimes import (
    Runtime,
    Waiting,
    cores,
    has_bfloat16,
    open_runtime,
    openvino_runtime,
    read_openvino_model,
    resolve,
)
from features.spaces import QUANTISED, calibration_directory, extracted_directory, open_calibration

BATCH_SIZES = {"cpu": 32, "cuda": 256}
Advance = Callable[[int], object]  # told how many images are done


def runtime_of(cfg: ImageFeaturesConfig) -> tuple[str, str]:
    """Return runtime and device that a config comes to on this machine."""
    return resolve(cfg.runtime, cfg.device, cfg.precision, traceable=cfg.backbone.architecture not in UNTRACED)


def runtime_name(cfg: ImageFeaturesConfig) -> str:
    """Name what computes a lower precision: a processor that rounds otherwise gives other features."""
    runtime, device = runtime_of(cfg)
    return f"{runtime} on {device}" + (" with bfloat16" if has_bfloat16(device) else "")


def check_calibration(cfg: ImageFeaturesConfig, gate: str) -> Manifest:
    """Return the calibration of a lower precision, whole and made for what computes here.

    Raises:
        ArtifactError: it is missing or damaged, or another runtime was judged, whose features would differ.
    """
    calibration, directory = open_calibration(cfg, gate), calibration_directory(cfg, gate)
    if problems := verify(directory):
        raise ArtifactError(f"{problems[0]}. Bring it back from a copy, or delete '{directory}' and extract anew.")
    judged, here = calibration.must_match["runtime"], runtime_name(cfg)
    if judged != here:
        raise ArtifactError(
            f"precision={cfg.precision} was judged with {judged}, and {here} would give other features. Choose that by "
            f"runtime= and device=, or delete '{directory}' and extract anew."
        )
    return calibration


def batch_shape(cfg: ImageFeaturesConfig) -> tuple[int, ...]:
    """Return the shape of a full batch."""
    side = settle(cfg.backbone).crop_px
    size = cfg.batch_size or min(BATCH_SIZES[runtime_of(cfg)[1]], cfg.part_size)
    return (size, 3, side, side)


def open_network(cfg: ImageFeaturesConfig, calibration: Path) -> Runtime:
    """Open the network of a config; in int8 the one that lies in the directory of its calibration."""
    batch = batch_shape(cfg)
    if cfg.precision == "int8":
        model = read_openvino_model(calibration / QUANTISED)
        model.reshape(list(batch))
        return openvino_runtime(model, batch, "bf16")  # what is not quantised
    return open_runtime(build_backbone(cfg.backbone), *runtime_of(cfg), batch, cfg.precision)


class Extractor:
    """A network with the pictures of an index before it."""

    def __init__(self, cfg: ImageFeaturesConfig, index: InvertedIndex, network: Runtime) -> None:
        self._network = network
        self._batch_size = batch_shape(cfg)[0]
        threads = cfg.decode_threads or cores()
        self._reader = PictureReader(index, cfg.paths.artifact("collection"), settle(cfg.backbone), threads)

    def features(self, rows: np.ndarray, advance: Advance = lambda images: None) -> np.ndarray:
        """Return (n, W) float32 features of image rows; while the network works the next batch is decoded."""
        found = []
        for batch in self._run(rows):
            found.append(batch)
            advance(len(batch))
        return np.concatenate(found)

    def _run(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        under_way: Waiting | None = None
        for pictures in self._reader.batches(rows, self._batch_size):
            started = self._network(pictures)
            if under_way:
                yield under_way()
            under_way = started
        if under_way:
            yield under_way()

    def rate(self, rows: np.ndarray) -> float:
        """Return images a second over rows, after a first batch that compiles and fills caches."""
        self.features(rows[: self._batch_size])
        start = time.perf_counter()
        self.features(rows)
        return len(rows) / (time.perf_counter() - start)

    def close(self) -> None:
        """Stop the threads and close the shards."""
        self._reader.close()


class PartExtractor:
    """Extracts parts of a store: what an executor's worker does. A part is an array of image_ids (n,) S16."""

    def __init__(self, cfg: ImageFeaturesConfig) -> None:
        index, manifest = open_index(cfg.paths)
        gate = manifest.must_match["gate"]
        if cfg.precision != "f32":
            check_calibration(cfg, gate)  # a worker elsewhere may compute otherwise than where it was judged
        self.advance: Advance = lambda images: None
        self._image_ids = np.asarray(index.image_ids)
        self._store = FeatureStore(extracted_directory(cfg, gate), settle(cfg.backbone).width)
        self._extractor = Extractor(cfg, index, open_network(cfg, calibration_directory(cfg, gate)))

    def __call__(self, part: np.ndarray) -> int:
        """Extract and commit a part, unless another process did so meanwhile; return its number of images."""
        if self._store.holds(part):
            self.advance(len(part))
        else:
            rows = np.searchsorted(self._image_ids, part)
            self._store.add(part, self._extractor.features(rows, self.advance))
        return len(part)

    def rate(self, part: np.ndarray) -> float:
        """Return images a second over a part, without storing it."""
        return self._extractor.rate(np.searchsorted(self._image_ids, part))

    def close(self) -> None:
        """Stop the threads and close the shards."""
        self._extractor.close()
