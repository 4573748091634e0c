"""What a source of the network finds, and what it must be able to do: the seam between sources and the fetcher."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crawl.fetch.urls import BadUrl

# Kinds of addresses: read for links and pictures; read as a sitemap; asked of a documented API, for which robots.txt
# does not speak; fetched as a picture.
PAGE, SITEMAP, API, PICTURE = range(4)
MAX_SITEMAP_BYTES = 50 * 2**20  # sitemaps.org's own limit, unpacked
KINDS = ("page", "sitemap", "api", "picture")


@dataclass(frozen=True)
class About:
    """What is said of a picture where it is mentioned."""

    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # columns of `crawl.records.PROVENANCE`
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """Return it as the database holds it."""
        return json.dumps([self.tags, self.labels, self.provenance, self.extra], ensure_ascii=False, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> About:
        """Read it back."""
        tags, labels, provenance, extra = json.loads(text)
        return About(tuple(tags), tuple(labels), provenance, extra)

    @staticmethod
    def united(mentions: Iterable[About]) -> About:
        """Unite several mentions: all tags in the order of mention, of all else what was said first."""
        tags: dict[str, None] = {}
        labels: dict[str, None] = {}
        provenance: dict[str, str] = {}
        extra: dict[str, Any] = {}
        for about in mentions:
            tags.update(dict.fromkeys(about.tags))
            labels.update(dict.fromkeys(about.labels))
            provenance = {**about.provenance, **provenance}
            extra = {**about.extra, **extra}
        return About(tuple(tags), tuple(labels), provenance, extra)


@dataclass(frozen=True)
class Link:
    """An address to read."""

    url: str  # absolute
    kind: int = PAGE


@dataclass(frozen=True)
class Picture:
    """An address of a picture, with what is said of it."""

    url: str  # absolute
    about: About = field(default_factory=About)


@dataclass(frozen=True)
class Answer:
    """What a server answered to a page, sitemap or API request."""

    url: str
    kind: int
    headers: Mapping[str, Sequence[str]]  # lower-case name -> values
    body: bytes

    def header(self, name: str) -> str:
        """Return the first value of a header, empty where there is none."""
        return next(iter(self.headers.get(name, ())), "")


@dataclass
class Found:
    """What an answer holds."""

    links: list[Link] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    behind: list[Picture] = field(default_factory=list)  # pages to read that may turn out to be pictures
    refused: list[BadUrl] = field(default_factory=list)  # addresses that are never asked for
    opt_out: str = ""  # the page keeps its pictures out, by this directive
    reserved: bool | None = None  # whether the page says that it is reserved from text and data mining
    nofollow: bool = False  # the page asks that its links are not followed
    wait_s: float = 0.0  # for which the host asks to be left alone after this answer


Entry = Link | Picture | BadUrl


class Finder(ABC):
    """A source of the network: where it starts, and what it finds in an answer. Picklable, and without state."""

    @abstractmethod
    def entries(self, start: int) -> Iterator[Entry]:
        """Yield what the crawl begins with, from number `start` on, in an order that depends on the source alone."""

    def fingerprint(self) -> str:
        """Digest of what it begins with, where that lies in files which may change."""
        return ""

    @abstractmethod
    def read(self, answer: Answer) -> Found:
        """Find links and pictures in an answer.

        Raises:
            Fault: it is not what it should be: wrong_type, too_deep, bad_answer; busy and api_error of an API.
        """

    def may_read(self, url: str) -> bool:
        """Say whether a page that another one redirects to may be read."""
        return True

    def complaint(self, answer: Answer) -> str:
        """Return what an API says of a failure, without its key."""
        return ""

    def asked_as(self, url: str) -> tuple[str, dict[str, str]]:
        """Return the address and headers of the request for an API address: keys join here and lie nowhere."""
        return url, {}
