"""Time the gate beside a plain Pillow loop: `python -m tests.bench.gate [--path DIR]`.

Three ways through the same pictures, interleaved in one run: Pillow alone (open, convert, resize by Lanczos, save: no
limits, no checks), `ingest` in this process, and `IsolatedGate` with two workers. Ours lets libjpeg shrink while it
decodes, and takes a quicker filter for the rest. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from crawl.config import GateOptions
from crawl.ingest import Accepted, IsolatedGate, Refused, ingest
from tests.bench.result import finish

WORKERS = 2
WAYS = ("pillow", "in_process", "isolated")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"})

Run = Callable[[list[bytes]], int]


def generated(count: int) -> dict[str, list[bytes]]:
    """Pictures with structure at all scales: small JPEGs that keep their bytes, photographs and PNGs that do not."""
    rng = np.random.default_rng(0)
    return {
        "jpeg 240x320": [encoded(rng, (320, 240), "JPEG") for _ in range(count)],
        "jpeg 640x480": [encoded(rng, (640, 480), "JPEG") for _ in range(count // 2)],
        "jpeg 960x720": [encoded(rng, (960, 720), "JPEG") for _ in range(count // 8)],
        "jpeg 1024x768": [encoded(rng, (1024, 768), "JPEG") for _ in range(count // 8)],
        "jpeg 3000x2000": [encoded(rng, (3000, 2000), "JPEG") for _ in range(max(4, count // 40))],
        "png 640x480": [encoded(rng, (640, 480), "PNG") for _ in range(count // 4)],
        "webp 640x480": [encoded(rng, (640, 480), "WEBP") for _ in range(count // 4)],
    }


def encoded(rng: np.random.Generator, size: tuple[int, int], kind: str) -> bytes:
    """Draw one picture as a sum of smooth noise at three scales, and encode it."""
    layers = [rng.integers(0, 86, (side, side, 3), dtype=np.uint8) for side in (4, 16, 64)]
    smooth = [np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC)) for layer in layers]
    stream = io.BytesIO()
    Image.fromarray(np.sum(smooth, axis=0).clip(0, 255).astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


def from_folder(path: Path, count: int) -> list[bytes]:
    """Read up to `count` pictures, evenly spread over the sorted folder."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    return [file.read_bytes() for file in files[:: max(1, len(files) // count)]]


def plain_pillow(blobs: Iterable[bytes], options: GateOptions) -> int:
    """Make thumbnails the way a ten-line script would, and count those that worked."""
    done = 0
    for blob in blobs:
        try:
            with Image.open(io.BytesIO(blob)) as image:
                rgb = image.convert("RGB")
        except (OSError, ValueError, SyntaxError):
            continue
        scale = min(1.0, options.max_side_px / max(rgb.size))
        size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
        rgb.resize(size, Image.Resampling.LANCZOS).save(io.BytesIO(), "JPEG", quality=options.quality)
        done += 1
    return done


def count_accepted(verdicts: Iterable[Accepted | Refused]) -> int:
    """Consume the verdicts."""
    return sum(isinstance(verdict, Accepted) for verdict in verdicts)


def timed(run: Run, blobs: list[bytes]) -> float:
    """Return images a second."""
    start = time.perf_counter()
    run(blobs)
    return len(blobs) / (time.perf_counter() - start)


def measure(groups: dict[str, list[bytes]], repeats: int) -> dict[str, dict[str, float]]:
    """Return the median images a second of every group and way, the ways taking turns."""
    options = GateOptions(timeout_s=60.0)
    with IsolatedGate(options, workers=WORKERS) as gate:
        runs: dict[str, Run] = {
            "pillow": lambda blobs: plain_pillow(blobs, options),
            "in_process": lambda blobs: count_accepted(ingest(blob, options) for blob in blobs),
            "isolated": lambda blobs: count_accepted(gate.map(blobs)),
        }
        for run in runs.values():
            run(next(iter(groups.values()))[:8])  # workers are up, plugins imported
        rates = {
            group: [{way: timed(runs[way], blobs) for way in WAYS} for _ in range(repeats)]
            for group, blobs in groups.items()
        }
    return {
        group: {way: statistics.median(turn[way] for turn in turns) for way in WAYS} for group, turns in rates.items()
    }


def report(groups: dict[str, list[bytes]], rates: dict[str, dict[str, float]]) -> None:
    """Print the table, and the figures as one JSON line."""
    print(f"{'images/s':<20}{'count':>7}" + "".join(f"{way:>12}" for way in WAYS) + f"{'isolated/pillow':>17}")
    for group, row in rates.items():
        ratio = row["isolated"] / row["pillow"]
        print(f"{group:<20}{len(groups[group]):>7}" + "".join(f"{row[way]:>12.0f}" for way in WAYS) + f"{ratio:>17.2f}")
    ratios = {
        group: {way: round(row[way] / row["pillow"], 3) for way in WAYS if way != "pillow"}
        for group, row in rates.items()
    }
    figures = {group: {way: round(rate, 1) for way, rate in row.items()} for group, row in rates.items()}
    finish("gate", ratios, figures)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--path", type=Path, help="folder of pictures to time as well")
    parser.add_argument("--count", type=int, default=400, help="pictures of the smallest kind, and of the folder")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    groups = generated(arguments.count)
    if arguments.path:
        groups["folder"] = from_folder(arguments.path, arguments.count)
        options = GateOptions()
        refused = Counter(
            verdict.reason.value for blob in groups["folder"] if isinstance(verdict := ingest(blob, options), Refused)
        )
        print(f"folder: {len(groups['folder'])} pictures, refused {dict(refused)}")
    report(groups, measure(groups, arguments.repeats))


if __name__ == "__main__":
    main()
