"""Word tables: vectors by word, opened without being read, and how a table may spell a tag.

W words, D width of a vector.
"""

from __future__ import annotations

import mmap
import os
import re
import weakref
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    file_sha256,
    map_array,
    open_artifact,
    save_array,
    seal,
)

CARRIED = Path(__file__).parent / "carried"
PHRASE_RULE = "1"  # version of `spellings`, `parts` and of what is made of them; part of the word space
FILES = ("words.txt", "offsets.npy", "order.npy", "vectors.npy")


class WordTable(Protocol):
    """Word vectors by word."""

    dim: int
    digest: str  # of the table's bytes

    def vector(self, word: str) -> np.ndarray | None:
        """Return the (dim,) float32 vector of a word as it is spelt, or None."""
        ...


class CarriedWords:
    """The table in the repository: 106,321 English words, int8 with a float32 scale a row, mapped."""

    def __init__(self, directory: Path = CARRIED) -> None:
        words = (directory / "words_200d.txt").read_text(encoding="utf-8").splitlines()
        self._row = {word: row for row, word in enumerate(words)}
        self._rows = map_array(directory / "words_200d.npy", "i1", (len(words), 200))
        self._scale = np.load(directory / "words_200d_scale.npy", mmap_mode="r", allow_pickle=False).reshape(-1)
        self.dim = 200
        names = ("words_200d.txt", "words_200d.npy", "words_200d_scale.npy")
        self.digest = digest([file_sha256(directory / name) for name in names])

    def vector(self, word: str) -> np.ndarray | None:
        """Return the vector of a word, or None."""
        row = self._row.get(word)
        return None if row is None else self._rows[row].astype(np.float32) * self._scale[row]


class Table(NamedTuple):
    """A table in memory, on its way to the disk."""

    words: list[str]  # all different, the most frequent first where the source knows: rows used then lie together
    vectors: np.ndarray  # (W, D) float, row r is of word r
    digest: str


def seal_table(
    directory: Path,
    table: Table,
    recipe: str,
    *,
    config: Mapping[str, Any],
    provenance: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a table as `StoredWords` reads it: words, the byte each starts at, and their rows in order of bytes."""
    encoded = [_encoded(word) for word in table.words]
    ends = np.cumsum([len(word) + 1 for word in encoded], dtype=np.int64)
    atomic_write(directory / "words.txt", b"".join(word + b"\n" for word in encoded))
    save_array(directory / "offsets.npy", np.concatenate([np.zeros(1, np.int64), ends]))
    save_array(directory / "order.npy", np.array(sorted(range(len(encoded)), key=encoded.__getitem__), np.int32))
    save_array(directory / "vectors.npy", table.vectors.astype(np.float32, copy=False))
    return seal(
        directory,
        "words",
        config=config,
        files=FILES,
        must_match={"table": table.digest},
        provenance=provenance,
        facts={"num_words": len(encoded), "dim": table.vectors.shape[1], **(facts or {})},
        recipe=recipe,
    )


class StoredWords:
    """A sealed table on disk; a word is found by bisection in mapped arrays, so that opening reads next to nothing.

    Vectors are read row by row and not mapped: around each row touched the kernel would map 64 KiB or more of what it
    has cached, and a thousand words made 313 MB resident. Safe from several threads.

    Raises:
        ArtifactError: a file is missing, or does not have the size of the others.
    """

    def __init__(self, directory: Path) -> None:
        manifest = open_artifact(directory, "words", make="make tag_vectors")
        vectors = map_array(directory / "vectors.npy", "<f4", (None, None))  # (W, D)
        num_words, self.dim = vectors.shape
        self._vectors = os.open(directory / "vectors.npy", os.O_RDONLY | os.O_CLOEXEC)
        self._row_bytes = vectors.itemsize * self.dim
        self._start = os.fstat(self._vectors).st_size - vectors.nbytes
        weakref.finalize(self, os.close, self._vectors)
        # The views give plain integers several times faster than the arrays.
        self._offsets = map_array(directory / "offsets.npy", "<i8", (num_words + 1,)).data
        self._order = map_array(directory / "order.npy", "<i4", (num_words,)).data
        self._text = _map_bytes(directory / "words.txt", self._offsets[num_words])
        self.digest = manifest.must_match["table"]

    def vector(self, word: str) -> np.ndarray | None:
        """Return the vector of a word, with a capital where the table knows it only so, or None."""
        for spelling in (word, word.capitalize()):
            if (row := self._row(_encoded(spelling))) is not None:
                stored = os.pread(self._vectors, self._row_bytes, self._start + row * self._row_bytes)
                return np.frombuffer(stored, "<f4")
        return None

    def _row(self, word: bytes) -> int | None:
        at = bisect_left(self._order, word, key=self._word)
        found = at < len(self._order) and self._word(self._order[at]) == word
        return self._order[at] if found else None

    def _word(self, row: int) -> bytes:
        return self._text[self._offsets[row] : self._offsets[row + 1] - 1]


def _encoded(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")  # a pickle may hold half a character


def _map_bytes(path: Path, size: int) -> mmap.mmap:
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error
    if len(mapped) != size:
        raise ArtifactError(f"'{path}' has {len(mapped)} bytes, offsets.npy beside it says {size}")
    return mapped


def spellings(tag: str) -> list[str]:
    """Return how a table may spell a whole tag: as it is, or its blanks as `_` or `-`, as word2vec tables do."""
    return [tag] if " " not in tag else [tag.replace(" ", "_"), tag.replace(" ", "-")]


def parts(tag: str) -> list[str]:
    """Return the words of a tag, split at blanks and hyphens."""
    return [part for part in re.split(r"[ -]+", tag) if part]
