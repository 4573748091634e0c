"""The Lightning side of training: one step, the epoch's judgement, and checkpoints that survive a kill."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from configs.artifacts import ArtifactError, atomic_write
from train.batches import Batch, epoch_seed
from train.config import TrainConfig
from train.objectives import Objective
from train.ranking import NotFiniteError
from train.towers import TwoTowers

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it has is said once, by us
# Lightning 2.6.6 asks torch 2.15 for a class of trees that torch calls deprecated.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")  # that is a resume
METERS = ("loss", "false_negatives", "image_cosine")  # means over the steps of an epoch
CHECK_EVERY = 50  # steps between looks for NaN on the host, which wait for the device


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


class Patience(EarlyStopping):
    """Lightning's early stop, also for a run that was killed after its last epoch but before its seal."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add no epoch to a run that had stopped."""
        trainer.should_stop = self.wait_count >= self.patience


@dataclass(frozen=True)
class Resident:
    """What training looks up by row, kept on the device."""

    tag_vectors: Tensor  # (T, tag_dim)
    residual_rows: Tensor  # (T,) int64, -1 for tags without a residual
    features: Tensor  # (N, W)

    def to(self, device: torch.device) -> Resident:
        """Return the same on a device."""
        return Resident(self.tag_vectors.to(device), self.residual_rows.to(device), self.features.to(device))


def mean_cosine(embeddings: Tensor) -> Tensor:
    """Return the mean cosine of embeddings (C, D), C at least 2, to each other."""
    size = len(embeddings)
    return (embeddings.sum(dim=0).square().sum() - size) / (size * (size - 1))


@torch.no_grad()
def average_into(averaged: TwoTowers, towers: TwoTowers, decay: float) -> None:
    """Keep `decay` of each averaged weight and take the rest from the trained one: Polyak and Juditsky, 1992."""
    for mean, weight in zip(averaged.parameters(), towers.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


class TwoTowerModule(pl.LightningModule):
    """Two towers over features that stay where the towers are."""

    def __init__(
        self,
        towers: TwoTowers,
        objective: Objective,
        resident: Resident,
        judge: Callable[[TwoTowers], float],
        cfg: TrainConfig,
    ) -> None:
        super().__init__()
        self.towers = towers
        self.averaged = copy.deepcopy(towers).requires_grad_(False) if cfg.weight_averaging else None
        self.objective = objective
        self._resident = resident  # no part of the state
        self._judge = judge
        self._cfg = cfg
        self.history: list[dict[str, float]] = []
        self._first_bad: Tensor | None = None
        self._sums: dict[str, Tensor] = {}

    @property
    def published(self) -> TwoTowers:
        """Return the towers that are judged and kept: the averaged ones where weights are averaged."""
        return self.towers if self.averaged is None else self.averaged

    def setup(self, stage: str) -> None:
        """Take vectors and features to the device, once."""
        self._resident = self._resident.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch by its number, so that dropout after a resume is that of an unbroken run."""
        torch.manual_seed(epoch_seed(self._cfg.seed, self.current_epoch, "dropout"))
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._sums = {name: torch.zeros((), device=self.device) for name in METERS}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave a batch where it was made: on the device."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Embed the batch's tags and images and return the loss."""
        resident = self._resident
        tags = self.towers.tag_embeddings(resident.tag_vectors[batch.tag_rows], resident.residual_rows[batch.tag_rows])
        images = self.towers.image(resident.features[batch.image_rows])
        loss: Tensor = self.objective(tags, images, batch)
        meters = {
            "loss": loss.detach(),
            "false_negatives": batch.false_negatives,
            "image_cosine": mean_cosine(images.detach()),
        }
        self._note(meters, batch_idx)
        return loss

    def _note(self, meters: dict[str, Tensor], step: int) -> None:
        if self._first_bad is None:
            raise RuntimeError("a step outside an epoch")
        first = (self._first_bad < 0) & ~torch.isfinite(meters["loss"])
        self._first_bad = torch.where(first, torch.full_like(self._first_bad, step), self._first_bad)
        self._sums = {name: self._sums[name] + meter for name, meter in meters.items()}
        if step % CHECK_EVERY == 0:
            self._stop_if_diverged()

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Let the averaged towers follow the trained ones; at first faster, since they start from chance."""
        if self.averaged is not None:
            step = self.trainer.global_step
            average_into(self.averaged, self.towers, min(self._cfg.weight_averaging, (1 + step) / (10 + step)))

    def _stop_if_diverged(self) -> None:
        step = -1 if self._first_bad is None else int(self._first_bad)
        if step >= 0:
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
        steps = int(self.trainer.num_training_batches)
        means = {name: float(total) / max(steps, 1) for name, total in self._sums.items()}
        self._tell_collapse(means)
        self.published.eval()
        try:
            judged = self._judge(self.published)
        except NotFiniteError as error:  # the last step broke the weights, and no later batch shows it
            raise self._diverged("scores are", steps - 1) from error
        self.published.train()
        val_map = float(torch.tensor(judged, dtype=torch.float32))  # what Lightning compares: both name one best
        told = {"train_loss": means["loss"], "val_map": val_map, "false_negatives": means["false_negatives"]}
        self.history.append({"epoch": self.current_epoch, **told})
        self.log_dict({**told, "image_cosine": means["image_cosine"]})
        log.info("epoch %d: train_loss %.4f, val_map %.4f, false_negatives %.4f", self.current_epoch, *told.values())

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
            return torch.optim.SGD(groups, lr=cfg.learning_rate, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        return torch.optim.AdamW(groups, lr=cfg.learning_rate, weight_decay=cfg.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history with the weights."""
        checkpoint["history"] = list(self.history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = list(checkpoint["history"])
