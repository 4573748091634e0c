"""Check the chunks of a PNG and rebuild it from the few that its pixels depend on.

Pillow skips the checksums of pixel chunks, leaves missing rows black and inflates text chunks; so all three are settled
here, before it sees the file.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from crawl.ingest.jpeg import MAX_ICC_BYTES
from crawl.ingest.verdict import Reason, Refusal

MAX_CHUNKS = 200_000  # encoders write IDAT chunks of 8 KiB and more: 64 MiB make 8,192
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ANCILLARY = 0x20  # this bit of a chunk's first letter says that a reader may skip it
_SRGB_GAMMA = 45455  # gAMA of sRGB, in 1/100,000
_GAMMA_RANGE = range(10_000, 500_001)  # beyond it the chunk is a mistake
_GREY, _RGB, _PALETTE = 0, 2, 3
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, 4: 2, 6: 4}  # 4 and 6: grey and RGB with alpha
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x y dx dy
_INFLATE_STEP = 1 << 20
_FEWEST_BYTES = {b"IHDR": 13, b"gAMA": 4}


@dataclass
class Png:
    """A PNG cut down to its pixels, and the facts beside them that change colours."""

    stream: bytes
    width: int
    height: int
    transparent: tuple[int, ...]  # the one transparent colour of a grey or RGB image, in the file's own bits
    bits: int
    icc: bytes
    gamma: float  # encoding exponent to undo, 0.0 where the samples are sRGB
    exif: bytes
    num_raw: int  # bytes of filtered rows that the pixel chunks must inflate to
    idat: list[bytes]

    def check_rows(self) -> None:
        """Inflate the pixel chunks once without keeping them, and count.

        Raises:
            Refusal: truncated (rows are missing) or corrupt (no valid stream).
        """
        inflate, missing = zlib.decompressobj(), self.num_raw
        try:
            for part in self.idat:
                while part and missing > 0:
                    missing -= len(inflate.decompress(part, _INFLATE_STEP))
                    part = inflate.unconsumed_tail
        except zlib.error as error:
            raise Refusal(Reason.CORRUPT, f"PNG pixel data: {error}") from None
        if missing > 0:
            raise Refusal(Reason.TRUNCATED, f"PNG pixel data lacks {missing} of {self.num_raw} bytes")


def parse_png(data: bytes) -> Png:
    """Read the chunks up to IEND; later bytes, animation frames and texts are left out.

    Raises:
        Refusal: truncated or corrupt.
    """
    found: dict[bytes, bytes] = {}
    kept: list[bytes] = []
    idat: list[bytes] = []
    at = len(_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        kind, body, end = _chunk(data, at)
        if bool(kept) == (kind == b"IHDR"):
            raise Refusal(Reason.CORRUPT, "PNG needs one IHDR chunk, at its beginning")
        if kind in _CRITICAL or (kind == b"tRNS" and found[b"IHDR"][9] == _PALETTE):
            kept.append(data[at:end])
        if kind == b"IEND":
            return _png(found, _SIGNATURE + b"".join(kept), idat)
        if kind == b"IDAT":
            idat.append(body)
        else:
            found.setdefault(kind, body)
        at = end
    raise Refusal(Reason.CORRUPT, f"PNG with more than {MAX_CHUNKS} chunks")


def _chunk(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """Return kind, body and end of the chunk at `at`; the checksum of critical chunks is verified."""
    if at + 12 > len(data):
        raise Refusal(Reason.TRUNCATED, f"PNG ends after {len(data)} bytes without an IEND chunk")
    size, kind = struct.unpack_from(">I4s", data, at)
    end = at + 12 + size
    if end > len(data):
        raise Refusal(Reason.TRUNCATED, f"PNG chunk {kind!r} declares {size} bytes, {len(data) - at - 12} are left")
    body = data[at + 8 : end - 4]
    if kind in _CRITICAL and zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], "big"):
        raise Refusal(Reason.CORRUPT, f"PNG chunk {kind!r} at byte {at} fails its checksum")
    if kind not in _CRITICAL and not kind[0] & _ANCILLARY:
        raise Refusal(Reason.CORRUPT, f"PNG chunk {kind!r} at byte {at} is unknown and critical")
    if size < _FEWEST_BYTES.get(kind, 0):
        raise Refusal(Reason.CORRUPT, f"PNG chunk {kind!r} has {size} bytes")
    return kind, body, end


def _png(found: dict[bytes, bytes], stream: bytes, idat: list[bytes]) -> Png:
    width, height, bits, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", found[b"IHDR"][:13])
    if colour_type not in _CHANNELS or not idat:
        raise Refusal(Reason.CORRUPT, f"PNG of colour type {colour_type} with {len(idat)} pixel chunks")
    if colour_type == _PALETTE and b"PLTE" not in found:
        raise Refusal(Reason.CORRUPT, "palette PNG without a palette")
    num_raw = _num_raw(width, height, bits * _CHANNELS[colour_type], bool(interlaced))
    channels = {_GREY: 1, _RGB: 3}.get(colour_type, 0)
    trns = found.get(b"tRNS", b"")[: 2 * channels]
    transparent = struct.unpack(f">{len(trns) // 2}H", trns) if len(trns) == 2 * channels else ()
    icc = _inflated_icc(found.get(b"iCCP", b""))
    gamma, exif = _gamma(found, icc), found.get(b"eXIf", b"")
    return Png(stream, width, height, transparent, bits, icc, gamma, exif, num_raw, idat)


def _num_raw(width: int, height: int, bits_a_pixel: int, interlaced: bool) -> int:
    """Count the bytes of all rows, each with its filter byte; passes without pixels have no rows."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + -(-columns * bits_a_pixel // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


def _gamma(found: dict[bytes, bytes], icc: bytes) -> float:
    """A gAMA chunk counts only where no better description stands beside it, as the PNG specification says."""
    if icc or b"sRGB" in found or b"cICP" in found or b"gAMA" not in found:
        return 0.0
    gamma = int.from_bytes(found[b"gAMA"][:4], "big")
    is_srgb = abs(gamma - _SRGB_GAMMA) < 1000
    return 0.0 if is_srgb or gamma not in _GAMMA_RANGE else gamma / 100_000


def _inflated_icc(chunk: bytes) -> bytes:
    """Return the profile of an iCCP chunk, empty if it is damaged or larger than any real profile."""
    _, _, packed = chunk.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        icc = inflate.decompress(packed[1:], MAX_ICC_BYTES)
    except zlib.error:
        return b""
    return icc if inflate.eof else b""
