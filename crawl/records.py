"""The record: one image with its tags and where it comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

TRAIN, VAL, TEST = 0, 1, 2
SPLITS = ("train", "val", "test")
LEFT_OUT = 3  # of all splits, where an image of val or test is a copy of one in another split


@dataclass(frozen=True)
class Record:
    """One row of the collection. Empty text and 0 mean "not known"."""

    image_id: str  # first 16 hex digits of the SHA-256 of the original bytes
    group: str  # images of one group never straddle splits; the image_id where nothing better is known
    tags: tuple[str, ...] = ()  # as given; the index normalises
    labels: tuple[str, ...] = ()  # an independent judgement of annotators
    kind: str = ""  # photo, drawing, ...
    title: str = ""
    caption: str = ""
    width: int = 0  # of the stored JPEG, pixels
    height: int = 0
    source_url: str = ""
    page_url: str = ""
    licence: str = ""
    author: str = ""
    fetched_at: str = ""  # ISO 8601, web only; outside the content_id
    original_format: str = ""
    original_bytes: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # any other column of the source


SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("group", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("kind", "title", "caption")),
        ("width", pa.int32()),
        ("height", pa.int32()),
        *((name, pa.string()) for name in ("source_url", "page_url", "licence", "author", "fetched_at")),
        ("original_format", pa.string()),
        ("original_bytes", pa.int64()),
        ("extra", pa.string()),  # JSON
    ]
)
# Where an image lies: byte offset and size of its JPEG in the shard's tar; -1 where a row only adds tags.
SHARD_SCHEMA = SCHEMA.append(pa.field("offset", pa.int64())).append(pa.field("size", pa.int64()))
# Columns a source may fill from its own data; the others are ours.
PROVENANCE = tuple(
    f.name
    for f in fields(Record)
    if f.name not in ("image_id", "tags", "labels", "width", "height", "original_format", "original_bytes", "extra")
)


def image_id_of(original: bytes) -> str:
    """Name an image by its original bytes: equal bytes are one image."""
    return hashlib.sha256(original).hexdigest()[:16]


def split_of(group: str) -> int:
    """Return TRAIN, VAL or TEST of a group: 80, 10 and 10 of a hundred by its hash, for ever."""
    hundredth = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 100
    return TRAIN if hundredth < 80 else VAL if hundredth < 90 else TEST


def as_row(record: Record) -> dict[str, Any]:
    """Return the values of a record as its Parquet row holds them."""
    return {**vars(record), "extra": json.dumps(record.extra, ensure_ascii=False, sort_keys=True)}


def from_row(row: dict[str, Any]) -> Record:
    """Read a Parquet row back; columns that are not of the record are left aside."""
    values = {f.name: row[f.name] for f in fields(Record)}
    values |= {
        "tags": tuple(row["tags"] or ()),
        "labels": tuple(row["labels"] or ()),
        "extra": json.loads(row["extra"]),
    }
    return Record(**values)
