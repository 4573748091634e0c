"""Copies of earlier pictures join their group when they are accepted, so that they never straddle splits.

A picture's perceptual hash is looked up among those of all before it; what comes near is compared itself, as the audit
does. Memory holds some fifty bytes a picture. Hashes of committed shards lie beside them in `near/<shard>-<8 hex>.npy`,
name nothing, and are made from the pictures where they are missing. A group is fixed at first acceptance: pictures that
are there already keep theirs.

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
from crawl.compact import HASHES
from crawl.ingest.drawn import grey_thumbnail, rgb_picture
from crawl.near_copies import CROPS, PICTURE_PX, RADIUS, THUMBNAIL_PX, HashTable, hashes, is_flat, similarity
from crawl.shards import JpegReader, ShardWriter, committed_shards, shard_state

SIMILARITY = 0.92  # from which pictures are copies: what the audit takes by default
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
        found = [np.empty(0, dtype=np.uint64)]
        for path in committed_shards(collection):
            found.append(self._kept(path))
            self._ends.append((self._ends or [0])[-1] + len(found[-1]))
        self._recent: list[int] = []
        self._index(np.concatenate(found))

    def _index(self, values: np.ndarray) -> None:
        self._values, self._table, self._recent = values, HashTable(values), []

    def group_of(self, jpeg: bytes, shard: ShardWriter) -> str:
        """Return the group of an earlier picture that this one is a copy of, empty where there is none.

        Args:
            jpeg: as the gate stores it.
            shard: the one it goes into; its pictures follow those of the committed ones.
        """
        thumbnail = grey_thumbnail(jpeg, THUMBNAIL_PX)[None]
        flat = bool(is_flat(thumbnail)[0])
        group = "" if flat else self._find(jpeg, thumbnail, shard)
        self._recent.append(int(FLAT if flat else hashes(thumbnail)[0]))
        if len(self._recent) >= max(RECENT, len(self._values) // 8):
            self._index(self._all())
        return group

    def committed(self) -> None:
        """Take note that the shard of the latest pictures is committed, and keep their hashes beside it."""
        start, values = (self._ends or [0])[-1], self._all()
        self._ends.append(len(values))
        self._keep(committed_shards(self._collection)[-1], values[start:])

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()

    def _all(self) -> np.ndarray:
        return np.concatenate([self._values, np.array(self._recent, dtype=np.uint64)])

    def _find(self, jpeg: bytes, thumbnail: np.ndarray, shard: ShardWriter) -> str:
        picture = _compared(jpeg)
        for place, probe in self._near(thumbnail):
            other, group = self._picture(place, shard)
            if similarity(picture, _compared(other), probe) >= SIMILARITY:
                return group
        return ""

    def _near(self, thumbnail: np.ndarray) -> list[tuple[int, int]]:
        """Return places of pictures whose hashes are near, nearest first, and the probes that come nearest."""
        best: dict[int, tuple[int, int]] = {}
        recent = np.array(self._recent, dtype=np.uint64)
        for probe in ASKED:
            asked = hashes(thumbnail, probe)
            old = self._table.near(asked)[:, 1]
            places = np.concatenate([old, len(self._values) + np.arange(len(recent))])
            values = np.concatenate([self._values[old], recent])
            off = np.bitwise_count(values ^ asked[0])
            for at in np.flatnonzero((off <= RADIUS) & (values != FLAT)):
                place = int(places[at])
                best[place] = min(best.get(place, (65, 0)), (int(off[at]), probe))
        return [(place, best[place][1]) for place in sorted(best, key=lambda each: (best[each], each))[:TRIED]]

    def _picture(self, place: int, shard: ShardWriter) -> tuple[bytes, str]:
        """Return the JPEG and the group of a picture."""
        number = bisect_right(self._ends, place)
        if number == len(self._ends):
            image = shard.images[place - (self._ends or [0])[-1]]
            return shard.read(image), image["group"]
        image = _images(committed_shards(self._collection)[number])[place - (self._ends[number - 1] if number else 0)]
        return self._reader.read({**image, "shard": number}, image["image_id"]), image["group"]

    def _kept(self, path: Path) -> np.ndarray:
        """Return the hashes of a committed shard, made now where there are none of it as it is."""
        kept = self._file(path)
        if kept.is_file():
            return np.array(map_array(kept, "<u8", (None,)))
        number, images = int(path.stem), _images(path)
        jpegs = (self._reader.read({**image, "shard": number}, image["image_id"]) for image in images)
        thumbnails = np.array([grey_thumbnail(jpeg, THUMBNAIL_PX) for jpeg in jpegs], dtype=np.uint8)
        thumbnails = thumbnails.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
        values = np.where(is_flat(thumbnails), FLAT, hashes(thumbnails))
        self._keep(path, values)
        return values

    def _keep(self, path: Path, values: np.ndarray) -> None:
        kept = self._file(path)
        kept.parent.mkdir(exist_ok=True)
        for stale in kept.parent.glob(f"{path.stem}-*.npy"):  # of the shard before a takedown rewrote it
            stale.unlink()
        save_array(kept, values)

    def _file(self, path: Path) -> Path:
        return self._collection / HASHES / f"{path.stem}-{shard_state(path)['rows'][:8]}.npy"


@lru_cache(maxsize=4)
def _images(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a committed shard that are pictures."""
    rows = pq.read_table(path, columns=["image_id", "group", "offset", "size"]).to_pylist()
    return [row for row in rows if row["offset"] >= 0]


def _compared(jpeg: bytes) -> np.ndarray:
    """Return (3, S, S) of a stored JPEG, as pictures are compared."""
    return rgb_picture(jpeg, PICTURE_PX).transpose(2, 0, 1)
