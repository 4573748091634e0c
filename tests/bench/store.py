"""Time reading a store of features beside copying one mapped array of the same rows: `make bench B=store`.

Both lie in the memory of the file system, so that the disk does not hide what the store costs. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from configs.artifacts import map_array, save_array
from features.config import ImageFeaturesConfig
from features.image_features import FeatureStore
from tests.bench.result import finish

WIDTH = 2048


def main() -> None:
    """Write both, read them in turns and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    rng, part = np.random.default_rng(0), ImageFeaturesConfig().part_size
    numbers = rng.integers(0, 2**63, options.rows)
    ids = np.sort(np.array([f"{number:016x}" for number in numbers], dtype="S16"))
    block = rng.normal(size=(part, WIDTH)).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store, array = FeatureStore(Path(folder), WIDTH), Path(folder) / "one_array"
        for start in range(0, options.rows, part):
            chunk = ids[start : start + part]
            store.add(chunk, block[: len(chunk)])
        save_array(array, np.resize(block, (options.rows, WIDTH)))
        seconds: dict[str, list[float]] = {"store": [], "array": []}
        for _ in range(options.repeats):
            start_s = time.perf_counter()
            np.array(map_array(array, "<f2", (options.rows, WIDTH)))
            seconds["array"].append(time.perf_counter() - start_s)
            start_s = time.perf_counter()
            store.gather(ids)
            seconds["store"].append(time.perf_counter() - start_s)
    median = {way: statistics.median(found) for way, found in seconds.items()}
    for way, found in median.items():
        print(f"{way:<8}{options.rows / found:>14,.0f} images/s{options.rows * WIDTH * 2 / found / 1e9:>8.1f} GB/s")
    rates = {f"{way}_images_per_s": round(options.rows / found) for way, found in median.items()}
    finish("store", {"store_read": round(median["array"] / median["store"], 3)}, rates)


if __name__ == "__main__":
    main()
