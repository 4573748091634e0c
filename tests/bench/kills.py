"""Kill every stage with SIGKILL while it works and run it again: `make bench B=kills`.

A small collection of drawn pictures goes through the whole line undisturbed. Then each stage is run on copies of its
inputs, killed at a random moment between its first line of log, when its work begins, and its last; half of the killed
are killed once more while they go on. Run to their end they must come to the same content_id. Where a stage ends before
its moment the trial does not count and another one is made.
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
MAX_DRAWS = 10  # of moments for one trial, where stages end before theirs


@dataclass(frozen=True)
class Stage:
    """A stage, what it writes, and the overrides that make it stop often."""

    module: str
    output: str  # below the working folder; of a feature store a pattern, since its name carries a fingerprint
    generations: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return self.module + (" (histogram)" if "backbone=color_histogram" in self.overrides else "")

    def command(self, folder: Path) -> list[str]:
        paths = [f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}"]
        return [sys.executable, "-m", self.module, *paths, *self.overrides]

    def content_id(self, folder: Path) -> str:
        directory = next(folder.glob(self.output), folder)
        directory = current_generation(directory, make=self.module) if self.generations else directory
        manifest = read_manifest(directory)
        return manifest.content_id if manifest else "unsealed"


@dataclass
class Kills:
    """What became of the trials of one stage."""

    trials: int = 0  # with a kill at least
    kills: int = 0
    same: int = 0  # trials that ended with the content_id of the undisturbed run
    missed: int = 0  # runs that ended before their moment, made again


def stages(pictures: Path) -> list[Stage]:
    """Return the line, with shards, parts and epochs small enough to be interrupted."""
    source = ("source=folder", f"source.path={pictures}", "shard_size=50")
    parts = ("part_size=32", "batch_size=16")
    histogram = ("backbone=color_histogram", *parts)
    training = ("max_epochs=12", "patience=0", "batch_size=64", "hidden_dim=256")
    return [
        Stage("crawl.collect", "data/collection", overrides=source),
        Stage("features.build_index", "data/index", generations=True),
        Stage("features.embed_tags", "data/tag_vectors", generations=True),
        Stage("features.extract", "data/image_features/resnet50-*", overrides=parts),
        Stage("features.extract", "data/image_features/color_histogram-*", overrides=histogram),
        Stage("train.audit", "data/audit", generations=True),
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


def at_work(stage: Stage, folder: Path) -> subprocess.Popen[bytes]:
    """Start a stage and return when it has written its first line of log."""
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(stage.command(folder), stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended(process: subprocess.Popen[bytes], stage: Stage, folder: Path) -> int:
    """Wait for a stage and return how it ended; that it says no is no outcome of a kill."""
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{stage.label} ended with {code}:\n{(folder / 'errors').read_text()[-3000:]}")
    return code


def undisturbed(stage: Stage, folder: Path) -> float:
    """Run a stage to its end and return the seconds from its first line of log to its last."""
    with at_work(stage, folder) as process:
        started = last = time.perf_counter()
        for _ in process.stdout or ():
            last = time.perf_counter()
        ended(process, stage, folder)
    return last - started


def killed(stage: Stage, folder: Path, moment: float) -> bool:
    """Start a stage and kill it so many seconds after its first line of log; say whether it was still running."""
    process = at_work(stage, folder)
    try:
        process.communicate(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return ended(process, stage, folder) == -signal.SIGKILL


def tried(stage: Stage, before: Path, moments: random.Random, seconds: float) -> tuple[int, str]:
    """Kill a stage once or twice on a copy of its inputs and run it to its end.

    Returns:
        The number of kills, and the content_id of what was written.
    """
    with tempfile.TemporaryDirectory(dir=before.parent) as name:
        folder = Path(name) / "trial"
        shutil.copytree(before, folder)
        kills = int(killed(stage, folder, moments.uniform(0, seconds)))
        if kills and moments.random() < 0.5:
            kills += killed(stage, folder, moments.uniform(0, seconds))
        undisturbed(stage, folder)
        return kills, stage.content_id(folder)


def kill_stage(stage: Stage, before: Path, trials: int, moments: random.Random, expected: tuple[str, float]) -> Kills:
    """Make trials until enough of them had a kill, within bounds."""
    content_id, seconds = expected
    count = Kills()
    while count.trials < trials and count.missed < MAX_DRAWS * trials:
        kills, found = tried(stage, before, moments, seconds)
        count.missed += not kills
        count.trials += kills > 0
        count.kills += kills
        count.same += kills > 0 and found == content_id
    return count


def main() -> None:
    """Run the line once undisturbed, then kill each of its stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=10, help="killed runs a stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tagtower-") as name:
        root = Path(name)
        draw(root / "pictures")
        (root / "whole").mkdir()
        for stage in stages(root / "pictures"):
            before = root / "before"
            shutil.copytree(root / "whole", before)
            seconds = undisturbed(stage, root / "whole")
            expected = (stage.content_id(root / "whole"), seconds)
            count = kill_stage(stage, before, arguments.trials, moments, expected)
            rows[stage.label] = {**vars(count), "seconds": round(seconds, 2)}
            print(
                f"{stage.label:32}{count.kills:4} kills in {count.trials} trials, {count.same} the same, "
                f"{count.missed} missed, {seconds:.2f} s of work",
                flush=True,
            )
            shutil.rmtree(before)
    finish("kills", {}, rows)
    sys.exit(any(not row["same"] == row["trials"] == arguments.trials for row in rows.values()))


if __name__ == "__main__":
    main()
