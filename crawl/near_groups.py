"""Copies of earlier pictures join their group when they are accepted, so that they never straddle splits.

A picture's perceptual hash is looked up among those of all before it; of what comes near first thumbnails and then the
pictures themselves are compared, as the audit does. Memory holds thirty bytes a picture. Thumbnails of 16 pixels of
committed shards lie beside them in `near/<shard>-<8 hex>.npy`, name nothing, and are made where they are missing.
A group is fixed at first acceptance: pictures that are there already keep theirs.

A place is the number of a picture, shard by shard and in a shard by its rows.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from configs.artifacts import map_array, save_array
from crawl.compact import NEAR
from crawl.ingest.drawn import grey_thumbnail, rgb_picture
from crawl.near_copies import (
    CROPS,
    MIN_COSINE,
    PICTURE_PX,
    RADIUS,
    THUMBNAIL_PX,
    HashTable,
    cosines,
    hashes,
    is_flat,
    probed_hashes,
    similarity,
)
from crawl.shards import JpegReader, ShardWriter, committed_shards, shard_state

# From which pictures are copies. Above the audit's 0.92, because a group is for ever: on the sample faces with another
# mouth and hearts of another red reach 0.98, and what lies between is left to the audit.
SIMILARITY = 0.985
RECENT = 1 << 14  # hashes compared one by one before they go into the table
TRIED = 8  # nearest by hash that are compared
# The picture as it is, and cut alike at two sides, in case the earlier one is a part of it; then the same mirrored.
ASKED = tuple(at * len(CROPS) + at + mirrored for mirrored in (0, len(CROPS) ** 2) for at in range(len(CROPS)))
FLAT = np.uint64(0)  # stands for a picture with too little detail for a hash


class NearGroups:
    """Hashes of all pictures of a collection, and the groups that copies of them join."""

    def __init__(self, collection: Path) -> None:
        self._collection = collection
        self._reader = JpegReader(collection)
        self._ends: list[int] = []  # place behind the last picture of each committed shard
        self._thumbnails: list[np.ndarray] = []  # (n, S, S) uint8 of each committed shard
        self._uncommitted: list[np.ndarray] = []  # (S, S) each
        found = [np.empty(0, dtype=np.uint64)]
        for path in committed_shards(collection):
            self._thumbnails.append(self._kept(path))
            self._ends.append((self._ends or [0])[-1] + len(self._thumbnails[-1]))
            found.append(_hashes(self._thumbnails[-1]))
        self._index(np.concatenate(found))

    def _index(self, values: np.ndarray) -> None:
        self._values, self._table, self._num_recent = values, HashTable(values), 0
        self._recent = np.empty(max(RECENT, len(values) // 8), dtype=np.uint64)

    def group_of(self, jpeg: bytes, shard: ShardWriter) -> str:
        """Return the group of an earlier picture that this one is a copy of, empty where there is none.

        Args:
            jpeg: as the gate stores it.
            shard: the one it goes into; its pictures follow those of the committed ones.
        """
        thumbnail = grey_thumbnail(jpeg, THUMBNAIL_PX)[None]
        flat = bool(is_flat(thumbnail)[0])
        group = "" if flat else self._find(jpeg, thumbnail, shard)
        self._recent[self._num_recent] = _hashes(thumbnail)[0]
        self._num_recent += 1
        self._uncommitted.append(thumbnail[0])
        if self._num_recent == len(self._recent):
            self._index(self._all())
        return group

    def committed(self) -> None:
        """Take note that the shard of the latest pictures is committed, and keep their thumbnails beside it."""
        path = committed_shards(self._collection)[-1]
        self._keep(path, np.array(self._uncommitted, dtype=np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX))
        self._thumbnails.append(self._kept(path))
        self._ends.append((self._ends or [0])[-1] + len(self._uncommitted))
        self._uncommitted = []

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _all(self) -> np.ndarray:
        return np.concatenate([self._values, self._recent[: self._num_recent]])

    def _find(self, jpeg: bytes, thumbnail: np.ndarray, shard: ShardWriter) -> str:
        near = self._near(thumbnail)
        if not near:
            return ""
        picture = _compared(jpeg)
        for place, probe in near:
            other, group = self._picture(place, shard)
            if similarity(picture, _compared(other), probe) >= SIMILARITY:
                return group
        return ""

    def _near(self, thumbnail: np.ndarray) -> list[tuple[int, int]]:
        """Return places of pictures that look alike from afar, most alike first, and the probes by which they do."""
        best: dict[int, tuple[float, int]] = {}
        asked = probed_hashes(thumbnail[0], ASKED)
        recent = self._recent[: self._num_recent]
        by, late = np.nonzero((np.bitwise_count(recent ^ asked[:, None]) <= RADIUS) & (recent != FLAT))
        old = self._table.near(asked)
        old = old[self._values[old[:, 1]] != FLAT]
        found = np.concatenate([old, np.column_stack([by, late + len(self._values)])])
        for at in np.unique(found[:, 0]).tolist():
            probe, near = ASKED[at], found[found[:, 0] == at, 1].tolist()
            others = np.stack([self._thumbnail(place) for place in near])
            alike = cosines(np.repeat(thumbnail, len(near), axis=0), others, probe)
            for place, cosine in zip(near, alike.tolist(), strict=True):
                if cosine >= MIN_COSINE:
                    best[place] = min(best.get(place, (0.0, 0)), (-cosine, probe))
        return [(place, best[place][1]) for place in sorted(best, key=lambda each: (best[each], each))[:TRIED]]

    def _thumbnail(self, place: int) -> np.ndarray:
        number = bisect_right(self._ends, place)
        start = self._ends[number - 1] if number else 0
        return (
            self._uncommitted[place - start] if number == len(self._ends) else self._thumbnails[number][place - start]
        )

    def _picture(self, place: int, shard: ShardWriter) -> tuple[bytes, str]:
        """Return the JPEG and the group of a picture."""
        number = bisect_right(self._ends, place)
        if number == len(self._ends):
            image = shard.images[place - (self._ends or [0])[-1]]
            return shard.read(image), image["group"]
        image = _images(committed_shards(self._collection)[number])[place - (self._ends[number - 1] if number else 0)]
        return self._reader.read({**image, "shard": number}, image["image_id"]), image["group"]

    def _kept(self, path: Path) -> np.ndarray:
        """Return the thumbnails of a committed shard, made now where there are none of it as it is."""
        shape, kept = (None, THUMBNAIL_PX, THUMBNAIL_PX), self._file(path)
        if kept.is_file():
            return map_array(kept, "u1", shape)
        number, images = int(path.stem), _images(path)
        jpegs = (self._reader.read({**image, "shard": number}, image["image_id"]) for image in images)
        thumbnails = np.array([grey_thumbnail(jpeg, THUMBNAIL_PX) for jpeg in jpegs], dtype=np.uint8)
        self._keep(path, thumbnails.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX))
        return map_array(kept, "u1", shape)

    def _keep(self, path: Path, thumbnails: np.ndarray) -> None:
        kept = self._file(path)
        kept.parent.mkdir(exist_ok=True)
        for stale in kept.parent.glob(f"{path.stem}-*.npy"):  # of the shard before a takedown rewrote it
            stale.unlink()
        save_array(kept, thumbnails)

    def _file(self, path: Path) -> Path:
        return self._collection / NEAR / f"{path.stem}-{shard_state(path)['rows'][:8]}.npy"


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 hashes of thumbnails, FLAT for those with too little detail."""
    return np.where(is_flat(thumbnails), FLAT, hashes(thumbnails))


@lru_cache(maxsize=4)
def _images(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a committed shard that are pictures."""
    rows = pq.read_table(path, columns=["image_id", "group", "offset", "size"]).to_pylist()
    return [row for row in rows if row["offset"] >= 0]


def _compared(jpeg: bytes) -> np.ndarray:
    """Return (3, S, S) of a stored JPEG, as pictures are compared."""
    return rgb_picture(jpeg, PICTURE_PX).transpose(2, 0, 1)
