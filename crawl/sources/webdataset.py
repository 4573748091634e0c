"""Source `webdataset`: tar shards with text or JSON sidecars, img2dataset's dumps included."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

from configs.artifacts import ArtifactError, digest
from crawl.source_config import WebDatasetSource
from crawl.sources.item import Source, SourceItem, Unreadable, clean_text, describe, split_tags

IMAGE_SUFFIXES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "img"}
MAX_SIDECAR_BYTES = 2**20
TEXT_SIDECAR = "txt"
READ_SUFFIXES = IMAGE_SUFFIXES | {"json", TEXT_SIDECAR}


class WebDataset(Source):
    """Members that share a name up to the first dot are one image with its sidecars.

    `tags_key` names the JSON key with the tags, or `txt` for the text sidecar; a text sidecar is a caption otherwise.
    """

    def __init__(self, config: WebDatasetSource, max_bytes: int) -> None:
        self.config = config
        self.max_bytes = max_bytes
        path = Path(config.path)
        pattern = path / "*.tar" if path.is_dir() else path
        self.shards = sorted(pattern.parent.glob(pattern.name))
        if not self.shards:
            raise ArtifactError(
                f"source.path '{config.path}' matches no tar shard; give a folder or a glob of .tar files"
            )

    def fingerprint(self) -> str:
        """Digest of the shards' names, sizes and times of change."""
        return digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.shards])

    def items(self, start: int = 0) -> Iterator[SourceItem]:
        """Yield the images shard by shard; what is damaged in a shard is listed and ends that shard alone.

        Items before `start` are read too: only reading tells where a damaged shard ends.
        """
        return islice(self._all(), start, None)

    def _all(self) -> Iterator[SourceItem]:
        for shard in self.shards:
            try:
                with shard.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                    yield from self._items(shard.name, archive)
                    _check_end(archive, stream)
            except (tarfile.TarError, OSError) as error:
                yield SourceItem(shard.name, problem=Unreadable("damaged_shard", clean_text(str(error))))

    def _items(self, shard: str, archive: tarfile.TarFile) -> Iterator[SourceItem]:
        members = (member for member in _members(archive) if not member.isdir())
        for (regular, key), group in groupby(members, key=lambda member: (member.isreg(), _split(member.name)[0])):
            if regular:
                yield self._item(clean_text(f"{shard}/{key}"), _read(archive, group, self.max_bytes))
                continue
            for member in group:
                reason = "link" if member.issym() or member.islnk() else "special_file"
                problem = Unreadable(reason, "not a regular file")
                yield SourceItem(clean_text(f"{shard}/{member.name}"), problem=problem)

    def _item(self, key: str, members: dict[str, bytes]) -> SourceItem:
        image = next((content for suffix, content in members.items() if suffix in IMAGE_SUFFIXES), None)
        if image is None:
            found = clean_text(", ".join(sorted(members)[:5]))[:100]
            return SourceItem(key, problem=Unreadable("no_image", f"{len(members)} members: {found}"))
        try:
            sidecar = json.loads(members.get("json", b"{}").decode("utf-8-sig"))
            if not isinstance(sidecar, dict):
                raise ValueError("expected a JSON object")
            return self._described(key, image, sidecar, members.get(TEXT_SIDECAR, b"").decode())
        except (ValueError, RecursionError) as error:
            return SourceItem(key, problem=Unreadable("bad_sidecar", str(error)))

    def _described(self, key: str, image: bytes, sidecar: dict[str, Any], text: str) -> SourceItem:
        tags_key, separator = self.config.tags_key, self.config.tag_separator
        tags = text if tags_key == TEXT_SIDECAR else sidecar.get(tags_key)
        provenance, extra = describe(sidecar, {tags_key, "labels"} - {"caption"})
        if text and tags_key != TEXT_SIDECAR:
            provenance.setdefault("caption", text.strip())
        labels = split_tags(sidecar.get("labels"), separator)
        return SourceItem(key, image, None, split_tags(tags, separator), labels, provenance, extra)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members one by one; tarfile would keep a kilobyte of each."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        yield member


def _split(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last part, as webdataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _read(archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], max_bytes: int) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for member in members:
        suffix = _split(member.name)[1]
        stream = archive.extractfile(member) if suffix in READ_SUFFIXES else None
        limit = max_bytes if suffix in IMAGE_SUFFIXES else MAX_SIDECAR_BYTES
        if suffix not in READ_SUFFIXES:
            contents.setdefault(suffix, b"")  # named in a refusal
        elif stream is not None and suffix not in contents:
            contents[suffix] = stream.read(limit + 1)
            if len(contents[suffix]) < min(member.size, limit):
                raise tarfile.ReadError(f"the shard ends inside {member.name!a}")
    return contents


def _check_end(archive: tarfile.TarFile, stream: IO[bytes]) -> None:
    """Tell a whole archive, which ends in zeros, from a cut or damaged one, where tarfile stops without a word.

    Raises:
        tarfile.ReadError: there is no end mark.
    """
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset}; nothing behind it was read")
