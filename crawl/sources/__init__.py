"""Where images come from: one source a file, all yielding the same items."""

from __future__ import annotations

from crawl.source_config import FolderSource, SourceConfig, TableSource, TorchvisionSource, WebDatasetSource
from crawl.sources.folder import Folder
from crawl.sources.item import Source, SourceItem
from crawl.sources.table import Table
from crawl.sources.webdataset import WebDataset

__all__ = ["Source", "SourceItem", "open_source"]


def open_source(config: SourceConfig, max_bytes: int) -> Source:
    """Open the source that a config describes; no image is read yet.

    Args:
        config: of one of the sources' own types.
        max_bytes: no file is read beyond one byte more than this, which the gate then refuses.

    Raises:
        ArtifactError: the path is not there, or is of the wrong kind.
    """
    if isinstance(config, FolderSource):
        return Folder(config, max_bytes)
    if isinstance(config, TableSource):
        return Table(config, max_bytes)
    if isinstance(config, WebDatasetSource):
        return WebDataset(config, max_bytes)
    if isinstance(config, TorchvisionSource):
        from crawl.sources.torchvision_sets import TorchvisionSet  # with torch, which only this source needs

        return TorchvisionSet(config, max_bytes)
    raise TypeError(f"no source reads a {type(config).__name__}")
