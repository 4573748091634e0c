"""What every source yields, and how a local file of a stranger is read."""

from __future__ import annotations

import json
import math
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.artifacts import ArtifactError
from crawl.ingest.verdict import Accepted, Refused
from crawl.records import PROVENANCE

# Other names under which downloaders and tables keep our provenance columns.
SYNONYMS = {"license": "licence", "url": "source_url", "photographer": "author", "creator": "author"}
# What a dump says of a file that is measured anew here.
MEASURED = {"image_id", "width", "height", "original_format", "original_bytes", "original_width", "original_height"}
MAX_DEPTH = 20  # of lists and objects in what is said of an image


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
    image_id: str = ""  # where the source knows it; without bytes or a verdict it is that of an earlier item's
    verdict: Accepted | Refused | None = None  # of the gate on the bytes of `image_id`, where it was asked elsewhere
    ticket: int = 0  # for the source, which may want to know what became of the item


class Ledger:
    """What a source is told on the way into the collection; one that keeps no state listens to nothing but `begin`."""

    brings_verdicts = False  # its items were judged by gate and screen before
    keeps_state = False  # it knows itself what it asked for, and what is to be asked again

    def begin(self, retry: str, refresh: bool) -> None:
        """Get ready to be read; the collection is locked from here on.

        Args:
            retry: `true`, or the kinds of failures to try again, with commas; empty: none.
            refresh: ask again for what is there already.

        Raises:
            ArtifactError: the source cannot do that.
        """
        if refresh or retry not in ("", "true"):
            asked = "refresh=true" if refresh else f"retry={retry}"
            raise ArtifactError(f"{asked} is for sources of the network; a source on disk knows retry=true alone")

    def rehearse(self) -> None:
        """Tell what would be asked of whom.

        Raises:
            ArtifactError: the source asks nobody.
        """
        raise ArtifactError("dry_run=true is for sources of the network; a source on disk asks nobody")

    def filed(self, item: SourceItem, reason: str, detail: str) -> None:
        """Take note of what became of an item: a reason where it was refused, else nothing."""

    def committing(self, taken: int) -> None:
        """Get ready for the commit of a shard, before which so many items were taken."""

    def committed(self, taken: int) -> None:
        """Take note that the first so many items lie in committed shards."""

    def sealed(self) -> None:
        """Take note that the collection holds everything."""

    def end(self) -> None:
        """Let go of what was opened for reading."""


class Source(Ledger, ABC):
    """A list of items in an order that depends on nothing but the source, or that the source writes down."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Digest of what is listed, without reading the images."""

    @abstractmethod
    def items(self, start: int = 0) -> Iterator[SourceItem]:
        """Yield every item once, from number `start` on, without reading the images before where that can be."""

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield every item once."""
        return self.items()


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Read at most `max_bytes` + 1 bytes of a regular file; never follow a link, never wait for a pipe.

    Raises:
        Unreadable: with the reason `missing`, `link`, `special_file` or `unreadable`.
    """
    try:
        _require_regular(os.lstat(path).st_mode)  # before opening, which can act on a device
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            _require_regular(os.fstat(descriptor).st_mode)  # it may have been exchanged in between
            return stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise Unreadable("missing", "no such file") from None
    except OSError as error:
        raise Unreadable("unreadable", error.strerror or "cannot be read") from None


def _require_regular(mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise Unreadable("link", "a symbolic link is not followed")
    if not stat.S_ISREG(mode):
        raise Unreadable("special_file", "not a regular file")


def clean_text(text: str) -> str:
    """Replace what is no Unicode, such as half a surrogate pair, so that the text can be stored."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_json(value: Any, depth: int = 0) -> Any:
    """Return a value of a table or sidecar as strict JSON can hold it: dates as text, bytes as text or hex.

    Raises:
        ValueError: nested deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"values nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {clean_text(str(name)): as_json(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner, depth + 1) for inner in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return clean_text(str(value))


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def split_tags(value: object, separator: str) -> tuple[str, ...]:
    """Read a tags or labels column: a list of texts, or one text with separators or line breaks."""
    if _is_missing(value):
        return ()
    if isinstance(value, str):
        lines = clean_text(value).splitlines()
        return tuple(part.strip() for line in lines for part in line.split(separator) if part.strip())
    if isinstance(value, list | tuple):
        return tuple(str(as_json(tag)) for tag in value if not _is_missing(tag))
    return (str(as_json(value)),)


def describe(columns: Mapping[str, Any], leave_out: set[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Sort the columns of a row or sidecar into provenance fields and everything else, as strict JSON.

    Of several names for one field our own counts, then the first; the others stay in everything else.

    Raises:
        ValueError: nested deeper than `MAX_DEPTH`.
    """
    provenance: dict[str, str] = {}
    extra: dict[str, Any] = {}
    flat = _flat(columns)
    for name in sorted(flat, key=SYNONYMS.__contains__):
        value = as_json(flat[name])
        if name in leave_out or name in MEASURED or value in (None, ""):
            continue
        known = SYNONYMS.get(name, name)
        if known in PROVENANCE and known not in provenance:
            provenance[known] = str(value)
        else:
            extra[clean_text(name)] = value
    return provenance, extra


def _flat(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Lift what a collection of ours keeps under `extra`, an object or the JSON text of one."""
    nested = columns.get("extra")
    if isinstance(nested, str):
        try:
            nested = json.loads(nested)
        except (ValueError, RecursionError):
            return dict(columns)
    if not isinstance(nested, dict):
        return dict(columns)
    return nested | {name: value for name, value in columns.items() if name != "extra"}
