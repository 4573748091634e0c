"""The largest version of a picture that a page offers, among all the ways to embed one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

# Attributes in which galleries keep the original, those in which lazy loaders keep the picture, and srcsets.
_ORIGINALS = (
    *(
        "data-original",
        "data-full",
        "data-full-url",
        "data-fullsrc",
        "data-orig-file",
        "data-large",
        "data-large_image",
    ),
    *("data-large-file", "data-hires", "data-hi-res-src", "data-highres", "data-zoom-image", "data-zoom-src"),
)
_LAZY = ("data-src", "data-lazy-src", "data-lazy", "data-url", "data-image", "data-echo", "data-actualsrc")
_SRCSETS = ("srcset", "data-srcset", "data-lazy-srcset")
_UNUSABLE_TYPES = re.compile(r"image/(svg|jxl|heic|heif|jp2|jpx)", re.I)
_PICTURE_FILE = re.compile(r"\.(jpe?g|png|gif|webp|avif|bmp|tiff?)$", re.I)
_BEFORE_CANDIDATE = re.compile(r"[\s,]*")
_CANDIDATE = re.compile(r"\S*")
_DESCRIPTORS = re.compile(r"(?:[^,(]|\([^)]*\)?)*")  # commas in brackets part nothing
_MAX_SOURCES = 50  # of one picture element


def is_picture_file(url: str) -> bool:
    """Say whether an address ends as a picture's does."""
    return _PICTURE_FILE.search(url.partition("?")[0].partition("#")[0]) is not None


def versions(element: Any) -> Iterator[str]:
    """Yield the addresses of one picture as they are written, the largest version first.

    Args:
        element: img, picture, source, a, link, meta, or anything with such an attribute; a text is an address.
    """
    if isinstance(element, str):
        yield element
        return
    if element.tag == "picture":
        for image in element.iterfind(".//img"):
            yield from versions(image)
        yield from _from_sets(islice(element.iter("source"), _MAX_SOURCES))
        return
    for parent in element.iterancestors("a"):
        if is_picture_file(parent.get("href") or ""):
            yield parent.get("href")
    yield from _given(element, _ORIGINALS)
    around = next(element.iterancestors("picture"), None)  # libxml2 puts what follows a source inside it
    sources = [] if around is None else islice(around.iter("source"), _MAX_SOURCES)
    yield from _from_sets([element, *sources])
    yield from _given(element, (*_LAZY, "src", "href", "content", "poster"))


def _given(element: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if value := element.get(name):
            yield value


def _from_sets(elements: Any) -> Iterator[str]:
    candidates = [
        candidate
        for element in elements
        if not _UNUSABLE_TYPES.match(element.get("type") or "")
        for name in _SRCSETS
        for candidate in parse_srcset(element.get(name) or "")
    ]
    candidates.sort(key=lambda candidate: candidate[0], reverse=True)  # stable: equal ones in the page's order
    for _, url in candidates:
        yield url


def parse_srcset(text: str) -> list[tuple[tuple[float, float], str]]:
    """Split a srcset into ((width, density), address); widths count before densities, no descriptor is density 1.

    Commas may stand inside addresses, blanks may not, as HTML has it.
    """
    found = []
    position = 0
    while position < len(text):  # each step of which takes time by what it passes: pages may be made to take more
        url, position = _matched(_CANDIDATE, text, _matched(_BEFORE_CANDIDATE, text, position)[1])
        descriptors = ""
        if not url.endswith(","):  # with which an address without descriptor ends
            descriptors, position = _matched(_DESCRIPTORS, text, position)
        if url:
            found.append((_size(descriptors.split()), url.rstrip(",")))
    return found


def _matched(pattern: re.Pattern[str], text: str, position: int) -> tuple[str, int]:
    """Return what a pattern that always matches takes from a position on, and where it ends."""
    match = pattern.match(text, position)
    assert match is not None
    return match.group(), match.end()


def _size(descriptors: list[str]) -> tuple[float, float]:
    width, density = 0.0, 1.0
    for each in descriptors:
        number = each[:-1]
        try:
            if each.endswith("w"):
                width = float(number)
            elif each.endswith("x"):
                density = float(number)
        except ValueError:
            continue
    return width, density
