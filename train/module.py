"""The Lightning side of training: one step, the epoch's judgement, and checkpoints that survive a kill."""

from __future__ import annotations

import copy
import ctypes
import io
import logging
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from configs.artifacts import ArtifactError, atomic_write
from train.batches import Batch, Batches, epoch_seed
from train.capture import CapturedStep
from train.config import TrainConfig
from train.distributed import (
    ALONE,
    Rank,
    average_gradients,
    gather_embeddings,
    mean_over,
    same_draws,
    told_by_leader,
)
from train.objectives import Objective
from train.ranking import NotFiniteError
from train.towers import TwoTowers

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it has is said once, by us
# Lightning 2.6.6 asks torch 2.15 for a class of trees that torch calls deprecated.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log")  # what is logged is equal in all
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")  # that is a resume
METERS = ("loss", "false_negatives", "image_cosine")  # means over the steps of an epoch
STEPS_A_BLOCK = 50  # of the optimizer in one step of Lightning, whose hooks cost; after them the host looks for NaN
WHOLE_ROWS = 16384  # more rows than these are embedded in parts, and again for their gradient
PART_ROWS = 4096  # of which the memory of 65,536 stays within a gigabyte
COLLAPSING, COLLAPSED = 0.95, 0.999  # mean cosine of images to each other: little, no order among them can be told


class TrainingDiverged(ArtifactError):
    """The loss is no longer finite."""


class TrainingCollapsed(ArtifactError):
    """All images have become one embedding."""


class AtomicCheckpoints(CheckpointIO):
    """Checkpoints written beside their target, synced and renamed; loaded without running code.

    Lightning's own way goes through TMPDIR, and a kill can leave half a file where that is another file system.
    """

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint whole, or stop training."""
        stream = io.BytesIO()
        torch.save(checkpoint, stream)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            atomic_write(Path(path), stream.getvalue())
        except OSError as error:
            raise ArtifactError(
                f"the checkpoint '{path}' of {stream.tell()} bytes could not be written ({error}). "
                "Make room or give permission and run the same command again: it goes on from the last good one."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain values only, whatever is asked for."""
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise ArtifactError(
                f"'{path}' is no checkpoint of ours: {str(error).splitlines()[0]} "
                f"Delete '{Path(path).parent}' and run the same command again: it trains anew."
            ) from error
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint that a better one replaced."""
        Path(path).unlink(missing_ok=True)


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's choice of checkpoints, also where the run's directory was moved while it was unfinished."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score; Lightning would forget it for another absolute path, and then keep a worse epoch."""
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})


class _Environment(LightningEnvironment):
    """What Lightning asks of processes that are running already."""

    creates_processes_externally = True

    def local_rank(self) -> int:
        """Return which process this is."""
        return torch.distributed.get_rank()


class Launched(DDPStrategy):
    """Lightning's strategy for processes that `launch` started, without its wrapper around the towers.

    The wrapper sums gradients once in a step of Lightning; ours may be many of the optimizer, which sum their own.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=_Environment())

    def configure_ddp(self) -> None:
        """Leave the towers as they are: built from one seed, they are equal in all processes."""


class Patience(EarlyStopping):
    """Lightning's early stop, also for a run that was killed after its last epoch but before its seal."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add no epoch to a run that had stopped."""
        trainer.should_stop = self.wait_count >= self.patience


@dataclass(frozen=True)
class Resident:
    """What training looks up by tag row, kept on the device."""

    tag_vectors: Tensor  # (T, tag_dim)
    residual_rows: Tensor  # (T,) int64, -1 for tags without a residual

    def to(self, device: torch.device) -> Resident:
        """Return the same on a device."""
        return Resident(self.tag_vectors.to(device), self.residual_rows.to(device))


class Blocks:
    """Batches in blocks, of which each is one step of Lightning."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        """Return the blocks of an epoch."""
        return -(-len(self._batches) // STEPS_A_BLOCK)

    def __iter__(self) -> Iterator[Iterable[Batch]]:
        """Yield an epoch's blocks; each makes its batches when it is read."""
        batches = iter(self._batches)
        yield from (islice(batches, STEPS_A_BLOCK) for _ in range(len(self)))


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Return the mean cosine of embeddings (C, D), C at least 2, to each other."""
    size = len(embeddings)
    return (embeddings.sum(dim=0).square().sum() - size) / (size * (size - 1))


@torch.no_grad()
def average_into(averaged: TwoTowers, towers: TwoTowers, decay: Tensor) -> None:
    """Keep `decay`, a scalar, of each averaged weight, the rest from the trained one: Polyak and Juditsky, 1992."""
    for mean, weight in zip(averaged.parameters(), towers.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


def published_towers(checkpoint: Mapping[str, Any]) -> TwoTowers:
    """Return the towers that a checkpoint holds: the averaged ones where weights are averaged."""
    state: dict[str, Tensor] = checkpoint["state_dict"]
    prefix = "averaged." if any(name.startswith("averaged.") for name in state) else "towers."
    towers = TwoTowers(**checkpoint["shape"])
    towers.load_state_dict({name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)})
    return towers


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step: asking the system anew took a tenth to a fifth of a step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 2**27)
        libc.mallopt(trim_threshold, 2**30)


def in_parts(embed: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """Embed rows, by parts where they are so many that what their gradient needs would not fit beside the features."""
    if len(rows[0]) <= WHOLE_ROWS:
        return embed(*rows)
    parts = zip(*(torch.split(each, PART_ROWS) for each in rows), strict=True)
    return torch.cat([checkpoint(embed, *part, use_reentrant=False) for part in parts])


class TwoTowerModule(pl.LightningModule):
    """Two towers over batches that lie where the towers are."""

    def __init__(
        self,
        towers: TwoTowers,
        objective: Objective,
        resident: Resident,
        judge: Callable[[TwoTowers], float] | None,
        cfg: TrainConfig,
        rank: Rank = ALONE,
    ) -> None:
        """Take what a step needs; `judge`, where one of several processes has it, is what its leader judges by."""
        super().__init__()
        self.automatic_optimization = False
        self.towers = towers
        self.averaged = copy.deepcopy(towers).requires_grad_(False) if cfg.weight_averaging else None
        self.objective = objective
        self._resident = resident  # no part of the state
        self._judge = judge
        self._cfg = cfg
        self._rank = rank
        self.history: list[dict[str, float]] = []
        self._embed_tags: Callable[..., Tensor] = towers.tag_embeddings
        self._embed_images: Callable[..., Tensor] = towers.image.forward
        self._captured: CapturedStep | None = None
        self._first_bad = torch.tensor(-1)
        self._steps, self._steps_before = torch.tensor(0), torch.tensor(0)  # of the epoch; of those before it
        self._sums = {name: torch.tensor(0.0) for name in METERS}

    @property
    def published(self) -> TwoTowers:
        """Return the towers that are judged and kept: the averaged ones where weights are averaged."""
        return self.towers if self.averaged is None else self.averaged

    def setup(self, stage: str) -> None:
        """Take tag vectors and meters to the device, once, since a captured step has their addresses; compile it."""
        self._resident = self._resident.to(self.device)
        self._first_bad = self._first_bad.to(self.device)
        self._steps, self._steps_before = self._steps.to(self.device), self._steps_before.to(self.device)
        self._sums = {name: total.to(self.device) for name, total in self._sums.items()}
        if self.device.type == "cpu":
            keep_freed_memory()
        if self._cfg.compile == "always" or (self._cfg.compile == "auto" and self.device.type == "cuda"):
            self._compile()

    def _compile(self) -> None:
        if self.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
            raise ArtifactError(
                "compile=always takes a C++ compiler on cpu, and neither g++ nor clang++ was found. "
                "Install one, or take compile=auto, under another run=."
            )
        # Not the towers themselves, which are judged by rows of another number.
        self._embed_tags = torch.compile(self.towers.tag_embeddings, dynamic=False)
        self._embed_images = torch.compile(self.towers.image.forward, dynamic=False)
        self.objective.cost = torch.compile(self.objective.cost, dynamic=False)  # type: ignore[method-assign]
        # A step in parts asks for the state of chance, which a recording does not allow; it is a long one anyway.
        if self.device.type == "cuda" and self._cfg.batch_size <= WHOLE_ROWS and self.trainer.world_size == 1:
            self._captured = CapturedStep(self.step)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch by its number, so that dropout after a resume is that of an unbroken run."""
        torch.manual_seed(epoch_seed(self._cfg.seed, self.current_epoch, self._rank.stream("dropout")))
        self._first_bad.fill_(-1)
        self._steps_before.fill_(self.trainer.global_step)
        for meter in (self._steps, *self._sums.values()):
            meter.zero_()

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Leave batches where they are made: on the device."""
        return batch

    def training_step(self, block: Iterable[Batch], batch_idx: int) -> None:
        """Take a block of steps."""
        for batch in block:
            self._take(batch)
            self._progress.increment_ready()
            self._progress.increment_completed()
        self._stop_if_diverged()

    def _take(self, batch: Batch) -> None:
        if self._captured is None:
            self.step(batch)
        else:
            self._captured(batch, kind=min(batch.epoch, self.objective.settled_at))

    @property
    def _progress(self) -> Any:
        """Return Lightning's account of steps, by which it tells whether there is anything new to checkpoint."""
        return self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress

    def step(self, batch: Batch) -> None:
        """Take one step of the optimizer."""
        (optimizer,) = self.trainer.optimizers
        optimizer.zero_grad()
        loss, meters = self.loss(batch)
        self.manual_backward(loss)
        optimizer.step()
        self._note(meters)
        if self.averaged is not None:  # at first faster, since they start from chance
            step = self._steps_before + self._steps
            decay = ((1 + step) / (10 + step)).clamp(max=self._cfg.weight_averaging)
            average_into(self.averaged, self.towers, decay)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Embed the batch's tags and images and return the loss, and the meters of the step."""
        resident = self._resident
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._cfg.math == "bfloat16"):
            vectors, residuals = resident.tag_vectors[batch.tag_rows], resident.residual_rows[batch.tag_rows]
            tags = in_parts(self._embed_tags, vectors, residuals)
            images = in_parts(self._embed_images, batch.features)
            if self._rank.of == 1:
                loss: Tensor = self.objective(tags, images, batch)
            else:
                loss, images = self._loss_of_all(tags, images, batch)
        cosine = mean_cosine(images.detach())
        return loss, {"loss": loss.detach(), "false_negatives": batch.false_negatives, "image_cosine": cosine}

    def _loss_of_all(self, tags: Tensor, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of the embeddings of all processes, and their images.

        Where images are drawn each is judged by itself, beside all tags; there the mean over the processes is the loss.
        """
        everybody = gather_embeddings(images, self._rank)
        if self.objective.draws == "images":
            return self.objective(tags, images, batch), everybody
        with same_draws(epoch_seed(self._cfg.seed, self.trainer.global_step, "loss"), self.device):
            return self.objective(gather_embeddings(tags, self._rank), everybody, batch), everybody

    def on_after_backward(self) -> None:
        """Average gradients over the processes."""
        average_gradients(self.parameters(), self._rank)

    def _note(self, meters: dict[str, Tensor]) -> None:
        """Add up meters, in place and without waiting for the device."""
        bad = (self._first_bad < 0) & ~torch.isfinite(meters["loss"])
        self._first_bad.copy_(torch.where(bad, self._steps, self._first_bad))
        self._steps += 1
        for name, meter in meters.items():
            self._sums[name] += meter

    def _stop_if_diverged(self) -> None:
        if (step := int(self._first_bad)) >= 0:
            raise self._diverged("the loss is", step)

    def _diverged(self, what: str, step: int) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what} not finite at epoch {self.current_epoch}, batch {step}. {self._kept()}. "
            f"Lower learning_rate={self._cfg.learning_rate}, under another run=."
        )

    def _tell_collapse(self, means: dict[str, float]) -> None:
        """Say that images are becoming one embedding; where they have, stop."""
        cosine, way_out = means["image_cosine"], f"{self.objective.way_out}, under another run=."
        found = (
            f"epoch {self.current_epoch}: the mean cosine of images to each other is {cosine:.4f}, and the loss stands "
            f"at {means['loss']:.4f}"
        )
        if cosine > COLLAPSED:
            raise TrainingCollapsed(f"all images have become one embedding at {found}. {self._kept()}. {way_out}")
        if cosine > COLLAPSING:
            log.warning("images are becoming one embedding at %s. %s", found, way_out)

    def _kept(self) -> str:
        epoch = self.current_epoch
        return f"The checkpoints of epoch {epoch - 1} are kept" if epoch else "There is no checkpoint yet"

    def on_train_epoch_end(self) -> None:
        """Judge the towers on the validation split and write the epoch down."""
        self._stop_if_diverged()
        steps = int(self._steps)
        means = {name: float(mean_over(total, self._rank)) / max(steps, 1) for name, total in self._sums.items()}
        self._tell_collapse(means)
        val_map = self._judged(steps)
        told = {"train_loss": means["loss"], "val_map": val_map, "false_negatives": means["false_negatives"]}
        self.history.append({"epoch": self.current_epoch, **told})
        self.log_dict({**told, "image_cosine": means["image_cosine"]})
        log.info("epoch %d: train_loss %.4f, val_map %.4f, false_negatives %.4f", self.current_epoch, *told.values())

    def _judged(self, steps: int) -> float:
        """Return the val_map of the towers; one process judges for all."""
        value = torch.zeros((), device=self.device)  # in float32, as Lightning compares it: both name one best
        if self._judge is not None:
            self.published.eval()
            try:
                value.fill_(self._judge(self.published))
            except NotFiniteError as error:  # the last step broke the weights, and no later batch shows it
                raise self._diverged("scores are", steps - 1) from error
            self.published.train()
        return float(told_by_leader(value, self._rank))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of the config; residuals have a rate of their own, an objective's own do not decay."""
        cfg = self._cfg
        weights = [weight for name, weight in self.towers.named_parameters() if name != "residual"]
        groups: list[dict[str, Any]] = [{"params": weights}]
        if self.towers.residual is not None:
            groups.append({"params": [self.towers.residual], "lr": cfg.learning_rate * cfg.tag_residual})
        if own := list(self.objective.parameters()):
            groups.append({"params": own, "weight_decay": 0.0})
        if cfg.optimizer == "sgd":
            return torch.optim.SGD(
                groups, lr=cfg.learning_rate, momentum=cfg.momentum, weight_decay=cfg.weight_decay, fused=True
            )
        return torch.optim.AdamW(
            groups,
            lr=cfg.learning_rate,
            weight_decay=cfg.weight_decay,
            fused=True,
            capturable=self.device.type == "cuda",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history and the shape of the towers with the weights."""
        checkpoint["history"], checkpoint["shape"] = list(self.history), self.towers.shape

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = list(checkpoint["history"])
