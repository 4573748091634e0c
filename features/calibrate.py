"""The gate before a lower precision: it may be used where it keeps the neighbours of the user's own pictures.

Reads   data/index, data/collection
Writes  data/calibrations/<backbone>-<8 hex>-<precision>/{judged.txt, quantised.xml, quantised.bin, manifest.json}
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    exclusive,
    file_sha256,
    read_manifest,
    seal,
)
from configs.compose import resolved
from crawl.records import TRAIN
from features.backbones import build_backbone, settle
from features.config import ImageFeaturesConfig
from features.extractor import Extractor, batch_shape, check_calibration, open_network, runtime_name
from features.inverted_index import InvertedIndex
from features.neighbours import NEIGHBOURS, neighbours_kept
from features.pictures import PictureReader
from features.runtimes import cores, openvino_model
from features.spaces import QUANTISED, calibration_directory

log = logging.getLogger(__name__)

MIN_KEPT = 0.95  # share of the nearest neighbours
MIN_JUDGED = 200  # images; with fewer, ten neighbours are easy to keep
SPARED = (0.0, 0.25, 0.5)  # shares of the first layers that int8 leaves as they are, tried in turn
QUANTISATION_IMAGES = 300  # NNCF's own default for the ranges of activations


def calibrate(cfg: ImageFeaturesConfig, index: InvertedIndex, gate: str) -> Manifest:
    """Judge a lower precision once and return its calibration.

    Raises:
        ArtifactError: it keeps too few neighbours, with the figure; or there are too few pictures to tell.
    """
    directory = calibration_directory(cfg, gate)
    if read_manifest(directory) is None:
        with exclusive(directory):
            if read_manifest(directory) is None:  # another process may have been faster
                _judge(cfg, index, directory)
    manifest = check_calibration(cfg, gate)
    facts = manifest.facts
    verdict = (
        f"precision={cfg.precision} keeps {facts['neighbours_kept']:.1%} of the {NEIGHBOURS} nearest neighbours of "
        f"{facts['judged_images']} of your pictures, {facts['speed_up']:.1f} times as fast as f32"
    )
    if facts["neighbours_kept"] < MIN_KEPT:
        raise ArtifactError(
            f"{verdict}; at least {MIN_KEPT:.0%} are wanted. Use precision=f32, or delete '{directory}' to have it "
            "judged again on other pictures."
        )
    log.info("%s (at least %.0f %% are wanted)", verdict, 100 * MIN_KEPT)
    return manifest


def _judge(cfg: ImageFeaturesConfig, index: InvertedIndex, directory: Path) -> Manifest:
    """Extract the same pictures in float32 and in the lower precision, and compare neighbours.

    An error of rounding in the first layers enters all that follow, so where int8 loses too many neighbours throughout,
    it is tried again with more and more of the first layers left as they are.
    """
    quantisation, judged = _chosen(cfg, index)
    log.info("judging precision=%s on %d of your pictures", cfg.precision, len(judged))
    before, slow = _timed(replace(cfg, precision="f32"), index, directory, judged)
    files: list[str] = []
    kept = fast = 0.0
    for spared in SPARED if cfg.precision == "int8" else SPARED[:1]:
        if cfg.precision == "int8":
            files = _quantise(cfg, index, quantisation, directory, spared)
        after, fast = _timed(cfg, index, directory, judged)
        kept = neighbours_kept(before, after)
        if kept >= MIN_KEPT:
            break
        log.info(
            "precision=%s with %.0f %% of the layers spared keeps %.1f %%", cfg.precision, 100 * spared, 100 * kept
        )
    atomic_write(directory / "judged.txt", b"".join(image + b"\n" for image in index.image_ids[judged].tolist()))
    return seal(
        directory,
        "calibration",
        config=resolved(cfg),
        files=["judged.txt", *files],
        content={"precision": cfg.precision, "weights": [file_sha256(directory / name) for name in files[1:]]},
        must_match={"runtime": runtime_name(cfg)},
        facts={"neighbours_kept": round(kept, 4), "judged_images": len(judged), "speed_up": round(slow / fast, 2)},
    )


def _chosen(cfg: ImageFeaturesConfig, index: InvertedIndex) -> tuple[np.ndarray, np.ndarray]:
    """Return train rows that quantisation sees, and others to judge on; image_ids are hashes, so any are a sample."""
    rows = np.flatnonzero(np.asarray(index.splits) == TRAIN)[: QUANTISATION_IMAGES + cfg.calibration_images]
    if len(rows) < QUANTISATION_IMAGES + MIN_JUDGED:
        raise ArtifactError(
            f"precision={cfg.precision} is judged on at least {QUANTISATION_IMAGES + MIN_JUDGED} train pictures, and "
            f"the index has {len(rows)}. Use precision=f32, which is soon done with so few."
        )
    return rows[:QUANTISATION_IMAGES], rows[QUANTISATION_IMAGES:]


def _quantise(
    cfg: ImageFeaturesConfig, index: InvertedIndex, rows: np.ndarray, directory: Path, spared: float
) -> list[str]:
    """Write the network in int8 by NNCF's post-training quantisation; return the names of its files.

    Args:
        cfg: of the stage.
        index: of the pictures.
        rows: (n,) pictures that give the ranges of activations.
        directory: where the files go.
        spared: share of the convolutions, from the first on, that are not quantised.
    """
    import nncf  # slow to import, and int8 alone needs it

    logging.getLogger("nncf").setLevel(logging.WARNING)  # it names every node that it leaves alone
    reader = PictureReader(index, cfg.paths.artifact("collection"), settle(cfg.backbone), cores())
    try:
        pictures = list(reader.batches(rows, 1))
    finally:
        reader.close()
    model = openvino_model(build_backbone(cfg.backbone), (-1, *batch_shape(cfg)[1:]))
    layers = [node.get_friendly_name() for node in model.get_ordered_ops() if "Convolution" in node.get_type_name()]
    ignored = nncf.IgnoredScope(names=layers[: round(spared * len(layers))])
    dataset = nncf.Dataset(pictures)
    preset = nncf.QuantizationPreset.MIXED  # activations that are not behind a ReLU get a range of their own
    quantised = nncf.quantize(model, dataset, preset=preset, subset_size=len(rows), ignored_scope=ignored)
    ov.save_model(quantised, directory / QUANTISED, compress_to_fp16=False)
    return [QUANTISED, QUANTISED.replace(".xml", ".bin")]  # the names of nodes in the first differ from run to run


def _timed(
    cfg: ImageFeaturesConfig, index: InvertedIndex, directory: Path, rows: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return float32 features of rows and the seconds they took."""
    extractor = Extractor(cfg, index, open_network(cfg, directory))
    try:
        extractor.features(rows[: batch_shape(cfg)[0]])
        start = time.perf_counter()
        return extractor.features(rows), time.perf_counter() - start
    finally:
        extractor.close()
