"""Which part of a list a host belongs to, where the parts are crawled side by side."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import tldextract

_PAGES_OF_A_PART = 1 << 40  # more than any list has rows


@cache
def _splitter() -> tldextract.TLDExtract:
    """Return what splits names by the list of public suffixes that the package carries; nothing is downloaded."""
    return tldextract.TLDExtract(cache_dir=None, suffix_list_urls=(), include_psl_private_domains=True)


def site_of(host: str) -> str:
    """Return what a host belongs to: `example.co.uk` for `www.example.co.uk`, itself for an address."""
    split = _splitter()(host)
    if split.suffix or split.ipv4 or split.ipv6:
        return split.top_domain_under_public_suffix or host
    return ".".join(host.split(".")[-2:])  # a name of one's own network


def part_of(host: str, parts: int) -> int:
    """Return the number of the part that has a host, with all hosts of its site: they redirect to one another."""
    return int.from_bytes(hashlib.sha256(site_of(host).encode()).digest()[:8], "big") % parts


@dataclass(frozen=True)
class Share:
    """One part of a crawl; the whole of it by default.

    A host is asked by one part alone, so that the gap that it is owed holds without any word between them.
    """

    number: int = 0
    of: int = 1

    def owns(self, host: str) -> bool:
        """Say whether this part may ask a host."""
        return self.of == 1 or part_of(host, self.of) == self.number

    @property
    def first_page(self) -> int:
        """Number before that of the part's first row, so that no two parts number a mention alike."""
        return self.number * _PAGES_OF_A_PART


WHOLE = Share()
