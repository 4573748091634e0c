"""Content codings, undone within bounds: a small body may unpack to any size, and codings may be nested."""

from __future__ import annotations

import zlib

from crawl.fetch.faults import Fault

ACCEPTED = "gzip, deflate"  # what is asked for; anything else is not decoded
MAX_MEMBERS = 1_000  # of gzip, one behind another
_NONE = ("", "identity", "none", "binary", "utf-8")  # the last three are no codings, and mean none
MAX_CODINGS = 2  # one inside another; more than one is a fault of the server already
_GZIP_WINDOW = 31
# Deflate comes with and without zlib's header.
_BOUNDARIES = {"gzip": (_GZIP_WINDOW,), "x-gzip": (_GZIP_WINDOW,), "deflate": (15, -15)}


def decoded(body: bytes, header: str, max_bytes: int) -> bytes:
    """Undo the codings of a body.

    Args:
        body: as it came.
        header: value of Content-Encoding, the coding applied last at its end.
        max_bytes: of every stage.

    Raises:
        Fault: unknown_coding, nested_codings, damaged_coding or too_many_bytes.
    """
    names = [name.strip().lower() for name in header.split(",")]
    names = [name for name in names if name not in _NONE]
    if len(names) > MAX_CODINGS:
        raise Fault("nested_codings", f"{len(names)} codings, limit {MAX_CODINGS}")
    for name in reversed(names):
        if name not in _BOUNDARIES:
            raise Fault("unknown_coding", name[:40])
        body = _unpacked(body, name, max_bytes)
    return body


def _unpacked(body: bytes, name: str, max_bytes: int) -> bytes:
    first, *others = _BOUNDARIES[name]
    try:
        return _inflated(body, first, max_bytes)
    except zlib.error as error:
        if others:
            return _unpacked_raw(body, others[0], max_bytes)
        raise Fault("damaged_coding", f"{name}: {error}") from None


def _unpacked_raw(body: bytes, window: int, max_bytes: int) -> bytes:
    try:
        return _inflated(body, window, max_bytes)
    except zlib.error as error:
        raise Fault("damaged_coding", f"deflate: {error}") from None


def _inflated(body: bytes, window: int, max_bytes: int) -> bytes:
    members: list[bytes] = []
    left = max_bytes
    while not members or (window == _GZIP_WINDOW and body.startswith(b"\x1f\x8b")):
        inflater = zlib.decompressobj(window)
        members.append(inflater.decompress(body, left + 1))
        left -= len(members[-1])
        if left < 0:
            raise Fault("too_many_bytes", f"unpacks to more than {max_bytes} bytes")
        if not inflater.eof or len(members) > MAX_MEMBERS:
            raise Fault("damaged_coding", "the compressed stream ends early, or is in too many pieces")
        body = inflater.unused_data
    return b"".join(members)
