"""Limits on what a header declares, checked before a pixel is decoded, and the size that is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crawl.ingest.verdict import Reason, Refusal

if TYPE_CHECKING:
    from crawl.config import GateOptions


def check_bytes(num_bytes: int, options: GateOptions) -> None:
    """Refuse an empty or oversized file.

    Raises:
        Refusal: empty or too_many_bytes.
    """
    if num_bytes == 0:
        raise Refusal(Reason.EMPTY, "the file has 0 bytes")
    if num_bytes > options.max_bytes:
        raise Refusal(Reason.TOO_MANY_BYTES, f"the file has {num_bytes} bytes, limit {options.max_bytes}")


def check_size(width: int, height: int, options: GateOptions) -> None:
    """Refuse an image by the width and height its header declares.

    Raises:
        Refusal: corrupt (a side of 0), too_many_pixels, too_small or extreme_aspect.
    """
    shorter, longer = sorted((width, height))
    declared = f"header declares {width}x{height}"
    if shorter < 1:
        raise Refusal(Reason.CORRUPT, f"{declared}, a side without pixels")
    if width * height > options.max_pixels:
        megapixels = f"{width * height / 1e6:.1f} Mpixel, limit {options.max_pixels / 1e6:.1f}"
        raise Refusal(Reason.TOO_MANY_PIXELS, f"{declared} = {megapixels}")
    if shorter < options.min_side_px:
        raise Refusal(Reason.TOO_SMALL, f"{declared}, limit {options.min_side_px} pixels for the shorter side")
    if longer > options.max_aspect * shorter:
        raise Refusal(Reason.EXTREME_ASPECT, f"{declared} = {longer / shorter:.1f} to 1, limit {options.max_aspect:g}")


def fitted(width: int, height: int, max_side_px: int) -> tuple[int, int]:
    """Scale (width, height) down so that the longer side is at most `max_side_px`.

    The shorter side is rounded up: so the aspect never grows, and what the gate stored passes the gate again.
    """
    longer = max(width, height)
    if longer <= max_side_px:
        return width, height
    return -(-width * max_side_px // longer), -(-height * max_side_px // longer)
