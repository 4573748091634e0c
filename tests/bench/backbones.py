"""Compare backbones: `make bench B=backbones ARGS="--data data/sample --reverse imagenette"`.

For each backbone: images a second on this machine, evaluation A of towers trained on its features over three seeds, and
reverse search over a folder of pictures with a folder a class: each picture asks for the others of its class. mAP is
over the whole ranking, mAP@10 divides by min(R, 10), mAR@10 is recall@10; intervals are 95 % bootstrap over queries.
Features come from `paths.data` and are extracted where they are missing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from configs.compose import CONFIG_DIR, Paths, typed
from crawl.collect import collect as crawl
from crawl.config import CrawlConfig, FolderSource
from features.build_index import build
from features.config import BackboneConfig, FeatureSpaceConfig, ImageFeaturesConfig, IndexConfig
from features.extract import extract
from features.image_features import open_features
from features.inverted_index import open_index
from features.neighbours import unit_rows
from tests.bench.quality import SEEDS, Values, collect, summary, train_and_judge
from tests.bench.result import finish
from train.metrics import average_precision, interval
from train.ranking import ranks_of

BACKBONES = ("resnet50", "efficientnet_lite0", "color_histogram")  # those carried
K = 10


def composed(name: str) -> BackboneConfig:
    """Return a backbone as the command line would choose it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("image_features", [f"backbone={name}"]), ImageFeaturesConfig).backbone


def reverse_search(features: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """Ask with each picture for the others of its class; return a value a query (N,) of each metric.

    Args:
        features: (N, W).
        classes: (N,) class of each picture, each with two or more.
    """
    rows, found = unit_rows(features), defaultdict(list)
    for query in range(len(rows)):
        others = np.delete(np.arange(len(rows)), query)
        relevant = np.flatnonzero(classes[others] == classes[query])
        ranks = np.sort(ranks_of(rows[others] @ rows[query], relevant))
        near = ranks[ranks <= K]
        found["map"].append(average_precision(ranks))
        found[f"map@{K}"].append(float(np.sum(np.arange(1, len(near) + 1) / near)) / min(len(ranks), K))
        found[f"mar@{K}"].append(len(near) / len(ranks))
    return {metric: np.array(values) for metric, values in found.items()}


def gathered(paths: Paths, backbone: BackboneConfig) -> tuple[np.ndarray, float]:
    """Return features of all images of an index, and images a second where they had to be extracted (else NaN)."""
    start = time.perf_counter()
    extract(ImageFeaturesConfig(paths, backbone))
    seconds = time.perf_counter() - start
    index, manifest = open_index(paths)
    features, _ = open_features(FeatureSpaceConfig(paths, backbone), manifest.must_match["gate"], index.image_ids)
    return features.astype(np.float32), index.num_images / seconds


def reverse(pictures: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Return the metrics of reverse search and images a second of each backbone."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(str(Path(folder) / "data"))
        crawl(CrawlConfig(paths=paths, source=FolderSource(path=str(pictures))))
        build(IndexConfig(paths))
        index, _ = open_index(paths)
        classes = np.empty(index.num_images, dtype=np.int64)
        for tag in range(index.num_tags):
            classes[index.posting_list(tag)] = tag
        for name in names:
            features, rate = gathered(paths, composed(name))
            metrics = reverse_search(features, classes)
            figures = {metric: interval(values, resamples=2000) for metric, values in metrics.items()}
            found[name] = {"images_per_s": rate}
            for metric, each in figures.items():
                found[name] |= {metric: each.mean, f"{metric}_low": each.low, f"{metric}_high": each.high}
    return found


def gallery(data: str, runs: str, name: str, overrides: list[str]) -> dict[str, float]:
    """Return evaluation A of towers on a backbone: mAP over three seeds, with its interval over tags."""
    paths = Paths(data, runs)
    gathered(paths, composed(name))
    values: Values = defaultdict(lambda: defaultdict(list))
    by_metric = {"map": values, "auc": defaultdict(lambda: defaultdict(list))}
    for seed in SEEDS:
        places = [f"paths.data={data}", f"paths.runs={runs}/{name}"]
        run = train_and_judge("default", seed, places, [f"backbone={name}", *overrides])
        collect(by_metric, Path(runs) / name / run / "evaluation" / "test" / "per_tag.csv", "default")
    return summary(values["gallery", "default"])


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/sample", help="paths.data of evaluation A")
    parser.add_argument("--runs", default="runs/backbones", help="paths.runs of the towers trained here")
    parser.add_argument("--reverse", type=Path, help="a folder of pictures with a folder a class")
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="comma between")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    options = parser.parse_args()
    names = options.backbones.split(",")
    found = reverse(options.reverse, names) if options.reverse else {name: {} for name in names}
    print(f"\n{'backbone':<20}{'images/s':>9}{'A mAP':>22}{'reverse mAP':>22}{f'mAP@{K}':>8}{f'mAR@{K}':>8}")
    figures = {}
    for name in names:
        a = gallery(options.data, options.runs, name, options.overrides)
        each = figures[name] = found[name] | {f"a_{key}": value for key, value in a.items()}
        shown = f"{a['mean']:.3f} ({a['low']:.3f}-{a['high']:.3f})"
        line = f"{name:<20}{each.get('images_per_s', float('nan')):>9.0f}{shown:>22}"
        if options.reverse:
            reversed_ = f"{each['map']:.3f} ({each['map_low']:.3f}-{each['map_high']:.3f})"
            line += f"{reversed_:>22}{each[f'map@{K}']:>8.3f}{each[f'mar@{K}']:>8.3f}"
        print(line, flush=True)
    rounded = {name: {key: round(float(value), 4) for key, value in each.items()} for name, each in figures.items()}
    finish("backbones", {}, rounded)


if __name__ == "__main__":
    main()
