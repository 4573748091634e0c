"""Stage `export`: write a run as ONNX beside a table of its tags, for where there is neither torch nor the data.

Reads   runs/<run>, data/index, data/tag_vectors, data/image_features
Writes  runs/<run>/export/{image_tower.onnx, tag_tower.onnx, tags.txt, tag_embeddings.npy, manifest.json}

`image_tower.onnx` maps image features (B, W), as the backbone gives them, to embeddings (B, D); `tag_tower.onnx` word
vectors (B, tag_dim) of tags without a residual, such as unseen ones. Row t of `tag_embeddings.npy` (T, D) is the tag of
line t of `tags.txt`, its residual in it. The score of a tag and an image is the product of their embeddings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.artifacts import (
    MANIFEST,
    ArtifactError,
    atomic_write,
    digest,
    exclusive,
    read_manifest,
    remove_partials,
    save_array,
    seal,
)
from configs.compose import recipe_config, register, resolved, run_stage
from features.runtimes import run_onnx
from train.config import ExportConfig
from train.runs import Inputs, open_run
from train.towers import Tower, TwoTowers, embed, embed_tags

log = logging.getLogger(__name__)
for chatty in ("onnxscript", "onnx_ir", "torch.onnx"):
    logging.getLogger(chatty).setLevel(logging.WARNING)  # each pass of their optimisers tells what it did
EXPORT_VERSION = 1  # raised when the same run would give other files
JUDGED_ROWS = 1000  # of each tower's real inputs, and as many random ones
TOLERANCE = 1e-5  # of a coordinate of a unit vector


def onnx_of(tower: Tower, input_name: str) -> bytes:
    """Return a tower as ONNX for any number of rows; equal towers are equal bytes."""
    width = len(tower.centre)
    program = torch.onnx.export(
        tower,
        (torch.zeros(2, width),),
        dynamo=True,
        dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}},
        input_names=[input_name],
        output_names=["embeddings"],
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch exported nothing")
    model: Any = program.model_proto
    for part in _parts(model):
        part.ClearField("metadata_props")  # where in torch's files each operator came from
        part.ClearField("doc_string")
    return bytes(model.SerializeToString(deterministic=True))


def _parts(model: Any) -> Iterator[Any]:
    graph = model.graph
    yield from (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info)


def judge(tower: Tower, model: bytes, rows: np.ndarray) -> float:
    """Return how far an ONNX tower is from the tower at most, over real rows (n, width) and as many random ones.

    Raises:
        ArtifactError: further than TOLERANCE.
    """
    rows = rows.astype(np.float32)
    noise = np.random.default_rng(0).normal(rows.mean(), rows.std() + 1e-3, rows.shape).astype(np.float32)
    asked = np.concatenate([rows, noise])
    expected = embed(tower, torch.from_numpy(asked)).numpy()
    found = np.concatenate([run_onnx(model, asked[:1]), run_onnx(model, asked[1:])])  # of one row, and of many
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise ArtifactError(
            f"an exported tower differs from the trained one by {difference:.2g} in a coordinate, more than "
            f"{TOLERANCE:g}; nothing was sealed. Versions that fit together stand in requirements.lock."
        )
    return difference


def write_export(directory: Path, towers: TwoTowers, inputs: Inputs) -> dict[str, Any]:
    """Write models and tags, and return the facts of an export."""
    known = np.flatnonzero(inputs.vectors.known)
    vectors = np.array(inputs.vectors.vectors[known])
    rows = np.random.default_rng(0).permutation(inputs.index.num_images)[:JUDGED_ROWS]
    samples = {
        "image_tower.onnx": (towers.image, "features", inputs.store.gather(np.array(inputs.index.image_ids)[rows])),
        "tag_tower.onnx": (towers.tag, "vectors", vectors[:JUDGED_ROWS]),
    }
    differences = {}
    for name, (tower, input_name, sample) in samples.items():
        model = onnx_of(tower, input_name)
        differences[name] = judge(tower, model, sample)
        atomic_write(directory / name, model)
    tags = [inputs.index.tags[row] for row in known]
    atomic_write(directory / "tags.txt", "".join(f"{tag}\n" for tag in tags))
    save_array(directory / "tag_embeddings.npy", embed_tags(towers, tags, torch.from_numpy(vectors)).numpy())
    return {"num_tags": len(tags), "largest_difference": differences}


def export(cfg: ExportConfig) -> Path:
    """Export a run and return the export's directory. Callable from tests without Hydra."""
    towers, run, inputs = open_run(cfg.paths, cfg.run)
    directory = cfg.paths.run(cfg.run) / "export"
    content = {**inputs.content, "run": run.content_id}
    recipe = digest([EXPORT_VERSION, recipe_config(cfg), content])
    with exclusive(directory):
        earlier = read_manifest(directory)
        if earlier is not None and earlier.recipe == recipe:
            log.info("already done: %s", directory)
            return directory
        (directory / MANIFEST).unlink(missing_ok=True)  # seconds of work from sealed inputs, so it may be made anew
        remove_partials(directory)
        facts = write_export(directory, towers, inputs)
        seal(
            directory,
            "export",
            config=resolved(cfg),
            files=["image_tower.onnx", "tag_tower.onnx", "tags.txt", "tag_embeddings.npy"],
            must_match=inputs.spaces,
            provenance=content,
            facts=facts,
            recipe=recipe,
        )
    differences = facts["largest_difference"]
    log.info(
        "export: %s, %d tags; OpenVINO differs from torch by at most %.1g (images) and %.1g (tags)",
        directory, facts["num_tags"], differences["image_tower.onnx"], differences["tag_tower.onnx"],
    )  # fmt: skip
    return directory


register("export", ExportConfig)

if __name__ == "__main__":
    run_stage(export, ExportConfig, "export")
