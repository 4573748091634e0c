"""Thumbnails of stored pictures in a few fixed widths, kept in memory once made."""

from __future__ import annotations

import hashlib
import threading

from cachetools import LRUCache

from crawl.ingest.drawn import thumbnail
from serve.searchers.base import Hit, Searcher

WIDTHS = (160, 240, 360)  # pixels; beyond the last the stored picture itself, 512 px at most by default, is small
CACHE_BYTES = 48 * 2**20  # some 5,000 thumbnails
ROWS_PX = (("(min-width: 75rem)", 190), ("(min-width: 40rem)", 165), ("", 130))  # heights of a row, as in style.css


class Thumbnails:
    """Makes thumbnails and keeps the latest; safe from several threads, and the same for all runs."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self._kept: LRUCache[tuple[str, str, int], tuple[bytes, str]] = LRUCache(cache_bytes, getsizeof=_num_bytes)
        self._lock = threading.Lock()

    def get(self, searcher: Searcher, image_id: str, width_px: int) -> tuple[bytes, str] | None:
        """Return a thumbnail and its ETag, or None where there is no such image.

        Raises:
            OSError: the stored picture does not decode.
        """
        key = searcher.generation, image_id, width_px  # so that none outlives its picture, which may be taken down
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None:
            return kept
        jpeg = searcher.jpeg(image_id)
        if jpeg is None:
            return None
        small = thumbnail(jpeg, width_px)
        made = small, hashlib.sha256(small).hexdigest()[:32]
        with self._lock:
            if _num_bytes(made) <= self._kept.maxsize:
                self._kept[key] = made
        return made


def _num_bytes(kept: tuple[bytes, str]) -> int:
    return len(kept[0])


def widths_for(hit: Hit) -> tuple[int, ...]:
    """Return the widths in which a picture has a thumbnail: those below its own."""
    return tuple(width for width in WIDTHS if width < hit.width)


def sizes_for(ratio: float) -> str:
    """Return the attribute `sizes` of a picture in the grid: about as wide as its row's height times its ratio."""
    sizes = (f"{media} {round(height * ratio)}px".strip() for media, height in ROWS_PX)
    return ", ".join(sizes)
