"""Sources of the network: a process fetches, a database keeps what became of every address, the gate takes from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.artifacts import ArtifactError, digest
from crawl.config import CrawlConfig, FetchOptions
from crawl.fetch.database import opened
from crawl.fetch.faults import CLOSED_TO_US, TRANSIENT
from crawl.fetch.found import API, KINDS, PAGE, SITEMAP, Finder
from crawl.fetch.outbox import Outbox, Parcel, Rest
from crawl.fetch.process import FetchProcess, Order
from crawl.fetch.report import as_text, rehearsal, write_report
from crawl.ingest import TRANSIENT as TRANSIENT_AT_THE_GATE
from crawl.ingest.wire import unpack_verdict
from crawl.source_config import (
    FlickrSource,
    OpenverseSource,
    PartSource,
    SitemapSource,
    SourceConfig,
    UrlsSource,
    WebSource,
    WikimediaSource,
)
from crawl.sources.item import Source, SourceItem, Unreadable

log = logging.getLogger(__name__)

DATABASE = "state.sqlite"
DRY_DATABASE = "dry.sqlite"
PLAN = "parts.json"  # of a crawl in parts
_POLL_S = 0.05
_TELL_S = 1.0


def open_finder(config: SourceConfig, agent: str) -> Finder:
    """Return what reads the pages, sitemaps, lists or API answers of a source; nothing is asked yet.

    Args:
        config: of the source.
        agent: our product name, which pages may address.
    """
    from crawl.parts.split import PartRows
    from crawl.sources.flickr import Flickr  # with lxml, which only the fetching process needs
    from crawl.sources.openverse import Openverse
    from crawl.sources.sitemap import Sitemap
    from crawl.sources.url_list import UrlList
    from crawl.sources.web import Web
    from crawl.sources.wikimedia import Wikimedia

    if isinstance(config, SitemapSource):
        return Sitemap(config, agent)
    if isinstance(config, WebSource):
        return Web(config, agent)
    if isinstance(config, UrlsSource):
        return UrlList(config)
    if isinstance(config, PartSource):
        return PartRows(config)
    if isinstance(config, WikimediaSource):
        return Wikimedia(config)
    if isinstance(config, OpenverseSource):
        return Openverse(config)
    if isinstance(config, FlickrSource):
        return Flickr(config)
    raise TypeError(f"no finder reads a {type(config).__name__}")


def crawl_directory(cfg: CrawlConfig) -> Path:
    """Return where the state of a crawl lies: one directory for each source as configured."""
    return cfg.paths.artifact("crawls") / f"{cfg.source.name}-{digest(asdict(cfg.source))[:8]}"


def arriving(
    outbox: Outbox, process: FetchProcess, start: int, idle: Callable[[], None] = lambda: None
) -> Iterator[Parcel]:
    """Yield parcels from number `start` on as they come, until the fetching process has ended and all are out."""
    while True:
        running = process.is_running  # asked first: what it sent before its end is read below
        for parcel in outbox.parcels(start):
            start += 1
            yield parcel
        if not running:
            return
        idle()
        time.sleep(_POLL_S)


def item_of(parcel: Parcel, outbox: Outbox) -> SourceItem:
    """Return what a parcel brings as the collecting side takes it."""
    about, problem = parcel.about, None
    reason, detail = parcel.reason, parcel.detail
    if parcel.image_id and not reason:
        reason, detail = outbox.reason_of(parcel.url_id)
    if reason:
        problem = Unreadable(reason, detail)
    verdict = unpack_verdict(parcel.verdict) if parcel.verdict else None
    image_id = parcel.fetched_id if verdict or parcel.body else parcel.image_id
    return SourceItem(
        key=parcel.url,
        data=parcel.body,
        problem=problem,
        tags=about.tags,
        labels=about.labels,
        provenance={**about.provenance, "source_url": parcel.url, "fetched_at": parcel.fetched_at},
        extra=about.extra,
        image_id="" if problem else image_id,
        verdict=verdict,
        ticket=parcel.url_id,
    )


def lost_collection(directory: Path) -> ArtifactError:
    """Return the error of a crawl without what it has brought."""
    return ArtifactError(
        f"'{directory}' holds a crawl whose pictures went into a collection that is not there any more. "
        "Put the collection back, or delete that directory to crawl anew."
    )


def require_contact(options: FetchOptions) -> None:
    """Refuse to ask anybody for anything without saying who asks."""
    if not options.contact:
        raise ArtifactError(
            "fetch.contact is empty: give a page or mailbox where site owners reach you, "
            "such as fetch.contact=https://example.org/crawler"
        )


def retried_kinds(retry: str) -> set[str]:
    """Return the reasons of failures and refusals that `retry` means."""
    return {*TRANSIENT, *map(str, TRANSIENT_AT_THE_GATE)} if retry == "true" else set(retry.split(",")) - {""}


class Network(Source):
    """Yields what a crawl fetched in the order in which it came, while it is still fetching."""

    keeps_state = True

    def __init__(self, cfg: CrawlConfig) -> None:
        require_contact(cfg.fetch)
        self._list = open_finder(cfg.source, cfg.fetch.agent).fingerprint()
        self.cfg = cfg
        self.directory = crawl_directory(cfg)
        if (self.directory / PLAN).exists():
            raise ArtifactError(
                f"'{self.directory}' holds this crawl in parts; go on with executor=ray, "
                "or delete the directory to crawl anew"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self.outbox = Outbox(self.directory / DATABASE)
        self._process: FetchProcess | None = None
        self._taken = 0
        self._told_at = 0.0

    def begin(self, retry: str, refresh: bool) -> None:
        """Begin another pass where the last one is in the collection, and there is a reason.

        One is asked for, the list has changed, or a bound on pictures leaves room now.
        """
        self.outbox.list_anew(self._list)
        self.outbox.begin_again()
        if (retry or refresh) and self.outbox.is_sealed:
            asked_again = self.outbox.begin_pass(retried_kinds(retry), refresh)
            if not asked_again:
                ended = (f"{count} {reason}" for reason, _, count in self.outbox.broken(range(len(KINDS))))
                log.warning("nothing ended as retry=%s says; there are: %s", retry, ", ".join(ended) or "no failures")
        self.outbox.go_on(self.cfg.fetch.max_pictures)

    def fingerprint(self) -> str:
        """Digest of the source and of the pass over it."""
        return digest([asdict(self.cfg.source), self.outbox.number])

    def items(self, start: int = 0) -> Iterator[SourceItem]:
        """Yield what was fetched from number `start` on, and what comes until nothing is left to fetch."""
        if self.outbox.is_dropped(start):
            raise lost_collection(self.directory)
        self.outbox.drop(start)  # a kill may have come between the commit of a shard and this
        self._taken = start
        self._process = FetchProcess(self._order(DATABASE))
        with tqdm(desc="crawl", unit="address", mininterval=1.0) as bar:
            for parcel in arriving(self.outbox, self._process, start, lambda: self._tell(bar)):
                self._taken += 1
                yield item_of(parcel, self.outbox)
                self._tell(bar)
            self._told_at = 0.0  # the last word, however little time has passed
            self._tell(bar)
        self._check_lists()

    def _order(self, database: str, dry: bool = False) -> Order:
        collection = self.cfg.paths.artifact("collection")
        return Order(str(self.directory / database), str(collection), self.cfg.fetch, self.cfg.source, dry)

    def _tell(self, bar: Any) -> None:
        """Show how far the crawl is, once a second, and let the fetcher know what was taken out."""
        if time.monotonic() < self._told_at + _TELL_S:
            return
        self._told_at = time.monotonic()
        self.outbox.write_down(self._taken)
        tally = self.outbox.tally()
        ended = sum(tally.values()) - tally["to do"]
        bar.total = ended + tally["to do"]  # what is known so far: tqdm's time left is for that
        bar.set_postfix({name.replace(" ", "_"): count for name, count in tally.items()}, refresh=False)
        bar.update(ended - bar.n)

    def rehearse(self) -> None:
        """Tell what would be asked of whom, asking for nothing but the rules of each site."""
        database = self.directory / DRY_DATABASE
        remove_database(database)
        self.outbox.copy_to(database)
        with closing(Outbox(database)) as copied:
            copied.list_anew(self._list)
        self._process = FetchProcess(self._order(DRY_DATABASE, dry=True))
        self._process.wait()
        db = opened(database)
        log.info("%s", as_text(rehearsal(db)))
        db.close()
        remove_database(database)

    def _check_lists(self) -> None:
        """Tell which requests of an API failed for good, and of anything that is read where nothing came.

        Raises:
            ArtifactError: nothing came at all.
        """
        is_barren = not self._taken and self.outbox.number == 1
        broken = self.outbox.broken((PAGE, SITEMAP, API) if is_barren else (API,))
        told = ", ".join(f"{count} {reason}" + (f" ({detail})" if detail else "") for reason, detail, count in broken)
        pages = self.outbox.tally()["pages"]
        if is_barren and (broken or pages):
            closed = {reason for reason, _, _ in broken} & set(CLOSED_TO_US)
            hint = " fetch.allow_hosts=[<host>:<port>] opens hosts of your own network." if closed else ""
            read = f"{pages} read where the rules of the source find none" if pages else ""
            told = ", ".join(filter(None, (read, told)))
            raise ArtifactError(f"no picture came: {told}. Nothing was written; see to it and run again.{hint}")
        if not broken:
            return
        again = ",".join(reason for reason, _, _ in broken)
        log.warning("requests of the API failed, so its list is cut: %s. To ask again: retry=%s", told, again)

    def filed(self, item: SourceItem, reason: str, detail: str) -> None:
        """Keep what the gate refused, for the database."""
        if reason and item.problem is None:
            self.outbox.note(item.ticket, reason, detail)

    def committing(self, taken: int) -> None:
        """Write down what became of the items, before their shard is committed."""
        self.outbox.write_down(taken)

    def committed(self, taken: int) -> None:
        """Drop what lies in shards now."""
        self.outbox.drop(taken)

    def sealed(self) -> None:
        """Note that the pass is in the collection."""
        if not self.outbox.is_sealed:
            self.outbox.write_down(self._taken)
            self.outbox.seal()
            title = f"Crawl of {self.cfg.source.name}, pass {self.outbox.number}"
            page = write_report(self.directory, self.outbox.db, title)
            log.info("by host, reason, tag and licence: %s, and the same as text beside it", page)
        rest = self.outbox.rest()
        if rest != Rest(0, None):
            listed = "" if rest.position is None else f", and the list from line {rest.position + 1} on"
            log.info(
                "fetch.max_pictures=%d is reached: %d addresses stay to do%s. A larger bound, or 0 for none, goes on",
                *(self.cfg.fetch.max_pictures, rest.num_to_do, listed),
            )

    def end(self) -> None:
        """End the fetching process, and close the database."""
        if self._process is not None:
            self._process.stop()
        self.outbox.close()


def remove_database(database: Path) -> None:
    """Remove a database with its log."""
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
