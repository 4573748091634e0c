"""Traces of pictures below some folders: files that name them, JPEGs in tars, and rows of features.

What is compressed is looked into: Parquet tables are decoded. JPEGs and rows are recognised by digest, so that a search
needs no copy of what is searched for.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.artifacts import LOCK
from crawl.tombstones import TOMBSTONES_FILE, Tombstone, jpeg_digest

CHUNK_BYTES = 1 << 24
ID_CHARS = 16
FEW = 32  # image_ids that are cheaper looked for one by one
_HEX = re.compile(rb"[0-9a-f]{16,}")
# Files of ids, one a line, and of the rows that belong to them, by their suffixes or names.
ROWS_OF_IDS = ((".ids", ".npy"), ("image_ids.txt", "embeddings.npy"))


@dataclass
class Searched:
    """What a search looked into, and what it found, as sentences."""

    num_files: int = 0
    num_bytes: int = 0
    num_tables: int = 0  # decoded
    num_jpegs: int = 0  # compared by digest
    num_rows: int = 0  # compared by digest
    found: list[str] = field(default_factory=list)


def search(roots: Sequence[Path], tombstones: Sequence[Tombstone]) -> Searched:
    """Look below folders for all that tombstones tell of; tombstones themselves may name it."""
    ids = frozenset(each.image_id for each in tombstones if each.image_id)
    jpegs = frozenset(each.jpeg for each in tombstones if each.jpeg)
    rows = frozenset(row for each in tombstones for row in each.features)
    searched = Searched()
    for path in files_below(roots):
        searched.num_files += 1
        searched.num_bytes += path.stat().st_size
        searched.num_tables += path.suffix == ".parquet"
        if told := tells(path, ids):
            searched.found.append(f"'{path}' names {', '.join(sorted(told))}")
        for name, digest in _digests_of_jpegs(path) if jpegs and path.suffix == ".tar" else ():
            searched.num_jpegs += 1
            if digest in jpegs:
                searched.found.append(f"'{path}' holds its JPEG as {name}")
        for row, digest in _digests_of_rows(path) if rows else ():
            searched.num_rows += 1
            if digest in rows:
                searched.found.append(f"'{path}' holds its feature in row {row}")
    return searched


def files_below(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield all files below folders but tombstones and locks, ascending, each once."""
    found = {path.resolve(): path for root in roots for path in root.rglob("*") if path.is_file()}
    yield from sorted(path for path in found.values() if path.name not in (TOMBSTONES_FILE, LOCK))


def tells(path: Path, image_ids: Collection[str]) -> set[str]:
    """Return which images a file names, in its name or anywhere in its bytes."""
    wanted = {image_id.encode() for image_id in image_ids}
    told = {image_id for image_id in wanted if image_id in path.name.encode(errors="replace")}
    chunks = _decoded(path) if path.suffix == ".parquet" else _chunks(path)
    for chunk in chunks if wanted else ():
        told |= _named(chunk, wanted)
    return {image_id.decode() for image_id in told}


def _named(text: bytes, wanted: set[bytes]) -> set[bytes]:
    if len(wanted) <= FEW:
        return {image_id for image_id in wanted if image_id in text}
    runs = (run.group() for run in _HEX.finditer(text))
    return {run[at : at + ID_CHARS] for run in runs for at in range(len(run) - ID_CHARS + 1)} & wanted


def _chunks(path: Path) -> Iterator[bytes]:
    """Yield a file in pieces that overlap, so that no image_id is cut in two."""
    with path.open("rb") as stream:
        tail = b""
        while chunk := stream.read(CHUNK_BYTES):
            yield tail + chunk
            tail = chunk[-(ID_CHARS - 1) :]


def _decoded(path: Path) -> Iterator[bytes]:
    """Yield the texts of a Parquet file, and its bytes, as a damaged one cannot be decoded."""
    yield from _chunks(path)
    try:
        table = pq.ParquetFile(path)
        for batch in table.iter_batches():
            for column in batch.columns:
                if pa.types.is_string(column.type):
                    yield "\n".join(text or "" for text in column.to_pylist()).encode(errors="replace")
    except (OSError, ValueError):
        return


def _digests_of_jpegs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield name and digest of the members of a tar, up to where it is damaged."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                stored = archive.extractfile(member) if member.isreg() else None
                if stored is not None:
                    yield member.name, jpeg_digest(stored.read())
    except tarfile.TarError:
        return


def ids_beside(path: Path) -> Path | None:
    """Return the file of ids that an array's rows belong to, or None where it is no such array."""
    for ids, rows in ROWS_OF_IDS:
        beside = path.with_suffix(ids) if rows == path.suffix and ids.startswith(".") else path.with_name(ids)
        if path.name.endswith(rows) and beside.is_file():
            return beside
    return None


def _rows(path: Path) -> np.ndarray | None:
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    return array if array.ndim == 2 and array.dtype.kind == "f" else None


def _digests_of_rows(path: Path) -> Iterator[tuple[int, str]]:
    rows = _rows(path) if path.suffix == ".npy" else None
    for number, row in enumerate(rows if rows is not None else ()):
        yield number, row_digest(row)


def row_digest(row: np.ndarray) -> str:
    """Name a row of features."""
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()


def features_of(roots: Sequence[Path], image_ids: Collection[str]) -> dict[str, set[str]]:
    """Return image_id -> digests of its rows in all stores, without those that a picture which stays has, too.

    A grey picture shares its histogram with others, and would be found for ever.
    """
    wanted = np.array(sorted(image_ids), dtype="S16")
    found: dict[str, set[str]] = {image_id: set() for image_id in image_ids}
    for arrays in _arrays(roots).values():
        own = _own_rows(arrays, wanted)
        shared = _shared(arrays, wanted, own) if own else set()
        for image_id, rows in own.items():
            found[image_id] |= {row_digest(row) for row in rows} - shared
    return found


def _arrays(roots: Sequence[Path]) -> dict[Path, list[tuple[np.ndarray, np.ndarray]]]:
    """Return folder -> ids (n,) S16 and rows (n, W) of its arrays."""
    arrays: dict[Path, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path in files_below(roots):
        beside = ids_beside(path) if path.suffix == ".npy" else None
        rows = _rows(path) if beside is not None else None
        if beside is not None and rows is not None:
            ids = np.array(beside.read_bytes().split(), dtype="S16")
            if len(ids) == len(rows):
                arrays.setdefault(path.parent, []).append((ids, rows))
    return arrays


def _own_rows(arrays: Iterable[tuple[np.ndarray, np.ndarray]], wanted: np.ndarray) -> dict[str, list[np.ndarray]]:
    own: dict[str, list[np.ndarray]] = {}
    for ids, rows in arrays:
        for at in np.flatnonzero(np.isin(ids, wanted)):
            own.setdefault(ids[at].decode(), []).append(np.array(rows[at]))
    return own


def _shared(
    arrays: Iterable[tuple[np.ndarray, np.ndarray]], wanted: np.ndarray, own: dict[str, list[np.ndarray]]
) -> set[str]:
    """Return the digests of those rows that images which stay have as well."""
    shared = set()
    for ids, rows in arrays:
        stays = ~np.isin(ids, wanted)
        for row in (row for each in own.values() for row in each):
            alike = np.flatnonzero(stays & (np.asarray(rows[:, 0]) == row[0]))
            if len(alike) and (np.asarray(rows[alike]) == row).all(axis=1).any():
                shared.add(row_digest(row))
    return shared
