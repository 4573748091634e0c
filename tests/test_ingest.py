"""The gate: a catalogue of odd and hostile images with the verdict each must get, and laws that hold for all bytes."""

import io
import re
import struct
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from crawl.config import MAX_PIXELS, GateOptions
from crawl.ingest import GATE_VERSION, Accepted, Reason, Refused, acceptance, gate_space, ingest
from crawl.ingest.jpeg import _scan_end, decode_strictly, parse_jpeg
from crawl.ingest.verdict import Refusal

OPTIONS = GateOptions()
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (200, 30, 40)
SIZE = (64, 48)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
ROWS, COLUMNS = np.mgrid[0:60, 0:80]
SMOOTH = Image.fromarray(np.stack([COLUMNS * 3, ROWS * 4, COLUMNS + ROWS], axis=-1).astype(np.uint8))


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain(mode="RGB", colour=RED, size=SIZE):
    return Image.new(mode, size, colour)


def grey16(value, order="<u2"):
    return Image.fromarray(np.full(SIZE[::-1], value, order))


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(bits, colour_type, pixel, *extra, size=(32, 32), rows=None, tail=b"", row_filter=b"\0"):
    """A PNG written by hand; `pixel` is one row's bytes a pixel, or all of a row for less than 8 bits."""
    width, height = size
    row = row_filter + (pixel if bits < 8 else pixel * width)
    raw = row * (height if rows is None else rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
        + tail
    )


def patched(data, at, layout, *values):
    changed = bytearray(data)
    struct.pack_into(layout, changed, at, *values)
    return bytes(changed)


def frame_at(data):
    return next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)


def jpeg_size(data, width, height):
    return patched(data, frame_at(data) + 5, ">HH", height, width)


def after_soi(data, *segments):
    whole = b"".join(b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return data[:2] + whole + data[2:]


def tiff_tag(data, tag, layout, value):
    at = next(i for i in range(8, len(data)) if data[i : i + 2] == struct.pack("<H", tag) and data[i + 3] == 0)
    return patched(data, at + 8, layout, value)


def gif(canvas, corner, frame, colour=(255, 0, 0)):
    image = Image.new("P", frame, 1)
    image.putpalette([0, 0, 0, *colour] + [0] * 762)
    data = saved(image, "GIF")
    data = patched(data, 6, "<HH", *canvas)
    return patched(data, data.index(b",", 13) + 1, "<HH", *corner)


def bmp_rle(rows, size=32):
    palette = b"".join(bytes([level] * 3 + [0]) for level in range(256))
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, size, size, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + header + palette + rows


def s15(values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(space, gamma, primaries=()):
    """A minimal ICC v2 display profile: one gamma curve a channel, RGB primaries as XYZ columns under D50."""
    white = s15((0.9642, 1.0, 0.8249))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x" + bytes(81), b"wtpt": b"XYZ \0\0\0\0" + white}
    for channel, column in zip(b"rgb", primaries, strict=False):
        tags[bytes([channel]) + b"XYZ"] = b"XYZ \0\0\0\0" + s15(column)
    tags |= {bytes([channel]) + b"TRC": curve for channel in (b"rgb" if primaries else b"k")}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, part in tags.items():
        table += name + struct.pack(">II", start + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def ink_profile():
    """A CMYK printer profile whose C, M and Y each take 25 off L*, K takes all: (0, 1, 1, 0) is L* 50, a grey."""
    inks = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    lattice = b"".join(bytes([0 if k else round(255 * (1 - 0.25 * (c + m + y))), 128, 128]) for c, m, y, k in inks)
    identity = bytes(range(256))
    lut = b"mft1\0\0\0\0\4\3\2\0" + s15((1, 0, 0, 0, 1, 0, 0, 0, 1)) + identity * 4 + lattice + identity * 3
    white = s15((0.9642, 1.0, 0.8249))
    head = struct.pack(">I4sI4s4s4s", 144 + len(lut), b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head = (head + bytes(12) + b"acsp" + bytes(28) + white).ljust(128, b"\0")
    return head + struct.pack(">I4sII", 1, b"A2B0", 144, len(lut)) + lut


P3 = profile(b"RGB ", 2.2, [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)])
LINEAR_GREY = profile(b"GRAY", 1.0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.profileToProfile(
    plain(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
)
GREY_TRNS = chunk(b"tRNS", struct.pack(">H", 1))
PALETTE = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
JPEG = saved(NOISE, "JPEG", quality=90)
PROGRESSIVE = saved(NOISE, "JPEG", progressive=True)
CMYK = saved(plain("CMYK", (0, 255, 255, 0)), "JPEG")
EXIF_SIDEWAYS = Image.Exif()
EXIF_SIDEWAYS[0x0112] = 6
TIFF_RAW = saved(NOISE, "TIFF")

# name -> (bytes, colour at the centre); a colour may be 3 levels off after JPEG
ACCEPTED = {
    "rgb jpeg": (saved(plain(), "JPEG"), RED),
    "progressive jpeg": (saved(plain(), "JPEG", progressive=True), RED),
    "grey jpeg": (saved(plain("L", 77), "JPEG"), (77,) * 3),
    "jpeg without colour conversion": (saved(plain(), "JPEG", keep_rgb=True), RED),
    "jpeg 4:1:1": (simplejpeg.encode_jpeg(np.asarray(plain()), colorsubsampling="411"), RED),
    "jpeg with restart markers": (saved(plain(), "JPEG", restart_marker_blocks=1), RED),
    "jpeg with fill bytes": (saved(plain(), "JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1), RED),
    "jpeg with bytes behind its end": (saved(plain(), "JPEG") + b"<script>", RED),
    "jpeg with a broken exif block": (after_soi(saved(plain(), "JPEG"), (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")), RED),
    "jpeg with a broken profile": (saved(plain(), "JPEG", icc_profile=b"no profile"), RED),
    "jpeg with a part of a profile": (
        after_soi(saved(plain(), "JPEG"), (0xE2, b"ICC_PROFILE\0\1\2" + SRGB)),
        RED,
    ),
    "mpo, first picture": (saved(plain(), "MPO", save_all=True, append_images=[plain("RGB", BLACK)]), RED),
    "cmyk jpeg, adobe inverted": (saved(plain("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "cmyk jpeg, half black": (saved(plain("CMYK", (0, 0, 0, 128)), "JPEG"), (127,) * 3),
    "cmyk jpeg with a profile for rgb": (saved(plain("CMYK", (0, 255, 255, 0)), "JPEG", icc_profile=P3), (255, 0, 0)),
    # stored 255, 0, 0, 255 read as YCCK: RGB (76, 255, 28), so ink (179, 0, 227), inverted (76, 255, 28) with no black
    "ycck jpeg": (
        patched(CMYK, CMYK.index(b"Adobe") + 11, "B", 2),
        (179, 0, 227),
    ),
    "cmyk jpeg with its profile": (
        saved(plain("CMYK", (0, 255, 255, 0)), "JPEG", icc_profile=ink_profile()),
        (119,) * 3,
    ),
    "cmyk tiff with its profile": (
        saved(plain("CMYK", (0, 255, 255, 0)), "TIFF", icc_profile=ink_profile()),
        (119,) * 3,
    ),
    "cmyk tiff": (saved(plain("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "lab tiff": (saved(LAB, "TIFF"), RED),
    "rgb png": (saved(plain(), "PNG"), RED),
    "interlaced png": (None, RED),
    "1-bit png": (saved(plain("1", 1), "PNG"), WHITE),
    "2-bit png": (png(2, 0, b"\x55" * 8), (85,) * 3),
    "16-bit grey png": (saved(grey16(40000), "PNG"), (156,) * 3),
    "dark 16-bit grey png": (saved(grey16(300), "PNG"), (1,) * 3),
    "16-bit rgb png": (png(16, 2, struct.pack(">HHH", 40000, 20000, 60000)), (156, 78, 234)),
    "16-bit rgba png": (png(16, 6, struct.pack(">HHHH", 0, 0, 0, 32768)), (127,) * 3),
    "16-bit grey and alpha png": (png(16, 4, struct.pack(">HH", 0, 32768)), (127,) * 3),
    "grey and alpha png": (saved(plain("LA", (0, 128)), "PNG"), (127,) * 3),
    "hidden colour under alpha 0": (saved(plain("RGBA", (255, 0, 0, 0)), "PNG"), WHITE),
    "half transparent red": (saved(plain("RGBA", (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    "palette png": (png(8, 3, b"\1", PALETTE), (0, 0, 255)),
    "palette png, half transparent": (png(8, 3, b"\1", PALETTE, chunk(b"tRNS", b"\xff\x80")), (127, 127, 255)),
    "palette png, index beyond its palette": (png(8, 3, b"\5", PALETTE), BLACK),
    "1-bit png, its colour transparent": (png(1, 0, b"\xff" * 4, GREY_TRNS), WHITE),
    "2-bit png, its colour transparent": (png(2, 0, b"\x55" * 8, GREY_TRNS), WHITE),
    "2-bit png, another colour transparent": (png(2, 0, b"\xaa" * 8, GREY_TRNS), (170,) * 3),
    "8-bit png, its colour transparent": (png(8, 0, b"\1", GREY_TRNS), WHITE),
    "16-bit png, its colour transparent": (png(16, 0, b"\0\1", GREY_TRNS), WHITE),
    "16-bit rgb png, its colour transparent": (
        png(16, 2, b"\x10\0\x20\0\x30\0", chunk(b"tRNS", b"\x10\0\x20\0\x30\0")),
        WHITE,
    ),
    "rgb png, another colour transparent": (png(8, 2, bytes(RED), chunk(b"tRNS", b"\0\1\0\2\0\3")), RED),
    "linear gamma png": (png(8, 0, b"\x80", chunk(b"gAMA", struct.pack(">I", 100_000))), (188,) * 3),
    "gamma of srgb": (png(8, 0, b"\x80", chunk(b"gAMA", struct.pack(">I", 45_455))), (128,) * 3),
    "gamma 0 is a mistake": (png(8, 0, b"\x80", chunk(b"gAMA", b"\0\0\0\0")), (128,) * 3),
    "gamma beside an srgb chunk": (
        png(8, 0, b"\x80", chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000))),
        (128,) * 3,
    ),
    "text bomb": (png(8, 0, b"\x80", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000)))), (128,) * 3),
    "profile bomb": (png(8, 0, b"\x80", chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000)))), (128,) * 3),
    "png with bytes behind its end": (png(8, 0, b"\x80", tail=b"<?php"), (128,) * 3),
    "apng, default picture": (saved(plain(), "PNG", save_all=True, append_images=[plain("RGB", BLACK)]), RED),
    "gif": (saved(plain().quantize(2), "GIF"), RED),
    "grey gif": (saved(plain("L", 77), "GIF"), (77,) * 3),
    "gif, first frame": (saved(plain(), "GIF", save_all=True, append_images=[plain("RGB", BLACK)]), RED),
    "gif, its colour transparent": (saved(plain("P", 0), "GIF", transparency=0), WHITE),
    "gif frame in a corner": (gif((64, 64), (0, 0), (20, 20)), WHITE),
    "gif frame in the middle": (gif((64, 64), (16, 16), (32, 32)), (255, 0, 0)),
    "gif frame larger than its canvas": (gif((32, 32), (0, 0), (64, 64)), (255, 0, 0)),
    "webp": (saved(plain(), "WEBP"), RED),
    "lossless webp": (saved(plain(), "WEBP", lossless=True), RED),
    "half transparent webp": (saved(plain("RGBA", (255, 0, 0, 128)), "WEBP", lossless=True), (255, 127, 127)),
    "webp, first frame": (saved(plain(), "WEBP", save_all=True, append_images=[plain("RGB", BLACK)]), RED),
    "bmp": (saved(plain(), "BMP"), RED),
    "palette bmp": (saved(plain().quantize(2), "BMP"), RED),
    "rle bmp": (bmp_rle(b"\x20\x80\0\0" * 32 + b"\0\1"), (128,) * 3),
    "tiff": (saved(plain(), "TIFF"), RED),
    "lzw tiff": (saved(plain(), "TIFF", compression="tiff_lzw"), RED),
    "deflate tiff": (saved(plain(), "TIFF", compression="tiff_adobe_deflate"), RED),
    "packbits tiff": (saved(plain(), "TIFF", compression="packbits"), RED),
    "16-bit grey tiff": (saved(grey16(40000), "TIFF"), (156,) * 3),
    "16-bit grey tiff, big endian": (saved(grey16(40000, ">u2"), "TIFF"), (156,) * 3),
    "white is zero": (tiff_tag(saved(plain("L", 55), "TIFF"), 262, "<H", 0), (200,) * 3),
    "half transparent tiff": (saved(plain("RGBA", (255, 0, 0, 128)), "TIFF"), (255, 127, 127)),
    "avif": (saved(plain(), "AVIF"), RED),
    "half transparent avif": (saved(plain("RGBA", (255, 0, 0, 128)), "AVIF"), (255, 127, 127)),
    "avif, first frame": (saved(plain(), "AVIF", save_all=True, append_images=[plain("RGB", BLACK)]), RED),
    # linear Display P3 -> linear sRGB: red 1.2249 r - 0.2247 g; so P3 grey stays grey and P3 green clips red to 0
    "display p3 grey": (saved(plain("RGB", (128,) * 3), "PNG", icc_profile=P3), (128,) * 3),
    "display p3 green": (saved(plain("RGB", (0, 255, 0)), "JPEG", icc_profile=P3, quality=100), (0, 255, 0)),
    "display p3, half red": (saved(plain("RGB", (128, 0, 0)), "PNG", icc_profile=P3), (141, 0, 0)),
    "grey pixels with an rgb profile": (saved(plain("L", 128), "PNG", icc_profile=P3), (128,) * 3),
    "grey profile, linear": (saved(plain("L", 128), "JPEG", icc_profile=LINEAR_GREY), (188,) * 3),
    "grey profile on rgb pixels is ignored": (saved(plain(), "PNG", icc_profile=LINEAR_GREY), RED),
    "profile under transparency": (saved(plain("RGBA", (128, 0, 0, 128)), "PNG", icc_profile=P3), (197, 127, 127)),
}


def interlaced_png():
    """Adam7 by hand: every pass of a one-colour picture repeats the colour."""
    passes = [(8, 6), (8, 6), (16, 6), (16, 12), (32, 12), (32, 24), (64, 24)]
    raw = b"".join((b"\0" + bytes(RED) * columns) * rows for columns, rows in passes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


ACCEPTED["interlaced png"] = (interlaced_png(), RED)

REFUSED = {
    "no bytes": (b"", Reason.EMPTY),
    "too many bytes": (b"\xff\xd8\xff" + bytes(OPTIONS.max_bytes), Reason.TOO_MANY_BYTES),
    "web page": (b"<!DOCTYPE html><html>404</html>", Reason.NOT_AN_IMAGE),
    "web page with a byte order mark": (b"\xef\xbb\xbf \n<html></html>", Reason.NOT_AN_IMAGE),
    "text": (b"not found", Reason.NOT_AN_IMAGE),
    "json": (b'{"error": 404}', Reason.NOT_AN_IMAGE),
    "zeros": (bytes(1000), Reason.NOT_AN_IMAGE),
    "one byte": (b"\xff", Reason.NOT_AN_IMAGE),
    "program": (b"\x7fELF" + bytes(100), Reason.NOT_AN_IMAGE),
    "letters that begin like a bmp": (b"BMW is a car, not a bitmap", Reason.NOT_AN_IMAGE),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.UNSUPPORTED_FORMAT),
    "svg behind an xml header": (b'<?xml version="1.0"?>\n<!-- x --><svg />', Reason.UNSUPPORTED_FORMAT),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", Reason.UNSUPPORTED_FORMAT),
    "pdf": (b"%PDF-1.7\n", Reason.UNSUPPORTED_FORMAT),
    "psd": (b"8BPS\0\1" + bytes(30), Reason.UNSUPPORTED_FORMAT),
    "fits": (b"SIMPLE  =                    T", Reason.UNSUPPORTED_FORMAT),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Reason.UNSUPPORTED_FORMAT),
    "heif with a generic brand": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", Reason.UNSUPPORTED_FORMAT),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", Reason.UNSUPPORTED_FORMAT),
    "webm": (b"\x1aE\xdf\xa3" + bytes(30), Reason.UNSUPPORTED_FORMAT),
    "avi": (b"RIFF\0\0\0\0AVI LIST", Reason.UNSUPPORTED_FORMAT),
    "wav": (b"RIFF\0\0\0\0WAVEfmt ", Reason.UNSUPPORTED_FORMAT),
    "ico": (saved(plain(), "ICO"), Reason.UNSUPPORTED_FORMAT),
    "ppm": (saved(plain(), "PPM"), Reason.UNSUPPORTED_FORMAT),
    "jpeg 2000": (saved(plain(), "JPEG2000"), Reason.UNSUPPORTED_FORMAT),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), Reason.UNSUPPORTED_FORMAT),
    "zip": (b"PK\3\4" + bytes(30), Reason.UNSUPPORTED_FORMAT),
    "canon raw": (b"II*\0\x10\0\0\0CR\2\0" + bytes(30), Reason.UNSUPPORTED_FORMAT),
    "jpeg header alone": (b"\xff\xd8\xff\xe0", Reason.TRUNCATED),
    "jpeg without its end": (JPEG[:-2], Reason.TRUNCATED),
    "jpeg cut in the middle": (JPEG[: len(JPEG) // 2], Reason.TRUNCATED),
    "jpeg with an early end marker": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", Reason.TRUNCATED),
    "progressive jpeg with an early end marker": (
        PROGRESSIVE[: len(PROGRESSIVE) - 900] + b"\xff\xd9",
        Reason.TRUNCATED,
    ),
    "jpeg with a too tall header": (jpeg_size(JPEG, 80, 400), Reason.TRUNCATED),
    "jpeg with a too wide header": (jpeg_size(JPEG, 400, 60), Reason.TRUNCATED),
    "jpeg with a too short header": (jpeg_size(JPEG, 80, 30), Reason.CORRUPT),
    "jpeg with its height behind the scan": (jpeg_size(JPEG, 80, 0), Reason.CORRUPT),
    "jpeg with a DNL segment": (JPEG[:-2] + b"\xff\xdc\0\4\0\x3c\xff\xd9", Reason.CORRUPT),
    "jpeg bomb by header": (jpeg_size(JPEG, 40000, 40000), Reason.TOO_MANY_PIXELS),
    "jpeg of 12 bits": (patched(JPEG, frame_at(JPEG) + 4, "B", 12), Reason.UNSUPPORTED_FORMAT),
    "lossless jpeg": (patched(JPEG, frame_at(JPEG) + 1, "B", 0xC3), Reason.UNSUPPORTED_FORMAT),
    "arithmetic jpeg": (patched(JPEG, frame_at(JPEG) + 1, "B", 0xC9), Reason.UNSUPPORTED_FORMAT),
    "jpeg of two frames": (after_soi(JPEG, (0xC0, JPEG[frame_at(JPEG) + 4 : frame_at(JPEG) + 19])), Reason.CORRUPT),
    "jpeg of many empty segments": (JPEG[:2] + b"\xff\xfe\0\2" * 20_000 + JPEG[2:], Reason.CORRUPT),
    "jpeg with junk between segments": (JPEG[:20] + b"junk" + JPEG[20:], Reason.CORRUPT),
    "jpeg with a segment of length 0": (JPEG[:2] + b"\xff\xfe\0\0" + JPEG[2:], Reason.CORRUPT),
    "jpeg of fill bytes that lead to no marker": (JPEG[:-2] + b"\xff" * 300_000 + b"\0", Reason.TRUNCATED),
    "jpeg without tables": (JPEG.replace(b"\xff\xc4", b"\xff\xfe"), Reason.CORRUPT),
    "png signature alone": (b"\x89PNG\r\n\x1a\n", Reason.TRUNCATED),
    "png without its end": (saved(NOISE, "PNG")[:-12], Reason.TRUNCATED),
    "png with half its rows": (png(8, 0, b"\x80", rows=16), Reason.TRUNCATED),
    "png without rows": (png(8, 0, b"\x80", rows=0), Reason.TRUNCATED),
    "png without pixel data": (saved(plain(), "PNG").replace(b"IDAT", b"zzZz"), Reason.CORRUPT),
    "png with a wrong checksum": (saved(NOISE, "PNG")[:-20] + b"\0\0\0\0" + saved(NOISE, "PNG")[-16:], Reason.CORRUPT),
    "png with two headers": (
        png(8, 0, b"\x80", chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0))),
        Reason.CORRUPT,
    ),
    "png with an unknown filter": (png(8, 0, b"\x80", row_filter=b"\x09"), Reason.CORRUPT),
    "palette png without a palette": (png(8, 3, b"\1"), Reason.CORRUPT),
    "png with an unknown critical chunk": (png(8, 0, b"\1", chunk(b"ABCD", b"")), Reason.CORRUPT),
    "png of colour type 5": (png(8, 5, b"\x80"), Reason.CORRUPT),
    "png bomb by header": (png(8, 0, b"", size=(60_000, 60_000), rows=0), Reason.TOO_MANY_PIXELS),
    "png of width 0": (png(8, 0, b"\x80", size=(0, 32)), Reason.CORRUPT),
    "gif bomb by canvas": (gif((65535, 65535), (0, 0), (32, 32)), Reason.TOO_MANY_PIXELS),
    "gif bomb by frame": (gif((32, 32), (60_000, 60_000), (32, 32)), Reason.TOO_MANY_PIXELS),
    "gif without frames": (b"GIF89a\x20\0\x20\0\0\0\0;", Reason.CORRUPT),
    "webp bomb by canvas": (
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0\xff\x3f\0",
        Reason.TOO_MANY_PIXELS,
    ),
    "webp of an unknown chunk": (b"RIFF" + struct.pack("<I", 22) + b"WEBPJUNK" + bytes(30), Reason.CORRUPT),
    "webp cut": (saved(NOISE, "WEBP")[:-100], Reason.TRUNCATED),
    "bmp bomb by header": (patched(saved(plain(), "BMP"), 18, "<ii", 50_000, -50_000), Reason.TOO_MANY_PIXELS),
    "rle bmp with half its rows": (bmp_rle(b"\x20\x80\0\0" * 16 + b"\0\1"), Reason.CORRUPT),
    "tiff taller than its strips": (tiff_tag(TIFF_RAW, 257, "<H", 200), Reason.TRUNCATED),
    "tiff bomb by header": (tiff_tag(TIFF_RAW, 257, "<I", 4_000_000), Reason.TOO_MANY_PIXELS),
    "jpeg in a tiff": (saved(plain(), "TIFF", compression="jpeg"), Reason.UNSUPPORTED_FORMAT),
    "fax tiff": (saved(plain("1", 1), "TIFF", compression="group4"), Reason.UNSUPPORTED_FORMAT),
    "float tiff": (saved(plain("F", 0.5), "TIFF"), Reason.UNSUPPORTED_FORMAT),
    "32-bit tiff": (saved(plain("I", 70_000), "TIFF"), Reason.UNSUPPORTED_FORMAT),
    "ycbcr tiff": (tiff_tag(TIFF_RAW, 262, "<H", 6), Reason.UNSUPPORTED_FORMAT),
    "16-bit tiff where white is zero": (tiff_tag(saved(grey16(9), "TIFF"), 262, "<H", 0), Reason.UNSUPPORTED_FORMAT),
    "tracking pixel": (saved(plain(size=(1, 1)), "GIF"), Reason.TOO_SMALL),
    "strip": (saved(plain(size=(400, 20)), "PNG"), Reason.EXTREME_ASPECT),
}


def accepted(data, options=OPTIONS):
    verdict = ingest(data, options)
    assert isinstance(verdict, Accepted), verdict
    return verdict


def pixels(verdict):
    return simplejpeg.decode_jpeg(verdict.jpeg, strict=True).astype(int)


def markers(jpeg):
    """Segments before the scan, read by a walk of our own."""
    at, found = 2, []
    while found[-1:] != [0xDA]:
        found.append(jpeg[at + 1])
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return found


def assert_keeps_the_promise(verdict, options=OPTIONS):
    height, width, colours, _ = simplejpeg.decode_jpeg_header(verdict.jpeg)
    shape = simplejpeg.decode_jpeg(verdict.jpeg, strict=True).shape
    assert shape == (height, width, 3) == (verdict.height, verdict.width, 3)
    assert colours != "Gray"
    assert max(shape) <= options.max_side_px
    assert set(markers(verdict.jpeg)) <= {0xE0, 0xEE, 0xDB, 0xC0, 0xC4, 0xDD, 0xDA}
    assert verdict.jpeg.endswith(b"\xff\xd9")


@pytest.mark.parametrize(("data", "colour"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_odd_but_sound_image_is_accepted_with_the_right_colour(data, colour):
    verdict = accepted(data)
    centre = pixels(verdict)[verdict.height // 2, verdict.width // 2]
    assert np.abs(centre - colour).max() <= 3
    assert_keeps_the_promise(verdict)


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_hostile_or_damaged_image_is_refused_by_its_reason(data, reason):
    verdict = ingest(data, OPTIONS)
    assert isinstance(verdict, Refused), verdict
    assert verdict.reason == reason, verdict
    assert verdict.detail.isascii()
    assert verdict.detail.isprintable()


def test_catalogue_is_large_and_covers_every_reason_of_the_pure_gate():
    assert len(ACCEPTED) + len(REFUSED) >= 140
    isolated = {Reason.TIMEOUT, Reason.OUT_OF_MEMORY, Reason.CRASHED}
    screened = {Reason.BLOCKED, Reason.ADULT}
    assert {reason for _, reason in REFUSED.values()} == set(Reason) - isolated - screened


# --- the walk over the segments of a JPEG


@given(
    st.lists(st.sampled_from([b"\xff", b"\0", b"\xd0", b"\xd7", b"\xd8", b"\xd9", b"A"]), max_size=12),
    st.integers(0, 3),
)
def test_a_scan_ends_where_the_fill_bytes_of_the_next_marker_begin(pieces, at):
    data = b"".join(pieces)
    found = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]").search(data, at)
    if found is None:
        with pytest.raises(Refusal):
            _scan_end(data, at)
    else:
        assert _scan_end(data, at) == found.start()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_damage_is_found_in_an_eighth_of_the_pixels_as_in_all_of_them(subsampling):
    rng = np.random.default_rng(subsampling)
    whole = saved(SMOOTH, "JPEG", quality=90, subsampling=subsampling, restart_marker_blocks=7 * (subsampling == 1))
    scan = whole.index(b"\xff\xda") + 14
    seen = set()
    for _ in range(300):
        at, value = int(rng.integers(scan, len(whole) - 2)), int(rng.integers(256))
        verdicts = [_strict_verdict(patched(whole, at, "B", value), shrink) for shrink in (1, 8)]
        assert verdicts[0] == verdicts[1]
        seen.add(verdicts[0][0])
    assert {"", Reason.TRUNCATED} <= seen


def _strict_verdict(data, shrink):
    try:
        decode_strictly(parse_jpeg(data), shrink)
    except Refusal as refusal:
        return refusal.refused.reason, refusal.refused.detail
    return "", ""


# --- JPEGs that keep their bytes


def test_plain_jpeg_within_bounds_keeps_its_bytes():
    assert accepted(JPEG).jpeg == JPEG


@pytest.mark.parametrize(
    "segment",
    [
        (0xFE, b"made by a camera"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"),
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0"),
        (0xE2, b"ICC_PROFILE\0\1\1" + SRGB),
        (0xE0, b"JFXX\0\x10thumbnail"),
        (0xED, b"Photoshop 3.0\0secret"),
    ],
    ids=["comment", "xmp", "exif", "srgb profile", "thumbnail", "photoshop"],
)
def test_metadata_is_cut_out_without_touching_the_scan(segment):
    assert accepted(after_soi(JPEG, segment)).jpeg == JPEG


def test_bytes_behind_the_end_marker_are_cut():
    assert accepted(JPEG + b"\0" * 100 + b"PK\3\4" + JPEG).jpeg == JPEG


def test_thumbnail_inside_the_jfif_segment_is_cut():
    with_thumbnail = JPEG[:2] + b"\xff\xe0\0\x13" + JPEG[6:18] + b"\1\1\xaa\xbb\xcc" + JPEG[20:]
    assert accepted(with_thumbnail).jpeg == JPEG


@pytest.mark.parametrize(
    "data",
    [
        PROGRESSIVE,
        saved(NOISE.convert("L"), "JPEG"),
        saved(NOISE, "JPEG", keep_rgb=True),
        saved(NOISE, "JPEG", exif=EXIF_SIDEWAYS.tobytes()),
        saved(NOISE, "JPEG", icc_profile=P3),
        saved(NOISE.resize((800, 600)), "JPEG"),
        JPEG.replace(b"\xff\xdb", b"\xff\xe0\0\x10" + JPEG[6:20] + b"\xff\xdb", 1),
        after_soi(JPEG, *[(0xDB, JPEG[JPEG.index(b"\xff\xdb") + 4 :][:65])] * 600),
    ],
    ids=["progressive", "grey", "rgb", "sideways", "wide gamut", "large", "two jfif segments", "padded with tables"],
)
def test_any_other_jpeg_is_encoded_anew(data):
    verdict = accepted(data)
    assert verdict.jpeg[: len(JPEG)] != data[: len(JPEG)]
    assert len(verdict.jpeg) < 200_000
    assert_keeps_the_promise(verdict)
    assert markers(verdict.jpeg).count(0xE0) == 1


# --- geometry


def oriented(orientation):
    corner = np.zeros((48, 64, 3), dtype=np.uint8)
    corner[:24, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(corner)
    image.info["exif"] = exif.tobytes()
    return image, exif.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_out_upright(kind, orientation):
    image, exif = oriented(orientation)
    verdict = accepted(saved(image, kind, exif=exif))
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert (verdict.original_height, verdict.original_width) == expected.shape[:2] == pixels(verdict).shape[:2]
    assert np.abs(pixels(verdict) - expected).mean() < 4


def test_sideways_photograph_shows_its_sky_on_top():
    image = Image.new("RGB", (64, 48), BLACK)
    image.paste(WHITE, (0, 0, 8, 48))  # stored left column = top row once orientation 6 is applied
    upright = pixels(accepted(saved(image, "JPEG", exif=EXIF_SIDEWAYS.tobytes())))
    assert upright.shape == (64, 48, 3)
    assert upright[3, 24, 0] > 250
    assert upright[60, 24, 0] < 5


@pytest.mark.parametrize(
    ("size", "stored"),
    [((1024, 512), (512, 256)), ((100, 1000), (52, 512)), ((512, 512), (512, 512)), ((513, 60), (512, 60))],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_longer_side_is_bounded_and_the_shorter_rounded_up(size, stored, kind):
    verdict = accepted(saved(plain(size=size), kind))
    assert (verdict.width, verdict.height) == stored
    assert (verdict.original_width, verdict.original_height) == size


@pytest.mark.parametrize("scale", [2, 3, 9, 20])
def test_shrinking_in_the_decoder_stays_close_to_a_whole_decode(scale):
    options = replace(OPTIONS, max_side_px=64)
    large = saved(SMOOTH.resize((64 * scale + 3, 48 * scale), Image.Resampling.BICUBIC), "JPEG", quality=100)
    verdict = accepted(large, options)
    with Image.open(io.BytesIO(large)) as image:
        expected = np.asarray(image.resize((verdict.width, verdict.height), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(pixels(verdict) - expected).max() <= 12


@pytest.mark.parametrize(("size", "stored"), [((128, 95), (64, 48)), ((187, 141), (64, 49)), ((259, 251), (64, 63))])
def test_what_pads_a_jpeg_to_whole_blocks_does_not_reach_its_edges(size, stored):
    whole = Image.new("RGB", tuple(-(-side // 8) * 8 for side in size), BLACK)
    whole.paste(WHITE, (0, 0, *size))
    jpeg = jpeg_size(saved(whole, "JPEG", quality=100, subsampling=0), *size)
    verdict = accepted(jpeg, replace(OPTIONS, max_side_px=64))
    assert (verdict.width, verdict.height) == stored
    assert pixels(verdict).min() >= 240


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_that_the_decoder_shrinks_is_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = SMOOTH.resize((130, 98), Image.Resampling.BICUBIC)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(saved(image, "PNG", exif=exif)))).convert("RGB")
    verdict = accepted(saved(image, "JPEG", quality=95, exif=exif), replace(OPTIONS, max_side_px=64))
    seen = expected.resize((verdict.width, verdict.height), Image.Resampling.LANCZOS)
    assert np.abs(pixels(verdict) - np.asarray(seen).astype(int)).max() <= 12


def test_resampling_transparent_pixels_leaks_no_hidden_colour():
    image = Image.new("RGBA", (1024, 1024), (0, 0, 0, 0))  # hidden black would darken the seam
    image.paste((255, 255, 255, 255), (0, 0, 511, 1024))
    assert pixels(accepted(saved(image, "PNG"))).min() >= 252


def test_stored_image_of_the_largest_aspect_passes_again():
    first = accepted(saved(plain(size=(5120, 513)), "PNG"))
    assert accepted(first.jpeg).jpeg == first.jpeg


# --- limits


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_bytes": 100}, Reason.TOO_MANY_BYTES),
        ({"max_pixels": 4799}, Reason.TOO_MANY_PIXELS),
        ({"min_side_px": 61}, Reason.TOO_SMALL),
        ({"max_aspect": 1.3}, Reason.EXTREME_ASPECT),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_each_limit_refuses_one_step_beyond_it(change, reason, kind):
    assert ingest(saved(NOISE, kind), replace(OPTIONS, **change)).reason == reason


def test_limits_themselves_are_allowed():
    exact = replace(OPTIONS, max_bytes=len(JPEG), max_pixels=4800, min_side_px=60, max_aspect=80 / 60)
    assert accepted(JPEG, exact).jpeg == JPEG


def test_details_name_what_was_found_and_the_limit():
    assert ingest(REFUSED["jpeg bomb by header"][0], OPTIONS).detail == (
        "header declares 40000x40000 = 1600.0 Mpixel, limit 100.0"
    )


def test_foreign_bytes_are_escaped_in_details():
    detail = ingest(b"\x1b[31m\n<b>", OPTIONS).detail
    assert "\x1b" not in detail
    assert "\n" not in detail


def test_no_more_pixels_are_asked_for_than_pillow_decodes():
    most = 2 * Image.MAX_IMAGE_PIXELS
    assert GateOptions(max_pixels=most).max_pixels == most == MAX_PIXELS
    with pytest.raises(ValueError, match=rf"max_pixels must lie in 1\.\.{most}, got {most + 1}"):
        GateOptions(max_pixels=most + 1)


def test_acceptance_is_all_options_but_the_limits_of_a_worker():
    names = {field.name for field in fields(GateOptions)} - {"timeout_s", "memory_mb"}
    assert acceptance(OPTIONS) == {"gate_version": GATE_VERSION, **{name: getattr(OPTIONS, name) for name in names}}


def test_gate_space_holds_what_changes_pixels_and_nothing_else():
    assert gate_space(OPTIONS) == {"gate_version": GATE_VERSION, "max_side_px": 512, "quality": 90}
    assert gate_space(replace(OPTIONS, timeout_s=99.0, max_bytes=1)) == gate_space(OPTIONS)


# --- laws

FORMATS = {
    "jpeg": lambda image: saved(image, "JPEG"),
    "progressive": lambda image: saved(image, "JPEG", progressive=True),
    "mpo": lambda image: saved(image, "MPO", save_all=True, append_images=[NOISE]),
    "png": lambda image: saved(image, "PNG"),
    "apng": lambda image: saved(image, "PNG", save_all=True, append_images=[NOISE.transpose(0)]),
    "gif": lambda image: saved(image, "GIF"),
    "animated gif": lambda image: saved(image, "GIF", save_all=True, append_images=[NOISE.transpose(0)]),
    "webp": lambda image: saved(image, "WEBP"),
    "lossless webp": lambda image: saved(image, "WEBP", lossless=True),
    "bmp": lambda image: saved(image, "BMP"),
    "tiff": lambda image: saved(image, "TIFF"),
    "lzw tiff": lambda image: saved(image, "TIFF", compression="tiff_lzw"),
    "deflate tiff": lambda image: saved(image, "TIFF", compression="tiff_adobe_deflate"),
    "packbits tiff": lambda image: saved(image, "TIFF", compression="packbits"),
    "avif": lambda image: saved(image, "AVIF"),
}
SOUND = {name: save(SMOOTH) for name, save in FORMATS.items()}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("image", [NOISE, SMOOTH], ids=["noise", "smooth"])
def test_a_cut_file_is_refused_or_gives_the_same_pixels(name, image):
    data = FORMATS[name](image)
    whole = accepted(data).jpeg
    cuts = {*range(0, len(data), 1 + len(data) // 60), *range(len(data) - 12, len(data))}
    for cut in sorted(cuts):
        verdict = ingest(data[:cut], OPTIONS)
        assert isinstance(verdict, Refused) or verdict.jpeg == whole, cut


@pytest.mark.parametrize("cut", range(820, 3200, 240))
def test_gif_that_was_cut_and_ended_properly_is_refused(cut):
    assert ingest(SOUND["gif"][:cut] + b"\0;", OPTIONS).reason == Reason.TRUNCATED


@pytest.mark.parametrize("cut", range(60, 260, 40))
def test_webp_that_was_cut_and_ended_properly_is_refused(cut):
    body = SOUND["webp"][20:cut]
    data = b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8 " + struct.pack("<I", len(body)) + body
    assert isinstance(ingest(data, OPTIONS), Refused)


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_gate_stored_passes_it_unchanged(name):
    first = accepted(SOUND[name])
    assert accepted(first.jpeg).jpeg == first.jpeg


@pytest.mark.parametrize("name", FORMATS)
def test_equal_bytes_give_equal_verdicts(name):
    assert ingest(SOUND[name], OPTIONS) == ingest(SOUND[name], OPTIONS)


def assert_lawful(data):
    verdict = ingest(data, OPTIONS)
    assert isinstance(verdict, Accepted | Refused)
    if isinstance(verdict, Accepted):
        assert_keeps_the_promise(verdict)
    else:
        assert verdict.detail.isascii()
        assert verdict.detail.isprintable()


FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@FUZZ
@given(
    name=st.sampled_from(sorted(SOUND)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=6),
    in_header=st.booleans(),
)
def test_flipped_bytes_never_raise(name, flips, in_header):
    data = bytearray(SOUND[name])
    for where, mask in flips:
        data[int(where * (min(len(data), 120) if in_header else len(data)))] ^= mask
    assert_lawful(bytes(data))


@FUZZ
@given(
    name=st.sampled_from(sorted(SOUND)),
    head=st.integers(0, 200),
    rest=st.binary(max_size=300),
)
def test_random_bytes_behind_any_header_never_raise(name, head, rest):
    assert_lawful(SOUND[name][:head] + rest)


@FUZZ
@given(
    name=st.sampled_from(sorted(SOUND)),
    start=st.floats(0, 1),
    length=st.integers(1, 60),
    to=st.floats(0, 1),
)
def test_moved_blocks_never_raise(name, start, length, to):
    data = SOUND[name]
    at, there = int(start * len(data)), int(to * len(data))
    block = data[at : at + length]
    assert_lawful(data[:there] + block + data[there:])
