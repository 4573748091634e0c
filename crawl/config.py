"""Typed configuration of the crawl stage: the gate, the sources, the collection."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from configs.compose import Paths

MAX_PIXELS = 178_956_970  # what Pillow decodes at most; JPEGs go past it, but one limit is for all formats


@dataclass
class GateOptions:
    """What the gate lets through and what it makes of it."""

    max_side_px: int = 512  # longer side of the stored JPEG, pixels
    quality: int = 90  # JPEG quality of re-encoded images, 1 to 100
    max_bytes: int = 64 * 2**20  # larger files are refused unread
    max_pixels: int = 100_000_000  # width x height by the header, before decoding; 1 to 178,956,970
    min_side_px: int = 16  # shorter side below this is refused
    max_aspect: float = 10.0  # longer side over shorter side above this is refused
    timeout_s: float = 10.0  # wall time of one image in the isolated gate
    memory_mb: int = 2048  # address space a worker may add for one image (Linux)

    def __post_init__(self) -> None:
        if not 64 <= self.max_side_px <= 4096:
            raise ValueError(f"gate.max_side_px must lie in 64..4096, got {self.max_side_px}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"gate.quality must lie in 1..100, got {self.quality}")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"gate.max_pixels must lie in 1..{MAX_PIXELS}, got {self.max_pixels}")
        at_least = {"max_bytes": 1, "min_side_px": 1, "max_aspect": 1, "memory_mb": 256}
        for name, least in at_least.items():
            if not getattr(self, name) >= least:  # so that NaN is refused too
                raise ValueError(f"gate.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"gate.timeout_s must be above 0, got {self.timeout_s}")


@dataclass
class SourceConfig:
    """What every source has in common; the group file names the kind."""

    name: str = MISSING  # folder, table or webdataset
    path: str = MISSING  # directory, table file or glob of shards

    def __post_init__(self) -> None:
        kind = type(self).name
        if kind != MISSING and self.name != kind:
            raise ValueError(
                f"source.name is {kind} in this group and fixed, got '{self.name}'; "
                "choose a kind with source=folder, source=table or source=webdataset"
            )


@dataclass
class FolderSource(SourceConfig):
    """A folder a tag, nested folders several."""

    name: str = "folder"  # fixed, it names the kind


@dataclass
class TableSource(SourceConfig):
    """JSONL, CSV or Parquet, one row an image; columns beside the named ones go to `extra`."""

    name: str = "table"  # fixed, it names the kind
    images: str = ""  # folder that relative image paths start from; the table's own folder when empty
    file_column: str = "file"  # column with the path of the image, relative to `images`
    tags_column: str = "tags"  # column with a list, or a text separated by `tag_separator`
    tag_separator: str = ","  # splits the tags column where the format has no lists (CSV)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_separator(self.tag_separator)


@dataclass
class WebDatasetSource(SourceConfig):
    """Tar shards with text or JSON sidecars, img2dataset's dumps included."""

    name: str = "webdataset"  # fixed, it names the kind
    tags_key: str = "tags"  # JSON key with a list, or a text separated by `tag_separator`
    tag_separator: str = ","  # splits a text of tags

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_separator(self.tag_separator)


def _check_separator(separator: str) -> None:
    if not separator:
        raise ValueError("source.tag_separator must be at least one character, got ''")


@dataclass
class CrawlConfig:
    """Bring images and their tags through the gate into the collection."""

    paths: Paths = field(default_factory=Paths)
    source: SourceConfig = MISSING
    gate: GateOptions = field(default_factory=GateOptions)
    relations: str = ""  # CSV of tag relations (tag,relation,other) to lay beside the collection
    append: bool = False  # add another source to a finished collection
    retry: bool = False  # go through a finished source once more and ask the gate again about what was refused
    shard_size: int = 10_000  # images a shard, at most 10,000
    workers: int = 0  # gate processes, 0 = one a core

    def __post_init__(self) -> None:
        if not 1 <= self.shard_size <= 10_000:
            raise ValueError(f"shard_size must lie in 1..10000, got {self.shard_size}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one a core) or more, got {self.workers}")
