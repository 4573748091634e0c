"""What a worker does with a part of a list: fetch its pictures and put them through the gate, where it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from configs.artifacts import exclusive
from crawl.config import CrawlConfig
from crawl.fetch.outbox import Outbox, Parcel
from crawl.fetch.process import FetchProcess, Order
from crawl.fetch.shares import Share
from crawl.ingest import Accepted, IsolatedGate, Refused
from crawl.ingest.wire import pack_verdict
from crawl.parts.split import rows_of
from crawl.screen import Screen
from crawl.source_config import PartSource
from crawl.sources.network import DATABASE, arriving

Turn = tuple[Parcel, Accepted | Refused | None]


@dataclass(frozen=True)
class PartJob:
    """One part that is to be crawled."""

    directory: str  # absolute, and the same on every machine
    share: Share


class PartCrawler:
    """Crawls parts, one after the other; what it was killed in is gone on with by the next one.

    Args:
        cfg: of the crawl, with absolute paths.
    """

    def __init__(self, cfg: CrawlConfig) -> None:
        self.cfg = cfg
        self._screen = Screen(cfg.screen)
        self._gate = IsolatedGate(cfg.gate, cfg.workers or max(1, round(cfg.executor.cpus)))
        self._gate.__enter__()

    def close(self) -> None:
        """End the gate's processes."""
        self._gate.__exit__(None, None, None)

    def __call__(self, part: PartJob) -> dict[str, int]:
        """Ask for what is left of a part, and leave the gate's verdicts in its outbox.

        Returns:
            Number of pictures, refusals and failures of the part so far.
        """
        directory = Path(part.directory)
        with exclusive(directory), closing(Outbox(directory / DATABASE)) as outbox:
            process = FetchProcess(self._order(part))
            try:
                for parcel, verdict in self._screen.screened(self._gated(arriving(outbox, process, outbox.num_taken))):
                    outbox.keep_verdict(parcel, pack_verdict(verdict) if verdict else None)
            finally:
                process.stop()
            tally = outbox.tally()
            if outbox.is_listed:
                rows_of(directory).unlink(missing_ok=True)  # all of it is in the database
        return {name: tally[name] for name in ("pictures", "refused", "failed")}

    def _order(self, part: PartJob) -> Order:
        return Order(
            database=str(Path(part.directory) / DATABASE),
            collection=str(self.cfg.paths.artifact("collection")),
            options=self.cfg.fetch,
            source=PartSource(path=str(rows_of(Path(part.directory)))),
            share=part.share,
        )

    def _gated(self, parcels: Iterator[Parcel]) -> Iterator[Turn]:
        """Yield parcels in their order, without bodies, each with a verdict where it brought a picture."""
        waiting: deque[Parcel] = deque()

        def bodies() -> Iterator[bytes]:
            for parcel in parcels:
                waiting.append(replace(parcel, body=b""))
                yield parcel.body

        for verdict in self._gate.map(bodies()):
            parcel = waiting.popleft()
            yield parcel, verdict if parcel.is_picture else None
