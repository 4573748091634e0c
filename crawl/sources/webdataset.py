"""Source `webdataset`: tar shards with text or JSON sidecars, img2dataset's dumps included."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from configs.artifacts import ArtifactError, digest
from crawl.config import WebDatasetSource
from crawl.sources.item import SourceItem, Unreadable, describe, split_tags

IMAGE_SUFFIXES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "img"}
MAX_SIDECAR_BYTES = 2**20
TEXT_SIDECAR = "txt"


class WebDataset:
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

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield the images shard by shard; what is damaged in a shard is listed and ends that shard alone."""
        for shard in self.shards:
            try:
                with tarfile.open(shard, "r:") as archive:
                    members = (member for member in archive if member.isreg())
                    for key, group in groupby(members, key=lambda member: _split(member.name)[0]):
                        yield self._item(f"{shard.name}/{key}", _read(archive, group, self.max_bytes))
            except (tarfile.TarError, OSError) as error:
                yield SourceItem(shard.name, problem=Unreadable("damaged_shard", str(error)))

    def _item(self, key: str, members: dict[str, bytes]) -> SourceItem:
        image = next((content for suffix, content in members.items() if suffix in IMAGE_SUFFIXES), None)
        if image is None:
            return SourceItem(key, problem=Unreadable("no_image", f"members: {', '.join(sorted(members))}"))
        try:
            sidecar = json.loads(members.get("json", b"{}").decode())
            text = members.get(TEXT_SIDECAR, b"").decode()
        except (ValueError, RecursionError) as error:
            return SourceItem(key, problem=Unreadable("bad_sidecar", str(error)))
        if not isinstance(sidecar, dict):
            return SourceItem(key, problem=Unreadable("bad_sidecar", "expected a JSON object"))
        return self._described(key, image, sidecar, text)

    def _described(self, key: str, image: bytes, sidecar: dict[str, Any], text: str) -> SourceItem:
        tags_key, separator = self.config.tags_key, self.config.tag_separator
        tags = text if tags_key == TEXT_SIDECAR else sidecar.get(tags_key)
        provenance, extra = describe(sidecar, {tags_key, "labels"} - {"caption"})
        if text and tags_key != TEXT_SIDECAR:
            provenance.setdefault("caption", text.strip())
        labels = split_tags(sidecar.get("labels"), separator)
        return SourceItem(key, image, None, split_tags(tags, separator), labels, provenance, extra)


def _split(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last part, as webdataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _read(archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], max_bytes: int) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for member in members:
        suffix = _split(member.name)[1]
        stream = archive.extractfile(member)
        limit = max_bytes if suffix in IMAGE_SUFFIXES else MAX_SIDECAR_BYTES
        if stream is not None and suffix not in contents:
            contents[suffix] = stream.read(limit + 1)
            if len(contents[suffix]) < min(member.size, limit):
                raise tarfile.ReadError(f"the shard ends inside {member.name!a}")
    return contents
