"""The collection on disk: WebDataset shards beside Parquet tables with byte offsets.

`00000.tar` holds `<image_id>.jpg` and `<image_id>.json`; `00000.parquet` one row an image, and one with offset -1
where an image known already got new tags. The Parquet file is written last and commits its shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.artifacts import (
    PARTIAL,
    ArtifactError,
    Manifest,
    atomic_open,
    atomic_write,
    digest,
    open_artifact,
    sync_directory,
)
from crawl.records import SHARD_SCHEMA, Record, as_row, split_of
from crawl.tombstones import Tombstones

RELATIONS_FILE = "tag_relations.csv"
STATE_KEY = b"tagtower"
COMPACTED = "taken_down"  # the fact of a manifest that says which takedowns its shards went through
_BATCH = 10_000  # rows of a table that are read at a time
TAR_NAME_BYTES = 100  # the first field of a member's header
DAMAGED_OR_OTHER = (
    "`make verify` lists damage; where it finds none the index is of another collection: run `make features`"
)
_BUFFER = 2**20  # bytes that are written at a time
LOCATION = np.dtype([("shard", "<i4"), ("offset", "<i8"), ("size", "<i4")])


def shard_name(number: int) -> str:
    """Return the five-digit name of a shard, without a suffix."""
    return f"{number:05d}"


class ShardWriter:
    """Collects one shard and commits it whole.

    The tar grows under a partial name, so that memory holds only rows.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self.directory = directory
        self.name = shard_name(number)
        self.rows: list[dict[str, Any]] = []
        self.refusals: list[dict[str, str]] = []
        self.num_images = 0
        self._partial = directory / f"{PARTIAL}{os.getpid()}-{self.name}.tar"
        self._stream = self._partial.open("wb", buffering=_BUFFER)  # closed by commit or discard
        self._tar = tarfile.TarFile(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)

    def add_image(self, record: Record, jpeg: bytes) -> None:
        """Append an image and its record."""
        offset = self._add_member(f"{record.image_id}.jpg", jpeg)
        row = as_row(record)
        timeless = row | {"extra": record.extra, "fetched_at": ""}
        self._add_member(f"{record.image_id}.json", json.dumps(timeless, ensure_ascii=False, sort_keys=True).encode())
        self.rows.append({**row, "offset": offset, "size": len(jpeg)})
        self.num_images += 1

    @property
    def images(self) -> list[dict[str, Any]]:
        """The rows that are pictures, in order."""
        return [row for row in self.rows if row["offset"] >= 0]

    def read(self, row: Mapping[str, Any]) -> bytes:
        """Return the JPEG of one of the rows."""
        self._stream.flush()
        with self._partial.open("rb") as stream:
            stream.seek(row["offset"])
            return stream.read(row["size"])

    def add_tags(self, record: Record) -> None:
        """Append a row that only brings new tags for an image of an earlier row."""
        self.rows.append({**as_row(record), "offset": -1, "size": 0})

    def refuse(self, key: str, reason: str, detail: str) -> None:
        """List something that did not become an image."""
        self.refusals.append({"key": key, "reason": reason, "detail": detail})

    def _add_member(self, name: str, content: bytes) -> int:
        member = tarfile.TarInfo(name)  # mtime 0 and no owner by default, so that equal content is equal bytes
        member.size = len(content)
        start = self._tar.offset
        self._tar.addfile(member, io.BytesIO(content))
        return start + tarfile.BLOCKSIZE

    def commit(self, state: dict[str, Any]) -> None:
        """Put tar, refusals and, last, the Parquet file in place; `state` travels in the latter."""
        self._tar.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._partial.replace(self.directory / f"{self.name}.tar")
        sync_directory(self.directory)
        refused = self.directory / "refused"
        refused.mkdir(exist_ok=True)
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.refusals)
        atomic_write(refused / f"{self.name}.jsonl", "".join(lines))
        state = {**state, "rows": _digest_rows(self.rows), "refused": dict(Counter(e["reason"] for e in self.refusals))}
        table = pa.Table.from_pylist(self.rows, schema=SHARD_SCHEMA)
        with atomic_open(self.directory / f"{self.name}.parquet") as stream:
            pq.write_table(table.replace_schema_metadata({STATE_KEY: json.dumps(state)}), stream, compression="zstd")

    def discard(self) -> None:
        """Drop a shard that was not committed."""
        self._stream.close()
        self._partial.unlink(missing_ok=True)


def _digest_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return what `digest` gives for rows without their times, of which only one is written out at a time."""
    sha256, between = hashlib.sha256(b"["), b""
    for row in rows:
        timeless = {key: value for key, value in row.items() if key != "fetched_at"}
        sha256.update(between + json.dumps(timeless, sort_keys=True, ensure_ascii=False).encode())
        between = b", "
    sha256.update(b"]")
    return sha256.hexdigest()


def committed_shards(directory: Path) -> list[Path]:
    """Parquet files of committed shards in order, up to the first gap."""
    shards: list[Path] = []
    while (path := directory / f"{shard_name(len(shards))}.parquet").is_file():
        shards.append(path)
    return shards


def shard_state(parquet: Path) -> dict[str, Any]:
    """Return what `ShardWriter.commit` was told of a shard.

    Raises:
        ArtifactError: the table is damaged or was not written here.
    """
    try:
        state: dict[str, Any] = json.loads((pq.read_schema(parquet).metadata or {})[STATE_KEY])
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"'{parquet}' is no table of a shard ({error}); `make verify` names damage") from error
    return state


def tags_said(parquet: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield image_id and tags of the rows of a shard; an image may have several rows."""
    with pq.ParquetFile(parquet) as table:
        for batch in table.iter_batches(batch_size=_BATCH, columns=["image_id", "tags"]):
            ids, tags = (batch.column(name).to_pylist() for name in ("image_id", "tags"))
            yield from zip(ids, (each or [] for each in tags), strict=True)


def compacted_digest(image_ids: Iterable[str]) -> str:
    """Name a set of images that were taken down without telling which."""
    return digest(sorted(image_ids))


def num_images(parquet: Path) -> int:
    """Count the images of a shard, which are its rows with a place in the tar."""
    return int((pq.read_table(parquet, columns=["offset"])["offset"].to_numpy() >= 0).sum())


class Collection:
    """Reader of a sealed collection; tombstoned images do not exist for it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest = open_artifact(directory, "collection", make="make crawl")
        self.shards = sorted(directory / name for name in self.manifest.files if name.endswith(".parquet"))

    @property
    def content_id(self) -> str:
        """Content of the shards, with what was taken down and is not compacted yet."""
        gone = self.tombstones()
        if compacted_digest(gone) == self.manifest.facts.get(COMPACTED, compacted_digest(())):
            return self.manifest.content_id
        return digest([self.manifest.content_id, sorted(gone)])

    def tombstones(self) -> frozenset[str]:
        """image_ids that were taken down."""
        return Tombstones(self.directory).image_ids

    def table(self, columns: Iterable[str]) -> pa.Table:
        """Read columns of all rows in crawl order, with `shard` and `image_id` first.

        Rows with offset -1 bring tags for an image of an earlier row.
        """
        wanted = ["image_id", *(name for name in columns if name != "image_id")]
        schema = pa.schema([SHARD_SCHEMA.field(name) for name in wanted])
        parts = [schema.insert(0, pa.field("shard", pa.int32())).empty_table()]
        for number, path in enumerate(self.shards):
            try:
                part = pq.read_table(path, columns=wanted).replace_schema_metadata(None)
            except (OSError, ValueError) as error:
                raise ArtifactError(
                    f"'{path}' cannot be read ({error}); `make verify` lists what is damaged"
                ) from error
            parts.append(part.add_column(0, "shard", pa.array(np.full(len(part), number, np.int32))))
        table = pa.concat_tables(parts)
        gone = self.tombstones()
        if not gone:
            return table
        ids = table.column("image_id").to_pylist()
        return table.filter(pa.array([image_id not in gone for image_id in ids], pa.bool_()))


class JpegReader:
    """Random access to the stored JPEGs by location; safe from several threads."""

    def __init__(self, collection: Path) -> None:
        self.collection = collection
        self._descriptors: dict[Path, int] = {}

    def read(self, location: np.void | Mapping[str, int], image_id: str) -> bytes:
        """Return the bytes of one JPEG after a look at the tar header before it, which names the image.

        Args:
            location: a `LOCATION` scalar, or its fields.
            image_id: of the image that should lie there.

        Raises:
            ArtifactError: the shard is gone, cut, or of another collection than the location.
        """
        path = self.collection / f"{shard_name(int(location['shard']))}.tar"
        start, size = int(location["offset"]) - tarfile.BLOCKSIZE, int(location["size"]) + tarfile.BLOCKSIZE
        try:
            member = os.pread(self._open(path), size, start)
        except OSError as error:
            raise ArtifactError(f"'{path}' cannot be read ({error.strerror}); {DAMAGED_OR_OTHER}") from error
        name = member[:TAR_NAME_BYTES].rstrip(b"\0")
        if len(member) >= tarfile.BLOCKSIZE and name != f"{image_id}.jpg".encode():
            raise ArtifactError(
                f"'{path}' holds another image than {image_id} at byte {location['offset']}: the index is of another "
                "collection. Run `make features`."
            )
        if len(member) != size:
            raise ArtifactError(f"'{path}' ends before byte {start + size}; {DAMAGED_OR_OTHER}")
        return member[tarfile.BLOCKSIZE :]

    def _open(self, path: Path) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            descriptor = self._descriptors.setdefault(path, opened)
            if descriptor != opened:  # another thread was faster
                os.close(opened)
        return descriptor

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def splits_of(groups: Iterable[str]) -> np.ndarray:
    """Return (N,) uint8 splits of groups."""
    return np.fromiter((split_of(group) for group in groups), dtype=np.uint8)
