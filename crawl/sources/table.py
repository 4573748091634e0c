"""Source `table`: JSONL, CSV or Parquet, one row an image."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.artifacts import ArtifactError, digest, file_sha256
from crawl.source_config import TableSource
from crawl.sources.item import Source, SourceItem, Unreadable, clean_text, describe, read_regular, split_tags

ROW_ERRORS = (ValueError, RecursionError)  # ValueError: no UTF-8, no JSON, or a number of too many digits


class Table(Source):
    """Rows with a path to an image, its tags, its labels and any provenance columns."""

    def __init__(self, config: TableSource, max_bytes: int) -> None:
        self.config = config
        self.path = Path(config.path)
        self.max_bytes = max_bytes
        self.images = Path(config.images) if config.images else self.path.parent
        if not self.path.is_file():
            raise ArtifactError(f"source.path '{config.path}' is no file; give a .jsonl, .csv or .parquet table")
        self.read_rows = reader_of(self.path)

    def fingerprint(self) -> str:
        """Digest of the table; its images are named there and taken as they are."""
        return digest(["table", file_sha256(self.path)])

    def items(self, start: int = 0) -> Iterator[SourceItem]:
        """Yield one item a row, in the table's order."""
        for number, row in islice(enumerate(self.read_rows(self.path), start=1), start, None):
            yield self._item(number, row)

    def _item(self, number: int, row: dict[str, Any] | Unreadable) -> SourceItem:
        if isinstance(row, Unreadable):
            return SourceItem(f"row {number}", problem=row)
        name = row.get(self.config.file_column)
        if not isinstance(name, str) or not name:
            found = ", ".join(map(str, row))
            problem = Unreadable("bad_row", f"no column '{self.config.file_column}' with a path; columns: {found}")
            return SourceItem(f"row {number}", problem=problem)
        try:
            content = read_regular(self._inside(name), self.max_bytes)
            return self._described(clean_text(name), content, row)
        except Unreadable as problem:
            return SourceItem(clean_text(name), problem=problem)

    def _described(self, key: str, content: bytes, row: dict[str, Any]) -> SourceItem:
        separator = self.config.tag_separator
        try:
            provenance, extra = describe(row, {self.config.file_column, self.config.tags_column, "labels"})
            tags = split_tags(row.get(self.config.tags_column), separator)
            labels = split_tags(row.get("labels"), separator)
        except ValueError as error:
            raise Unreadable("bad_row", str(error)) from error
        return SourceItem(key, content, None, tags, labels, provenance, extra)

    def _inside(self, name: str) -> Path:
        """Return the path of a row's image; a table may come from anywhere and must not reach beyond its folder."""
        if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise Unreadable("outside_folder", f"the path must lie below '{self.images.name}'")
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            raise Unreadable("unreadable_name", "the name is not valid Unicode") from None
        path = self.images / name
        folder = os.path.realpath(path.parent)  # a linked folder on the way may lead anywhere
        if not Path(folder).is_relative_to(os.path.realpath(self.images)):
            raise Unreadable("outside_folder", "a link on the way leads outside")
        return path


def reader_of(path: Path) -> Callable[[Path], Iterator[dict[str, Any] | Unreadable]]:
    """Return what yields the rows of a table, by its suffix.

    Raises:
        ArtifactError: none does.
    """
    readers = {".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise ArtifactError(f"source.path '{path}' should end in {', '.join(readers)}")
    return readers[path.suffix.lower()]


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except ROW_ERRORS as error:
                yield Unreadable("bad_row", f"no JSON: {error}")
                continue
            yield row if isinstance(row, dict) else Unreadable("bad_row", "expected a JSON object a line")


def _csv_rows(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(stream)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Unreadable("bad_row", str(error))
                continue
            texts = {name: value for name, value in row.items() if name is not None}
            yield texts if None not in row else Unreadable("bad_row", "more fields than the header names")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            yield from _with_times_as_text(batch).to_pylist()
    except (OSError, ValueError, OverflowError) as error:
        raise ArtifactError(f"'{path}' is no readable Parquet file: {error}") from error


def _with_times_as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Cast times, which Python's own types cannot all hold: nanoseconds, and years beyond 9999."""
    columns = [
        column.cast(pa.string()) if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type) else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
