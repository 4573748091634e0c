"""A small sealed line of artifacts whose tags can be read off the features, for tests of training and serving."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.artifacts import digest, seal
from configs.compose import Paths
from crawl.records import TEST, TRAIN, VAL, Record, split_of
from crawl.shards import ShardWriter
from features.backbones import THUMBNAIL
from features.build_index import build
from features.config import BackboneConfig, FeatureSpaceConfig, IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.image_features import FeatureStore, seal_store
from features.inverted_index import InvertedIndex, open_index
from features.spaces import feature_space, store_directory
from serve.config import PublishConfig
from serve.publish import publish
from train.audit import audit
from train.config import AuditConfig, EvaluateConfig, TrainConfig
from train.evaluate import evaluate
from train.fit import fit

GATE = digest("synthetic gate")
WIDTH = 24
TAGS = ("dog", "cat", "horse", "apple", "bridge", "river", "guitar", "clock", "boat", "car", "tree", "chair")
NO_VECTOR = "qzxqzx"  # a tag of which no word table knows a part
PHRASE = "traffic light"
AWKWARD = ("猫", 'say "hi"')
SPLIT_SIZES = {TRAIN: 160, VAL: 60, TEST: 60}
BACKBONE = BackboneConfig(name="synthetic", architecture="synthetic", width=WIDTH)
HISTOGRAM = BackboneConfig(name="histogram", architecture="synthetic", width=WIDTH, resize_px=64, crop_px=64)


def group_of(split: int, number: int) -> str:
    """Return the name of a group that falls into a split."""
    return next(name for turn in range(10_000) if split_of(name := f"group {number} turn {turn}") == split)


def records() -> list[Record]:
    """Two tags an image, two images a group; the phrase and the unknown word on some, labels mostly right."""
    rng = np.random.default_rng(7)
    found = []
    for split, size in SPLIT_SIZES.items():
        for number in range(size):
            tags = [TAGS[at] for at in rng.choice(len(TAGS), size=2, replace=False)]
            labels = tuple(tag for tag in tags if rng.random() < 0.6)
            tags += [PHRASE] if number % 7 == 0 else []
            tags += [NO_VECTOR] if number % 5 == 0 else []
            tags += AWKWARD if number % 11 == 0 else []
            found.append(
                Record(
                    image_id=f"{len(found) * 7919 % 2**40:016x}",
                    group=group_of(split, number // 2),
                    tags=tuple(tags),
                    labels=labels,
                    kind="photo" if number % 4 else "drawing",
                    title=f"picture {len(found)}",
                    author="nobody",
                    licence="CC0",
                    width=40,
                    height=30,
                )
            )
    return found


def placeholder(record: Record) -> bytes:
    """Bytes that no other image has, and that are no picture."""
    return b"jpeg of " + record.image_id.encode()


def write_synthetic_collection(
    directory: Path, recipe: str = "synthetic", shards: list[list[Record]] | None = None, jpeg=placeholder
):
    """Seal a collection of placeholders, or of what `jpeg` makes of a record."""
    directory.mkdir(parents=True, exist_ok=True)
    names = []
    for number, shard in enumerate(shards or [records()]):
        writer = ShardWriter(directory, number)
        for record in shard:
            writer.add_image(record, jpeg(record))
        writer.commit({"recipe": recipe, "consumed": len(shard), "duplicates": 0, "config": {}})
        names += [f"{number:05d}.parquet", f"{number:05d}.tar", f"refused/{number:05d}.jsonl"]
    facts = {"num_images": sum(map(len, shards or [records()])), "crawls": []}
    return seal(directory, "collection", config={}, files=names, must_match={"gate": GATE}, facts=facts)


def features_of(index: InvertedIndex, noise: float, seed: int) -> np.ndarray:
    """Return features (N, WIDTH): the sum of the directions of an image's tags, and noise."""
    rng = np.random.default_rng(seed)
    directions = dict(zip(TAGS, rng.normal(size=(len(TAGS), WIDTH)), strict=True))
    rows = noise * np.random.default_rng(seed + 1).normal(size=(index.num_images, WIDTH))
    for tag, direction in directions.items():
        rows[index.posting_list(index.tag_row(tag))] += direction
    return rows


def store_features(paths: Paths, backbone: BackboneConfig, noise: float, seed: int = 3) -> None:
    """Seal a store of features for the index in force."""
    index, manifest = open_index(paths)
    cfg = FeatureSpaceConfig(paths, backbone)
    store = FeatureStore(store_directory(cfg, GATE), backbone.width)
    store.directory.mkdir(parents=True, exist_ok=True)
    missing = store.missing(index)
    store.add(missing, features_of(index, noise, seed)[np.searchsorted(index.image_ids, missing)])
    seal_store(store, cfg, feature_space(cfg, GATE), manifest)


def store_thumbnails(paths: Paths) -> None:
    """Seal thumbnails of noise, among which there are no copies, for images of the index in force that have none."""
    index, manifest = open_index(paths)
    cfg = FeatureSpaceConfig(paths, THUMBNAIL)
    store = FeatureStore(store_directory(cfg, GATE), THUMBNAIL.width)
    store.directory.mkdir(parents=True, exist_ok=True)
    missing = store.missing(index)
    seeds = [int(image_id, 16) for image_id in missing]
    noise = [np.random.default_rng(seed).integers(0, 256, THUMBNAIL.width) for seed in seeds]
    store.add(missing, np.array(noise, dtype=np.float32))
    seal_store(store, cfg, feature_space(cfg, GATE), manifest)


def write_line(root: Path, jpeg=placeholder) -> Paths:
    """Write everything that training reads below `root`."""
    paths = Paths(data=str(root / "data"), runs=str(root / "runs"))
    write_synthetic_collection(paths.artifact("collection"), jpeg=jpeg)
    build(IndexConfig(paths=paths))
    embed(TagVectorsConfig(paths=paths, words=WordsConfig(name="carried")))
    store_features(paths, BACKBONE, noise=0.8)
    store_features(paths, HISTOGRAM, noise=3.0)
    store_thumbnails(paths)
    audit(AuditConfig(paths))
    return paths


def train_config(paths: Paths, run: str = "small", **values) -> TrainConfig:
    """A training of a second on the synthetic line."""
    small = {
        "backbone": BACKBONE,
        "device": "cpu",
        "hidden_dim": 24,
        "embed_dim": 16,
        "batch_size": 64,
        "learning_rate": 0.01,
        "max_epochs": 3,
        "feature_dropout": 0.5,
        "hidden_dropout": 0.2,
        "weight_decay": 0.05,
        "patience": 0,
    }
    return TrainConfig(paths=paths, run=run, **{**small, **values})


def evaluate_config(paths: Paths, run: str = "small", **values) -> EvaluateConfig:
    return EvaluateConfig(paths=paths, run=run, **{"histogram": HISTOGRAM, "resamples": 200, **values})


def copy_line(paths: Paths, target: Path) -> Paths:
    """Copy a line, so that a test may change it."""
    copied = Paths(data=str(target / "data"), runs=str(target / "runs"))
    shutil.copytree(paths.data, copied.data)
    if Path(paths.runs).is_dir():
        shutil.copytree(paths.runs, copied.runs)
    return copied


@pytest.fixture(scope="module")
def one_thread():
    """Compute these small products on one thread: two cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def line(tmp_path_factory) -> Paths:
    """Collection, index, tag vectors and features; read-only, trainings go to runs of their own."""
    return write_line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="session")
def trained(line) -> Paths:
    """The line with the finished run `small`, judged on both held-out splits and published."""
    fit(train_config(line))
    for split in ("val", "test"):
        evaluate(evaluate_config(line, split=split))
    publish(PublishConfig(line, "small"))
    return line
