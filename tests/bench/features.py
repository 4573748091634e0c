"""Time JPEG to stored feature: `python -m tests.bench.features [--data DIR] [--images N] [--device cpu|cuda]`.

Ways through the same stored JPEGs of a collection, each in a process of its own and taking turns:

- `plain_loop`: Pillow, a DataLoader with two workers, eager torch, one array saved at the end
- `tar_loop`: as clip-retrieval works: the shard read as a stream by DataLoader workers, Pillow, eager torch, an array
  and a Parquet table a partition
- `ours`: the worker of the stage image_features, down to the committed part, in float32 and in each lower precision
  that its calibration allows
- `network`, `decode`: ours without the one or the other; both rates together are the limit on shared cores
- `eager_bf16`, on CUDA: the network alone as eager torch runs it in bfloat16

Memory over `--memory-images` images comes last. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision import transforms

from configs.artifacts import ArtifactError, save_array
from configs.compose import Paths
from crawl.shards import JpegReader
from features.backbones import build_backbone
from features.calibrate import calibrate
from features.config import BackboneConfig, ImageFeaturesConfig
from features.extractor import Extractor, PartExtractor, batch_shape, open_network
from features.image_features import FeatureStore
from features.inverted_index import InvertedIndex, open_index
from features.neighbours import neighbours_kept
from features.pictures import PictureReader
from features.runtimes import IN_FLIGHT, cores
from features.spaces import calibration_directory, extracted_directory
from tests.bench.result import finish, resident_mib

BATCH = 32
RESNET50_GFLOP = 8.18  # a picture of 224 px: twice the 4.09 G multiply-adds that torchvision's weights state
BACKBONE = BackboneConfig(
    name="resnet50", architecture="resnet50", weights="carried", width=2048, resize_px=256, crop_px=224
)
PREPROCESS = transforms.Compose(
    [
        transforms.Resize(BACKBONE.resize_px),
        transforms.CenterCrop(BACKBONE.crop_px),
        transforms.ToTensor(),
        transforms.Normalize(BACKBONE.mean, BACKBONE.std),
    ]
)


def prepared(jpeg: bytes) -> torch.Tensor:
    """Decode and normalise as a script would."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return PREPROCESS(image.convert("RGB"))


class Stored(Dataset):
    """Pictures by row, the way of a plain Dataset."""

    def __init__(self, index: InvertedIndex, collection: Path, rows: np.ndarray) -> None:
        self.index, self.rows = index, rows
        self.reader = JpegReader(collection)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> torch.Tensor:
        row = self.rows[at]
        return prepared(self.reader.read(self.index.locations[row], self.index.image_id(row)))


class Streamed(IterableDataset):
    """Pictures of tars in their order, members shared out among the workers."""

    def __init__(self, shards: list[Path], wanted: set[str]) -> None:
        self.shards, self.wanted = shards, wanted

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        worker = get_worker_info()
        for number, (name, jpeg) in enumerate(self._members()):
            if worker is None or number % worker.num_workers == worker.id:
                yield name, prepared(jpeg)

    def _members(self) -> Iterator[tuple[str, bytes]]:
        for shard in self.shards:
            with tarfile.open(shard) as tar:
                for member in tar:
                    name, _, suffix = member.name.partition(".")
                    if suffix == "jpg" and name in self.wanted:
                        yield name, tar.extractfile(member).read()


def eager(device: str) -> torch.nn.Module:
    """Return the same network as a script would run it: the normalisation is done by then."""
    return build_backbone(BACKBONE).network.to(device)


def plain_loop(cfg: ImageFeaturesConfig, index: InvertedIndex, rows: np.ndarray, out: Path) -> float:
    """Time the loop that everybody writes first; return seconds."""
    network, device = eager(cfg.device), cfg.device
    loader = DataLoader(Stored(index, cfg.paths.artifact("collection"), rows), batch_size=BATCH, num_workers=2)
    start = time.perf_counter()
    with torch.inference_mode():
        features = [network(batch.to(device)).cpu().numpy() for batch in loader]
    save_array(out, np.concatenate(features).astype(np.float16))
    return time.perf_counter() - start


def tar_loop(cfg: ImageFeaturesConfig, index: InvertedIndex, rows: np.ndarray, out: Path) -> float:
    """Time reading shards as a stream, with a table of names beside the array; return seconds."""
    network, device = eager(cfg.device), cfg.device
    shards = sorted(cfg.paths.artifact("collection").glob("*.tar"))
    wanted = {index.image_id(row) for row in rows}
    loader = DataLoader(Streamed(shards, wanted), batch_size=BATCH, num_workers=2)
    names: list[str] = []
    features = []
    start = time.perf_counter()
    with torch.inference_mode():
        for batch_names, batch in loader:
            names += batch_names
            features.append(network(batch.to(device)).cpu().numpy())
    save_array(out, np.concatenate(features).astype(np.float16))
    pq.write_table(pa.table({"image_id": names}), out.with_suffix(".parquet"))
    return time.perf_counter() - start


def ours(cfg: ImageFeaturesConfig, index: InvertedIndex, rows: np.ndarray, out: Path) -> float:
    """Time the worker of the stage on one part, compiled and warm; return seconds."""
    gate = open_index(cfg.paths)[1].must_match["gate"]
    extracted_directory(cfg, gate).mkdir(parents=True, exist_ok=True)
    worker = PartExtractor(cfg)
    ids = np.asarray(index.image_ids[rows])
    worker.rate(ids[:BATCH])
    start = time.perf_counter()
    worker(ids)
    seconds = time.perf_counter() - start
    worker.close()
    save_array(out, FeatureStore(extracted_directory(cfg, gate), BACKBONE.width).gather(ids))
    return seconds


def network(cfg: ImageFeaturesConfig, index: InvertedIndex, rows: np.ndarray, out: Path) -> float:
    """Time the network alone, on decoded pictures, as many batches under way as in extraction; return seconds."""
    gate = open_index(cfg.paths)[1].must_match["gate"]
    run = open_network(cfg, calibration_directory(cfg, gate))
    pictures = np.random.default_rng(0).integers(0, 256, batch_shape(cfg), dtype=np.uint8)
    run(pictures)()
    start = time.perf_counter()
    under_way = []
    for _ in range(-(-len(rows) // len(pictures))):
        under_way.append(run(pictures))
        if len(under_way) == IN_FLIGHT:
            under_way.pop(0)()
    for waiting in under_way:
        waiting()
    return time.perf_counter() - start


def decode(cfg: ImageFeaturesConfig, index: InvertedIndex, rows: np.ndarray, out: Path) -> float:
    """Time reading and decoding alone; return seconds."""
    reader = PictureReader(index, cfg.paths.artifact("collection"), BACKBONE, cores())
    list(reader.batches(rows[:BATCH], BATCH))
    start = time.perf_counter()
    for _ in reader.batches(rows, BATCH):
        pass
    seconds = time.perf_counter() - start
    reader.close()
    return seconds


def eager_bf16(cfg: ImageFeaturesConfig, index: InvertedIndex, rows: np.ndarray, out: Path) -> float:
    """Time eager torch in bfloat16, channels last, on pictures that lie on the card; return seconds."""
    network = build_backbone(BACKBONE).to(cfg.device).to(memory_format=torch.channels_last)
    pictures = torch.zeros(batch_shape(cfg), dtype=torch.uint8, device=cfg.device)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(cfg.device, torch.bfloat16):
        network(pictures).cpu()
        start = time.perf_counter()
        for _ in range(-(-len(rows) // len(pictures))):
            features = network(pictures)
        features.cpu()
    return time.perf_counter() - start


WAYS = {way.__name__: way for way in (plain_loop, tar_loop, ours, network, decode, eager_bf16)}


def timed(way: str, precision: str, options: argparse.Namespace, data: Path, out: Path) -> float:
    """Run one way in a process of its own and return images a second."""
    command = [sys.executable, "-m", "tests.bench.features", "--way", way, "--precision", precision]
    command += ["--data", str(data), "--out", str(out), "--images", str(options.images), "--device", options.device]
    if way == "ours":
        for part in (data / "image_features").rglob("*"):
            part.unlink() if part.is_file() else None
    seconds = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
    return options.images / seconds


def config(data: Path, options: argparse.Namespace, precision: str) -> ImageFeaturesConfig:
    """Return the config of the stage."""
    return ImageFeaturesConfig(Paths(str(data)), BACKBONE, precision, device=options.device)


def chosen(index: InvertedIndex, images: int) -> np.ndarray:
    """Return rows spread over the index."""
    return np.linspace(0, index.num_images - 1, images).astype(np.int64)


def allowed(data: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return the lower precisions that calibration allows, with the share of neighbours they keep."""
    found = {}
    for precision in ("bf16", "int8"):
        cfg = config(data, options, precision)
        index, manifest = open_index(cfg.paths)
        try:
            found[precision] = calibrate(cfg, index, manifest.must_match["gate"]).facts["neighbours_kept"]
        except ArtifactError as error:
            print(f"{precision}: {error}", flush=True)
    return found


def matmul_gflops(side: int = 8192) -> float:
    """Return the best rate of a large matrix product in bfloat16 on the card, 10^9 operations a second."""
    one = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    best = np.inf
    for _ in range(10):
        start = time.perf_counter()
        one @ one
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def memory(data: Path, options: argparse.Namespace, precision: str) -> tuple[float, float]:
    """Extract many images and return resident MiB after a tenth of them and at the end."""
    cfg = config(data, options, precision)
    index, manifest = open_index(cfg.paths)
    run = open_network(cfg, calibration_directory(cfg, manifest.must_match["gate"]))
    extractor = Extractor(cfg, index, run)
    rows = np.resize(np.arange(index.num_images), options.memory_images)
    resident = []
    for start in range(0, len(rows), cfg.part_size):
        extractor.features(rows[start : start + cfg.part_size])
        resident.append(resident_mib())
    extractor.close()
    return resident[len(resident) // 10], resident[-1]


def mirrored(data: Path, folder: Path) -> Path:
    """Return a data directory of links to collection and index, where features may be written."""
    for name in ("collection", "index"):
        (folder / name).symlink_to((data / name).resolve())
    return folder


def table(rates: dict[str, list[float]]) -> None:
    """Print rates and ratios to the plain loop."""
    plain = statistics.median(rates["plain_loop"])
    print(f"{'way':<16}{'images/s':>10}{'spread':>16}{'plain loop':>12}")
    for way, found in rates.items():
        spread = f"{min(found):.1f}-{max(found):.1f}"
        print(f"{way:<16}{statistics.median(found):>10.1f}{spread:>16}{statistics.median(found) / plain:>12.2f}")


def bench(options: argparse.Namespace) -> None:
    """Run all ways in turn and print the table and the JSON line."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        data = mirrored(Path(options.data), Path(folder))
        kept = allowed(data, options)
        runs = [("plain_loop", "f32"), ("tar_loop", "f32"), ("ours", "f32"), ("network", "f32"), ("decode", "f32")]
        runs += [(way, precision) for precision in kept for way in ("ours", "network")]
        runs += [("eager_bf16", "f32")] if options.device == "cuda" else []
        rates: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            for way, precision in runs:
                name = way if precision == "f32" else f"{way} {precision}"
                rates.setdefault(name, []).append(timed(way, precision, options, data, Path(folder) / f"{name}.out"))
        plain, full = (np.load(Path(folder) / f"{name}.out").astype(np.float32) for name in ("plain_loop", "ours"))
        fastest = max(kept, key=lambda each: statistics.median(rates[f"ours {each}"]), default="f32")
        before, after = memory(data, options, fastest)
    table(rates)
    report(options, rates, kept, fastest, agreement(plain, full), (before, after))


def agreement(plain: np.ndarray, full: np.ndarray) -> dict[str, float]:
    """Return the least cosine of the plain loop's features with ours, and the share of neighbours that agree."""
    cosines = (plain * full).sum(axis=1) / np.linalg.norm(plain, axis=1) / np.linalg.norm(full, axis=1)
    return {
        "min_cosine": round(float(cosines.min()), 5),
        "plain_neighbours": round(neighbours_kept(plain, full), 4),
    }


def report(
    options: argparse.Namespace,
    rates: dict[str, list[float]],
    kept: dict[str, float],
    fastest: str,
    agreed: dict[str, float],
    resident: tuple[float, float],
) -> None:
    """Print where the time goes, and the JSON line."""
    median = {way: statistics.median(found) for way, found in rates.items()}
    limit = 1 / (1 / median["network"] + 1 / median["decode"])
    gated = median["ours"] if fastest == "f32" else median[f"ours {fastest}"]
    print(f"limit on shared cores {limit:.1f} images/s: ours reaches {median['ours'] / limit:.1%}")
    print(f"of a second: network {limit / median['network']:.1%}, decode {limit / median['decode']:.1%}")
    print(f"the network computes {median['network'] * RESNET50_GFLOP:.0f} GFLOP/s")
    print(f"fastest allowed precision {fastest}: {gated:.1f} images/s; neighbours kept {kept}")
    print(f"memory {resident[0]:.0f} MiB after a tenth, {resident[1]:.0f} MiB after {options.memory_images} images")
    plain = median["plain_loop"]
    ratios = {
        "plain_loop": median["ours"] / plain,
        "tar_loop": median["ours"] / median["tar_loop"],
        "plain_loop_gated": gated / plain,
        "network_only": median["ours"] / limit,
    }
    if "eager_bf16" in median and "network bf16" in median:
        ratios["eager_bf16"] = median["network bf16"] / median["eager_bf16"]
        ratios["matmul_share"] = median["network bf16"] * RESNET50_GFLOP / matmul_gflops()
    figures = {
        "images_per_s": round(median["ours"], 1),
        "gated_images_per_s": round(gated, 1),
        "gated_precision": fastest,
        "neighbours_kept": kept.get(fastest, 1.0),
        **agreed,
        "network_images_per_s": round(median["network"], 1),
        "decode_images_per_s": round(median["decode"], 1),
        "rss_mib_after_a_tenth": round(resident[0]),
        "rss_mib_at_the_end": round(resident[1]),
        "images": options.images,
    }
    finish("features", {name: round(value, 3) for name, value in ratios.items()}, figures)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--memory-images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="f32", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way is None:
        bench(options)
        return
    cfg = config(Path(options.data), options, options.precision)
    index, _ = open_index(cfg.paths)
    print(WAYS[options.way](cfg, index, chosen(index, options.images), options.out))


if __name__ == "__main__":
    main()
