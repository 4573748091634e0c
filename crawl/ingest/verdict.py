"""What the gate says about an image: accepted, or refused by one reason of a closed set."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_DETAIL = 240  # characters; details are logged and counted, a stranger's file must not fill them


class Reason(StrEnum):
    """Why an image was refused; each comment says what it means and what its owner may do."""

    EMPTY = "empty"  # no bytes at all: fetch or copy the file again
    TOO_MANY_BYTES = "too_many_bytes"  # file larger than gate.max_bytes, never looked at: raise it, or save smaller
    NOT_AN_IMAGE = "not_an_image"  # text, a web page or unknown bytes: the address probably answers with an error page
    UNSUPPORTED_FORMAT = "unsupported_format"  # recognised but never parsed: convert it to PNG or JPEG
    TRUNCATED = "truncated"  # the file ends before its pixels do: fetch it again
    CORRUPT = "corrupt"  # contradicts its format or its checksums: restore it from the original
    TOO_MANY_PIXELS = "too_many_pixels"  # header declares more than gate.max_pixels: raise it, or scale the image down
    TOO_SMALL = "too_small"  # shorter side below gate.min_side_px: an icon or a tracking pixel, or lower the limit
    EXTREME_ASPECT = "extreme_aspect"  # a strip beyond gate.max_aspect: crop it, or raise the limit
    TIMEOUT = "timeout"  # not done within gate.timeout_s: raise it if the machine was busy
    OUT_OF_MEMORY = "out_of_memory"  # needs more than gate.memory_mb: raise it if the image is worth it
    BLOCKED = "blocked"  # not of the gate: the picture is on screen.blocklist
    ADULT = "adult"  # not of the gate: screen.adult_model takes it for one; raise screen.adult_threshold
    CRASHED = "crashed"  # the decoder died on it: keep the file and report it to the decoder's authors


# What another time or a larger machine may decide otherwise; all else is a property of the bytes.
TRANSIENT = (Reason.TIMEOUT, Reason.OUT_OF_MEMORY, Reason.CRASHED)


@dataclass(frozen=True)
class Accepted:
    """An upright sRGB baseline JPEG of bounded size without metadata, and what it was made from."""

    jpeg: bytes
    width: int  # of the stored JPEG, pixels
    height: int
    original_format: str  # "jpeg", "png", "gif", "webp", "bmp", "tiff" or "avif"
    original_width: int  # upright, that is after the EXIF orientation
    original_height: int
    original_bytes: int


@dataclass(frozen=True)
class Refused:
    """A refusal: the reason to count by, and what was found against which limit."""

    reason: Reason
    detail: str


class Refusal(Exception):
    """Carries a refusal out of the gate's inner functions; `ingest` turns it into a `Refused`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.refused = Refused(reason, printable(detail))


def printable(text: str) -> str:
    """Escape and shorten a text that may quote foreign bytes; what is printable ASCII already stays as it is."""
    harmless = text.isascii() and text.isprintable()
    escaped = text if harmless else text.encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= MAX_DETAIL else escaped[: MAX_DETAIL - 3] + "..."
