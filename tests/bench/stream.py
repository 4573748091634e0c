"""Time training on features that stream from the disk beside features in memory: `make bench B=stream`.

Both train on one synthetic store with the same steps, in turns within one process. One tag an image, so that nothing
that is read is used twice. Before each epoch the store is dropped from the memory of the file system, as far as the
system and the disk's own caches let it go. Memory is the peak of a training of two epochs in a process of its own.
The last line is one JSON object; `resident` is the rate of streaming over that of memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from configs.compose import Paths
from crawl.records import TRAIN, VAL
from features.config import BackboneConfig, ImageFeaturesConfig
from features.image_features import FeatureStore
from features.inverted_index import InvertedIndex
from tests.bench.result import finish
from train.batches import Batches, open_batches
from train.config import TrainConfig
from train.feature_stream import StreamedFeatures
from train.fit import new_towers, open_feature_source, open_training_set, train_towers
from train.objectives import open_objective
from train.runs import Inputs

WIDTH, TAG_WIDTH, NUM_TAGS = 2048, 200, 1000
WAYS = ("memory", "stream")


class MadeIndex(InvertedIndex):
    """One tag an image, a tenth of the images val."""

    def __init__(self, num_images: int) -> None:
        rng = np.random.default_rng(0)
        self.tags = [f"tag {row:04d}" for row in range(NUM_TAGS)]
        self.image_ids = np.array([f"{2**60 + row:016x}" for row in range(num_images)], dtype="S16")
        tag_of = rng.integers(0, NUM_TAGS, num_images)
        self.postings = np.argsort(tag_of, kind="stable").astype(np.int32)
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(tag_of, minlength=NUM_TAGS))])
        self.splits = np.where(rng.random(num_images) < 0.1, VAL, TRAIN).astype(np.uint8)


def made_inputs(folder: Path, num_images: int) -> Inputs:
    """Return inputs over the store in a folder; it is written where it is not there."""
    index, store, rng = MadeIndex(num_images), FeatureStore(folder / "store", WIDTH), np.random.default_rng(1)
    size = ImageFeaturesConfig().part_size
    if not store.directory.is_dir():
        store.directory.mkdir()
        for start in range(0, num_images, size):
            ids = index.image_ids[start : start + size]
            store.add(ids, rng.normal(size=(len(ids), WIDTH)).astype(np.float16))
    vectors = rng.normal(size=(NUM_TAGS, TAG_WIDTH)).astype(np.float32)
    words = SimpleNamespace(vectors=vectors, known=np.ones(NUM_TAGS, dtype=bool))
    return Inputs(index, words, store, {}, {})  # type: ignore[arg-type]


def drop_from_memory(store: FeatureStore) -> None:
    """Ask the system to forget what it holds of a store's files."""
    for part in store.parts():
        descriptor = os.open(store.directory / f"{part}.npy", os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def config(folder: Path, way: str, options: argparse.Namespace) -> TrainConfig:
    """Return the training of one way: the default towers and objective."""
    return TrainConfig(
        Paths(str(folder), str(folder)),
        BackboneConfig(name="synthetic", architecture="synthetic", width=WIDTH),
        device=options.device,
        features_in=way,
        shuffle_buffer=options.buffer,
        batch_size=options.batch_size,
        max_epochs=2,
        patience=0,
    )


class Steps:
    """Towers, objective and optimizer, and nothing around them."""

    def __init__(self, inputs: Inputs, cfg: TrainConfig, device: torch.device) -> None:
        training = open_training_set(inputs, cfg)
        self.objective = open_objective(cfg, training.prior).to(device)
        self.towers = new_towers(inputs, training.vocabulary, cfg).to(device)
        self.vectors = torch.from_numpy(inputs.vectors.vectors).to(device)
        self.none = torch.full((NUM_TAGS,), -1, device=device)
        self.optimizer = torch.optim.AdamW(self.towers.parameters(), lr=1e-3)

    def epoch(self, batches: Batches) -> float:
        """Train for an epoch and return the pairs a second."""
        started, pairs, loss = time.perf_counter(), 0, torch.zeros(())
        for batch in batches:
            tags = self.towers.tag_embeddings(self.vectors[batch.tag_rows], self.none[batch.tag_rows])
            loss = self.objective(tags, self.towers.image(batch.features), batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            pairs += len(batch.tag_rows)
        loss.item()  # waits for the device
        return pairs / (time.perf_counter() - started)


def rates(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the pairs a second of epochs of both ways, in turns."""
    inputs, device = made_inputs(folder, options.images), torch.device(options.device)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    steps = Steps(inputs, config(folder, "stream", options), device)
    batches = {}
    for way in WAYS:
        cfg = config(folder, way, options)
        training = open_training_set(inputs, cfg)
        source = open_feature_source(inputs, training.drawn_images("pairs"), cfg, device)
        assert isinstance(source, StreamedFeatures) == (way == "stream")
        batches[way] = open_batches(training, source, "pairs", cfg, device, lambda: 0)
    for turn in range(options.repeats + 1):
        for way in WAYS:
            drop_from_memory(inputs.store)
            rate = steps.epoch(batches[way])
            if turn:  # the first epochs warm up
                found[way].append(rate)
    return found


def peak_mib() -> float:
    """Return the largest resident memory this process has had, by Linux's account."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def memory_of(way: str, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Train one way in a process of its own; return its memory before and its peak, in MiB."""
    command = [sys.executable, "-m", "tests.bench.stream", "--measure", way, "--folder", str(folder)]
    for name in ("images", "buffer", "batch_size", "device"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, peak = map(float, printed.splitlines()[-1].split())
    return before, peak


def measure(way: str, folder: Path, options: argparse.Namespace) -> None:
    """Train as the stage does and print the memory before and at its peak."""
    inputs, before = made_inputs(folder, options.images), peak_mib()
    with tempfile.TemporaryDirectory(dir=folder) as run_dir:
        train_towers(inputs, config(folder, way, options), Path(run_dir))
    print(before, peak_mib())


def main() -> None:
    """Write the store, train on it both ways in turns, and print rates and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--buffer", type=int, default=50_000, help="images held at once")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folder, options)
        return
    with tempfile.TemporaryDirectory(dir=".") as name:
        found = rates(Path(name), options)
        memory = {way: memory_of(way, Path(name), options) for way in WAYS}
    figures: dict[str, float] = {"images": options.images, "buffer": options.buffer, "epochs": options.repeats}
    for way in WAYS:
        rate, (before, peak) = statistics.median(found[way]), memory[way]
        print(f"{way:<8}{rate:>12,.0f} pairs/s{peak - before:>10,.0f} MiB more than before training")
        figures |= {f"{way}_pairs_per_s": round(rate), f"{way}_mib": round(peak - before)}
    sizes = {name: count * WIDTH * 2 / 2**20 for name, count in (("all", options.images), ("held", options.buffer))}
    print(f"all features are {sizes['all']:,.0f} MiB, those in the buffer {sizes['held']:,.0f} MiB")
    by_turn = [stream / memory for memory, stream in zip(found["memory"], found["stream"], strict=True)]
    finish("stream", {"resident": round(statistics.median(by_turn), 3)}, figures)


if __name__ == "__main__":
    main()
