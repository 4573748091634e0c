"""Small things the tests share: pictures, a tree of them, and collections written without the gate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import simplejpeg

from configs.artifacts import seal, sync_directory
from configs.compose import Paths
from crawl.config import CrawlConfig
from crawl.ingest import ingest
from crawl.records import Record
from crawl.shards import ShardWriter
from crawl.source_config import FolderSource
from crawl.tombstones import Tombstone, Tombstones
from features.config import BackboneConfig, ImageFeaturesConfig

FOLDERS = ("animal/dog", "animal/cat", "plant/rose", "food/apple")
NUM_PICTURES = 40
HISTOGRAM = BackboneConfig(name="color_histogram", architecture="color_histogram", width=99, resize_px=32, crop_px=32)


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> bytes:
    """A JPEG of coloured squares that no other seed gives."""
    squares = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(np.kron(squares, np.ones((8, 8, 1), np.uint8)))
    return simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB", colorsubsampling="420")


def write_tree(root: Path, count: int = NUM_PICTURES) -> Path:
    """A folder a tag: `count` pictures, the first of them in a second folder too."""
    for number in range(count):
        folder = root / FOLDERS[number % len(FOLDERS)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.jpg").write_bytes(picture(number))
    (root / "pet").mkdir(exist_ok=True)
    (root / "pet" / "000.jpg").write_bytes(picture(0))
    return root


def crawl_config(data: Path, source: Path, **values: object) -> CrawlConfig:
    return CrawlConfig(
        paths=Paths(data=str(data), runs=str(data / "runs")), source=FolderSource(path=str(source)), workers=1, **values
    )


def histogram_config(data: Path, **values: object) -> ImageFeaturesConfig:
    return ImageFeaturesConfig(paths=Paths(data=str(data)), backbone=HISTOGRAM, runtime="torch", device="cpu", **values)


class QuickGate:
    """Stands in for `IsolatedGate` where processes of their own would only cost time."""

    def __init__(self, options, workers=0):
        self.options = options

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def map(self, blobs):
        return (ingest(blob, self.options) for blob in blobs)


def write_collection(directory: Path, records: Iterable[Record], jpeg: bytes = b"jpeg", later=()) -> Path:
    """Seal one shard of records that all show the same picture; `later` brings tags for known images."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(directory, 0)
    for record in records:
        writer.add_image(record, jpeg)
    for record in later:
        writer.add_tags(record)
    num_images = writer.num_images
    writer.commit({"recipe": "by hand", "consumed": num_images, "duplicates": 0, "config": {}})
    names = ["00000.parquet", "00000.tar", "refused/00000.jsonl"]
    seal(directory, "collection", config={}, files=names, must_match={"gate": "g"}, facts={"num_images": num_images})
    return directory


def bury(collection: Path, *image_ids: str) -> None:
    """Say of images that they were taken down, and leave the shards as they are."""
    Tombstones(collection).add(Tombstone(image_id) for image_id in image_ids)


def tagged(number: int, *tags: str, group: str = "") -> Record:
    image_id = f"{number:016x}"
    return Record(image_id=image_id, group=group or image_id, tags=tags)


class Killed(BaseException):
    """Stands for a process that ends at once."""


def killed_after(patch, writes: int, *modules) -> list:
    """Let a process be killed once more than so many writes are whole; return what was written."""
    written, sync = [], sync_directory

    def kill(directory):
        sync(directory)
        written.append(directory)
        if len(written) > writes:
            raise Killed

    for module in modules:
        patch.setattr(module, "sync_directory", kill)
    return written
