"""What every decoder hands on: pixels as the file holds them, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass
class Picture:
    """A decoded image before its colours, orientation and size are settled."""

    image: Image.Image  # any of Pillow's 8-bit modes
    width: int  # as stored, pixels; `image` may be smaller where the decoder shrank it
    height: int
    orientation: int = 1  # EXIF, 1 to 8
    icc: bytes = b""  # colour profile, empty = sRGB
    gamma: float = 0.0  # encoding exponent of a PNG, 0.0 = sRGB
