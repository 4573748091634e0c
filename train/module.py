"""The Lightning side of training: one step, the epoch's judgement, and checkpoints that survive a kill."""

from __future__ import annotations

import io
import logging
import pickle
import warnings
from collections.abc import Callable, Mapping
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
CHECK_EVERY = 50  # steps between looks for NaN on the host, which wait for the device


class TrainingDiverged(ArtifactError):
    """The loss is no longer finite."""


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


class TwoTowerModule(pl.LightningModule):
    """Two towers over features that stay where the towers are."""

    def __init__(
        self,
        towers: TwoTowers,
        objective: Objective,
        tag_vectors: Tensor,
        features: Tensor,
        judge: Callable[[TwoTowers], float],
        cfg: TrainConfig,
    ) -> None:
        super().__init__()
        self.towers = towers
        self._objective = objective
        self._resident = {"tags": tag_vectors, "images": features}  # no part of the state
        self._judge = judge
        self._cfg = cfg
        self.history: list[dict[str, float]] = []
        self._first_bad: Tensor | None = None
        self._loss_sum: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Take vectors and features to the device, once."""
        self._resident = {name: rows.to(self.device) for name, rows in self._resident.items()}

    def on_train_epoch_start(self) -> None:
        """Seed the epoch by its number, so that dropout after a resume is that of an unbroken run."""
        torch.manual_seed(epoch_seed(self._cfg.seed, self.current_epoch, "dropout"))
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._loss_sum = torch.zeros((), device=self.device)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave a batch where it was made: on the device."""
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Score the batch's tags against its images and return the loss."""
        scores = self.towers(self._resident["tags"][batch.tag_rows], self._resident["images"][batch.image_rows])
        loss = self._objective.loss(scores, batch.relevant)
        self._note(loss.detach(), batch_idx)
        return loss

    def _note(self, loss: Tensor, step: int) -> None:
        if self._first_bad is None or self._loss_sum is None:
            raise RuntimeError("a step outside an epoch")
        first = (self._first_bad < 0) & ~torch.isfinite(loss)
        self._first_bad = torch.where(first, torch.full_like(self._first_bad, step), self._first_bad)
        self._loss_sum = self._loss_sum + loss
        if step % CHECK_EVERY == 0:
            self._stop_if_diverged()

    def _stop_if_diverged(self) -> None:
        step = -1 if self._first_bad is None else int(self._first_bad)
        if step >= 0:
            raise self._diverged("the loss is", step)

    def _diverged(self, what: str, step: int) -> TrainingDiverged:
        epoch = self.current_epoch
        kept = f"The checkpoints of epoch {epoch - 1} are kept" if epoch else "There is no checkpoint yet"
        return TrainingDiverged(
            f"{what} not finite at epoch {epoch}, batch {step}. {kept}. "
            f"Lower learning_rate={self._cfg.learning_rate}, under another run=."
        )

    def on_train_epoch_end(self) -> None:
        """Judge the towers on the validation split and write the epoch down."""
        self._stop_if_diverged()
        steps = int(self.trainer.num_training_batches)
        self.towers.eval()
        try:
            judged = self._judge(self.towers)
        except NotFiniteError as error:  # the last step broke the weights, and no later batch shows it
            raise self._diverged("scores are", steps - 1) from error
        self.towers.train()
        val_map = float(torch.tensor(judged, dtype=torch.float32))  # what Lightning compares: both name one best
        loss = float(self._loss_sum if self._loss_sum is not None else torch.nan) / max(steps, 1)
        self.history.append({"epoch": self.current_epoch, "train_loss": loss, "val_map": val_map})
        self.log_dict({"train_loss": loss, "val_map": val_map})
        log.info("epoch %d: train_loss %.4f, val_map %.4f", self.current_epoch, loss, val_map)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of the config."""
        cfg = self._cfg
        if cfg.optimizer == "sgd":
            return torch.optim.SGD(
                self.parameters(), lr=cfg.learning_rate, momentum=cfg.momentum, weight_decay=cfg.weight_decay
            )
        return torch.optim.AdamW(self.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history with the weights."""
        checkpoint["history"] = list(self.history)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history up again."""
        self.history = list(checkpoint["history"])
