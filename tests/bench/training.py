"""Time steps of training: `make bench B=training [ARGS="--batch 512"]`.

The same towers, optimizer and hinge over the batch on seeded synthetic data, in three loops that take turns:

- `ours`: the stage's module under Lightning, features resident, masked
- `lightning_dataloader`: a Dataset of pairs, a DataLoader with workers, automatic optimisation, the loss logged a step
- `plain_loop`: eager torch without either: index_select, mask, zero_grad, backward, step

each with products in float32 and in bfloat16. `matmul_share` is the time that the matrix products of a step take by
themselves, of the same shapes and dtype, forward and backward, over the time of our step. `peak_mib` is what a step of
65,536 pairs takes beyond resident data and weights, in a process of its own; `--objectives` names for which losses. On
CUDA there are 1.7 million pairs, and an epoch of them is timed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from tests.bench.result import finish, resident_mib
from train.batches import Batches, ResidentFeatures, TrainingSet, open_batches
from train.config import OBJECTIVES, TrainConfig
from train.masks import TagLists
from train.module import Blocks, Resident, TwoTowerModule
from train.objectives import open_objective
from train.towers import TwoTowers

WIDTH, TAG_DIM, TAGS_AN_IMAGE, NUM_TAGS = 2048, 200, 4, 2000
LARGE = 65_536
LOOPS = ("ours", "lightning_dataloader", "plain_loop")
MATHS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = {  # pairs, pairs a batch, steps timed of ours, of the plain loop and of the DataLoader
    "cpu": (80_000, 2048, 39, 20, 20),
    "cuda": (1_700_000, 16_384, 103, 20, 6),
}


class Synthetic:
    """Images of four tags each, with features and word vectors of noise, made on the device they lie on."""

    def __init__(self, num_pairs: int, device: torch.device) -> None:
        num_images, rng = num_pairs // TAGS_AN_IMAGE, np.random.default_rng(0)
        # One tag from each quarter of the vocabulary, frequent ones first.
        ranks = (rng.random((num_images, TAGS_AN_IMAGE)) ** 2 * (NUM_TAGS // TAGS_AN_IMAGE)).astype(np.int32)
        self.tag_rows = (ranks + np.arange(TAGS_AN_IMAGE, dtype=np.int32) * (NUM_TAGS // TAGS_AN_IMAGE)).ravel()
        self.image_rows = np.repeat(np.arange(num_images), TAGS_AN_IMAGE)
        self.by_image = np.arange(num_images + 1) * TAGS_AN_IMAGE, self.tag_rows
        generator = torch.Generator(device).manual_seed(0)
        self.features = torch.empty(num_images, WIDTH, dtype=torch.float16, device=device)
        for rows in self.features.split(65_536):
            rows.copy_(torch.randn(rows.shape, generator=generator, device=device))
        self.vectors = torch.randn(NUM_TAGS, TAG_DIM, generator=generator, device=device)

    @property
    def training(self) -> TrainingSet:
        """Return what batches are drawn from."""
        pairs = self.tag_rows.astype(np.int64), self.image_rows
        return TrainingSet(pairs, NUM_TAGS, self.by_image, self.by_image, 0.0)


class Limited:
    """The first batches of an epoch."""

    def __init__(self, batches: Batches, steps: int) -> None:
        self._batches, self._steps = batches, min(steps, len(batches))

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[object]:
        batches = iter(self._batches)
        return (next(batches) for _ in range(self._steps))


class Clock(pl.Callback):
    """Times the second epoch, when all is compiled and warm."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        synchronise(self._device)
        self.seconds = -time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        synchronise(self._device)
        self.seconds += time.perf_counter()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def new_trainer(clock: Clock, device: torch.device) -> pl.Trainer:
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_epochs=2, callbacks=[clock], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip


def config(options: argparse.Namespace, math: str, objective: str = "hinge", batch: int = 0) -> TrainConfig:
    return TrainConfig(
        math=math, objective=objective, batch_size=batch or options.batch, hidden_dim=options.hidden,
        compile=options.compile,
    )  # fmt: skip


def new_module(synthetic: Synthetic, cfg: TrainConfig) -> TwoTowerModule:
    torch.manual_seed(0)
    towers = TwoTowers(TAG_DIM, WIDTH, cfg.hidden_dim, cfg.embed_dim, feature_dropout=cfg.feature_dropout)
    resident = Resident(synthetic.vectors, torch.full((NUM_TAGS,), -1))
    objective = open_objective(cfg, synthetic.training.prior)
    return TwoTowerModule(towers, objective, resident, lambda towers: 0.5, cfg)


def our_batches(synthetic: Synthetic, cfg: TrainConfig, draws: str, device: torch.device) -> Batches:
    features = ResidentFeatures(synthetic.features, device)
    return open_batches(synthetic.training, features, draws, cfg, device, lambda: 0)


def ours(synthetic: Synthetic, options: argparse.Namespace, math: str, device: torch.device) -> float:
    """Return seconds a step of the stage's module, in the second epoch."""
    cfg, clock = config(options, math), Clock(device)
    batches = Limited(our_batches(synthetic, cfg, "pairs", device), options.steps[0])
    new_trainer(clock, device).fit(new_module(synthetic, cfg), Blocks(batches))
    return clock.seconds / len(batches)


class Towers(nn.Module):
    """The same two towers as people write them."""

    def __init__(self, hidden_dim: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.tag = nn.Sequential(nn.Linear(TAG_DIM, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, embed_dim))
        self.image = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(WIDTH, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, embed_dim)
        )

    def forward(self, vectors: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.tag(vectors), dim=1), F.normalize(self.image(features.float()), dim=1)


def hinge(tags: Tensor, images: Tensor, blocked: Tensor, margin: float) -> Tensor:
    """Return the loss of ours by its formula over the whole table."""
    scores = tags @ images.T
    own = scores.diagonal()
    per_tag = (margin + scores - own[:, None]).clamp(min=0).masked_fill(blocked, 0)
    per_image = (margin + scores - own[None, :]).clamp(min=0).masked_fill(blocked, 0)
    return (per_tag.sum(dim=1).mean() + per_image.sum(dim=0).mean()) / 2


class Pairs(Dataset):
    """A pair an item: vector of the tag, feature of the image, and both rows for the mask."""

    def __init__(self, synthetic: Synthetic) -> None:
        self.tag_rows, self.image_rows = synthetic.tag_rows, synthetic.image_rows
        self.vectors, self.features = synthetic.vectors.cpu(), synthetic.features.cpu()

    def __len__(self) -> int:
        return len(self.tag_rows)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor, int, int]:
        tag, image = int(self.tag_rows[at]), int(self.image_rows[at])
        return self.vectors[tag], self.features[image], tag, image


class PlainModule(pl.LightningModule):
    """The same training as people write it."""

    def __init__(self, cfg: TrainConfig, carried: TagLists) -> None:
        super().__init__()
        self.towers, self.cfg, self.carried = Towers(cfg.hidden_dim, cfg.embed_dim, cfg.feature_dropout), cfg, carried

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        vectors, features, tag_rows, image_rows = batch
        blocked = self.carried.mask(tag_rows, image_rows).table()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.math == "bfloat16"):
            loss = hinge(*self.towers(vectors, features), blocked, self.cfg.margin)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.cfg.learning_rate, weight_decay=self.cfg.weight_decay)


def lightning_dataloader(synthetic: Synthetic, options: argparse.Namespace, math: str, device: torch.device) -> float:
    """Return seconds a step, in the second epoch, workers started."""
    cfg, clock = config(options, math), Clock(device)
    module = PlainModule(cfg, TagLists(synthetic.by_image, NUM_TAGS, device))
    workers = 2 if device.type == "cpu" else options.workers
    loader = DataLoader(
        Pairs(synthetic), cfg.batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    trainer = new_trainer(clock, device)
    trainer.limit_train_batches = options.steps[2]
    trainer.fit(module, loader)
    return clock.seconds / options.steps[2]


def plain_loop(synthetic: Synthetic, options: argparse.Namespace, math: str, device: torch.device) -> float:
    """Return seconds a step of the loop that everybody writes first."""
    cfg = config(options, math)
    towers = Towers(cfg.hidden_dim, cfg.embed_dim, cfg.feature_dropout).to(device)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    carried = TagLists(synthetic.by_image, NUM_TAGS, device)
    tag_rows = torch.from_numpy(synthetic.tag_rows.astype(np.int64)).to(device)
    image_rows = torch.from_numpy(synthetic.image_rows).to(device)
    for steps in (3, options.steps[1]):
        synchronise(device)
        start = time.perf_counter()
        for drawn in torch.randperm(len(tag_rows), device=device).split(cfg.batch_size)[:steps]:
            tags, images = tag_rows[drawn], image_rows[drawn]
            blocked = carried.mask(tags, images).table()
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=math == "bfloat16"):
                embedded = towers(synthetic.vectors[tags], synthetic.features.index_select(0, images))
                loss = hinge(*embedded, blocked, cfg.margin)
            loss.backward()
            optimizer.step()
        synchronise(device)
    return (time.perf_counter() - start) / steps


def products(batch: int, hidden: int, embed: int = TrainConfig.embed_dim) -> list[tuple[int, int, int]]:
    """Return rows, inner and columns of all matrix products of a step; inputs have no gradient."""
    found = []
    for width in (WIDTH, TAG_DIM):
        found += [(batch, width, hidden), (hidden, batch, width)]
        found += [(batch, hidden, embed), (embed, batch, hidden), (batch, embed, hidden)]
    return [*found, (batch, embed, batch), (batch, batch, embed), (batch, batch, embed)]


def matmul_seconds(options: argparse.Namespace, math: str, device: torch.device) -> float:
    """Return seconds of all matrix products of a step by themselves, one after the other as a step has them."""
    operands = [
        (torch.randn(rows, inner, device=device).to(MATHS[math]),
         torch.randn(columns, inner, device=device).to(MATHS[math]).T)
        for rows, inner, columns in products(options.batch, options.hidden)
    ]  # fmt: skip
    rounds = []
    for _ in range(8):
        synchronise(device)
        start = time.perf_counter()
        for one, other in operands:
            one @ other
        synchronise(device)
        rounds.append(time.perf_counter() - start)
    return statistics.median(rounds)


def flop(batch: int, hidden: int) -> int:
    """Return the operations of a step's matrix products."""
    return sum(2 * rows * inner * columns for rows, inner, columns in products(batch, hidden))


class Peak:
    """Watches the resident memory of this process."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.mib = 0.0

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.mib = max(self.mib, resident_mib())

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def peak_mib(options: argparse.Namespace, objective: str, math: str, device: torch.device) -> float:
    """Return what a step of 65,536 takes beyond resident data and weights, after a small one that allocates those."""
    synthetic = Synthetic(2 * LARGE * (TAGS_AN_IMAGE if OBJECTIVES_OF_IMAGES & {objective} else 1), device)
    cfg = config(options, math, objective, LARGE)
    module = new_module(synthetic, cfg).to(device)
    trainer = SimpleNamespace(optimizers=[module.configure_optimizers()], world_size=1, global_step=0)
    module.__dict__["_trainer"] = trainer
    module.manual_backward = lambda loss: loss.backward()
    module.setup("fit")
    small = our_batches(synthetic, config(options, math, objective, 512), module.objective.draws, device)
    large = our_batches(synthetic, cfg, module.objective.draws, device)
    module.step(next(iter(small)))
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        module.step(next(iter(large)))
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident_mib()
    with Peak() as peak:
        module.step(next(iter(large)))
    return peak.mib - before


OBJECTIVES_OF_IMAGES = {"full_vocabulary"}


def peak_of(options: argparse.Namespace, objective: str) -> float:
    """Return the peak of a step in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.training", "--peak", objective, "--device", options.device]
    command += ["--compile", options.compile]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def bench(options: argparse.Namespace, device: torch.device) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return seconds a step of every loop and seconds of its products, by math, taking turns."""
    synthetic = Synthetic(options.pairs, device)
    loops: dict[str, Callable[..., float]] = {
        "ours": ours, "lightning_dataloader": lightning_dataloader, "plain_loop": plain_loop,
    }  # fmt: skip
    steps: dict[str, list[float]] = {}
    alone: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for math in MATHS:
            for name in LOOPS:
                alone.setdefault(math, []).append(matmul_seconds(options, math, device))
                steps.setdefault(f"{name} {math}", []).append(loops[name](synthetic, options, math, device))
    return steps, alone


def report(
    options: argparse.Namespace, steps: dict[str, list[float]], alone: dict[str, list[float]], peaks: dict[str, float]
) -> None:
    """Print the table and the JSON line."""
    step = {name: statistics.median(found) for name, found in steps.items()}
    print(f"{'loop':<32}{'pairs/s':>12}{'spread':>22}{'ms a step':>12}{'GFLOP/s':>10}")
    for name, found in steps.items():
        spread = f"{options.batch / max(found):,.0f}-{options.batch / min(found):,.0f}"
        rate = flop(options.batch, options.hidden) / step[name] / 1e9
        print(f"{name:<32}{options.batch / step[name]:>12,.0f}{spread:>22}{step[name] * 1e3:>12.2f}{rate:>10.0f}")
    ratios: dict[str, float] = {}
    figures: dict[str, object] = {"batch": options.batch, "hidden": options.hidden, "compile": options.compile}
    for math, of in (("float32", ""), ("bfloat16", "_bf16")):
        products_s, mine = statistics.median(alone[math]), step[f"ours {math}"]
        print(f"matrix products alone, {math}: {products_s * 1e3:.2f} ms, {products_s / mine:.1%} of our step")
        ratios |= {f"{name}{of}": round(step[f"{name} {math}"] / mine, 3) for name in LOOPS[1:]}
        ratios[f"matmul_share{of}"] = round(products_s / mine, 3)
        figures[f"epoch_s{of}"] = round(options.pairs // options.batch * mine, 4)
        figures |= {f"{name}_pairs_per_s{of}": round(options.batch / step[f"{name} {math}"]) for name in LOOPS}
        figures[f"matmul_gflops{of}"] = round(flop(options.batch, options.hidden) / products_s / 1e9)
    for objective, mib in peaks.items():
        print(f"a step of {LARGE} in {objective} takes {mib:.0f} MiB beyond data and weights")
        figures[f"peak_mib_{objective}"] = round(mib)
    finish("training", ratios, figures)


def main() -> None:
    """Run all loops in turn and the steps of memory, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=TrainConfig.hidden_dim)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8, help="of the DataLoader, on CUDA")
    parser.add_argument("--compile", choices=["auto", "always", "never"], default="auto")
    parser.add_argument("--objectives", default="hinge", help="whose memory is measured")
    parser.add_argument("--peak", choices=OBJECTIVES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(options.device)
    pairs, batch, *options.steps = SIZES[options.device]
    options.pairs, options.batch = options.pairs or pairs, options.batch or batch
    if options.peak:
        print(peak_mib(options, options.peak, "float32", device))
        return
    steps, alone = bench(options, device)
    report(options, steps, alone, {name: peak_of(options, name) for name in options.objectives.split(",") if name})


if __name__ == "__main__":
    main()
