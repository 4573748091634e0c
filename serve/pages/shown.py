"""What templates call: sizes of pictures, numbers with their nouns."""

from __future__ import annotations

from flask import current_app, url_for

from serve.searchers.base import Hit
from serve.thumbnails import sizes_for, widths_for

MIN_RATIO, MAX_RATIO = 66, 300  # width in percent of height; what lies outside is letterboxed in the grid


def boxed_percent(hit: Hit) -> int:
    """Return the ratio of a picture's box in percent."""
    return min(max(round(100 * hit.width / max(hit.height, 1)), MIN_RATIO), MAX_RATIO)


def ratio_class(hit: Hit) -> str:
    """Return the classes that size a picture's box; `whole` where the box is nearer square than the picture."""
    boxed = boxed_percent(hit)
    return f"r{boxed}" if boxed == round(100 * hit.width / max(hit.height, 1)) else f"r{boxed} whole"


def thumbnail_url(hit: Hit, width_px: int) -> str:
    """Return the address of a picture at this width, or of the stored picture where that is no wider."""
    if width_px >= hit.width:
        return url_for("pages.jpeg", image_id=hit.image_id)
    return url_for("pages.thumbnail", width=width_px, image_id=hit.image_id)


def srcset(hit: Hit) -> str:
    """Return the widths in which a browser may fetch a picture."""
    widths = [*widths_for(hit), hit.width]
    return ", ".join(f"{thumbnail_url(hit, width)} {width}w" for width in widths)


def sizes(hit: Hit) -> str:
    """Return how wide a picture is shown in the grid."""
    return sizes_for(boxed_percent(hit) / 100)


def plural(number: int, one: str, many: str) -> str:
    """Write a number with its noun: `1 picture`, `1,254 pictures`."""
    return f"{number:,} {one if number == 1 else many}"


def percent(share: float) -> str:
    """Write a share in whole percent, without promising what rounding would."""
    if 0 < share < 0.01:
        return "<1 %"
    return f"{int(100 * share + 1e-9)} %" if share < 1 else "100 %"


def runs_served() -> list[str]:
    """Return the runs that are served, the default first."""
    return list(current_app.extensions["searchers"])
