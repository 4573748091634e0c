"""Tombstones: what was taken down and never comes back.

`data/collection/tombstones` holds one JSON object a line, and lines are only ever added. Beside image_id, reason and
date there are digests alone, of addresses, of the stored JPEG and of features: enough to recognise what is gone, and
nothing to bring it back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from configs.artifacts import ArtifactError, atomic_write
from crawl.fetch.urls import BadUrl, canonical

TOMBSTONES_FILE = "tombstones"
TAKEN_DOWN = "taken_down"  # reason of a refusal


@dataclass(frozen=True)
class Tombstone:
    """One picture that was taken down, or an address that no picture of the collection came from."""

    image_id: str = ""  # empty for an address alone
    reason: str = ""
    date: str = ""  # ISO 8601, UTC
    addresses: tuple[str, ...] = ()  # digests of what is never asked for again
    jpeg: str = ""  # SHA-256 of the stored JPEG, since other bytes may hold the same picture
    features: tuple[str, ...] = ()  # SHA-256 of its rows in stores, but for those that other pictures share


def address_digest(url: str) -> str:
    """Name an address without telling it; scheme, upper case of the host, default port and fragment do not matter."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:  # no address, so there is nothing in it that does not matter
        return hashlib.sha256(url.strip().encode(errors="replace")).hexdigest()
    host = parts.netloc.rpartition("@")[2].lower().removesuffix(":443").removesuffix(":80")
    query = f"?{parts.query}" if parts.query else ""
    return hashlib.sha256(f"{host}{parts.path or '/'}{query}".encode(errors="replace")).hexdigest()


def address_digests(url: str) -> set[str]:
    """Name an address as it is written, and as a crawl of the network writes it."""
    try:
        return {address_digest(url), address_digest(canonical(url))}
    except BadUrl:
        return {address_digest(url)}


def jpeg_digest(jpeg: bytes) -> str:
    """Name a stored JPEG."""
    return hashlib.sha256(jpeg).hexdigest()


class Tombstones:
    """The tombstones of a collection, as they were when they were read."""

    def __init__(self, collection: Path) -> None:
        self.path = collection / TOMBSTONES_FILE
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.all: tuple[Tombstone, ...] = tuple(self._read(number, line) for number, line in enumerate(lines, start=1))

    def _read(self, number: int, line: str) -> Tombstone:
        try:
            fields = json.loads(line)
            several = {name: tuple(fields.get(name, ())) for name in ("addresses", "features")}
            return Tombstone(**{**fields, **several})
        except (ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"'{self.path}' is damaged in line {number} ({error}). Bring it back from a copy: without it, what was "
                "taken down could return."
            ) from error

    @cached_property
    def image_ids(self) -> frozenset[str]:
        """Images that were taken down."""
        return frozenset(each.image_id for each in self.all if each.image_id)

    @cached_property
    def _addresses(self) -> frozenset[str]:
        return frozenset(address for each in self.all for address in each.addresses)

    @cached_property
    def _jpegs(self) -> frozenset[str]:
        return frozenset(each.jpeg for each in self.all if each.jpeg)

    def is_taken_down(self, *, image_id: str = "", urls: Iterable[str] = (), jpeg: bytes = b"") -> bool:
        """Tell whether an image, any of some addresses, or a JPEG as the gate stores it was taken down.

        The URLs of a fetch are what is asked for, what it was redirected from, and the page it stands on.
        """
        if not self.all:
            return False
        by_address = bool(self._addresses) and any(address_digest(url) in self._addresses for url in urls if url)
        by_bytes = bool(jpeg and self._jpegs) and jpeg_digest(jpeg) in self._jpegs
        return image_id in self.image_ids or by_address or by_bytes

    def add(self, added: Iterable[Tombstone]) -> Tombstones:
        """Append tombstones, all or none, and return what is there now; the caller holds the collection alone."""
        before = self.path.read_bytes() if self.path.is_file() else b""
        lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in added]
        if lines:
            atomic_write(self.path, before + "".join(lines).encode())
        return Tombstones(self.path.parent)
