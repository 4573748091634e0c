"""Content codings, undone within bounds: a small body may unpack to any size, and codings may be nested."""

from __future__ import annotations

import zlib

from crawl.fetch.faults import Fault

ACCEPTED = "gzip, deflate"  # what is asked for; anything else is not decoded
MAX_CODINGS = 2  # one inside another; more than one is a fault of the server already
_BOUNDARIES = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}  # deflate comes with and without zlib's header


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
    names = [name for name in names if name not in ("", "identity")]
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
    inflater = zlib.decompressobj(window)
    content = inflater.decompress(body, max_bytes + 1)
    if len(content) > max_bytes:
        raise Fault("too_many_bytes", f"unpacks to more than {max_bytes} bytes")
    if not inflater.eof:
        raise Fault("damaged_coding", "the compressed stream ends early")
    return content
