"""Pictures made for people from what passed the gate: thumbnails, and overlays of numbers."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

THUMBNAIL_QUALITY = 82


def thumbnail(jpeg: bytes, width_px: int) -> bytes:
    """Return a stored JPEG as one of at most this width, its ratio kept; a narrower one comes back as it is.

    Raises:
        OSError: it does not decode, so its shard is damaged.
    """
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        width, height = picture.size
        if width <= width_px:
            return jpeg
        size = width_px, max(1, round(height * width_px / width))
        picture.draft("RGB", (2 * size[0], 2 * size[1]))  # decodes at a fraction, still twice as fine as the result
        small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True, progressive=True)
    return stream.getvalue()


def overlay_png(cells: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> bytes:
    """Return cells drawn smoothly into a box of an otherwise empty picture.

    Args:
        cells: (rows, columns, 4) uint8 RGBA.
        size: width and height of the picture, pixels.
        box: left, top, right and bottom of the cells in it, pixels.
    """
    whole = Image.new("RGBA", size)
    left, top, right, bottom = box
    # Colours and cover apart: blended together, cells without cover would darken their neighbours.
    drawn = Image.fromarray(cells).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    whole.paste(drawn, (left, top))
    stream = io.BytesIO()
    whole.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def grey_thumbnail(jpeg: bytes, side_px: int) -> np.ndarray:
    """Return (side_px, side_px) uint8 grey levels of a stored JPEG, its ratio given up.

    Raises:
        OSError: it does not decode, so its shard is damaged.
    """
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.draft("L", (4 * side_px, 4 * side_px))
        return np.asarray(picture.convert("L").resize((side_px, side_px), Image.Resampling.BOX))


def rgb_picture(jpeg: bytes, side_px: int = 0) -> np.ndarray:
    """Return (H, W, 3) uint8 of a stored JPEG, or of a square of this side, its ratio given up."""
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        whole = picture.convert("RGB")
        return np.asarray(whole.resize((side_px, side_px), Image.Resampling.BOX) if side_px else whole)
