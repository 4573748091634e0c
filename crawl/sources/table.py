"""Source `table`: JSONL, CSV or Parquet, one row an image."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from configs.artifacts import ArtifactError, digest, file_sha256
from crawl.config import TableSource
from crawl.sources.item import SourceItem, Unreadable, describe, read_regular, split_tags

ROW_ERRORS = (UnicodeDecodeError, json.JSONDecodeError, RecursionError)


class Table:
    """Rows with a path to an image, its tags, its labels and any provenance columns."""

    def __init__(self, config: TableSource, max_bytes: int) -> None:
        self.config = config
        self.path = Path(config.path)
        self.max_bytes = max_bytes
        self.images = Path(config.images) if config.images else self.path.parent
        if not self.path.is_file():
            raise ArtifactError(f"source.path '{config.path}' is no file; give a .jsonl, .csv or .parquet table")
        readers = {".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
        if self.path.suffix.lower() not in readers:
            raise ArtifactError(f"source.path '{config.path}' should end in {', '.join(readers)}")
        self.read_rows = readers[self.path.suffix.lower()]

    def fingerprint(self) -> str:
        """Digest of the table; its images are named there and taken as they are."""
        return digest(["table", file_sha256(self.path)])

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield one item a row, in the table's order."""
        for number, row in enumerate(self.read_rows(self.path), start=1):
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
        except Unreadable as problem:
            return SourceItem(name, problem=problem)
        separator = self.config.tag_separator
        provenance, extra = describe(row, {self.config.file_column, self.config.tags_column, "labels"})
        return SourceItem(
            name,
            content,
            tags=split_tags(row.get(self.config.tags_column), separator),
            labels=split_tags(row.get("labels"), separator),
            provenance=provenance,
            extra=extra,
        )

    def _inside(self, name: str) -> Path:
        """Return the path of a row's image; a table may come from anywhere and must not reach beyond its folder."""
        if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise Unreadable("outside_folder", f"the path must lie below '{self.images.name}'")
        return self.images / name


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    with path.open("rb") as stream:
        for line in stream:
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
        table = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' is no readable Parquet file: {error}") from error
    for batch in table.iter_batches(1024):
        yield from batch.to_pylist()
