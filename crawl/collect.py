"""Stage `crawl`: bring a source through the gate into the collection.

Reads   whatever the source names
Writes  data/collection/{00000.tar, 00000.parquet, refused/00000.jsonl, ..., tag_relations.csv, manifest.json}
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    exclusive,
    read_manifest,
)
from configs.compose import register, resolved, run_stage
from crawl.account import nothing_accepted, report
from crawl.compact import compact, seal_shards
from crawl.config import CrawlConfig, ScreenOptions
from crawl.ingest import GATE_VERSION, TRANSIENT, Accepted, IsolatedGate, Refused, acceptance, gate_space
from crawl.known import Known
from crawl.near_groups import NearGroups
from crawl.parts.source import PartedList
from crawl.records import Record, image_id_of
from crawl.screen import Screen
from crawl.shards import RELATIONS_FILE, ShardWriter, committed_shards, shard_state, tags_said
from crawl.source_config import SOURCES, NetworkSource, UrlsSource
from crawl.sources import Source, SourceItem, open_source
from crawl.sources.network import Network
from crawl.tags import read_relations
from crawl.tombstones import TAKEN_DOWN, Tombstones

log = logging.getLogger(__name__)

LISTED = 4  # rows and refusals of a shard, in units of `shard_size`


@dataclass
class Crawl:
    """One source on its way into a collection: where it stands, and what is known already."""

    directory: Path
    recipe: str  # digest of source, its listing and what the gate accepts
    config: dict[str, Any]  # of the source
    gate: dict[str, Any]  # version and options that shape pixels
    known: Known = field(default_factory=Known)
    consumed: int = 0  # items of the source that committed shards account for
    duplicates: int = 0
    next_shard: int = 0
    near: NearGroups | None = None  # where copies join groups
    tombstones: Tombstones = field(init=False)

    def __post_init__(self) -> None:
        self.tombstones = Tombstones(self.directory)

    def resume(self) -> None:
        """Take in what committed shards hold, those of an unfinished crawl included."""
        shards = committed_shards(self.directory)
        self.known.fill(row for path in shards for row in tags_said(path))
        for number, path in enumerate(shards):
            state = shard_state(path)
            if state["recipe"] == self.recipe:
                self.consumed, self.duplicates = state["consumed"], state["duplicates"]
            self.next_shard = number + 1

    def close(self) -> None:
        """Let go of what was opened."""
        self.known.close()
        if self.near:
            self.near.close()

    def state(self) -> dict[str, Any]:
        """What a shard's commit records, enough to go on after it."""
        return {
            "recipe": self.recipe,
            "consumed": self.consumed,
            "duplicates": self.duplicates,
            "config": self.config,
            "gate": self.gate,
        }


@dataclass(frozen=True)
class _Waiting:
    item: SourceItem  # without its bytes
    image_id: str
    fresh: bool


def gated(crawl: Crawl, source: Iterator[SourceItem], gate: IsolatedGate) -> Iterator[tuple[_Waiting, Any]]:
    """Send what is new through the gate and yield all items in the source's order.

    Known bytes are not decoded again: no bytes go in their place, which the gate refuses at once, and their outcome
    is None. So every item takes one turn, and few are held however many known ones come in a row. What brings a verdict
    of the gate has no bytes either, and keeps it.
    """
    waiting: deque[_Waiting] = deque()

    def turns() -> Iterator[bytes]:
        for item in source:
            image_id = item.image_id or ("" if item.problem else image_id_of(item.data))
            brings_bytes = not item.problem and bool(item.data or item.verdict or not item.image_id)
            fresh = brings_bytes and not _is_taken_down(crawl, item, image_id) and crawl.known.claim(image_id)
            waiting.append(_Waiting(replace(item, data=b""), image_id, fresh))
            yield item.data if fresh else b""

    for outcome in gate.map(turns()):
        entry = waiting.popleft()
        yield entry, (entry.item.verdict or outcome) if entry.fresh else None


def _is_taken_down(crawl: Crawl, item: SourceItem, image_id: str, jpeg: bytes = b"") -> bool:
    urls = (item.provenance.get("source_url", ""), item.provenance.get("page_url", ""))
    return crawl.tombstones.is_taken_down(image_id=image_id, urls=urls, jpeg=jpeg)


def _record(item: SourceItem, image_id: str, image: Accepted, copied: str) -> Record:
    """Return the record of a new image; the group of what it is a copy of goes before that which the source gives."""
    given = dict(item.provenance)
    group = given.pop("group", "")
    return Record(
        image_id=image_id,
        group=copied or group or image_id,
        tags=item.tags,
        labels=item.labels,
        width=image.width,
        height=image.height,
        original_format=image.original_format,
        original_bytes=image.original_bytes,
        extra=dict(item.extra),
        **given,
    )


def file_item(crawl: Crawl, shard: ShardWriter, entry: _Waiting, outcome: Accepted | Refused | None) -> tuple[str, str]:
    """Put one item where it belongs: an image, new tags of a known one, a duplicate, or a refusal.

    Returns:
        Reason and detail of a refusal, empty texts otherwise.
    """
    item, image_id = entry.item, entry.image_id
    refusal = _refusal(crawl, entry, outcome)
    if refusal is not None:
        shard.refuse("" if refusal[0] == TAKEN_DOWN else item.key, *refusal)  # its path or address would tell of it
        return refusal
    if isinstance(outcome, Accepted):
        crawl.known.accept(image_id, item.tags)
        copied = crawl.near.group_of(outcome.jpeg, shard) if crawl.near else ""
        shard.add_image(_record(item, image_id, outcome, copied), outcome.jpeg)
    else:
        crawl.duplicates += 1
        before = crawl.known.tags(image_id) or set()
        if new := tuple(tag for tag in item.tags if tag not in before):
            crawl.known.add_tags(image_id, new)
            shard.add_tags(Record(image_id=image_id, group=image_id, tags=new))
    return "", ""


def _refusal(crawl: Crawl, entry: _Waiting, outcome: Accepted | Refused | None) -> tuple[str, str] | None:
    """Return why an item is refused: by a takedown, by its source, by the gate, or when its bytes came before."""
    accepted = outcome if isinstance(outcome, Accepted) else None
    if _is_taken_down(crawl, entry.item, entry.image_id, accepted.jpeg if accepted else b""):
        if accepted:
            crawl.known.refuse(entry.image_id, TAKEN_DOWN, "")
        return TAKEN_DOWN, ""
    if entry.item.problem is not None:
        return entry.item.problem.reason, entry.item.problem.detail
    if accepted:
        return None
    if isinstance(outcome, Refused):
        crawl.known.refuse(entry.image_id, outcome.reason, outcome.detail)
    refused = crawl.known.refusal(entry.image_id)
    if refused is None and crawl.known.tags(entry.image_id) is None:
        return "missing", "said of a picture that is not in the collection"
    return refused


def write_shards(crawl: Crawl, source: Source, screen: Screen, cfg: CrawlConfig) -> None:
    """Consume the rest of a source, committing a shard whenever it is full.

    Raises:
        ArtifactError: the collection holds no image at all; no shard was committed.
    """
    shard = ShardWriter(crawl.directory, crawl.next_shard)
    rest = source.items(crawl.consumed)
    try:
        with IsolatedGate(cfg.gate, cfg.workers) as gate:
            items = screen.screened(gated(crawl, rest, gate))
            own_bar = source.keeps_state  # it knows more than how many came
            bar = tqdm(items, initial=crawl.consumed, unit="item", desc="gate", mininterval=1.0, disable=own_bar)
            for entry, outcome in bar:
                source.filed(entry.item, *file_item(crawl, shard, entry, outcome))
                crawl.consumed += 1
                if _is_full(crawl, shard, cfg.shard_size):
                    _commit(crawl, shard, source)
                    shard = ShardWriter(crawl.directory, crawl.next_shard)
        if not crawl.known.num_images:
            raise nothing_accepted(shard.refusals)
        if shard.rows or shard.refusals:
            _commit(crawl, shard, source)
    finally:
        shard.discard()


def _is_full(crawl: Crawl, shard: ShardWriter, size: int) -> bool:
    """Say whether a shard has its pictures, or so much else that memory would grow with it."""
    listed = len(shard.rows) + len(shard.refusals)
    return shard.num_images == size or (listed >= LISTED * size and crawl.known.num_images > 0)


def _commit(crawl: Crawl, shard: ShardWriter, source: Source) -> None:
    source.committing(crawl.consumed)
    shard.commit(crawl.state())
    crawl.next_shard += 1
    if crawl.near:
        crawl.near.committed()
    source.committed(crawl.consumed)


def _finished(crawl: Crawl, earlier: Manifest | None) -> dict[str, dict[str, Any]]:
    """Crawls that reached the end of their source, by recipe; shards of killed ones may lie beside theirs."""
    crawls = {each["recipe"]: each for each in (earlier.facts["crawls"] if earlier else [])}
    return crawls | {crawl.recipe: crawl.state()}


def _log_account(crawl: Crawl, manifest: Manifest, each: dict[str, dict[str, Any]]) -> None:
    log.info("collection %s: %s", manifest.content_id[:12], report(manifest.facts))
    if len(each) > 1:
        log.info("this crawl: %s", report(each[crawl.recipe]))
    if again := sum(each[crawl.recipe]["refused"].get(str(reason), 0) for reason in TRANSIENT):
        log.info(
            "%d refusals may be the machine's fault: retry=true asks the gate once more, best with "
            "larger gate.timeout_s and gate.memory_mb",
            again,
        )


def seal_collection(crawl: Crawl, cfg: CrawlConfig, earlier: Manifest | None) -> Manifest:
    """Write the manifest over all committed shards; it takes the place of the earlier one in one step."""
    finished = _finished(crawl, earlier)
    manifest, each = seal_shards(
        crawl.directory,
        committed_shards(crawl.directory),
        finished,
        earlier,
        config=resolved(cfg),
        must_match={"gate": gate_fingerprint(cfg)},
        recipe=crawl.recipe,
    )
    _log_account(crawl, manifest, each)
    return manifest


def gate_fingerprint(cfg: CrawlConfig) -> str:
    """Digest of the gate's version and of the options that shape pixels."""
    return digest(gate_space(cfg.gate))


def _may_go_on(manifest: Manifest | None, cfg: CrawlConfig, config: dict[str, Any]) -> None:
    """Refuse to mix gates, and to mix sources unasked; the shards of an unfinished crawl count as well."""
    directory = cfg.paths.artifact("collection")
    crawls = manifest.facts["crawls"] if manifest else []
    crawls = [*crawls, *(shard_state(path) for path in committed_shards(directory))]
    where = f"the collection in '{directory}'"
    for gate in (crawl["gate"] for crawl in crawls if crawl["gate"] != gate_space(cfg.gate)):
        raise ArtifactError(f"{where} was {_made_by(gate)}, or take another folder with paths.data=<folder>.")
    if crawls and not cfg.append and config not in [crawl["config"] for crawl in crawls]:
        raise ArtifactError(
            f"{where} was made from another source. Add this one with append=true, "
            "or make a collection of its own with paths.data=<folder>."
        )


def _made_by(gate: dict[str, Any]) -> str:
    """Say which gate a collection was made by, and how more pictures may come to it."""
    if gate["gate_version"] != GATE_VERSION:
        versions = f"version {gate['gate_version']} of the gate, this one is version {GATE_VERSION}"
        return f"made by {versions}. All stages after it read it as it is; to crawl, delete it"
    return f"made with gate.max_side_px={gate['max_side_px']} gate.quality={gate['quality']}. Use these"


def _is_done(manifest: Manifest, recipe: str, directory: Path) -> bool:
    """Say whether a crawl went into the collection as sealed, with no shard of a later unfinished one behind it."""
    sealed = {name for name in manifest.files if name.endswith(".parquet")}
    whole = sealed == {path.name for path in committed_shards(directory)}
    return whole and recipe in [crawl["recipe"] for crawl in manifest.facts["crawls"]]


def _read_relations(path: str) -> str:
    """Return the text of a checked table of tag relations, empty where none is asked for."""
    if not path:
        return ""
    if not Path(path).is_file():
        raise ArtifactError(f"relations='{path}' is no file; give a CSV with the columns tag,relation,other")
    read_relations(Path(path))
    return Path(path).read_text(encoding="utf-8")


def collect(cfg: CrawlConfig) -> Path:
    """Run one crawl and return the collection's directory. Callable from tests without Hydra."""
    directory = cfg.paths.artifact("collection")
    relations = _read_relations(cfg.relations)
    source = _open(cfg)
    with exclusive(directory):
        try:
            if cfg.dry_run:
                source.rehearse()
                return directory
            source.begin(cfg.retry, cfg.refresh)
            return _collect(cfg, source, relations, directory)
        finally:
            source.end()


def _open(cfg: CrawlConfig) -> Source:
    if cfg.executor.name != "local":
        return _open_parts(cfg)
    if isinstance(cfg.source, NetworkSource):
        return Network(cfg)
    return open_source(cfg.source, cfg.gate.max_bytes)


def _open_parts(cfg: CrawlConfig) -> Source:
    if not isinstance(cfg.source, UrlsSource):
        raise ArtifactError(
            f"executor={cfg.executor.name} is for source=urls; leave it out with source={cfg.source.name}"
        )
    return PartedList(cfg)


def _collect(cfg: CrawlConfig, source: Source, relations: str, directory: Path) -> Path:
    config = {"source": resolved(cfg.source)}
    screen = Screen(ScreenOptions() if source.brings_verdicts else cfg.screen)
    compact(directory)
    manifest = read_manifest(directory)
    _may_go_on(manifest, cfg, config)
    recipe = _recipe(cfg, [config, source.fingerprint(), relations], source.keeps_state, screen)
    if manifest is not None and _is_done(manifest, recipe, directory):
        source.sealed()
        log.info("already done: %s holds %d images", directory, manifest.facts["num_images"])
        return directory
    crawl = Crawl(directory, recipe, config, gate_space(cfg.gate))
    try:
        crawl.resume()
        crawl.near = NearGroups(directory) if _groups_copies(cfg) else None
        log.info("crawling %s into %s, from item %d on", cfg.source.name, directory, crawl.consumed)
        write_shards(crawl, source, screen, cfg)
    finally:
        crawl.close()
    if relations:
        atomic_write(directory / RELATIONS_FILE, relations)
    seal_collection(crawl, cfg, manifest)
    source.sealed()
    return directory


def _groups_copies(cfg: CrawlConfig) -> bool:
    return isinstance(cfg.source, NetworkSource) if cfg.group_copies is None else cfg.group_copies


def _recipe(cfg: CrawlConfig, source: list[Any], keeps_state: bool, screen: Screen) -> str:
    """Digest of what a crawl goes through and what it accepts.

    A source that keeps state of its own says in its fingerprint what it goes through again, and why.
    The limits of a worker are no part of it, unless what was refused is tried again: with more time, say.
    """
    if keeps_state:
        return digest(source)
    retry = [cfg.gate.timeout_s, cfg.gate.memory_mb] if cfg.retry else []
    return digest([source, acceptance(cfg.gate), retry, *screen.fingerprint()])


register(
    "crawl",
    CrawlConfig,
    {f"source/{kind.name}": kind for kind in SOURCES},
)

if __name__ == "__main__":
    run_stage(collect, CrawlConfig, "crawl")
