"""Stage `publish`: embed every image with a run and put the posting lists in score order.

Reads   runs/<run>, data/index, data/tag_vectors, data/image_features, data/collection
Writes  data/served/<run>/<generation>/{embeddings.npy, tag_embeddings.npy, votes.npy, ranked.npy, records.arrow, ...,
        manifest.json}, with hard links to the index and tag vectors it answers from
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_open,
    digest,
    open_artifact,
    save_array,
    seal,
)
from configs.compose import register, resolved, run_stage
from configs.generations import add_generation, current_generation
from crawl.records import SCHEMA
from crawl.shards import Collection
from features.inverted_index import FILES, InvertedIndex
from serve.config import PublishConfig
from train.runs import Inputs, open_run
from train.towers import embed, embed_tags
from train.voting import open_voting

log = logging.getLogger(__name__)
PUBLISH_VERSION = 2
EMBEDDINGS, TAG_EMBEDDINGS, RANKED, RECORDS = "embeddings.npy", "tag_embeddings.npy", "ranked.npy", "records.arrow"
VOTES = "votes.npy"  # only where the run votes
TAG_VECTOR_FILES = ("vectors.npy", "known.npy")


def rank_postings(
    index: InvertedIndex, embeddings: np.ndarray, tag_embeddings: np.ndarray, votes: np.ndarray | None = None
) -> np.ndarray:
    """Return (P,) int32, each posting list by falling score, ties by ascending row.

    Args:
        index: with P postings.
        embeddings: (N, D) float16.
        tag_embeddings: (T, D) float32; a zero row leaves its list ascending, but for votes.
        votes: (P,) float16, added to the scores.
    """
    ranked = np.array(index.postings)
    for tag_row in range(index.num_tags):
        rows = index.posting_list(tag_row)
        scores = embeddings[rows].astype(np.float32) @ tag_embeddings[tag_row]
        start, end = index.offsets[tag_row], index.offsets[tag_row + 1]
        if votes is not None:
            scores += votes[start:end]
        ranked[start:end] = rows[np.argsort(-scores, kind="stable")]
    return ranked


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
    recipe = digest([PUBLISH_VERSION, run.content_id, inputs.content, collection.content_id])
    vectors_dir = current_generation(cfg.paths.artifact("tag_vectors"), make="make tag_vectors")
    words = open_artifact(vectors_dir, "tag_vectors", make="make tag_vectors").config

    def write(directory: Path) -> Manifest:
        index = inputs.index
        log.info("embedding %d images and %d tags", index.num_images, index.num_tags)
        embeddings = embed(towers.image, torch.from_numpy(inputs.features)).numpy().astype(np.float16)
        tags = embed_tags(towers, index.tags, torch.from_numpy(np.array(inputs.vectors.vectors))).numpy()
        tags[~np.asarray(inputs.vectors.known)] = 0  # nothing is known of what the tag means
        if not (np.isfinite(embeddings).all() and np.isfinite(tags).all()):
            raise ArtifactError(f"run '{cfg.run}' gives embeddings that are not finite; it cannot be published")
        save_array(directory / EMBEDDINGS, embeddings)
        save_array(directory / TAG_EMBEDDINGS, tags)
        votes = posting_votes(run, inputs)
        if votes is not None:
            save_array(directory / VOTES, votes)
        save_array(directory / RANKED, rank_postings(index, embeddings, tags, votes))
        with atomic_open(directory / RECORDS) as stream:
            records = records_table(collection, index).combine_chunks()
            with pa.ipc.new_file(stream, records.schema) as writer:
                writer.write_table(records)
        for name in FILES:
            _link(index.directory / name, directory / name)
        for name in TAG_VECTOR_FILES:
            _link(vectors_dir / name, directory / name)
        return seal(
            directory,
            "served",
            config=resolved(cfg),
            files=[
                *(EMBEDDINGS, TAG_EMBEDDINGS, RANKED, RECORDS, *FILES, *TAG_VECTOR_FILES),
                *([] if votes is None else [VOTES]),
            ],
            must_match=inputs.spaces,
            provenance={"run": run.content_id, "collection": collection.content_id, **inputs.content},
            facts={
                "num_images": index.num_images,
                "num_tags": index.num_tags,
                "val_map": run.facts["val_map"],
                "words": words["words"],  # the table in which unknown words are looked up
            },
            recipe=recipe,
        )

    directory, built = add_generation(cfg.paths.artifact("served") / cfg.run, "served", recipe, write)
    log.info("%s: %s", "published" if built else "already published", directory)
    return directory


register("publish", PublishConfig)

if __name__ == "__main__":
    run_stage(publish, PublishConfig, "publish")
