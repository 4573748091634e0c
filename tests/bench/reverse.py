"""Reverse image search on several collections: `make bench B=reverse ARGS="data/sample=kind data/imagenette=tags"`.

Each collection is named as its `paths.data` with the classes that judge it, and has its features extracted; every
image asks, all others answer, features are compared as they are. `--folder` brings in a folder of pictures with a
folder a class first and extracts what is carried. Intervals are 95 % bootstrap over the images that ask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from configs.compose import Paths
from tests.bench.result import finish, stage
from train.config import ReverseConfig
from train.reverse import reverse

SHOWN = {"map": "mAP", "map@10": "mAP@10 by R", "map_capped@10": "mAP@10 by min(R, 10)", "recall@10": "mAR@10"}
CARRIED = ("resnet50", "efficientnet_lite0", "color_histogram")


def bring_in(pictures: Path, data: str) -> None:
    """Make a collection with features of a folder with a folder a class."""
    paths = f"paths.data={data}"
    stage("crawl.collect", "source=folder", f"source.path={pictures}", paths)
    stage("features.build_index", paths)
    for backbone in CARRIED:
        stage("features.extract", f"backbone={backbone}", paths)


def cell(found: dict[str, float]) -> str:
    """Return a mean with its interval."""
    return f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def judged(data: str, classes: str, queries: int) -> dict[str, Any]:
    """Judge one collection, print its table in Markdown, and return its metrics."""
    directory = reverse(ReverseConfig(Paths(data), classes=classes, split="all", queries=queries))
    found: dict[str, Any] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    print(
        f"\n{Path(data).name} by {classes}: {found['num_queries']} of {found['num_images']} images ask, "
        f"{found['mean_relevant']:.0f} of {found['num_candidates']} others are relevant on average\n"
    )
    print(f"| features | {' | '.join(SHOWN.values())} | over the histogram, mAP |\n|{' --- |' * (len(SHOWN) + 2)}")
    for name, values in found["systems"].items():
        above = found["minus_histogram"].get(name, {}).get("map")
        told = f"{above['mean']:+.3f} ({above['low']:+.3f} to {above['high']:+.3f})" if above else ""
        print(f"| `{name}` | {' | '.join(cell(values[metric]) for metric in SHOWN)} | {told} |", flush=True)
    return found


def figures_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a collection's metrics, rounded."""
    systems = {
        name: {m: {end: round(values[m][end], 4) for end in ("mean", "low", "high")} for m in SHOWN}
        for name, values in found["systems"].items()
    }
    return {"queries": found["num_queries"], "mean_relevant": round(found["mean_relevant"], 1), "systems": systems}


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", help="<paths.data>=<classes>, such as data/sample=kind")
    parser.add_argument("--folder", type=Path, help="pictures with a folder a class, brought in for this run alone")
    parser.add_argument("--queries", type=int, default=0, help="images that ask, drawn where there are more; 0: all")
    options = parser.parse_args()
    named = [each.rpartition("=")[::2] for each in options.collections]
    with tempfile.TemporaryDirectory(prefix="tagtower-reverse-") as temporary:
        if options.folder:
            data = str(Path(temporary) / options.folder.name)
            bring_in(options.folder, data)
            named.append((data, "tags"))
        figures = {
            f"{Path(data).name} by {classes}": figures_of(judged(data, classes, options.queries))
            for data, classes in named
        }
    finish("reverse", {}, figures)


if __name__ == "__main__":
    main()
