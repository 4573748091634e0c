"""Pictures of the index as batches for a network, read and decoded ahead of it on threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import functional as F

from configs.artifacts import ArtifactError
from crawl.shards import JpegReader
from features.config import BackboneConfig
from features.inverted_index import InvertedIndex

THUMBNAIL_QUALITY = 80


def pixels(jpeg: bytes) -> np.ndarray:
    """Decode a stored JPEG to (3, height, width) uint8 RGB."""
    stream = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
    return np.asarray(decode_jpeg(stream, mode=ImageReadMode.RGB).numpy())


def decode(jpeg: bytes, backbone: BackboneConfig) -> np.ndarray:
    """Decode a stored JPEG and bring it to the size that the network was trained for.

    Returns:
        (3, crop_px, crop_px) uint8 RGB: the centre of the picture after its shorter side became resize_px, or all of it
        where the backbone squashes.
    """
    picture = torch.from_numpy(pixels(jpeg))
    crop = [backbone.crop_px, backbone.crop_px]
    size = crop if backbone.squash else [backbone.resize_px]
    interpolation = F.InterpolationMode(backbone.interpolation)
    resized = F.resize(picture, size, interpolation=interpolation, antialias=True)
    return np.asarray(F.center_crop(resized, crop).numpy())


def thumbnail(jpeg: bytes, max_side_px: int) -> bytes:
    """Return a stored JPEG no larger than `max_side_px` at either side, as a JPEG.

    Raises:
        ArtifactError: it does not decode.
    """
    try:
        picture = decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        raise ArtifactError(f"a picture of the collection does not decode ({error}); `make verify` names it") from error
    height, width = picture.shape[1:]
    shrink = min(1.0, max_side_px / max(height, width))
    size = [max(1, round(height * shrink)), max(1, round(width * shrink))]
    return bytes(encode_jpeg(F.resize(picture, size, antialias=True), quality=THUMBNAIL_QUALITY).numpy())


class PictureReader:
    """Reads and decodes pictures of an index by row, on threads."""

    def __init__(self, index: InvertedIndex, collection: Path, backbone: BackboneConfig, threads: int) -> None:
        self._index = index
        self._jpegs = JpegReader(collection)
        self._backbone = backbone
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def _read_into(self, slot: np.ndarray, row: int) -> None:
        jpeg = self._jpegs.read(self._index.locations[row], self._index.image_id(row))
        try:
            slot[:] = decode(jpeg, self._backbone)
        except RuntimeError as error:
            raise ArtifactError(
                f"image {self._index.image_id(row)} of the collection does not decode ({error}); "
                "the gate let only whole JPEGs in, so the shard is damaged: `make verify` names it"
            ) from error

    def batches(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yield (n, 3, crop, crop) uint8 batches; the next one is decoded while the caller works on this one."""
        side = self._backbone.crop_px
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]

        def begin(chunk: np.ndarray) -> tuple[np.ndarray, list[Future[None]]]:
            batch = np.empty((len(chunk), 3, side, side), dtype=np.uint8)
            slots = zip(batch, chunk, strict=True)
            return batch, [self._threads.submit(self._read_into, slot, row) for slot, row in slots]

        ahead = begin(rows[:size])
        for following in [*chunks[1:], rows[:0]]:
            (batch, reading), ahead = ahead, begin(following)
            for picture in reading:
                picture.result()
            yield batch

    def close(self) -> None:
        """Stop the threads and close the shards."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._jpegs.close()
