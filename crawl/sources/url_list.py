"""Source `urls`: tables with the address of a picture a row, read as far as the crawl has come."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from configs.artifacts import ArtifactError, digest
from crawl.fetch.found import About, Answer, Entry, Finder, Found, Picture
from crawl.fetch.urls import BadUrl
from crawl.source_config import UrlsSource
from crawl.sources.item import Unreadable, describe, split_tags
from crawl.sources.table import reader_of

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet", ".txt")
URL_COLUMNS = ("url", "image_url", "source_url", "contenturl")  # img2dataset's own is url; LAION's URL
TAGS_COLUMNS = ("tags", "keywords")
_CAPTION_COLUMNS = ("text", "alt")  # of LAION and others, where there is no caption


class UrlList(Finder):
    """Rows with an address, tags and any provenance columns; names of columns count in lower case."""

    def __init__(self, config: UrlsSource) -> None:
        self.config = config
        path = Path(config.path)
        pattern = path / "*" if path.is_dir() else path
        files = sorted(pattern.parent.glob(pattern.name))
        self.files = [each for each in files if each.is_file() and (not path.is_dir() or each.suffix in SUFFIXES)]
        if not self.files and not path.exists() and pattern == path and not set("*?[") & set(path.name):
            raise ArtifactError(f"there is no source.path '{config.path}'; give a table, a folder or a glob of tables")
        if not self.files:
            raise ArtifactError(f"source.path '{config.path}' is no table; give one that ends in {', '.join(SUFFIXES)}")
        self.readers = [_lines if each.suffix == ".txt" else reader_of(each) for each in self.files]

    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and times of change."""
        return digest([[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in self.files])

    def entries(self, start: int) -> Iterator[Entry]:
        """Yield a picture a row, in the order of files and rows."""
        return islice(self._all(), start, None)

    def read(self, answer: Answer) -> Found:
        """Find nothing: a list leads to pictures alone."""
        return Found()

    def _all(self) -> Iterator[Entry]:
        for path, read in zip(self.files, self.readers, strict=True):
            for number, row in enumerate(read(path), start=1):
                yield self._entry(f"{path.name} row {number}", row)

    def _entry(self, key: str, row: dict[str, Any] | Unreadable) -> Entry:
        if isinstance(row, Unreadable):
            return BadUrl(row.reason, f"{key}: {row.detail}")
        lower = {str(name).lower(): value for name, value in row.items()}
        url_column = _column(lower, self.config.url_column, URL_COLUMNS)
        tags_column = _column(lower, self.config.tags_column, TAGS_COLUMNS)
        url = lower.get(url_column)
        if not isinstance(url, str) or not url.strip():
            return BadUrl(
                "bad_row",
                f"{key}: no column with an address, which source.url_column names; found: {', '.join(lower)}"[:200],
            )
        try:
            return Picture(url.strip(), self._about(lower, url_column, tags_column))
        except ValueError as error:
            return BadUrl("bad_row", f"{key}: {error}")

    def _about(self, row: dict[str, Any], url_column: str, tags_column: str) -> About:
        separator = self.config.tag_separator
        tags, labels = split_tags(row.get(tags_column), separator), split_tags(row.get("labels"), separator)
        leave_out = {url_column, tags_column, "labels", "source_url", "fetched_at"}
        provenance, extra = describe(row, leave_out)
        for name in _CAPTION_COLUMNS:
            if "caption" not in provenance and isinstance(extra.get(name), str):
                provenance["caption"] = extra.pop(name)
        return About(tags, labels, provenance, extra)


def _column(row: dict[str, Any], asked: str, usual: tuple[str, ...]) -> str:
    return asked.lower() or next((name for name in usual if name in row), usual[0])


def _lines(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        for line in stream:
            if line.strip():
                yield {"url": line.strip()}
