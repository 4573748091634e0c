"""Stage `index`: invert the tags of the collection.

Reads   data/collection
Writes  data/index/<generation>/{image_ids.txt, tags.txt, offsets.npy, postings.npy, splits.npy, locations.npy,
        planted_val.npy, planted_test.npy, tag2picid.json where asked for, manifest.json}
"""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    file_sha256,
    save_array,
    seal,
)
from configs.compose import register, resolved, run_stage
from configs.generations import add_generation
from crawl.records import SPLITS, TEST, VAL
from crawl.shards import LOCATION, RELATIONS_FILE, Collection, splits_of
from crawl.tags import TAG_RULES, normalise_tag, read_relations, related_tags
from features.config import IndexConfig
from features.inverted_index import FILES, InvertedIndex, eligible_tags, planted_file

log = logging.getLogger(__name__)
INDEX_VERSION = 1  # of what this stage computes; raised when the same collection would give another index


def invert(lists: pa.ChunkedArray, image_rows: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray, int]:
    """Invert lists of tags as given.

    Args:
        lists: (R,) lists of text, one a row of the collection.
        image_rows: (R,) int, the image each row is about; rows of one image are united.

    Returns:
        Tags ascending; offsets (T+1,) int64; postings (P,) int32 ascending a tag; how many given tags were empty.
    """
    column = lists.combine_chunks()
    parents = np.asarray(pc.list_parent_indices(column))
    given = pc.list_flatten(column).dictionary_encode()
    spellings = [normalise_tag(text or "") for text in given.dictionary.to_pylist()]
    tags = sorted(set(spellings) - {""})
    row_of = {tag: row for row, tag in enumerate(tags)} | {"": -1}
    tag_rows = np.array([row_of[text] for text in spellings], dtype=np.int64)[np.asarray(given.indices)]
    kept = tag_rows >= 0
    pairs = np.unique(np.stack([tag_rows[kept], image_rows[parents[kept]]], axis=1), axis=0)
    offsets = np.searchsorted(pairs[:, 0], np.arange(len(tags) + 1)).astype(np.int64)
    return tags, offsets, pairs[:, 1].astype(np.int32), int((~kept).sum())


def plant(index: InvertedIndex, split: int, relations: dict[str, dict[str, set[str]]]) -> np.ndarray:
    """Choose wrong pictures for each eligible tag's list, ceil(n/4) for n right ones, so 20 % of the list.

    They come from the same split, carry neither the tag nor an alias, plural or broader tag of it, and are drawn by a
    seed made from the tag, so that all runs are judged on the same lists.

    Returns:
        (n, 2) int32 pairs (tag row, image row), ascending.
    """
    pairs = []
    in_split = index.splits == split
    for tag_row in eligible_tags(index, split):
        tag = index.tags[tag_row]
        related = (index.tag_row(other) for other in related_tags(tag, relations))
        free = in_split.copy()
        for row in (tag_row, *(row for row in related if row is not None)):
            free[index.posting_list(row)] = False
        right = int(in_split[index.posting_list(tag_row)].sum())
        seed = hashlib.sha256(f"{SPLITS[split]}:{tag}".encode()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        pool = np.flatnonzero(free)
        chosen = rng.choice(pool, size=min(math.ceil(right / 4), len(pool)), replace=False)
        pairs += [(tag_row, image_row) for image_row in np.sort(chosen)]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


def write_index(collection: Collection, directory: Path) -> dict[str, Any]:
    """Write the arrays of an index and return its facts."""
    table = collection.table(["group", "tags", "offset", "size"])
    ids = np.array(table.column("image_id").to_pylist(), dtype="S16")
    is_image = table.column("offset").to_numpy() >= 0
    image_ids, first = np.unique(ids[is_image], return_index=True)
    if not len(image_ids):
        raise ArtifactError(f"the collection in '{collection.directory}' holds no image; see its refused/ folder")
    rows = np.searchsorted(image_ids, ids)
    tags, offsets, postings, num_empty = invert(table.column("tags"), rows)
    images = table.filter(pa.array(is_image)).take(pa.array(first))
    locations = np.empty(len(image_ids), dtype=LOCATION)
    for name in ("shard", "offset", "size"):
        locations[name] = images.column(name).to_numpy()
    splits = splits_of(images.column("group").to_pylist())
    atomic_write(directory / "image_ids.txt", b"".join(image_id + b"\n" for image_id in image_ids.tolist()))
    atomic_write(directory / "tags.txt", "".join(tag + "\n" for tag in tags))
    arrays = {"offsets": offsets, "postings": postings, "splits": splits, "locations": locations}
    for name, array in arrays.items():
        save_array(directory / f"{name}.npy", array)
    return {
        "num_images": len(image_ids),
        "num_tags": len(tags),
        "num_pairs": len(postings),
        "num_empty_tags": num_empty,
        "num_untagged_images": len(image_ids) - len(np.unique(postings)),
        **{f"num_{name}": int((splits == split).sum()) for split, name in enumerate(SPLITS)},
    }


def build(cfg: IndexConfig) -> Path:
    """Build the index of the collection as it stands and return its generation. Callable from tests without Hydra."""
    collection = Collection(cfg.paths.artifact("collection"))
    root = cfg.paths.artifact("index")
    recipe = digest([INDEX_VERSION, TAG_RULES, cfg.tag2picid, collection.content_id])

    def write(directory: Path) -> Manifest:
        log.info("inverting the tags of %d images", collection.manifest.facts["num_images"])
        facts = write_index(collection, directory)
        index = InvertedIndex(directory)
        relations = read_relations(collection.directory / RELATIONS_FILE)
        files = [*FILES]
        for split in (VAL, TEST):
            save_array(directory / planted_file(split), plant(index, split, relations))
            files.append(planted_file(split))
        content = {name: file_sha256(directory / name) for name in files}
        if cfg.tag2picid:  # an export of the same content
            index.export_tag2picid(directory / "tag2picid.json")
            files.append("tag2picid.json")
        return seal(
            directory,
            "index",
            config=resolved(cfg),
            files=files,
            content=content,
            must_match={"tag_rules": TAG_RULES, **collection.manifest.must_match},
            provenance={"collection": collection.content_id},
            facts=facts,
            recipe=recipe,
        )

    directory, built = add_generation(root, "index", recipe, write)
    log.info("%s: %s", "index" if built else "already done", directory)
    return directory


register("index", IndexConfig)

if __name__ == "__main__":
    run_stage(build, IndexConfig, "index")
