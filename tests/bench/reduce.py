"""What principal components cost and save: `make bench B=reduce ARGS="--plot tests/reference/reduce.svg"`.

`widths`    of the stage `reduce`: variance, bytes an image, neighbours kept, and milliseconds a search by a whole scan
            on one thread, the features repeated to `--scan-images`, so that those as extracted fit into no cache
`fit`       our streamed covariance beside scikit-learn's solvers on one thread, medians of turns: on the train split,
            and on the same repeated to `--fit-images`
`map`       of tag -> gallery by towers trained on reduced features, beside those trained on features as extracted

Everything is written to a folder of links beside the data, which stay as they are. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA, IncrementalPCA
from threadpoolctl import threadpool_limits

from configs.artifacts import read_manifest
from configs.compose import CONFIG_DIR, typed
from crawl.records import TRAIN
from features.__main__ import key_of
from features.config import FeatureSpaceConfig, ReduceConfig
from features.image_features import open_features
from features.inverted_index import open_index
from features.neighbours import neighbours_kept
from features.reduce import CHUNK_ROWS, moments, principal_components, project, reduce, search_ms
from features.spaces import basis_directory
from tests.bench.result import SEEDS, finish, train_and_judge
from train.results import add_values, difference, figure, new_values

INK, GRID = "#222222", "#cccccc"
COLOURS = {"variance": "#0072b2", "neighbours": "#d55e00", "map": "#009e73"}  # Okabe and Ito: told apart by all eyes


def linked(data: Path, target: Path) -> Path:
    """Lay a data folder of links, in which new stores and bases stay apart from the user's."""
    (target / "image_features").mkdir(parents=True, exist_ok=True)
    shared = [data / name for name in ("collection", "index", "tag_vectors")]
    extracted = [path for path in (data / "image_features").iterdir() if "-pca" not in path.name]
    for path in [*shared, *extracted]:
        link = target / path.relative_to(data)
        if not link.is_symlink():
            link.symlink_to(path.resolve(), target_is_directory=True)
    return target


def config(pca: str, overrides: list[str]) -> ReduceConfig:
    """Compose the config of one reduction."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("reduce", [f"pca={pca}", *overrides]), ReduceConfig)


class Reductions:
    """Features of a collection as extracted and reduced, in the order of its index."""

    def __init__(self, data: Path, overrides: list[str]) -> None:
        self.overrides = [f"paths.data={data}", *overrides]
        cfg = config("1", self.overrides)
        self.index, manifest = open_index(cfg.paths)
        self.gate = manifest.must_match["gate"]
        self.before = self.features(FeatureSpaceConfig(cfg.paths, cfg.backbone, cfg.precision))

    def features(self, cfg: FeatureSpaceConfig) -> np.ndarray:
        """Return the features (N, any) of a config."""
        return open_features(cfg, self.gate, self.index.image_ids)[0]

    @property
    def train(self) -> np.ndarray:
        """Return the features of the train split as extracted."""
        return self.before[np.asarray(self.index.splits) == TRAIN]

    def reduced(self, pca: str) -> tuple[np.ndarray, dict[str, Any]]:
        """Run the stage; return the reduced features and the facts of their basis."""
        cfg = config(pca, self.overrides)
        reduce(cfg)
        basis = read_manifest(basis_directory(cfg, self.gate))
        assert basis is not None
        return self.features(cfg), basis.facts


def repeated(features: np.ndarray, images: int) -> np.ndarray:
    """Return the features of so many images, by repeating those there are."""
    return features[np.arange(images) % len(features)]


def measure_widths(reductions: Reductions, widths: list[str], images: int) -> dict[str, dict[str, float]]:
    """Return what each reduction keeps and costs; features as extracted come first."""
    width = reductions.before.shape[1]
    rows = {"extracted": {"width": width, "variance": 1.0, "neighbours": 1.0}}
    rows["extracted"]["search_ms"] = search_ms(repeated(reductions.before, images))
    for pca in widths:
        features, facts = reductions.reduced(pca)
        rows[pca] = {
            "width": facts["width"],
            "variance": facts["explained_variance"],
            "neighbours": facts["neighbours_kept"],
            "search_ms": search_ms(repeated(features, images)),
        }
    for row in rows.values():
        row["bytes"] = 2 * row["width"]
    return rows


def ours(train: np.ndarray, width: int) -> np.ndarray:
    """Fit as the stage does, on rows that are in memory."""
    chunks = (train[start : start + CHUNK_ROWS] for start in range(0, len(train), CHUNK_ROWS))
    return principal_components(moments(chunks)[1])[1][:width]


def incremental(train: np.ndarray, width: int) -> np.ndarray:
    """Fit scikit-learn's answer to features that exceed memory, on the same chunks."""
    fitted = IncrementalPCA(width)
    for start in range(0, len(train) - width + 1, CHUNK_ROWS):  # a chunk needs as many rows as components
        stop = start + CHUNK_ROWS if len(train) - start - CHUNK_ROWS >= width else len(train)
        fitted.partial_fit(train[start:stop].astype(np.float32))
    return np.asarray(fitted.components_)


def in_memory(solver: str) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return a fit of scikit-learn's that takes all rows at once."""

    def fit(train: np.ndarray, width: int) -> np.ndarray:
        fitted = PCA(width, svd_solver=solver, random_state=0).fit(train.astype(np.float32))
        return np.asarray(fitted.components_)

    return fit


OURS = "streamed covariance (ours)"
FITS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    OURS: ours,
    "IncrementalPCA": incremental,
    "PCA randomized": in_memory("randomized"),
    "PCA covariance_eigh": in_memory("covariance_eigh"),
}


def measure_fits(train: np.ndarray, width: int, repeats: int) -> dict[str, dict[str, float]]:
    """Return seconds of every way to fit and the share of the variance that its components have."""
    covariance = np.cov(train.astype(np.float64), rowvar=False)
    seconds: dict[str, list[float]] = defaultdict(list)
    captured: dict[str, float] = {}
    with threadpool_limits(1):
        for _ in range(repeats):
            for name, fit in FITS.items():
                start = time.perf_counter()
                components = fit(train, width).astype(np.float64)
                seconds[name].append(time.perf_counter() - start)
                captured[name] = float(((components @ covariance) * components).sum() / np.trace(covariance))
    return {name: {"seconds": statistics.median(seconds[name]), "variance": captured[name]} for name in FITS}


def measure_choices(reductions: Reductions, width: int) -> dict[str, float]:
    """Return the neighbours kept by two choices of ours: half precision, and not to take the mean off."""
    held_out = reductions.before[np.asarray(reductions.index.splits) != TRAIN]
    components = ours(reductions.train, width).astype(np.float32)
    exact = project(held_out, components)
    centred = exact - project(reductions.train.mean(axis=0, dtype=np.float64)[None], components)
    return {
        "float16 of float32": neighbours_kept(exact, exact.astype(np.float16)),
        "not centred": neighbours_kept(held_out, exact),
        "centred": neighbours_kept(held_out, centred),
    }


def train_all(data: Path, widths: list[str], arguments: argparse.Namespace, work: Path) -> dict[str, dict[str, Any]]:
    """Return mAP of tag -> gallery on every width, and by how much it is above that of features as extracted."""
    values = new_values()
    for pca in ["extracted", *widths]:
        paths = [f"paths.data={data}", f"paths.runs={work / 'runs' / pca}"]
        chosen = [] if pca == "extracted" else [f"pca={pca}"]
        for seed in SEEDS[: arguments.seeds]:
            run = train_and_judge(seed, paths, [*chosen, *arguments.overrides])
            add_values(values, work / "runs" / pca / run / "evaluation" / "test" / "per_tag.csv", pca)
    found = {pca: values["gallery", pca, "map"] for pca in ["extracted", *widths]}
    return {
        pca: {**vars(figure(each)), "over": difference(each, found["extracted"]).signed()}
        for pca, each in found.items()
    }


def show_widths(rows: dict[str, dict[str, float]], judged: dict[str, dict[str, Any]], images: int) -> None:
    """Print one row a width, in Markdown."""
    print(
        f"\n| pca | numbers | bytes/image | variance | neighbours kept | ms/search of {images} | times as fast | mAP |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for pca, row in rows.items():
        faster = rows["extracted"]["search_ms"] / row["search_ms"]
        found = judged.get(pca)
        told = f"{found['mean']:.3f} +-{found['spread']:.3f}, {found['over']}" if found else ""
        print(
            f"| {pca} | {row['width']} | {row['bytes']} | {row['variance']:.1%} | {row['neighbours']:.1%} "
            f"| {row['search_ms']:.2f} | {faster:.1f} | {told} |"
        )


def show_fits(fits: dict[int, dict[str, dict[str, float]]], width: int) -> None:
    """Print one row a way to fit, in Markdown."""
    sizes = " | ".join(f"s on {images} images" for images in fits)
    print(f"\n| {width} components on one thread | {sizes} | variance |\n|{' --- |' * (len(fits) + 2)}")
    for name in FITS:
        seconds = " | ".join(f"{ways[name]['seconds']:.2f}" for ways in fits.values())
        print(f"| {name} | {seconds} | {next(iter(fits.values()))[name]['variance']:.4%} |")


def plot(path: Path, rows: dict[str, dict[str, float]], judged: dict[str, dict[str, Any]]) -> None:
    """Draw what is kept over bytes an image, with the same bytes for the same figures."""
    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "tagtower", "svg.fonttype": "path", "font.size": 10})
    figure = Figure(figsize=(9 if judged else 5.5, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    size = [row["bytes"] for row in rows.values()]
    for key, label in (("variance", "variance explained"), ("neighbours", "10 nearest neighbours kept")):
        axes[0].plot(size, [100 * row[key] for row in rows.values()], "o-", color=COLOURS[key], label=label)
    dress(axes[0], size, "per cent")
    if judged:
        found = [judged[pca] for pca in rows]
        low, high = ([each[end] for each in found] for end in ("low", "high"))
        axes[1].fill_between(size, low, high, color=COLOURS["map"], alpha=0.15, lw=0, label="95 % interval over tags")
        axes[1].plot(size, [each["mean"] for each in found], "o-", color=COLOURS["map"], label="mAP, tag to gallery")
        dress(axes[1], size, "mAP on test")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def dress(axes: Axes, size: list[float], label: str) -> None:
    """Give a panel its scale of bytes and quiet lines; the rightmost point is the feature as extracted."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(size, [f"{each:.0f}" for each in size])
    axes.minorticks_off()
    axes.set_xlabel("bytes an image")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.legend(loc="lower right", frameon=False)


def measure(arguments: argparse.Namespace, work: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run all parts, print a table of each, and return ratios and figures."""
    widths = arguments.widths.split(",")
    data = linked(arguments.data, work / "data")
    reductions = Reductions(data, [each for each in arguments.overrides if key_of(each) in ("backbone", "precision")])
    rows = measure_widths(reductions, widths, arguments.scan_images)
    fits = {
        images: measure_fits(repeated(reductions.train, images), arguments.fit_width, arguments.repeats)
        for images in (len(reductions.train), arguments.fit_images)
    }
    choices = measure_choices(reductions, arguments.fit_width)
    judged = {} if arguments.no_train else train_all(data, widths, arguments, work)
    show_widths(rows, judged, arguments.scan_images)
    show_fits(fits, arguments.fit_width)
    print("\nneighbours kept: " + ", ".join(f"{name} {kept:.1%}" for name, kept in choices.items()))
    if arguments.plot:
        plot(arguments.plot, rows, judged)
    figures = {"widths": rows, "fit": fits, "choices": choices, "map": judged}
    return ratios_of(rows, fits), figures


def ratios_of(
    rows: dict[str, dict[str, float]], fits: dict[int, dict[str, dict[str, float]]]
) -> dict[str, dict[str, float]]:
    """Return how many times as fast we fit as scikit-learn does, and search after as before."""
    fitted = {
        f"{peer} over ours, fit on {images}": ways[peer]["seconds"] / ways[OURS]["seconds"]
        for images, ways in fits.items()
        for peer in ways
        if peer != OURS
    }
    found = {pca: rows["extracted"]["search_ms"] / row["search_ms"] for pca, row in rows.items() if pca != "extracted"}
    return {"fit": fitted, "search, before over after": found}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("data/sample"), help="paths.data with features")
    parser.add_argument("--work", type=Path, help="keeps links, bases, stores and runs; otherwise they are removed")
    parser.add_argument("--widths", default="1024,512,256,128,64", help="values of pca, comma between, widest first")
    parser.add_argument("--fit-width", type=int, default=256, help="components of the comparison with scikit-learn")
    parser.add_argument("--scan-images", type=int, default=100_000, help="images that a timed search scans")
    parser.add_argument("--fit-images", type=int, default=40_000, help="images of the larger comparison")
    parser.add_argument("--repeats", type=int, default=3, help="of every fit")
    parser.add_argument("--seeds", type=int, default=1, help="trainings a width")
    parser.add_argument("--no-train", action="store_true", help="leave the trainings out")
    parser.add_argument("--plot", type=Path, help="write the plot, SVG")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides of every training, the backbone of all parts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tagtower-reduce-") as temporary:
        ratios, figures = measure(arguments, arguments.work or Path(temporary))
    finish("reduce", json.loads(json.dumps(ratios, default=float)), json.loads(json.dumps(figures, default=float)))


if __name__ == "__main__":
    main()
