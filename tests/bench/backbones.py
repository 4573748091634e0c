"""Compare backbones: `make bench B=backbones ARGS="--data data/sample"`; reverse search has `make bench B=reverse`.

For each backbone evaluation A of towers trained on its features, over three seeds. Features come from `paths.data` and
are extracted where they are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hydra import compose, initialize_config_dir

from configs.compose import CONFIG_DIR, Paths, typed
from features.config import BackboneConfig, ImageFeaturesConfig
from features.extract import extract
from tests.bench.result import SEEDS, finish, train_and_judge
from train.results import add_values, figure, new_values

BACKBONES = ("resnet50", "efficientnet_lite0", "color_histogram")  # those carried


def composed(name: str) -> BackboneConfig:
    """Return a backbone as the command line would choose it."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("image_features", [f"backbone={name}"]), ImageFeaturesConfig).backbone


def gallery(data: str, runs: str, name: str, overrides: list[str]) -> dict[str, float]:
    """Return evaluation A of towers on a backbone: mAP over three seeds, with its interval over tags."""
    extract(ImageFeaturesConfig(Paths(data), composed(name)))
    values = new_values()
    for seed in SEEDS:
        places = [f"paths.data={data}", f"paths.runs={runs}/{name}"]
        run = train_and_judge(seed, places, [f"backbone={name}", *overrides])
        add_values(values, Path(runs) / name / run / "evaluation" / "test" / "per_tag.csv", "default")
    return vars(figure(values["gallery", "default", "map"]))


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/sample", help="paths.data of evaluation A")
    parser.add_argument("--runs", default="runs/backbones", help="paths.runs of the towers trained here")
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="comma between")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training")
    options = parser.parse_args()
    print(f"\n{'backbone':<20}{'A mAP':>22}")
    figures = {}
    for name in options.backbones.split(","):
        found = figures[name] = gallery(options.data, options.runs, name, options.overrides)
        shown = f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})"
        print(f"{name:<20}{shown:>22}", flush=True)
    rounded = {
        name: {f"a_{key}": round(float(value), 4) for key, value in each.items()} for name, each in figures.items()
    }
    finish("backbones", {}, rounded)


if __name__ == "__main__":
    main()
