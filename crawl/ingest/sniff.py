"""Tell the format of a file from its first bytes; names and declared types are never asked."""

from __future__ import annotations

import re
import struct

from crawl.ingest.verdict import Reason, Refusal

# Parsed formats with an unambiguous signature; BMP, TIFF, WebP and AVIF need a closer look below.
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
)
_TIFF_BYTE_ORDERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

# Recognised by name so that a refusal says what the file is, never parsed.
_UNSUPPORTED = (
    (b"%!PS", "EPS or PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"8BPB", "PSB"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    (b"\x97JB2\r\n\x1a\n", "JBIG2"),
    (b"\x8aMNG\r\n\x1a\n", "MNG"),
    (b"\x8bJNG\r\n\x1a\n", "JNG"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"icns", "ICNS"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"gimp xcf", "XCF"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"FLV\1", "FLV video"),
    (b"\0\0\1\xba", "MPEG video"),
    (b"\0\0\1\xb3", "MPEG video"),
    (b"FWS", "Flash"),
    (b"CWS", "Flash"),
    (b"PK\3\4", "ZIP archive"),
    (b"\x1f\x8b", "gzip archive"),
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_NETPBM = re.compile(rb"P[1-7F]\s")
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_TEXT_WINDOW = 1024


def sniff(data: bytes) -> str:
    """Name the format of `data`.

    Returns:
        One of "jpeg", "png", "gif", "webp", "bmp", "tiff", "avif".

    Raises:
        Refusal: unsupported_format with the format's name, or not_an_image.
    """
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF":
        return _riff(data)
    if data[4:8] == b"ftyp":
        return _iso_media(data)
    if data[:4] in _TIFF_BYTE_ORDERS:
        return _tiff(data)
    if data[:2] == b"BM" and len(data) >= 18 and struct.unpack_from("<I", data, 14)[0] in _BMP_HEADER_SIZES:
        return "bmp"
    raise _unknown(data)


def _riff(data: bytes) -> str:
    if data[8:12] == b"WEBP":
        return "webp"
    raise Refusal(Reason.UNSUPPORTED_FORMAT, f"RIFF container of type {data[8:12]!r}, not WebP")


def _iso_media(data: bytes) -> str:
    """Tell AVIF from HEIC and video: the major brand, then the compatible ones, decide."""
    size = min(struct.unpack_from(">I", data)[0], 256)
    compatible = {data[at : at + 4] for at in range(16, size, 4)}
    major = data[8:12]
    if major in (b"avif", b"avis") or (major in (b"mif1", b"msf1") and compatible & {b"avif", b"avis"}):
        return "avif"
    if major in _HEIF_BRANDS:
        raise Refusal(Reason.UNSUPPORTED_FORMAT, f"HEIC or HEIF image, brand {major!r}")
    raise Refusal(Reason.UNSUPPORTED_FORMAT, f"MP4 or QuickTime video, brand {major!r}")


def _tiff(data: bytes) -> str:
    """Keep camera raw files out: their first page is a thumbnail, not the picture."""
    if data[8:10] == b"CR":
        raise Refusal(Reason.UNSUPPORTED_FORMAT, "Canon raw file (CR2)")
    return "tiff"


def _unknown(data: bytes) -> Refusal:
    for signature, name in _UNSUPPORTED:
        if data.startswith(signature):
            return Refusal(Reason.UNSUPPORTED_FORMAT, name)
    if _NETPBM.match(data):
        return Refusal(Reason.UNSUPPORTED_FORMAT, "PNM")
    head = data[:_TEXT_WINDOW]
    if _SVG.search(head):
        return Refusal(Reason.UNSUPPORTED_FORMAT, "SVG")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return Refusal(Reason.NOT_AN_IMAGE, "HTML or XML text")
    return Refusal(Reason.NOT_AN_IMAGE, f"no image format begins with {data[:8]!r}")
