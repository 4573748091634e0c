"""Read the declared size of formats whose decoder would act on it, or refuse it by a limit of its own, on opening."""

from __future__ import annotations

import struct
from collections.abc import Callable

from crawl.ingest.verdict import Reason, Refusal

_OLDEST_BMP_HEADER = 12  # OS/2, with 16-bit sides


def webp_size(data: bytes) -> tuple[int, int]:
    """Read the canvas of a WebP (RFC 9649): VP8X, VP8L or VP8."""
    kind, head = data[12:16], data[20:30]
    declared = int.from_bytes(data[4:8], "little") + 8
    if len(head) < 10 or len(data) < declared:
        raise Refusal(Reason.TRUNCATED, f"WebP declares {declared} bytes, the file has {len(data)}")
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        packed = int.from_bytes(head[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise Refusal(Reason.CORRUPT, f"WebP begins with chunk {kind!r}")


def gif_size(data: bytes) -> tuple[int, int]:
    """Read the canvas of a GIF; a first frame that reaches beyond it enlarges it and is checked later."""
    if len(data) < 13:
        raise Refusal(Reason.TRUNCATED, f"GIF ends after {len(data)} bytes inside its header")
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def bmp_size(data: bytes) -> tuple[int, int]:
    """Read the size of a BMP; a negative height means rows from the top."""
    if len(data) < 26:
        raise Refusal(Reason.TRUNCATED, f"BMP ends after {len(data)} bytes inside its header")
    header = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if header == _OLDEST_BMP_HEADER else "<ii", data, 18)
    return abs(width), abs(height)


HEADER_SIZES: dict[str, Callable[[bytes], tuple[int, int]]] = {"webp": webp_size, "gif": gif_size, "bmp": bmp_size}
