"""The gate itself: foreign bytes in, a trusted JPEG or a refusal out."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image, ImageChops

from crawl.ingest.colour import is_srgb, to_srgb
from crawl.ingest.decode import decode
from crawl.ingest.exif import upright, upright_size
from crawl.ingest.jpeg import Jpeg, decode_strictly, parse_jpeg
from crawl.ingest.limits import check_bytes, check_size, fitted
from crawl.ingest.picture import Picture
from crawl.ingest.sniff import sniff
from crawl.ingest.verdict import Accepted, Reason, Refusal, Refused

if TYPE_CHECKING:
    from crawl.config import GateOptions

GATE_VERSION = 2  # raise it with every change that can alter an accepted pixel

_OF_A_WORKER = {"timeout_s", "memory_mb"}  # options whose effect depends on the machine
_REDUCING_GAP = 3.0  # Pillow: indistinguishable from resampling in one step
_NEARLY_FULL = 1.25  # times the wanted side; nearer to it HAMMING blurs (37 dB to Lanczos, where BICUBIC has 44)
_SUBSAMPLING = "420"  # half the bytes of 444, and what nearly all pictures arrive in
_MAX_BYTES_A_PIXEL = 6  # twice the raw pixels: a kept JPEG beyond it is padded, not detailed
_MAX_TABLE_BYTES = 4096


def ingest(data: bytes, options: GateOptions) -> Accepted | Refused:
    """Judge one image; a pure function of its arguments.

    It silences Python's warnings while it runs, which threads share, and a decoder's crash would be the caller's:
    servers and crawls use `IsolatedGate`.

    What comes out is a baseline JPEG with three components, upright, sRGB, without metadata, its longer side at most
    `options.max_side_px`. Bytes of a plain JPEG within these bounds are kept, less metadata and what follows its end.
    """
    try:
        return _ingest(data, options)
    except Refusal as refusal:
        return refusal.refused
    except MemoryError:
        return Refused(Reason.OUT_OF_MEMORY, f"decoding {len(data)} bytes needs more memory than the process may take")


def gate_space(options: GateOptions) -> dict[str, int | float | str]:
    """Return the version and the options that can change accepted pixels, for the feature space's fingerprint."""
    return {"gate_version": GATE_VERSION, "max_side_px": options.max_side_px, "quality": options.quality}


def acceptance(options: GateOptions) -> dict[str, int | float]:
    """Return the version and all options that decide on bytes, which leaves out the limits of a worker."""
    judging = {name: value for name, value in asdict(options).items() if name not in _OF_A_WORKER}
    return {"gate_version": GATE_VERSION, **judging}


def _ingest(data: bytes, options: GateOptions) -> Accepted:
    check_bytes(len(data), options)
    name = sniff(data)
    if name != "jpeg":
        return _rendered(decode(data, name, options), name, len(data), options)
    jpeg = parse_jpeg(data)
    check_size(jpeg.width, jpeg.height, options)
    if _may_keep_bytes(jpeg, options):
        decode_strictly(jpeg, shrink=8)  # reads every bit of the scan, and no one needs its pixels
        return Accepted(jpeg.stream, jpeg.width, jpeg.height, name, jpeg.width, jpeg.height, len(data))
    return _rendered(_decoded(jpeg, options), name, len(data), options)


def _may_keep_bytes(jpeg: Jpeg, options: GateOptions) -> bool:
    plain = jpeg.is_plain and jpeg.orientation in (0, 1) and max(jpeg.width, jpeg.height) <= options.max_side_px
    padded = len(jpeg.stream) > _MAX_BYTES_A_PIXEL * jpeg.width * jpeg.height + _MAX_TABLE_BYTES
    return plain and not padded and is_srgb(jpeg.icc)


def _decoded(jpeg: Jpeg, options: GateOptions) -> Picture:
    longer, wanted = max(jpeg.width, jpeg.height), options.max_side_px
    shrink = next(factor for factor in (8, 4, 2, 1) if factor == 1 or longer >= factor * wanted)
    pixels = decode_strictly(jpeg, shrink)
    _repeat_edges(pixels, jpeg.width // shrink, jpeg.height // shrink)
    if jpeg.colour_space == "cmyk":
        image = ImageChops.invert(Image.fromarray(pixels, mode="CMYK"))  # Adobe stores 255 for no ink, all follow it
    else:
        image = Image.fromarray(pixels.squeeze())
    return Picture(image, jpeg.width, jpeg.height, orientation=jpeg.orientation, icc=jpeg.icc)


def _repeat_edges(pixels: np.ndarray, width: int, height: int) -> None:
    """Put their neighbours in place of pixels into which the decoder mixed what pads a picture to whole blocks.

    Args:
        pixels: (height or one more, width or one more, channels), changed in place.
        width: number of pixels that the picture fills.
        height: likewise; both may be 0.
    """
    pixels[max(height, 1) :] = pixels[max(height, 1) - 1]
    pixels[:, max(width, 1) :] = pixels[:, max(width, 1) - 1][:, None]


def _rendered(picture: Picture, name: str, num_bytes: int, options: GateOptions) -> Accepted:
    """Scale first, since the other steps cost by the pixel; then settle colours and orientation, and encode."""
    image = to_srgb(_resized(picture, options.max_side_px), picture.icc, picture.gamma)
    image = upright(image, picture.orientation)
    jpeg = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=options.quality, colorspace="RGB", colorsubsampling=_SUBSAMPLING
    )
    original = upright_size(picture.width, picture.height, picture.orientation)
    return Accepted(jpeg, *image.size, name, *original, num_bytes)


def _resized(picture: Picture, max_side_px: int) -> Image.Image:
    size = fitted(picture.width, picture.height, max_side_px)
    if size == picture.image.size:
        return picture.image
    longer = max(picture.width, picture.height)
    shrink = round(longer / max(picture.image.size))
    whole = (0.0, 0.0, picture.width / shrink, picture.height / shrink)  # of the last pixels what the picture fills
    nearly = longer < _NEARLY_FULL * shrink * max_side_px
    resampling = Image.Resampling.BICUBIC if nearly else Image.Resampling.HAMMING
    return picture.image.resize(size, resampling, box=whole, reducing_gap=_REDUCING_GAP)
