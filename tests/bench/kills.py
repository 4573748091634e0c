"""Kill every stage with SIGKILL at random moments and run it again: `make bench B=kills`.

A small collection of drawn pictures goes through the whole line undisturbed. Then each stage is run ten times on a copy
of its inputs, killed at a random moment of its undisturbed time, and run again; the content_id must be the same.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from configs.artifacts import read_manifest
from configs.generations import current_generation
from tests.bench.result import finish

TAGS = ("red", "green", "blue", "circle", "square", "cross")
IMAGES_A_TAG = 60


@dataclass(frozen=True)
class Stage:
    """A stage, what it writes, and the overrides that make it stop often."""

    module: str
    output: str  # below the working folder
    generations: bool = False
    overrides: tuple[str, ...] = ()

    def command(self, folder: Path) -> list[str]:
        paths = [f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}"]
        return [sys.executable, "-m", self.module, *paths, *self.overrides]

    def content_id(self, folder: Path) -> str:
        directory = folder / self.output
        directory = current_generation(directory, make=self.module) if self.generations else directory
        manifest = read_manifest(directory)
        return manifest.content_id if manifest else "unsealed"


def stages(pictures: Path) -> list[Stage]:
    """Return the line, with shards, parts and epochs small enough to be interrupted."""
    source = ("source=folder", f"source.path={pictures}", "shard_size=50")
    histogram = ("backbone=color_histogram",)
    training = ("max_epochs=12", "patience=0", "batch_size=64", "hidden_dim=256")
    return [
        Stage("crawl.collect", "data/collection", overrides=source),
        Stage("features.build_index", "data/index", generations=True),
        Stage("features.embed_tags", "data/tag_vectors", generations=True),
        Stage("features.extract", "data/image_features", overrides=("part_size=32", "batch_size=16")),
        Stage("features.extract", "data/image_features", overrides=(*histogram, "part_size=32", "batch_size=16")),
        Stage("train.fit", "runs/baseline", overrides=training),
        Stage("train.evaluate", "runs/baseline/evaluation/test"),
        Stage("serve.publish", "data/served/baseline", generations=True),
    ]


def draw(folder: Path) -> None:
    """Draw pictures whose tags can be seen: a colour and a shape each, with noise."""
    rng = np.random.default_rng(0)
    for tag in TAGS:
        for number in range(IMAGES_A_TAG):
            pixels = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
            pixels[20:76, 20:76, TAGS.index(tag) % 3] = 255 - 20 * (TAGS.index(tag) // 3)
            path = folder / tag / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def store_of(stage: Stage, folder: Path) -> Stage:
    """Name the one feature store that a stage wrote; its folder carries a fingerprint."""
    if stage.module != "features.extract":
        return stage
    name = "color_histogram" if any("histogram" in override for override in stage.overrides) else "resnet50"
    found = sorted((folder / stage.output).glob(f"{name}-*"))
    return Stage(stage.module, f"{stage.output}/{found[0].name}" if found else stage.output, False, stage.overrides)


def killed_and_resumed(stage: Stage, folder: Path, moment: float) -> str:
    """Start a stage, kill it, run it again; return the content_id of what it wrote."""
    process = subprocess.Popen(stage.command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(stage.command(folder), check=True, capture_output=True)
    return store_of(stage, folder).content_id(folder)


def main() -> None:
    """Run the line once undisturbed, then kill each of its stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=10, help="kills a stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tagtower-") as name:
        root = Path(name)
        draw(root / "pictures")
        (root / "whole").mkdir()
        for number, stage in enumerate(stages(root / "pictures")):
            before = root / f"before-{number}"
            shutil.copytree(root / "whole", before)
            started = time.perf_counter()
            subprocess.run(stage.command(root / "whole"), check=True, capture_output=True)
            undisturbed = time.perf_counter() - started
            expected = store_of(stage, root / "whole").content_id(root / "whole")
            same = 0
            for _ in range(arguments.trials):
                trial = root / "trial"
                shutil.copytree(before, trial)
                same += killed_and_resumed(stage, trial, moments.uniform(0, undisturbed)) == expected
                shutil.rmtree(trial)
            label = stage.module + (" (histogram)" if "backbone=color_histogram" in stage.overrides else "")
            rows[label] = {"same": same, "trials": arguments.trials, "seconds": round(undisturbed, 1)}
            print(f"{label:32}{same:4} of {arguments.trials} the same, undisturbed {undisturbed:.1f} s", flush=True)
            shutil.rmtree(before)
    finish("kills", {}, rows)
    sys.exit(any(row["same"] != row["trials"] for row in rows.values()))


if __name__ == "__main__":
    main()
