"""Refuse the TIFF variants whose colours or damage cannot be judged."""

from __future__ import annotations

from PIL.TiffImagePlugin import TiffImageFile

from crawl.ingest.verdict import Reason, Refusal

# JPEG and fax data inside a TIFF are completed with invented pixels when they are cut, so they are left out.
_COMPRESSIONS = frozenset({"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"})
_PHOTOMETRICS = frozenset({0, 1, 2, 3, 5, 8})  # grey (two), RGB, palette, CMYK, CIELab; raw YCbCr is read wrongly
_SAMPLE_BITS = frozenset({1, 2, 4, 8, 16})  # 12 bits are not scaled
_UNSIGNED = 1
_SEPARATE_PLANES = 2
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _STRIP_OFFSETS, _SAMPLES, _ROWS = 256, 257, 258, 262, 273, 277, 278
_PLANES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _SAMPLE_FORMAT, _DNG_VERSION = 284, 322, 323, 324, 339, 50706


def check_tiff(image: TiffImageFile) -> None:
    """Judge an opened TIFF by its tags.

    Raises:
        Refusal: unsupported_format, or truncated where strips or tiles are missing.
    """
    for problem in (_kind_problem(image), _sample_problem(image)):
        if problem:
            raise Refusal(Reason.UNSUPPORTED_FORMAT, problem)
    _check_parts(image)


def _kind_problem(image: TiffImageFile) -> str:
    compression = image.info.get("compression", "raw")
    if _DNG_VERSION in image.tag_v2:
        return "camera raw file (DNG), whose first page is a thumbnail"
    return "" if compression in _COMPRESSIONS else f"TIFF with {compression} compression"


def _sample_problem(image: TiffImageFile) -> str:
    """Signed, float and 12-bit samples have no white that all readers agree on."""
    tags = image.tag_v2
    photometric, bits, formats = tags.get(_PHOTOMETRIC, 0), tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    if photometric not in _PHOTOMETRICS:
        return f"TIFF with photometric interpretation {photometric}"
    if not _SAMPLE_BITS.issuperset(bits) or set(formats) != {_UNSIGNED}:
        return f"TIFF with samples of {bits} bits, sample format {formats}"
    if photometric == 0 and image.mode.startswith("I;16"):  # Pillow forgets to invert it
        return "TIFF with 16 bits where 0 is white"
    return ""


def _check_parts(image: TiffImageFile) -> None:
    """Count strips or tiles: Pillow leaves black what a raw TIFF with too few of them does not cover."""
    tags = image.tag_v2
    width, height = tags[_WIDTH], tags[_HEIGHT]
    if _TILE_OFFSETS in tags:
        across, down, offsets = -(-width // tags[_TILE_WIDTH]), -(-height // tags[_TILE_HEIGHT]), tags[_TILE_OFFSETS]
    else:
        rows = min(tags.get(_ROWS, height), height)
        across, down, offsets = 1, -(-height // rows), tags[_STRIP_OFFSETS]
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANES, 1) == _SEPARATE_PLANES else 1
    if len(offsets) < across * down * planes:
        raise Refusal(Reason.TRUNCATED, f"TIFF lists {len(offsets)} strips or tiles of {across * down * planes}")
