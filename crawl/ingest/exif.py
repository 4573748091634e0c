"""Read the one EXIF entry that changes pixels: the orientation."""

from __future__ import annotations

import struct

from PIL import Image

_ORIENTATION, _SHORT = 0x0112, 3
_MAX_ENTRIES = 1000  # cameras write about fifteen in the first directory

# What to do to the stored pixels so that they stand upright (EXIF 2.32, table 6).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(exif: bytes) -> int:
    """Return the orientation, 1 to 8, of an EXIF block; 1 where it is absent or damaged."""
    tiff = exif[6:] if exif.startswith(b"Exif\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        return _first_directory(tiff, order)
    except struct.error:  # an offset that points behind the block
        return 1


def _first_directory(tiff: bytes, order: str) -> int:
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for number in range(min(count, _MAX_ENTRIES)):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * number)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image as its orientation says."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Return the size after `upright`: 5 to 8 lie on their side."""
    return (height, width) if orientation >= 5 else (width, height)
