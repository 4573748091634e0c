"""Stage `crawl`: bring a source through the gate into the collection.

Reads   whatever the source names
Writes  data/collection/{00000.tar, 00000.parquet, refused/00000.jsonl, ..., tag_relations.csv, manifest.json}
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tqdm import tqdm

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    describe_file,
    digest,
    read_manifest,
    remove_partials,
    seal,
)
from configs.compose import register, resolved, run_stage
from crawl.config import CrawlConfig, FolderSource, TableSource, WebDatasetSource
from crawl.ingest import Accepted, IsolatedGate, Refused, gate_space
from crawl.records import Record, image_id_of
from crawl.shards import RELATIONS_FILE, ShardWriter, committed_shards, shard_state
from crawl.sources import Source, SourceItem, open_source
from crawl.tags import read_relations

log = logging.getLogger(__name__)


@dataclass
class Crawl:
    """One source on its way into a collection: where it stands, and what is known already."""

    directory: Path
    recipe: str  # digest of source, its listing and the gate
    config: dict[str, Any]
    known: dict[str, set[str]] = field(default_factory=dict)  # image_id -> tags as given
    refused: dict[str, Refused] = field(default_factory=dict)  # image_id -> why, in this crawl
    consumed: int = 0  # items of the source that committed shards account for
    duplicates: int = 0
    next_shard: int = 0

    def resume(self) -> None:
        """Take in what committed shards hold, those of an unfinished crawl included."""
        for number, path in enumerate(committed_shards(self.directory)):
            for row in pq.read_table(path, columns=["image_id", "tags"]).to_pylist():
                self.known.setdefault(row["image_id"], set()).update(row["tags"] or ())
            state = shard_state(path)
            if state["recipe"] == self.recipe:
                self.consumed, self.duplicates = state["consumed"], state["duplicates"]
            self.next_shard = number + 1

    def state(self) -> dict[str, Any]:
        """What a shard's commit records, enough to go on after it."""
        return {"recipe": self.recipe, "consumed": self.consumed, "duplicates": self.duplicates, "config": self.config}


@dataclass(frozen=True)
class _Waiting:
    item: SourceItem
    image_id: str
    gated: bool


def gated(crawl: Crawl, source: Iterator[SourceItem], gate: IsolatedGate) -> Iterator[tuple[_Waiting, Any]]:
    """Send what is new through the gate and yield all items in the source's order.

    Known bytes are not decoded again; their outcome is None.
    """
    waiting: deque[_Waiting] = deque()
    sent: set[str] = set()

    def new_images() -> Iterator[bytes]:
        for item in source:
            image_id = "" if item.problem else image_id_of(item.data)
            fresh = item.problem is None and image_id not in crawl.known and image_id not in sent
            sent.update([image_id] if fresh else [])
            waiting.append(_Waiting(item, image_id, fresh))
            if fresh:
                yield item.data

    for outcome in gate.map(new_images()):
        while not waiting[0].gated:
            yield waiting.popleft(), None
        yield waiting.popleft(), outcome
    while waiting:
        yield waiting.popleft(), None


def _record(item: SourceItem, image_id: str, image: Accepted) -> Record:
    given = dict(item.provenance)
    return Record(
        image_id=image_id,
        group=given.pop("group", "") or image_id,
        tags=item.tags,
        labels=item.labels,
        width=image.width,
        height=image.height,
        original_format=image.original_format,
        original_bytes=image.original_bytes,
        extra=dict(item.extra),
        **given,
    )


def file_item(crawl: Crawl, shard: ShardWriter, entry: _Waiting, outcome: Accepted | Refused | None) -> None:
    """Put one item where it belongs: an image, new tags of a known one, a duplicate, or a refusal."""
    item, image_id = entry.item, entry.image_id
    if item.problem is not None:
        shard.refuse(item.key, item.problem.reason, item.problem.detail)
    elif isinstance(outcome, Accepted):
        crawl.known[image_id] = set(item.tags)
        shard.add_image(_record(item, image_id, outcome), outcome.jpeg)
    elif isinstance(outcome, Refused) or image_id in crawl.refused:
        refusal = crawl.refused.setdefault(image_id, outcome) if outcome else crawl.refused[image_id]
        shard.refuse(item.key, str(refusal.reason), refusal.detail)
    else:
        crawl.duplicates += 1
        if new := tuple(tag for tag in item.tags if tag not in crawl.known[image_id]):
            crawl.known[image_id].update(new)
            shard.add_tags(Record(image_id=image_id, group=image_id, tags=new))


def write_shards(crawl: Crawl, source: Source, cfg: CrawlConfig) -> None:
    """Consume the rest of a source, committing a shard whenever it is full."""
    shard = ShardWriter(crawl.directory, crawl.next_shard)
    rest = islice(iter(source), crawl.consumed, None)
    try:
        with IsolatedGate(cfg.gate, cfg.workers) as gate:
            progress = tqdm(gated(crawl, rest, gate), initial=crawl.consumed, unit="item", desc="gate", mininterval=1.0)
            for entry, outcome in progress:
                file_item(crawl, shard, entry, outcome)
                crawl.consumed += 1
                if shard.num_images == cfg.shard_size:
                    shard.commit(crawl.state())
                    crawl.next_shard += 1
                    shard = ShardWriter(crawl.directory, crawl.next_shard)
        if shard.rows or shard.refusals:
            shard.commit(crawl.state())
            crawl.next_shard += 1
    finally:
        shard.discard()


def _facts(states: list[dict[str, Any]], crawl: Crawl) -> dict[str, Any]:
    last_of_crawl = {state["recipe"]: state for state in states}
    refused: Counter[str] = Counter()
    for state in states:
        refused.update(state["refused"])
    facts = {
        "num_images": len(crawl.known),
        "num_items": sum(state["consumed"] for state in last_of_crawl.values()),
        "num_duplicates": sum(state["duplicates"] for state in last_of_crawl.values()),
        "refused": dict(sorted(refused.items())),
        "crawls": list({state["recipe"]: state["config"] for state in states}.values()),
    }
    accounted = facts["num_images"] + facts["num_duplicates"] + sum(refused.values())
    if accounted != facts["num_items"]:
        raise ArtifactError(f"{facts['num_items']} items were read but {accounted} are accounted for: {facts}")
    return facts


def seal_collection(crawl: Crawl, cfg: CrawlConfig, earlier: Manifest | None) -> Manifest:
    """Write the manifest over all committed shards; it takes the place of the earlier one in one step."""
    parquets = committed_shards(crawl.directory)
    states = [shard_state(path) for path in parquets]
    names = [name for p in parquets for name in (p.name, f"{p.stem}.tar", f"refused/{p.stem}.jsonl")]
    relations = crawl.directory / RELATIONS_FILE
    names += [RELATIONS_FILE] if relations.is_file() else []
    described = {
        name: (earlier.files.get(name) if earlier and name != RELATIONS_FILE else None)
        or describe_file(crawl.directory / name)
        for name in names
    }
    content = {
        **{name: entry["sha256"] for name, entry in described.items() if not name.endswith(".parquet")},
        "rows": [state["rows"] for state in states],
    }
    return seal(
        crawl.directory,
        "collection",
        config=resolved(cfg),
        files=names,
        content=content,
        must_match={"gate": gate_fingerprint(cfg)},
        facts={
            **_facts(states, crawl),
            "crawls": list({state["recipe"]: state["config"] for state in states}.values()),
        },
        recipe=crawl.recipe,
        described=described,
    )


def gate_fingerprint(cfg: CrawlConfig) -> str:
    """Digest of the gate's version and of the options that shape pixels."""
    return digest(gate_space(cfg.gate))


def _may_go_on(manifest: Manifest | None, cfg: CrawlConfig, config: dict[str, Any]) -> None:
    """Refuse to mix gates, and to mix sources unasked."""
    if manifest is None:
        return
    where = f"the collection in '{cfg.paths.artifact('collection')}'"
    if manifest.must_match["gate"] != gate_fingerprint(cfg):
        raise ArtifactError(
            f"{where} was made with gate.max_side_px={manifest.config['gate']['max_side_px']} "
            f"gate.quality={manifest.config['gate']['quality']}. Use these, or another folder with paths.data=<folder>."
        )
    if config not in manifest.facts["crawls"] and not cfg.append:
        raise ArtifactError(
            f"{where} was made from another source. Add this one with append=true, "
            "or make a collection of its own with paths.data=<folder>."
        )


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
    source = open_source(cfg.source, cfg.gate.max_bytes)
    config = {"source": resolved(cfg.source)}
    manifest = read_manifest(directory)
    _may_go_on(manifest, cfg, config)
    relations = _read_relations(cfg.relations)
    recipe = digest([config, gate_space(cfg.gate), source.fingerprint(), relations])
    if manifest is not None and manifest.recipe == recipe:
        log.info("already done: %s holds %d images", directory, manifest.facts["num_images"])
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    remove_partials(directory)
    if relations:
        atomic_write(directory / RELATIONS_FILE, relations)
    crawl = Crawl(directory, recipe, config)
    crawl.resume()
    log.info("crawling %s into %s, from item %d on", cfg.source.name, directory, crawl.consumed)
    write_shards(crawl, source, cfg)
    sealed = seal_collection(crawl, cfg, manifest)
    log.info("collection %s: %s", sealed.content_id[:12], report(sealed.facts))
    return directory


def report(facts: dict[str, Any]) -> str:
    """Return the one-line account of a crawl."""
    refused = ", ".join(f"{count} {reason}" for reason, count in facts["refused"].items()) or "none"
    return (
        f"{facts['num_items']} items = {facts['num_images']} images + {facts['num_duplicates']} duplicates "
        f"+ {sum(facts['refused'].values())} refused ({refused})"
    )


register(
    "crawl",
    CrawlConfig,
    {"source/folder": FolderSource, "source/table": TableSource, "source/webdataset": WebDatasetSource},
)

if __name__ == "__main__":
    run_stage(collect, CrawlConfig, "crawl")
