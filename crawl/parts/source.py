"""Source `urls` in parts: workers crawl and gate them side by side, then they are read into the collection in turn."""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from configs.artifacts import ArtifactError, atomic_write, digest
from configs.executors import map_parts
from crawl.config import CrawlConfig
from crawl.fetch.database import united
from crawl.fetch.outbox import Outbox
from crawl.fetch.process import FetchProcess, Order
from crawl.fetch.register import bounds_of
from crawl.fetch.report import as_text, rehearsal, write_report
from crawl.fetch.shares import Share
from crawl.ingest import acceptance
from crawl.parts.handover import hand_over
from crawl.parts.split import Part, rows_of, split
from crawl.parts.worker import PartCrawler, PartJob
from crawl.source_config import PartSource, UrlsSource
from crawl.sources.item import Source, SourceItem
from crawl.sources.network import (
    DATABASE,
    DRY_DATABASE,
    crawl_directory,
    item_of,
    lost_collection,
    remove_database,
    require_contact,
    retried_kinds,
)
from crawl.sources.url_list import UrlList

log = logging.getLogger(__name__)

_TICKETS_OF_A_PART = 1 << 40  # more than a database has addresses
_GATE = "gate.json"


class PartedList(Source):
    """Yields what the parts of a list brought, part by part, once all of them are crawled.

    Parts are crawled in rounds: addresses that a part was redirected to, and whose hosts another part has, are that
    part's in the next round. So each host is asked by one worker at a time, which keeps the gap that it is owed.
    """

    keeps_state = True
    brings_verdicts = True

    def __init__(self, cfg: CrawlConfig) -> None:
        require_contact(cfg.fetch)
        assert isinstance(cfg.source, UrlsSource)
        if cfg.fetch.max_pictures:
            raise ArtifactError(
                f"fetch.max_pictures={cfg.fetch.max_pictures} is for executor=local: the parts of a list do not know "
                "how many pictures the others have. Leave it out, or give a shorter list"
            )
        self.cfg = cfg
        self.directory = crawl_directory(cfg).resolve()
        if (self.directory / DATABASE).exists():
            raise ArtifactError(
                f"'{self.directory}' holds this crawl as executor=local began it; go on with that, "
                "or delete the directory to crawl anew"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._list = UrlList(cfg.source)
        self._parts: list[Part] = []
        self._number = 0  # of the pass, in which all parts are
        self._ends: list[int] = []  # number of items up to the end of each part
        self._verdicts: dict[int, list[tuple[int, str, str]]] = {}  # part -> address, reason and detail, to write down
        self._first_held = 0  # part whose parcels were not all dropped

    def _database(self, number: int) -> Path:
        return self.directory / self._parts[number].directory / DATABASE

    def _outbox(self, number: int) -> closing[Outbox]:
        return closing(Outbox(self._database(number)))

    @property
    def _databases(self) -> list[Path]:
        return [self._database(number) for number in range(len(self._parts))]

    # Crawling

    def begin(self, retry: str, refresh: bool) -> None:
        """Split the list, begin another pass where one is asked for, and crawl what is left of all parts."""
        self._parts = split(self._list, self.directory, self.cfg.parts)
        self._begin_pass(retry, refresh)
        self._crawl()
        self._take_stock()

    def _begin_pass(self, retry: str, refresh: bool) -> None:
        """Begin a pass over all parts or none, so that one which a kill cut short at its start goes on as one."""
        states: list[tuple[int, bool]] = []
        begun = False
        for number, part in enumerate(self._parts):
            with self._outbox(number) as outbox:
                outbox.list_anew(part.fingerprint, part.num_rows == 0)
                states.append((outbox.number, outbox.is_sealed))
                begun = begun or (outbox.num_parcels > 0 and not outbox.is_sealed)
        self._keep_to_gate(begun)
        latest, all_sealed = max(own for own, _ in states), all(sealed for _, sealed in states)
        behind = [number for number, (own, _) in enumerate(states) if all_sealed or own < latest]
        for number in behind if retry or refresh else ():
            with self._outbox(number) as outbox:
                outbox.begin_pass(retried_kinds(retry), refresh)
                latest = max(latest, outbox.number)
        for number in behind:
            with self._outbox(number) as outbox:
                outbox.keep_up(latest)

    def _keep_to_gate(self, begun: bool) -> None:
        """Refuse to go on with another gate than that which judged a part of the pass already."""
        path, ours = self.directory / _GATE, {**acceptance(self.cfg.gate), "screen": asdict(self.cfg.screen)}
        judged_by = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else ours
        if begun and judged_by != ours:
            other = ", ".join(f"{name}={value}" for name, value in judged_by.items() if ours[name] != value)
            raise ArtifactError(
                f"'{self.directory}' holds pictures that went through another gate, and are not in the collection yet: "
                f"{other}. Go on with that, or delete the directory to crawl anew."
            )
        atomic_write(path, json.dumps(ours))

    def _crawl(self) -> None:
        """Let workers crawl until no part has anything left, handing over between rounds."""
        bounds = bounds_of(self.cfg.fetch)
        worker = partial(PartCrawler, _anywhere(self.cfg))
        hand_over(self._databases, bounds)
        while jobs := self._jobs():
            tally: Counter[str] = Counter()
            with tqdm(total=len(jobs), desc="crawl", unit="part", mininterval=1.0) as bar:
                for done in map_parts(worker, jobs, self.cfg.executor):
                    tally.update(done)
                    bar.set_postfix(tally, refresh=False)
                    bar.update()
            if handed := hand_over(self._databases, bounds):
                log.info("%d redirects lead to hosts of other parts, which ask for them now", handed)

    def _jobs(self) -> list[PartJob]:
        jobs = []
        for number, part in enumerate(self._parts):
            with self._outbox(number) as outbox:
                if not outbox.is_whole:
                    jobs.append(PartJob(str(self.directory / part.directory), Share(number, len(self._parts))))
        return jobs

    def _take_stock(self) -> None:
        counts = []
        for number in range(len(self._parts)):
            with self._outbox(number) as outbox:
                counts.append(outbox.num_parcels)
                self._number = max(self._number, outbox.number)
        self._ends = list(accumulate(counts))

    def rehearse(self) -> None:
        """Tell what would be asked of whom, asking for nothing but the rules of each site."""
        self._parts = split(self._list, self.directory, self.cfg.parts)
        copies = []
        try:
            for number, part in enumerate(self._parts):
                copies.append(self._database(number).with_name(DRY_DATABASE))
                remove_database(copies[-1])
                with self._outbox(number) as outbox:
                    outbox.copy_to(copies[-1])
                with closing(Outbox(copies[-1])) as copied:
                    copied.list_anew(part.fingerprint, part.num_rows == 0)
                self._rehearse(copies[-1], Share(number, len(self._parts)))
            with closing(united(copies)) as db:
                log.info("%s", as_text(rehearsal(db)))
        finally:
            for copy in copies:
                remove_database(copy)

    def _rehearse(self, database: Path, share: Share) -> None:
        source = PartSource(path=str(rows_of(database.parent)))
        collection = str(self.cfg.paths.artifact("collection"))
        process = FetchProcess(Order(str(database), collection, self.cfg.fetch, source, dry=True, share=share))
        try:
            process.wait()
        finally:
            process.stop()

    # Collecting

    def fingerprint(self) -> str:
        """Digest of the source and of the pass over it."""
        return digest([asdict(self.cfg.source), len(self._parts), self._number])

    def items(self, start: int = 0) -> Iterator[SourceItem]:
        """Yield what the parts brought, from item number `start` on."""
        self.committed(start)  # a kill may have come between the commit of a shard and this
        first = bisect_right(self._ends, start)
        with tqdm(desc="collect", unit="item", initial=start, total=self._ends[-1], mininterval=1.0) as bar:
            for number in range(first, len(self._parts)):
                begins = self._ends[number - 1] if number else 0
                with self._outbox(number) as outbox:
                    if outbox.is_dropped(max(0, start - begins)):
                        raise lost_collection(self.directory)
                    for parcel in outbox.parcels(max(0, start - begins)):
                        item = item_of(parcel, outbox)
                        yield replace(item, ticket=number * _TICKETS_OF_A_PART + item.ticket)
                        bar.update()

    def filed(self, item: SourceItem, reason: str, detail: str) -> None:
        """Keep what the gate refused, for the database of its part."""
        if reason and item.problem is None:
            number, url_id = divmod(item.ticket, _TICKETS_OF_A_PART)
            self._verdicts.setdefault(number, []).append((url_id, reason, detail))

    def committing(self, taken: int) -> None:
        """Write down what became of the items, before their shard is committed."""
        self._write_down()

    def _write_down(self) -> None:
        for number, verdicts in self._verdicts.items():
            with self._outbox(number) as outbox:
                for verdict in verdicts:
                    outbox.note(*verdict)
                outbox.write_down()
        self._verdicts.clear()

    def committed(self, taken: int) -> None:
        """Drop what lies in shards now."""
        while self._first_held < len(self._parts):
            number = self._first_held
            begins = self._ends[number - 1] if number else 0
            with self._outbox(number) as outbox:
                outbox.drop(min(taken, self._ends[number]) - begins)
                if taken < self._ends[number]:
                    return
                outbox.give_back()
            self._first_held += 1

    def sealed(self) -> None:
        """Note that the pass is in the collection."""
        self._write_down()
        open_ones = 0
        for number in range(len(self._parts)):
            with self._outbox(number) as outbox:
                if not outbox.is_sealed:
                    outbox.seal()
                    open_ones += 1
        if open_ones:
            with closing(united(self._databases)) as db:
                page = write_report(self.directory, db, f"Crawl of {self.cfg.source.name}, pass {self._number}")
            log.info("by host, reason, tag and licence: %s, and the same as text beside it", page)


def _anywhere(cfg: CrawlConfig) -> CrawlConfig:
    """Return a config whose paths mean the same in every working directory."""
    screen = cfg.screen
    blocklist, adult_model = (path and str(Path(path).resolve()) for path in (screen.blocklist, screen.adult_model))
    paths = replace(cfg.paths, data=str(Path(cfg.paths.data).resolve()))
    return replace(cfg, paths=paths, screen=replace(screen, blocklist=blocklist, adult_model=adult_model))
