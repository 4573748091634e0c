"""Decode the formats that Pillow reads, each by its one plugin and only after its header was checked."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from crawl.ingest.exif import orientation_of
from crawl.ingest.headers import HEADER_SIZES
from crawl.ingest.limits import check_size
from crawl.ingest.picture import Picture
from crawl.ingest.png import Png, parse_png
from crawl.ingest.tiff import check_tiff
from crawl.ingest.verdict import Reason, Refusal

if TYPE_CHECKING:
    from crawl.config import GateOptions

# Importing the plugins registers them; otherwise the first such file would import all forty.
PLUGINS = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # workers are the parallelism, and a thread costs address space

# What Pillow's plugins are documented or seen to raise on damaged files; everything else is a bug worth a report.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error)

_TO_8_BIT = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # v / 257 rounded: 65535 becomes 255


def decode(data: bytes, name: str, options: GateOptions) -> Picture:
    """Decode a PNG, GIF, WebP, BMP, TIFF or AVIF; of several frames the first.

    Raises:
        Refusal: by limits before pixels are decoded, then truncated, corrupt or unsupported_format.
    """
    if name == "png":
        return _decode_png(parse_png(data), options)
    if name in HEADER_SIZES:
        check_size(*HEADER_SIZES[name](data), options)
    with _pillow(name), Image.open(io.BytesIO(data), formats=[name.upper()]) as image:
        check_size(*image.size, options)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            check_tiff(image)
        box = image.tile[0].extents if image.tile else None
        image.load()
        pixels = _on_canvas(image, box) if name == "gif" and box != (0, 0, *image.size) else image
        return _picture(eight_bit(pixels), image, name)


def _picture(pixels: Image.Image, image: Image.Image, name: str) -> Picture:
    """Collect what lies beside the pixels; a TIFF was turned upright by Pillow already."""
    exif = image.info.get("exif", b"") if name in ("webp", "avif") else b""
    icc = image.info.get("icc_profile") or b""
    icc = icc if isinstance(icc, bytes) else b""
    return Picture(pixels, *image.size, orientation=orientation_of(exif), icc=icc)


@contextmanager
def _pillow(name: str) -> Iterator[None]:
    """Turn Pillow's errors into refusals; its warnings are settled by our own checks."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        raise Refusal(Reason.TOO_MANY_PIXELS, f"{name.upper()}: {error}") from None
    except DECODE_ERRORS as error:
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        what = f"{name.upper()}: {type(error).__name__}: {_without_addresses(error)}"
        raise Refusal(Reason.TRUNCATED if cut else Reason.CORRUPT, what) from None


def _without_addresses(error: Exception) -> str:
    """Cut the object's address out of Pillow's message, so that equal files give equal details."""
    return "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error)


def _decode_png(png: Png, options: GateOptions) -> Picture:
    check_size(png.width, png.height, options)
    png.check_rows()
    with _pillow("png"), Image.open(io.BytesIO(png.stream), formats=["PNG"]) as image:
        check_size(*image.size, options)
        image.load()
        pixels = _keyed(image, png.transparent, png.bits) if png.transparent else eight_bit(image)
        return Picture(pixels, *image.size, orientation=orientation_of(png.exif), icc=png.icc, gamma=png.gamma)


def _keyed(image: Image.Image, transparent: tuple[int, ...], bits: int) -> Image.Image:
    """Give a grey or RGB image the alpha of its one transparent colour.

    Pillow compares that colour with pixels it has scaled to 8 bits, so 1, 2, 4 and 16 bits never match there.
    For 16-bit RGB the decoder keeps the high bytes only, and so they alone are compared.
    """
    if image.mode == "I;16":
        samples = np.asarray(image)
        alpha = Image.fromarray(np.where(samples == transparent[0], 0, 255).astype(np.uint8))
        return Image.merge("LA", (eight_bit(image), alpha))
    key = [value >> 8 if bits == 16 else value * 255 // (2**bits - 1) for value in transparent]
    colour = eight_bit(image)
    same = (np.asarray(colour).reshape(*image.size[::-1], -1) == key).all(axis=2)
    colour.putalpha(Image.fromarray(np.where(same, 0, 255).astype(np.uint8)))
    return colour


def eight_bit(image: Image.Image) -> Image.Image:
    """Bring any decoded mode to L, LA, RGB, RGBA, CMYK or LAB.

    Raises:
        Refusal: unsupported_format for float and 32-bit samples, whose white is anyone's guess.
    """
    mode = image.mode
    if mode.startswith("I;16"):
        return _from_16_bit(image)
    if mode == "1":
        return image.convert("L")
    if mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if mode in ("La", "RGBa"):
        return image.convert(mode.upper())
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    raise Refusal(Reason.UNSUPPORTED_FORMAT, f"samples of mode {mode}, only 1 to 16 bits with a known white are read")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion clips everything above 255 to white."""
    return Image.fromarray(_TO_8_BIT[np.asarray(image)])


def _on_canvas(image: Image.Image, box: tuple[int, int, int, int] | None) -> Image.Image:
    """Leave transparent what the first frame of a GIF does not cover, as browsers do."""
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 0))
    if box is not None:
        canvas.paste(image.convert("RGBA").crop(box), box)
    return canvas
