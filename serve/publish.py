"""Stage `publish`: embed every image with a run and put the posting lists in score order.

Reads   runs/<run> with its evaluation, data/index, data/tag_vectors, data/image_features, data/collection
Writes  data/served/<run>/<generation>/ with the files that `serve/generation.py` names, and hard links to the index,
        tag vectors and towers it answers from
"""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from configs.artifacts import ArtifactError, Manifest, atomic_write, open_artifact, save_array, seal
from configs.compose import register, resolved, run_stage
from configs.generations import add_generation, current_generation
from crawl.records import SCHEMA, from_row
from crawl.shards import RELATIONS_FILE, Collection
from crawl.tags import read_relations
from features.inverted_index import FILES, InvertedIndex
from serve.config import PublishConfig
from serve.gallery import write_gallery
from serve.generation import (
    KIND,
    QUALITY,
    RELATED,
    SCHEMA_VERSION,
    TAG_VECTOR_FILES,
    TOWERS,
    evaluation_of,
    recipe_of,
    related_rows,
    write_columns,
    write_embeddings,
    write_records,
)
from train.calibrated import CALIBRATION
from train.report import TRAINED
from train.runs import Inputs, open_run
from train.towers import embed, embed_tags
from train.voting import open_voting

log = logging.getLogger(__name__)


def posting_votes(run: Manifest, inputs: Inputs) -> np.ndarray | None:
    """Return (P,) float16, the run's weight times the votes on each posting, or None where it has no votes."""
    voting = open_voting(run.config, inputs.features_at, inputs.index)
    if voting is None:
        return None
    return np.asarray(run.config["tag_voting"] * voting.votes_by_posting(), dtype=np.float16)


def records_table(collection: Collection, index: InvertedIndex) -> pa.Table:
    """Return the records in the order of image rows, tags of later rows united with the first."""
    table = collection.table([*SCHEMA.names, "offset"])
    ids = np.array(table.column("image_id").to_pylist(), dtype="S16")
    is_image = table.column("offset").to_numpy() >= 0
    known, first = np.unique(ids[is_image], return_index=True)
    indexed = np.asarray(index.image_ids)
    at = np.minimum(np.searchsorted(known, indexed), len(known) - 1)
    if gone := int((known[at] != indexed).sum()):
        raise ArtifactError(
            f"{gone} of the index's {len(indexed)} images are no longer in the collection. "
            "Run `make features`, then publish again."
        )
    records = table.filter(pa.array(is_image)).take(pa.array(first[at])).select(SCHEMA.names)
    later = ~is_image & np.isin(ids, indexed)
    if not later.any():
        return records
    united = records.column("tags").to_pylist()
    for image_id, tags in zip(ids[later], table.filter(pa.array(later)).column("tags").to_pylist(), strict=True):
        united[int(np.searchsorted(indexed, image_id))] += tags
    return records.set_column(records.schema.get_field_index("tags"), SCHEMA.field("tags"), pa.array(united))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def publish(cfg: PublishConfig) -> Path:
    """Publish a run against the index in force and return the generation. Callable from tests without Hydra."""
    towers, run, inputs = open_run(cfg.paths, cfg.run)
    collection = Collection(cfg.paths.artifact("collection"))
    vectors_dir = current_generation(cfg.paths.artifact("tag_vectors"), make="make tag_vectors")
    words = open_artifact(vectors_dir, "tag_vectors", make="make tag_vectors").config
    evaluation = evaluation_of(cfg.paths, cfg.run, run.content_id)
    recipe = recipe_of(cfg.paths, cfg.run)

    def write(directory: Path) -> Manifest:
        index = inputs.index
        log.info("embedding %d images and %d tags", index.num_images, index.num_tags)
        embeddings = embed(towers.image, torch.from_numpy(inputs.features)).numpy().astype(np.float16)
        tags = embed_tags(towers, index.tags, torch.from_numpy(np.array(inputs.vectors.vectors))).numpy()
        tags[~np.asarray(inputs.vectors.known)] = 0  # nothing is known of what the tag means
        if not (np.isfinite(embeddings).all() and np.isfinite(tags).all()):
            raise ArtifactError(f"run '{cfg.run}' gives embeddings that are not finite; it cannot be published")
        write_embeddings(directory, index, embeddings, tags, posting_votes(run, inputs))
        gallery = write_gallery(directory, embeddings, tags)
        write_collection(directory, collection, index)
        for name in FILES:
            _link(index.directory / name, directory / name)
        for name in TAG_VECTOR_FILES:
            _link(vectors_dir / name, directory / name)
        _link(cfg.paths.run(cfg.run) / TOWERS, directory / TOWERS)
        take_evaluation_in(directory, cfg, evaluation, index)
        return seal(
            directory,
            KIND,
            config=resolved(cfg),
            files=[path.name for path in directory.iterdir()],
            must_match=inputs.spaces,
            provenance={"run": run.content_id, "collection": collection.content_id, **inputs.content},
            facts={
                "num_images": index.num_images,
                "num_tags": index.num_tags,
                "val_map": run.facts["val_map"],
                "gallery_index": gallery,
                "words": words["words"],  # the table in which unknown words are looked up
            },
            recipe=recipe,
            schema_version=SCHEMA_VERSION,
        )

    directory, built = add_generation(cfg.paths.artifact(KIND) / cfg.run, KIND, recipe, write)
    log.info("%s: %s", "published" if built else "already published", directory)
    return directory


def write_collection(directory: Path, collection: Collection, index: InvertedIndex) -> None:
    """Write what is shown of images, and what they are filtered and sorted by."""
    table = records_table(collection, index)
    licences, kinds, dates = (table.column(name).to_pylist() for name in ("licence", "kind", "fetched_at"))
    write_columns(directory, licences, kinds, dates, index.locations)
    write_records(directory, (from_row(row) for batch in table.to_batches(8192) for row in batch.to_pylist()))
    related = related_rows(index, read_relations(collection.directory / RELATIONS_FILE))
    atomic_write(directory / RELATED, json.dumps(related, ensure_ascii=False))


def take_evaluation_in(directory: Path, cfg: PublishConfig, evaluation: Manifest | None, index: InvertedIndex) -> None:
    """Copy the calibration of the run's evaluation and the quality of tags, or say how they are made."""
    source = cfg.paths.run(cfg.run) / "evaluation" / "test"
    if evaluation is None or CALIBRATION not in evaluation.files:
        make = f'make evaluate ARGS="run={cfg.run}"'
        log.warning(
            "scores are served without probabilities: run '%s' has no calibration; `%s` makes it", cfg.run, make
        )
    else:
        _link(source / CALIBRATION, directory / CALIBRATION)
    if evaluation is not None:
        save_array(directory / QUALITY, quality_of(source / "per_tag.csv", index))


def quality_of(per_tag: Path, index: InvertedIndex) -> np.ndarray:
    """Return (T,) float32, the average precision of each tag in the gallery of test, NaN where it was not judged."""
    quality = np.full(index.num_tags, np.nan, np.float32)
    with per_tag.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            tag_row = index.tag_row(row["tag"])
            if (row["question"], row["system"]) == ("gallery", TRAINED) and tag_row is not None and row["map"]:
                quality[tag_row] = float(row["map"])
    return quality


register("publish", PublishConfig)

if __name__ == "__main__":
    run_stage(publish, PublishConfig, "publish")
