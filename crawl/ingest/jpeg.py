"""Read the marker segments of a JPEG, rebuild it without metadata, and decode it strictly."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import simplejpeg

from crawl.ingest.exif import orientation_of
from crawl.ingest.verdict import Reason, Refusal

MAX_SEGMENTS = 10_000  # pictures have tens; a file of empty segments would keep the walk below busy for long
MAX_SCANS = 500  # the bound libjpeg-turbo's own fuzzers use; encoders write about ten
MAX_ICC_BYTES = 4 * 2**20  # printing profiles reach 3 MB

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_SOF0, _DHT, _JPG, _DAC, _SOS, _DQT, _DNL = 0xC0, 0xC4, 0xC8, 0xCC, 0xDA, 0xDB, 0xDC
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_DECODED_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: all with Huffman coding
_PIXEL_SEGMENTS = _DECODED_FRAMES | {_DHT, _SOS, _DQT, 0xDD}  # with DRI: what the pixels depend on
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # the next marker that is no restart and no stuffed byte
_FILL = re.compile(rb"\xff+")
_ICC_HEADER = b"ICC_PROFILE\0"


@dataclass
class Jpeg:
    """What the marker segments of one JPEG say."""

    frame: int = 0  # marker of its frame header, 0xC0 = baseline
    precision: int = 0  # bits a sample
    width: int = 0
    height: int = 0
    components: bytes = b""  # component identifiers
    num_jfif: int = 0
    adobe: list[int] = field(default_factory=list)  # colour transform of each Adobe segment
    num_scans: int = 0
    orientation: int = 0  # EXIF, 0 while none was read
    icc_parts: list[bytes] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)  # the segments that pixels depend on, in file order

    @cached_property
    def stream(self) -> bytes:
        """The same pixels without metadata and without bytes after the end marker; complete once all was read."""
        return b"".join((_SOI, *self.kept, _EOI))

    @property
    def colour_space(self) -> str:
        """Name what the components mean, by libjpeg's rules: "grey", "ycc", "rgb" or "cmyk" (YCCK included)."""
        if len(self.components) != 3:
            return {1: "grey", 4: "cmyk"}[len(self.components)]
        if self.num_jfif:
            return "ycc"
        if self.adobe:
            return "ycc" if self.adobe[-1] else "rgb"
        return "rgb" if self.components == b"RGB" else "ycc"

    @property
    def is_plain(self) -> bool:
        """Baseline, three 8-bit YCbCr components, each APP segment once."""
        baseline = self.frame == _SOF0 and self.colour_space == "ycc"
        return baseline and self.num_jfif <= 1 and len(self.adobe) <= 1

    @property
    def icc(self) -> bytes:
        """The colour profile, empty if there is none or its parts do not fit together."""
        parts = {part[0]: part[2:] for part in self.icc_parts if len(part) > 2}
        whole = b"".join(parts[number] for number in sorted(parts))
        complete = sorted(parts) == list(range(1, len(parts) + 1)) and {p[1] for p in self.icc_parts} == {len(parts)}
        return whole if complete and len(whole) <= MAX_ICC_BYTES else b""


def parse_jpeg(data: bytes) -> Jpeg:
    """Walk the segments up to the first end marker; bytes behind it (second pictures, thumbnails) are left out.

    Raises:
        Refusal: truncated, corrupt or unsupported_format.
    """
    jpeg, at = Jpeg(), 2
    for _ in range(MAX_SEGMENTS):
        at, marker = _next_marker(data, at)
        if marker == _EOI[1]:
            return _checked(jpeg)
        size = _segment_size(data, at, marker)
        _read_segment(jpeg, marker, data[at + 2 : at + size])
        end = _scan_end(data, at + size) if marker == _SOS else at + size
        if marker in _PIXEL_SEGMENTS:
            jpeg.kept.append(bytes((0xFF, marker)) + data[at:end])
        at = end
    raise Refusal(Reason.CORRUPT, f"JPEG with more than {MAX_SEGMENTS} segments")


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    """Return the position behind the marker at `at`, and the marker; fill bytes before it are skipped."""
    start = at
    if fill := _FILL.match(data, at):
        at = fill.end()
    if at >= len(data):
        raise Refusal(Reason.TRUNCATED, f"JPEG ends after {len(data)} bytes without an end marker")
    if at == start or data[at] in (0x00, 0x01, 0xD8) or 0xD0 <= data[at] <= 0xD7:
        raise Refusal(Reason.CORRUPT, f"JPEG has no segment where one must begin, at byte {start}")
    return at + 1, data[at]


def _segment_size(data: bytes, at: int, marker: int) -> int:
    if at + 2 > len(data):
        raise Refusal(Reason.TRUNCATED, f"JPEG ends inside segment 0x{marker:02X}")
    size = int.from_bytes(data[at : at + 2], "big")
    if size < 2:
        raise Refusal(Reason.CORRUPT, f"JPEG segment 0x{marker:02X} declares {size} bytes")
    if at + size > len(data):
        raise Refusal(Reason.TRUNCATED, f"JPEG segment 0x{marker:02X} declares {size} bytes, {len(data) - at} are left")
    return size


def _scan_end(data: bytes, at: int) -> int:
    """Return where the next marker begins, with its fill bytes, which a pattern would find 19 times as slowly."""
    found = _AFTER_SCAN.search(data, at)
    if found is None:
        raise Refusal(Reason.TRUNCATED, f"JPEG ends after {len(data)} bytes inside a scan")
    return at + len(data[at : found.start()].rstrip(b"\xff"))


def _read_segment(jpeg: Jpeg, marker: int, payload: bytes) -> None:
    if marker in _FRAMES:
        _read_frame(jpeg, marker, payload)
    elif marker == _SOS:
        jpeg.num_scans += 1
    elif marker == _DNL:
        raise Refusal(Reason.CORRUPT, "JPEG gives its height behind the scan (DNL), which decoders ignore")
    elif marker == _APP0 and payload.startswith(b"JFIF\0") and len(payload) >= 14:
        jpeg.num_jfif += 1
        jpeg.kept.append(b"\xff\xe0\0\x10" + payload[:12] + b"\0\0")  # without its thumbnail
    elif marker == _APP14 and payload.startswith(b"Adobe") and len(payload) >= 12:
        jpeg.adobe.append(payload[11])
        jpeg.kept.append(b"\xff\xee\0\x0e" + payload[:12])
    elif marker == _APP1 and payload.startswith(b"Exif\0"):
        jpeg.orientation = jpeg.orientation or orientation_of(payload)
    elif marker == _APP2 and payload.startswith(_ICC_HEADER):
        jpeg.icc_parts.append(payload[len(_ICC_HEADER) :])


def _read_frame(jpeg: Jpeg, marker: int, payload: bytes) -> None:
    if jpeg.frame:
        raise Refusal(Reason.CORRUPT, "JPEG with two frame headers")
    if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
        raise Refusal(Reason.CORRUPT, f"JPEG frame header of {len(payload)} bytes")
    jpeg.frame = marker
    jpeg.precision, jpeg.height, jpeg.width = struct.unpack_from(">BHH", payload)
    jpeg.components = payload[6 : 6 + 3 * payload[5] : 3]


def _checked(jpeg: Jpeg) -> Jpeg:
    if not jpeg.frame or not jpeg.num_scans:
        raise Refusal(Reason.TRUNCATED, "JPEG ends before its first scan")
    if jpeg.frame not in _DECODED_FRAMES or jpeg.precision != 8:
        kind = f"JPEG with frame type 0x{jpeg.frame:02X} and {jpeg.precision} bits"
        raise Refusal(Reason.UNSUPPORTED_FORMAT, f"{kind}, only 8-bit baseline and progressive are decoded")
    if len(jpeg.components) not in (1, 3, 4):
        raise Refusal(Reason.UNSUPPORTED_FORMAT, f"JPEG with {len(jpeg.components)} components")
    if not {_DHT, _DQT} <= {segment[1] for segment in jpeg.kept}:  # the decoder would take tables of its own
        raise Refusal(Reason.CORRUPT, "JPEG without Huffman or quantisation tables")
    if jpeg.num_scans > MAX_SCANS:
        raise Refusal(Reason.CORRUPT, f"JPEG with {jpeg.num_scans} scans, limit {MAX_SCANS}")
    return jpeg


def decode_strictly(jpeg: Jpeg, shrink: int = 1) -> np.ndarray:
    """Decode all pixels; where libjpeg would only warn and invent the missing ones, refuse.

    Args:
        jpeg: what `parse_jpeg` returned.
        shrink: 1, 2, 4 or 8, scales both sides down inside the decoder.

    Returns:
        (height, width, channels) uint8; 1 channel grey, 3 RGB, 4 CMYK as stored (Adobe's: inverted).

    Raises:
        Refusal: truncated or corrupt.
    """
    to = {"grey": "GRAY", "cmyk": "CMYK"}.get(jpeg.colour_space, "RGB")
    smaller = {} if shrink == 1 else {"min_width": -(-jpeg.width // shrink), "min_height": -(-jpeg.height // shrink)}
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(jpeg.stream, colorspace=to, strict=True, **smaller)
    except (ValueError, RuntimeError) as error:
        cut = "premature end" in str(error).lower()
        raise Refusal(Reason.TRUNCATED if cut else Reason.CORRUPT, f"JPEG: {error}") from None
    return pixels
