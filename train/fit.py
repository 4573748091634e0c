"""Stage `train`: fit the two towers and write a run directory.

Reads   data/index, data/audit, data/tag_vectors, data/image_features; data/collection/tag_relations.csv if there is one
Writes  runs/<run>/{config.yaml, towers.safetensors, history.csv, manifest.json}; beside the seal README.md (its card),
        checkpoints/ and logs/
"""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerStatus

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    exclusive,
    file_sha256,
    read_manifest,
    remove_partials,
    seal,
)
from configs.compose import recipe_config, register, resolved, run_stage
from crawl.records import TRAIN, VAL
from crawl.shards import RELATIONS_FILE
from crawl.tags import read_relations
from features.inverted_index import InvertedIndex
from features.runtimes import resolve
from train.audit import audited, check_leakage
from train.batches import (
    FeatureSource,
    ResidentFeatures,
    TrainingSet,
    is_withheld,
    open_batches,
    spared_tags,
    training_pairs,
)
from train.card import CARD, data_facts, write_card
from train.config import TrainConfig
from train.distributed import ALONE, Rank, launch, share
from train.feature_stream import StreamedFeatures, fits_in_memory
from train.galleries import Question, gallery_question, mean_average_precision
from train.module import (
    AtomicCheckpoints,
    Blocks,
    Launched,
    MovableCheckpoint,
    Patience,
    Resident,
    TwoTowerModule,
    published_towers,
)
from train.objectives import open_objective
from train.ranking import Scorer
from train.runs import Inputs, open_inputs
from train.towers import TwoTowers, embed, embed_tags, save_towers
from train.voting import open_voting, votes_on

log = logging.getLogger(__name__)
TRAIN_VERSION = 2  # raised when the same config would give other towers


def open_run_dir(cfg: TrainConfig, recipe: str) -> tuple[Path, Manifest | None]:
    """Create or re-enter the directory of a run; returns its manifest where it is finished.

    Raises:
        ArtifactError: the name belongs to a run of another config or of other inputs.
    """
    run_dir = cfg.paths.run(cfg.run)
    saved = run_dir / "config.yaml"
    text = f"# recipe {recipe}\n{OmegaConf.to_yaml(OmegaConf.create(resolved(cfg)))}"
    if saved.is_file() and saved.read_text(encoding="utf-8").splitlines()[:1] != text.splitlines()[:1]:
        raise ArtifactError(
            f"run '{cfg.run}' in '{run_dir}' has another config or other inputs: {_difference(saved, text)}. "
            "Choose another name with run=<name>, or delete that directory."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    if not saved.is_file():
        atomic_write(saved, text)
    return run_dir, read_manifest(run_dir)


def _difference(saved: Path, text: str) -> str:
    old, new = saved.read_text(encoding="utf-8").splitlines(), text.splitlines()
    changed = [f"{was.strip()} -> {now.strip()}" for was, now in zip(old[1:], new[1:], strict=False) if was != now]
    return "; ".join(changed[:5]) or "the index, its audit, tag vectors or image features have changed"


def settled(cfg: TrainConfig, inputs: Inputs) -> TrainConfig:
    """Decide where features are to lie; a run keeps to what it began with, on a machine of another memory too."""
    if cfg.features_in != "auto":
        return cfg
    if cfg.objective == "hinge_means":
        return replace(cfg, features_in="memory")
    saved = cfg.paths.run(cfg.run) / "config.yaml"
    text = saved.read_text(encoding="utf-8") if saved.is_file() else ""
    if kept := re.search(r"^features_in: (memory|stream)$", text, re.MULTILINE):
        return replace(cfg, features_in=kept[1])
    num_bytes = inputs.index.num_images * inputs.store.width * np.dtype(np.float16).itemsize
    fits = fits_in_memory(num_bytes, torch.device(resolve("torch", cfg.device)[1]), cfg.devices)
    return replace(cfg, features_in="memory" if fits else "stream")


def validation(index: InvertedIndex, inputs: Inputs, cfg: TrainConfig) -> Question:
    """Return question A on the validation split, at most `val_tags` tags of it."""
    known = inputs.vectors.known & ~np.array([is_withheld(tag, cfg.withhold_tags) for tag in index.tags], dtype=bool)
    question = gallery_question(index, VAL, np.asarray(known))
    if not len(question.tag_rows):
        raise ArtifactError(
            "no tag has 3 val images and a train image, so no checkpoint can be chosen: "
            f"{index.num_images} images are too few for {index.num_tags} tags"
        )
    chosen = np.zeros(len(question.tag_rows), dtype=bool)
    chosen[np.random.default_rng(0).permutation(len(chosen))[: cfg.val_tags]] = True
    return question.only(chosen, "val")


def judge_on(question: Question, inputs: Inputs, cfg: TrainConfig) -> Callable[[TwoTowers], float]:
    """Return the function that gives towers their val_map, votes included; these are the same in every epoch."""
    voting = open_voting(vars(cfg), inputs.features_at, inputs.index)
    votes = None if voting is None else votes_on(question, voting, cfg.tag_voting)
    tags = torch.from_numpy(np.array(inputs.vectors.vectors[question.tag_rows]))
    images = torch.from_numpy(inputs.features_at(question.gallery))
    names = [inputs.index.tags[row] for row in question.tag_rows]

    def judge(towers: TwoTowers) -> float:
        scorer = Scorer("towers", embed_tags(towers, names, tags).numpy(), embed(towers.image, images).numpy(), votes)
        return mean_average_precision(question, scorer)

    return judge


def new_towers(inputs: Inputs, tag_rows: np.ndarray, cfg: TrainConfig) -> TwoTowers:
    """Build towers with the weights of the seed, scaled to the images of the train split and the tags trained on."""
    torch.manual_seed(cfg.seed)
    towers = TwoTowers(
        tag_dim=inputs.vectors.vectors.shape[1],
        image_dim=inputs.store.width,
        hidden_dim=cfg.hidden_dim,
        embed_dim=cfg.embed_dim,
        activation=cfg.activation,
        feature_dropout=cfg.feature_dropout,
        hidden_dropout=cfg.hidden_dropout,
        depth=cfg.depth,
        normalisation=cfg.normalisation,
        residual_tags=[inputs.index.tags[row] for row in tag_rows] if cfg.tag_residual else (),
    )
    if cfg.scaling == "standardise":
        train_rows = np.flatnonzero(inputs.index.splits == TRAIN)
        sample = np.sort(np.random.default_rng(cfg.seed).permutation(train_rows)[:50_000])
        towers.image.scale_by(torch.from_numpy(inputs.features_at(sample)))
        towers.tag.scale_by(torch.from_numpy(inputs.vectors.vectors[tag_rows]))
    return towers


def new_trainer(run_dir: Path, device: str, cfg: TrainConfig) -> pl.Trainer:
    """Build the trainer: two checkpoints (best and last), early stop, two logs a start."""
    saving: dict[str, Any] = {
        "dirpath": run_dir / "checkpoints",
        "mode": "max",
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
    }
    # Two of them, because Lightning's `save_last` skips epochs that are not the best. The last one saved holds the
    # state of both.
    callbacks: list[Any] = [
        MovableCheckpoint(filename="best", monitor="val_map", **saving),
        MovableCheckpoint(filename="last", **saving),
    ]
    if cfg.patience:
        callbacks.append(Patience("val_map", mode="max", patience=cfg.patience, check_on_train_epoch_end=True))
    version = f"part-{len(list((run_dir / 'logs').glob('part-*'))) + 1}"
    return pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=cfg.devices,
        strategy=Launched() if cfg.devices > 1 else "auto",
        max_epochs=cfg.max_epochs,
        callbacks=callbacks,
        plugins=[AtomicCheckpoints()],
        logger=[
            CSVLogger(run_dir, name="logs", version=version),
            TensorBoardLogger(run_dir, name="logs", version=version),
        ],
        default_root_dir=run_dir,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )


def history_csv(history: list[dict[str, float]]) -> str:
    """Return the history of a run as CSV, one row an epoch."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["epoch", "train_loss", "val_map", "false_negatives"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return stream.getvalue()


def open_training_set(inputs: Inputs, cfg: TrainConfig) -> TrainingSet:
    """Collect what batches are drawn from; relations between tags lie beside the collection."""
    index = inputs.index
    pairs = training_pairs(index, np.asarray(inputs.vectors.known), cfg.withhold_tags)
    spared = spared_tags(index, read_relations(relations_file(cfg)))
    return TrainingSet(pairs, index.num_tags, index.by_image, spared, cfg.frequency_weighting)


def shaping(cfg: TrainConfig) -> dict[str, Any]:
    """Return what of a config shapes a run."""
    return {name: value for name, value in recipe_config(cfg).items() if name != "max_leakage"}


def relations_file(cfg: TrainConfig) -> Path:
    """Return where relations between tags would lie."""
    return cfg.paths.artifact("collection") / RELATIONS_FILE


def open_feature_source(
    inputs: Inputs, drawn_images: np.ndarray, cfg: TrainConfig, device: torch.device, rank: Rank = ALONE
) -> FeatureSource:
    """Return where batches get the features of the images they draw: the disk through a buffer, or memory."""
    if cfg.features_in == "stream":
        image_ids, buffer = np.asarray(inputs.index.image_ids), max(1, cfg.shuffle_buffer // rank.of)
        return StreamedFeatures(inputs.store, image_ids, drawn_images, buffer, device)
    if rank.of == 1:
        return ResidentFeatures(torch.from_numpy(inputs.features), device)
    images = np.unique(drawn_images)
    return ResidentFeatures(torch.from_numpy(inputs.features_at(images)), device, torch.from_numpy(images))


def train_towers(inputs: Inputs, cfg: TrainConfig, run_dir: Path) -> tuple[TwoTowers, list[dict[str, float]]]:
    """Train to the end, from the last checkpoint where there is one; return the best towers and the history."""
    kind = resolve("torch", cfg.device)[1]
    if kind == "cuda" and torch.cuda.device_count() < cfg.devices:
        raise ArtifactError(f"devices={cfg.devices}, but torch sees {torch.cuda.device_count()} CUDA devices")
    if cfg.devices == 1:
        train_part(ALONE, cfg, run_dir, inputs)
    else:
        launch(train_part, cfg.devices, kind, cfg, run_dir)
    saved = [AtomicCheckpoints().load_checkpoint(run_dir / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt")]
    return published_towers(saved[0]), saved[1]["history"]


def train_part(rank: Rank, cfg: TrainConfig, run_dir: Path, inputs: Inputs | None = None) -> None:
    """Train to the end, alone or as one process of several, and leave the checkpoints."""
    inputs = inputs or audited(open_inputs(cfg), cfg.paths)
    device = torch.device(resolve("torch", cfg.device)[1])
    training = open_training_set(inputs, cfg)
    objective = open_objective(cfg, training.prior)
    drawn_images = training.drawn_images(objective.draws)
    features = open_feature_source(inputs, drawn_images[share(drawn_images, rank)[0]], cfg, device, rank)
    towers = new_towers(inputs, training.vocabulary, cfg)
    resident = Resident(torch.from_numpy(np.array(inputs.vectors.vectors)), towers.residual_rows(inputs.index.tags))
    question = validation(inputs.index, inputs, cfg)
    judge = judge_on(question, inputs, cfg) if rank.leads else None
    module = TwoTowerModule(towers, objective, resident, judge, cfg, rank)
    batches = open_batches(training, features, objective.draws, cfg, device, lambda: module.current_epoch, rank)
    last = run_dir / "checkpoints" / "last.ckpt"
    trainer = new_trainer(run_dir, device.type, cfg)
    log.info(
        "training run=%s seed=%d on %d pairs of %d images, %d val tags, on %s%s%s%s",
        cfg.run, cfg.seed, len(training.pairs[0]), inputs.index.num_images, len(question.tag_rows), device,
        f" in {rank.of} processes" if rank.of > 1 else "",
        f", features streamed through a buffer of {cfg.shuffle_buffer} images" if cfg.features_in == "stream" else "",
        ", resumed" if last.is_file() else "",
    )  # fmt: skip
    trainer.fit(module, Blocks(batches), ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    if trainer.state.status is not TrainerStatus.FINISHED:
        raise SystemExit(130)  # Lightning swallows Ctrl-C; what it stopped is no finished run


def fit(cfg: TrainConfig) -> Path:
    """Train one run and return its directory. Callable from tests without Hydra."""
    found = open_inputs(cfg)
    check_leakage(cfg.paths, found.index, cfg.max_leakage)
    inputs = audited(found, cfg.paths)
    cfg = settled(cfg, inputs)
    relations = relations_file(cfg)
    if relations.is_file():
        inputs.content["tag_relations"] = file_sha256(relations)
    recipe = digest([TRAIN_VERSION, shaping(cfg), inputs.content, inputs.spaces])
    run_dir, finished = open_run_dir(cfg, recipe)
    if finished is not None:
        log.info("already done: %s, val_map %.4f", run_dir, finished.facts["val_map"])
        if not (run_dir / CARD).is_file():
            write_card(run_dir)
        return run_dir
    with exclusive(run_dir):
        _fit(cfg, inputs, run_dir, recipe)
    return run_dir


def _fit(cfg: TrainConfig, inputs: Inputs, run_dir: Path, recipe: str) -> None:
    for folder in (run_dir, run_dir / "checkpoints"):
        if folder.is_dir():
            remove_partials(folder)
    towers, history = train_towers(inputs, cfg, run_dir)
    best = max(history, key=lambda row: (row["val_map"], -row["epoch"]))
    save_towers(towers, run_dir / "towers.safetensors")
    atomic_write(run_dir / "history.csv", history_csv(history))
    seal(
        run_dir,
        "run",
        config=resolved(cfg),
        files=["config.yaml", "towers.safetensors", "history.csv"],
        content={name: file_sha256(run_dir / name) for name in ("towers.safetensors", "history.csv")},
        must_match=inputs.spaces,
        provenance=inputs.content,
        facts={
            "val_map": best["val_map"],
            "best_epoch": int(best["epoch"]),
            "num_epochs": len(history),
            "parameters": sum(weight.numel() for weight in towers.parameters()),
            "data": data_facts(inputs, cfg),
        },
        recipe=recipe,
    )
    write_card(run_dir)
    log.info("run %s: val_map %.4f at epoch %d of %d", run_dir, best["val_map"], best["epoch"], len(history))


register("train", TrainConfig)

if __name__ == "__main__":
    run_stage(fit, TrainConfig, "train")
