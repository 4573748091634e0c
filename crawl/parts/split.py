"""A list of addresses, split by site into parts that are crawled side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from configs.artifacts import ArtifactError, atomic_open, atomic_write
from crawl.fetch.found import About, Answer, Entry, Finder, Found, Picture
from crawl.fetch.shares import part_of
from crawl.fetch.urls import BadUrl, canonical, host_of
from crawl.source_config import PartSource
from crawl.sources.network import PLAN
from crawl.sources.url_list import UrlList

# Where nothing else is asked for: a part asks its own hosts alone, so that few parts keep more hosts busy at a time,
# and many share them out more evenly among the workers.
ROWS_OF_A_PART = 5_000
FEWEST, MOST = 4, 64
_ROWS = "rows.jsonl"


@dataclass(frozen=True)
class Part:
    """One part of a list."""

    directory: str  # relative to that of the crawl
    num_rows: int
    fingerprint: str  # digest of its rows


def rows_of(directory: Path) -> Path:
    """Return the file with the rows of a part."""
    return directory / _ROWS


def split(listed: UrlList, directory: Path, num_parts: int) -> list[Part]:
    """Split a list, or return the parts that it was split into before.

    A crawl keeps its number of parts, because their databases know what became of the addresses of their hosts.

    Args:
        listed: the list.
        directory: of the crawl.
        num_parts: 0 = one for each 5,000 rows, 4 to 64 of them.

    Raises:
        ArtifactError: the crawl began with another number of parts.
    """
    plan = _plan(directory)
    if plan and num_parts not in (0, len(plan["parts"])):
        raise ArtifactError(
            f"'{directory}' is crawled in {len(plan['parts'])} parts, not in {num_parts}; leave `parts` out to go on"
        )
    fingerprint = listed.fingerprint()
    if plan and plan["list"] == fingerprint:
        return [Part(**part) for part in plan["parts"]]
    count = len(plan["parts"]) if plan else num_parts or _usual_number(listed)
    parts = _written(listed.entries(0), directory, count)
    atomic_write(directory / PLAN, json.dumps({"list": fingerprint, "parts": [asdict(part) for part in parts]}))
    return parts


def _plan(directory: Path) -> dict[str, Any]:
    path = directory / PLAN
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return plan


def _usual_number(listed: UrlList) -> int:
    num_rows = sum(1 for _ in listed.entries(0))
    return min(MOST, max(FEWEST, -(-num_rows // ROWS_OF_A_PART)))


def _written(entries: Iterable[Entry], directory: Path, count: int) -> list[Part]:
    names = [f"parts/{number:03}" for number in range(count)]
    digests = [hashlib.sha256() for _ in names]
    num_rows = [0] * count
    with ExitStack() as stack:
        streams: list[IO[bytes]] = []
        for name in names:
            (directory / name).mkdir(parents=True, exist_ok=True)
            streams.append(stack.enter_context(atomic_open(rows_of(directory / name))))
        for entry in entries:
            number = _number_of(entry, count)
            line = json.dumps(_row(entry)).encode() + b"\n"
            streams[number].write(line)
            digests[number].update(line)
            num_rows[number] += 1
    return [Part(*row) for row in zip(names, num_rows, (each.hexdigest() for each in digests), strict=True)]


def _number_of(entry: Entry, count: int) -> int:
    """Return the part of a row; what is no address has no host, and stands in the first."""
    try:
        return part_of(host_of(canonical(entry.url)), count)
    except BadUrl:
        return 0


def _row(entry: Entry) -> list[Any]:
    if isinstance(entry, BadUrl):
        return [entry.reason, entry.url]
    assert isinstance(entry, Picture)
    return ["", entry.url, entry.about.as_json()]


class PartRows(Finder):
    """The rows of one part."""

    def __init__(self, config: PartSource) -> None:
        self._path = Path(config.path)

    def entries(self, start: int) -> Iterator[Entry]:
        """Yield the rows in their order."""
        with self._path.open(encoding="utf-8") as stream:
            for line in islice(stream, start, None):
                reason, url, *about = json.loads(line)
                yield BadUrl(reason, url) if reason else Picture(url, About.from_json(about[0]))

    def read(self, answer: Answer) -> Found:
        """Find nothing: a list leads to pictures alone."""
        return Found()
