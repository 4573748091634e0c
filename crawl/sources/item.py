"""What every source yields, and how a local file of a stranger is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crawl.records import PROVENANCE

# Other names under which downloaders and tables keep our provenance columns.
SYNONYMS = {"license": "licence", "url": "source_url", "photographer": "author", "creator": "author"}
# What a dump says of a file that is measured anew here.
MEASURED = {"image_id", "width", "height", "original_format", "original_bytes", "original_width", "original_height"}


class Unreadable(Exception):
    """A listed thing that yields no bytes: a reason and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class SourceItem:
    """One thing that a source lists: bytes with what is said of them, or the reason why there are none."""

    key: str  # where it stands in the source, for the list of refusals
    data: bytes = b""
    problem: Unreadable | None = None
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """A list of items in an order that depends on nothing but the source."""

    def fingerprint(self) -> str:
        """Digest of what is listed, without reading the images."""
        ...

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield every item once."""
        ...


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Read at most `max_bytes` + 1 bytes of a regular file; never follow a link, never wait for a pipe.

    Raises:
        Unreadable: with the reason `missing`, `link`, `special_file` or `unreadable`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unreadable("missing", "no such file") from None
    except OSError as error:
        if path.is_symlink():
            raise Unreadable("link", "a symbolic link is not followed") from None
        raise Unreadable("unreadable", error.strerror or "cannot be opened") from None
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("special_file", "not a regular file")
        try:
            return stream.read(max_bytes + 1)
        except OSError as error:
            raise Unreadable("unreadable", error.strerror or "cannot be read") from None


def split_tags(value: object, separator: str) -> tuple[str, ...]:
    """Read a tags or labels column: a list of texts, or one text with separators or line breaks."""
    if value is None:
        return ()
    if isinstance(value, str):
        lines = value.splitlines()
        return tuple(part.strip() for line in lines for part in line.split(separator) if part.strip())
    if isinstance(value, list | tuple):
        return tuple(str(tag) for tag in value if tag is not None)
    return (str(value),)


def describe(columns: Mapping[str, Any], leave_out: set[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Sort the columns of a row or sidecar into provenance fields and everything else."""
    provenance: dict[str, str] = {}
    extra: dict[str, Any] = {}
    nested = columns.get("extra")
    flat = {**columns, **nested} if isinstance(nested, dict) else dict(columns)
    for name, value in flat.items():
        if name in leave_out or name in MEASURED or name == "extra" or value in (None, ""):
            continue
        known = SYNONYMS.get(name, name)
        if known in PROVENANCE:
            provenance.setdefault(known, str(value))
        else:
            extra[name] = value
    return provenance, extra
