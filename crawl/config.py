"""Typed configuration of the crawl stage: the gate, the fetcher, the collection, takedown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address

from omegaconf import MISSING

from configs.compose import Paths
from configs.executors import ExecutorConfig
from crawl.source_config import SourceConfig

MAX_PARTS = 256  # of a list, written side by side, a file each
MAX_PIXELS = 178_956_970  # what Pillow decodes at most; JPEGs go past it, but one limit is for all formats


@dataclass
class GateOptions:
    """What the gate lets through and what it makes of it."""

    max_side_px: int = 512  # longer side of the stored JPEG, pixels
    quality: int = 90  # JPEG quality of re-encoded images, 1 to 100
    max_bytes: int = 64 * 2**20  # larger files are refused unread
    max_pixels: int = 100_000_000  # width x height by the header, before decoding; 1 to 178,956,970
    min_side_px: int = 16  # shorter side below this is refused
    max_aspect: float = 10.0  # longer side over shorter side above this is refused
    timeout_s: float = 10.0  # wall time of one image in the isolated gate
    memory_mb: int = 2048  # address space a worker may add for one image (Linux)

    def __post_init__(self) -> None:
        if not 64 <= self.max_side_px <= 4096:
            raise ValueError(f"gate.max_side_px must lie in 64..4096, got {self.max_side_px}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"gate.quality must lie in 1..100, got {self.quality}")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"gate.max_pixels must lie in 1..{MAX_PIXELS}, got {self.max_pixels}")
        at_least = {"max_bytes": 1, "min_side_px": 1, "max_aspect": 1, "memory_mb": 256}
        for name, least in at_least.items():
            if not getattr(self, name) >= least:  # so that NaN is refused too
                raise ValueError(f"gate.{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"gate.timeout_s must be above 0, got {self.timeout_s}")


@dataclass
class FetchOptions:
    """How the network is asked: who we are, how often, how long, how much, and whom not."""

    agent: str = "Tagtower"  # product name in the user agent, which robots.txt and X-Robots-Tag may name
    contact: str = ""  # address of a page or mailbox where site owners reach you; every crawl of the network needs it
    gap_s: float = 1.0  # from one request of a host to the next, at least; robots.txt may ask for more
    max_gap_s: float = 300.0  # hosts that want a longer crawl-delay are left alone
    throttle: float = 1.0  # the gap grows to this many times what the host takes to answer; 0 = it does not
    per_host: int = 1  # requests of a host at a time
    concurrent: int = 64  # requests at a time, over all hosts
    connect_s: float = 20.0  # for resolving the name, and for each connection
    read_s: float = 30.0  # between two pieces of an answer
    total_s: float = 180.0  # of one request, from the name to the last byte
    max_bytes: int = 64 * 2**20  # of a picture, before and after decoding
    max_page_bytes: int = 8 * 2**20  # of a page, before and after decoding; of a sitemap 50 MiB
    max_redirects: int = 5  # one after another
    attempts: int = 3  # at what may pass: timeouts, lost connections, 5xx, 429
    wait_s: float = 30.0  # before the second attempt, twice as long before the third
    max_wait_s: float = 3600.0  # longest wait that a server may ask for with Retry-After
    max_pictures: int = 0  # that a crawl fetches, all its passes together; then the rest stays to do; 0 = no bound
    max_depth: int = 20  # links from a start page
    max_per_host: int = 1_000_000  # pages of a host
    max_per_pattern: int = 10_000  # pages whose addresses differ in numbers alone: /calendar?month=#
    max_barren: int = 1_000  # pages of a pattern one after another that show no new picture
    robots: bool = True  # keep to robots.txt; off only where the site is yours
    opt_outs: bool = True  # keep to X-Robots-Tag, meta robots and TDM reservations; off only where the site is yours
    allow_hosts: list[str] = field(default_factory=list)  # of your own network, `name` or `name:port`
    resolve: list[str] = field(default_factory=list)  # `name:address`, before DNS is asked; `name:` has none
    spool_mb: int = 512  # fetched pictures that wait for the gate; then fetching pauses

    def __post_init__(self) -> None:
        above = ("connect_s", "read_s", "total_s", "max_bytes", "max_page_bytes", "per_host", "concurrent", "attempts")
        for name in (*above, "max_per_host", "max_per_pattern", "max_barren", "spool_mb"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"fetch.{name} must be above 0, got {getattr(self, name)}")
        for name in (
            "gap_s",
            "max_gap_s",
            "throttle",
            "wait_s",
            "max_wait_s",
            "max_redirects",
            "max_depth",
            "max_pictures",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"fetch.{name} must be 0 or more, got {getattr(self, name)}")
        if not re.fullmatch(r"[A-Za-z][A-Za-z_-]*", self.agent):
            raise ValueError(f"fetch.agent must be a product name of letters, '_' and '-', got {self.agent!r}")
        if not self.contact.isprintable() or set(self.contact) & set("()\\"):
            raise ValueError(f"fetch.contact must be one printable line without brackets, got {self.contact!r}")

        for entry in self.resolve:
            name, colon, address = entry.partition(":")
            if not name or not colon or (address and not _is_address(address)):
                raise ValueError(f"fetch.resolve must be of name:address such as gallery.lan:10.0.0.5, got '{entry}'")

    @property
    def names(self) -> dict[str, list[str]]:
        """Addresses of the names that are not asked of DNS."""
        table: dict[str, list[str]] = {}
        for entry in self.resolve:
            name, _, address = entry.partition(":")
            table.setdefault(name.lower(), []).extend([address] if address else [])
        return table

    @property
    def user_agent(self) -> str:
        """The line that servers see."""
        return f"{self.agent}/1.0 (+{self.contact})"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@dataclass
class ScreenOptions:
    """What is refused after the gate; nothing by default."""

    blocklist: str = ""  # file of perceptual hashes, 16 hex digits a line
    bits: int = 6  # a hash of the blocklist and that of a picture may differ by, 0 to 12
    adult_model: str = ""  # folder of an image classifier of Hugging Face; needs the extra `huggingface`
    adult_labels: list[str] = field(default_factory=lambda: ["nsfw"])  # of the classifier, whose shares are added up
    adult_threshold: float = 0.5  # share from which a picture is refused, above 0
    batch_size: int = 32  # pictures judged at once

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 12:
            raise ValueError(f"screen.bits must lie in 0..12, got {self.bits}")
        if not 0 < self.adult_threshold <= 1:
            raise ValueError(f"screen.adult_threshold must lie in (0, 1], got {self.adult_threshold}")
        if self.batch_size < 1 or (self.adult_model and not self.adult_labels):
            raise ValueError("screen needs a batch_size of 1 or more and, with an adult_model, adult_labels")


@dataclass
class TakedownConfig:
    """Take pictures down: out of every store, for ever."""

    paths: Paths = field(default_factory=Paths)
    images: list[str] = field(default_factory=list)  # image_ids
    urls: list[str] = field(default_factory=list)  # addresses of pictures, which are never asked for again
    pages: list[str] = field(default_factory=list)  # addresses of pages, all of whose pictures go
    reason: str = ""  # kept in the tombstone; needed where anything is named

    def __post_init__(self) -> None:
        if strange := [image for image in self.images if not re.fullmatch(r"[0-9a-f]{16}", image)]:
            raise ValueError(f"images must be image_ids of 16 hex digits, got '{strange[0]}'")
        if strange := [url for url in (*self.urls, *self.pages) if "://" not in url]:
            raise ValueError(f"urls and pages must be whole addresses such as https://..., got '{strange[0]}'")
        if (self.images or self.urls or self.pages) and not self.reason.strip():
            raise ValueError("reason must say why, for whoever asks later; give it as `reason=<text>`")


@dataclass
class ForgetConfig:
    """What each package does for a takedown."""

    paths: Paths = field(default_factory=Paths)


@dataclass
class CrawlConfig:
    """Bring images and their tags through the gate into the collection."""

    paths: Paths = field(default_factory=Paths)
    source: SourceConfig = MISSING
    gate: GateOptions = field(default_factory=GateOptions)
    fetch: FetchOptions = field(default_factory=FetchOptions)
    screen: ScreenOptions = field(default_factory=ScreenOptions)
    group_copies: bool | None = None  # a copy (scaled, recompressed, cut) joins the first one's group; null: of crawls
    relations: str = ""  # CSV of tag relations (tag,relation,other) to lay beside the collection
    append: bool = False  # add another source to a finished collection
    retry: str = ""  # `true`: go through a finished source once more and ask again about what may pass; of a source of
    # the network also kinds of failures, such as `timeout,dns`
    refresh: bool = False  # ask a source of the network again for what it gave, and take what changed
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)  # ray: for source=urls
    parts: int = 0  # that a list is crawled in with executor=ray, 1 to 256; 0 = one for each 5,000 rows, 4 to 64
    dry_run: bool = False  # tell what would be asked of whom, and ask for nothing but robots.txt
    shard_size: int = 10_000  # images a shard, at most 10,000
    workers: int = 0  # gate processes, 0 = one a core

    def __post_init__(self) -> None:
        self.retry = "" if str(self.retry).lower() in ("", "false") else str(self.retry).lower()
        if not 1 <= self.shard_size <= 10_000:
            raise ValueError(f"shard_size must lie in 1..10000, got {self.shard_size}")
        if not 0 <= self.parts <= MAX_PARTS:
            raise ValueError(f"parts must lie in 0..{MAX_PARTS}, got {self.parts}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one a core) or more, got {self.workers}")
