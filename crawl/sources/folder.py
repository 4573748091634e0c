"""Source `folder`: a folder a tag, nested folders several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from configs.artifacts import ArtifactError, digest
from crawl.source_config import FolderSource
from crawl.sources.item import Source, SourceItem, Unreadable, read_regular


class _Closed(Unreadable):
    """A folder that cannot be listed."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__("unreadable", detail)
        self.key = key


class Folder(Source):
    """Files below a folder, tagged with the names of the folders between.

    Links, pipes and devices are listed as problems, never followed or waited for.
    """

    def __init__(self, config: FolderSource, max_bytes: int) -> None:
        self.root = Path(config.path)
        self.max_bytes = max_bytes
        if not self.root.is_dir():
            raise ArtifactError(f"source.path '{config.path}' is no folder; give one whose sub-folders are tags")

    def fingerprint(self) -> str:
        """Digest of names, sizes and times of change."""
        return digest([self._stamp(entry) for entry in self._walk()])

    def _stamp(self, entry: os.DirEntry[str] | _Closed) -> list[str | int]:
        if isinstance(entry, _Closed):
            return [entry.key, entry.detail]
        status = entry.stat(follow_symlinks=False)
        return [ascii(self._key(entry)), status.st_size, status.st_mtime_ns]

    def _key(self, entry: os.DirEntry[str]) -> str:
        return os.path.relpath(entry.path, self.root)

    def items(self, start: int = 0) -> Iterator[SourceItem]:
        """Yield files by ascending path."""
        for entry in islice(self._walk(), start, None):
            if isinstance(entry, _Closed):
                yield SourceItem(entry.key, problem=entry)
            else:
                yield self._item(entry)

    def _walk(self) -> Iterator[os.DirEntry[str] | _Closed]:
        """Yield everything below the root that is no folder itself, by ascending path, however deep it lies."""
        pending = self._entries(self.root)
        while pending:
            entry = pending.pop()
            if not isinstance(entry, _Closed) and entry.is_dir(follow_symlinks=False):
                pending += self._entries(Path(entry.path))
            else:
                yield entry

    def _entries(self, folder: Path) -> list[os.DirEntry[str] | _Closed]:
        try:
            return [*sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)]
        except OSError as error:
            return [_Closed(ascii(os.path.relpath(folder, self.root)).strip("'"), error.strerror or "cannot be listed")]

    def _item(self, entry: os.DirEntry[str]) -> SourceItem:
        key = self._key(entry)
        try:
            key.encode()
        except UnicodeEncodeError:
            return SourceItem(ascii(key), problem=Unreadable("unreadable_name", "the name is not valid UTF-8"))
        try:
            content = read_regular(Path(entry.path), self.max_bytes)
        except Unreadable as problem:
            return SourceItem(key, problem=problem)
        return SourceItem(key, content, tags=Path(key).parts[:-1])
