"""Source `folder`: a folder a tag, nested folders several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from configs.artifacts import ArtifactError, digest
from crawl.config import FolderSource
from crawl.sources.item import SourceItem, Unreadable, read_regular


class Folder:
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
        return digest([self._stamp(entry) for entry in _walk(self.root)])

    def _stamp(self, entry: os.DirEntry[str] | Unreadable) -> list[str | int]:
        if isinstance(entry, Unreadable):
            return [entry.detail]
        status = entry.stat(follow_symlinks=False)
        return [ascii(self._key(entry)), status.st_size, status.st_mtime_ns]

    def _key(self, entry: os.DirEntry[str]) -> str:
        return os.path.relpath(entry.path, self.root)

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield files by ascending path."""
        for entry in _walk(self.root):
            if isinstance(entry, Unreadable):
                yield SourceItem(entry.detail, problem=entry)
            else:
                yield self._item(entry)

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


def _walk(folder: Path) -> Iterator[os.DirEntry[str] | Unreadable]:
    """Yield everything below a folder that is no folder itself, by ascending path."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Unreadable("unreadable", f"{str(folder)!a}: {error.strerror}")
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield entry
