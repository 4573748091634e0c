"""The inverted index: posting lists in compressed sparse rows, mapped from disk.

N images, T tags, P pairs. Image row r is line r of image_ids.txt (ascending), tag row t line t of tags.txt (ascending).
"""

from __future__ import annotations

import copy
import json
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    map_array,
    open_artifact,
)
from configs.compose import Paths
from configs.generations import current_generation
from crawl.records import LEFT_OUT, SPLITS, TRAIN
from crawl.shards import LOCATION

_ID_LINE = np.dtype([("image_id", "S16"), ("newline", "S1")])
FILES = ("image_ids.txt", "tags.txt", "offsets.npy", "postings.npy", "splits.npy", "locations.npy")


class InvertedIndex:
    """One generation of the index, read-only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            lines = np.memmap(directory / "image_ids.txt", dtype=_ID_LINE, mode="r")
            self.tags: list[str] = (directory / "tags.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            where = f"image_ids.txt or tags.txt of '{directory}'"
            raise ArtifactError(f"{where} cannot be read ({error}); `make verify` lists what is damaged") from error
        self.image_ids: np.ndarray = lines["image_id"]  # (N,) S16
        self.offsets = map_array(directory / "offsets.npy", "<i8", (len(self.tags) + 1,))
        self.postings = map_array(directory / "postings.npy", "<i4", (int(self.offsets[-1]),))
        self.splits = map_array(directory / "splits.npy", "u1", (len(self.image_ids),))
        self.locations = map_array(directory / "locations.npy", LOCATION, (len(self.image_ids),))

    @property
    def num_images(self) -> int:
        """Return N."""
        return len(self.image_ids)

    @property
    def num_tags(self) -> int:
        """Return T."""
        return len(self.tags)

    def posting_list(self, tag_row: int) -> np.ndarray:
        """Return the ascending image rows (int32) that carry a tag."""
        return self.postings[self.offsets[tag_row] : self.offsets[tag_row + 1]]

    @cached_property
    def document_frequency(self) -> np.ndarray:
        """Return (T,) int64, images that carry each tag."""
        frequency: np.ndarray = np.diff(self.offsets)
        return frequency

    def split_frequency(self, split: int) -> np.ndarray:
        """Return (T,) int64, images of a split that carry each tag."""
        inside = np.concatenate([[0], np.cumsum(self.splits[self.postings] == split)])
        return np.asarray(inside[self.offsets[1:]] - inside[self.offsets[:-1]])

    def tag_row(self, tag: str) -> int | None:
        """Return the row of a normalised tag, or None."""
        row = bisect_left(self.tags, tag)
        return row if row < len(self.tags) and self.tags[row] == tag else None

    def tags_from(self, prefix: str) -> range:
        """Return the rows of the tags that start with a prefix."""
        return range(bisect_left(self.tags, prefix), bisect_left(self.tags, prefix + "\U0010ffff"))

    def image_row(self, image_id: str) -> int | None:
        """Return the row of an image, or None."""
        key = image_id.encode("ascii", "replace")
        row = bisect_left(self.image_ids, key)  # `np.searchsorted` would copy all ids out of their lines
        return row if len(key) == 16 and row < self.num_images and self.image_ids[row] == key else None

    def image_id(self, row: int) -> str:
        """Return the image_id of a row."""
        return str(self.image_ids[row].decode())

    @cached_property
    def by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """The index the other way round: offsets (N+1,) int64 and tag rows (P,) int32, ascending an image."""
        tag_rows = np.repeat(np.arange(self.num_tags, dtype=np.int32), self.document_frequency)
        order = np.argsort(self.postings, kind="stable")
        counts = np.bincount(self.postings, minlength=self.num_images)
        return np.concatenate([[0], np.cumsum(counts)]), tag_rows[order]

    def planted(self, split: int) -> np.ndarray:
        """Return (n, 2) int32 pairs (tag row, image row) planted into the tags' lists of a split (val or test)."""
        pairs = map_array(self.directory / planted_file(split), "<i4", (None, 2))
        return np.asarray(pairs[self.splits[pairs[:, 1]] == split])

    def without(self, rows: np.ndarray) -> InvertedIndex:
        """Return the index with some images in no split: neither learnt from nor judged by."""
        other = copy.copy(self)
        other.splits = np.array(self.splits)
        other.splits[rows] = LEFT_OUT
        return other

    def export_tag2picid(self, path: Path) -> None:
        """Write tag -> image_ids as one JSON object."""
        ids = self.image_ids.astype("U16")
        tag2picid = {tag: ids[self.posting_list(row)].tolist() for row, tag in enumerate(self.tags)}
        atomic_write(path, json.dumps(tag2picid, ensure_ascii=False))


def planted_file(split: int) -> str:
    """Return the name of the planted pairs of a split."""
    return f"planted_{SPLITS[split]}.npy"


def open_index(paths: Paths) -> tuple[InvertedIndex, Manifest]:
    """Open the generation in force."""
    directory = current_generation(paths.artifact("index"), make="make index")
    manifest = open_artifact(directory, "index", make="make index")
    return InvertedIndex(directory), manifest


def intersect(lists: Sequence[np.ndarray]) -> np.ndarray:
    """AND: rows in every posting list, ascending. Starts from the shortest, so a rare tag makes a query cheap."""
    ordered = sorted(lists, key=len)
    rows = ordered[0]
    for other in ordered[1:]:
        if not len(rows) or not len(other):
            return rows[:0]
        at = np.minimum(np.searchsorted(other, rows), len(other) - 1)
        rows = rows[other[at] == rows]
    return rows


def unite(lists: Sequence[np.ndarray]) -> np.ndarray:
    """OR: rows in any posting list, ascending."""
    return np.unique(np.concatenate(lists))


def exclude(rows: np.ndarray, num_images: int) -> np.ndarray:
    """NOT: rows of the index that are not in a posting list, ascending."""
    outside = np.ones(num_images, dtype=bool)
    outside[rows] = False
    return np.flatnonzero(outside).astype(rows.dtype)


def eligible_tags(index: InvertedIndex, split: int, min_images: int = 3) -> np.ndarray:
    """Return the rows of tags with enough images to be judged in a split, and at least one to learn from."""
    enough = (index.split_frequency(split) >= min_images) & (index.split_frequency(TRAIN) >= 1)
    return np.flatnonzero(enough)
