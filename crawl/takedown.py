"""Stage `takedown`: take pictures out of every store, for ever, and prove it.

Reads   data/collection
Writes  data/collection/tombstones; then every shard, index, store of features, audit, evaluation, comparison, judgement
        and served generation that holds one of the pictures is written anew without it, or removed

Interrupted anywhere it is finished by running it again, with the same arguments or with none.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from configs.artifacts import ArtifactError, exclusive
from configs.compose import override, register, run_stage
from crawl.compact import compact
from crawl.config import TakedownConfig
from crawl.fetch.database import REFUSED, opened, transaction
from crawl.fetch.found import About
from crawl.fetch.recall import addresses_of, fetched_from
from crawl.ingest import Accepted
from crawl.ingest.wire import unpack_verdict
from crawl.records import image_id_of
from crawl.shards import JpegReader, committed_shards
from crawl.sources.network import DATABASE
from crawl.tombstones import TAKEN_DOWN, TOMBSTONES_FILE, Tombstone, Tombstones, address_digests, jpeg_digest
from crawl.traces import features_of, search, tells

log = logging.getLogger(__name__)
FORGETTING = ("features.forget", "train.forget", "serve.forget")  # in this order: each reads what the former left


@dataclass(frozen=True)
class Held:
    """A picture as a shard holds it."""

    image_id: str
    source_url: str
    page_url: str
    shard: int
    offset: int
    size: int


def pictures(directory: Path) -> Iterator[Held]:
    """Yield what committed shards hold, those of an unfinished crawl included."""
    columns = ["image_id", "source_url", "page_url", "offset", "size"]
    for number, path in enumerate(committed_shards(directory)):
        for row in pq.read_table(path, columns=columns).to_pylist():
            if row["offset"] >= 0:
                yield Held(
                    row["image_id"], row["source_url"] or "", row["page_url"] or "", number, row["offset"], row["size"]
                )


def chosen(cfg: TakedownConfig, directory: Path) -> list[Held]:
    """Return the pictures that a config names, and those whose stored JPEG is the same, byte for byte."""
    urls, pages = (set().union(*map(address_digests, each)) for each in (cfg.urls, cfg.pages))

    def is_picture(url: str) -> bool:
        return bool(urls and url) and not urls.isdisjoint(address_digests(url))

    def is_page(url: str) -> bool:
        return bool(pages and url) and not pages.isdisjoint(address_digests(url))

    ids = set(cfg.images) | (fetched_from(_databases(cfg), is_picture, is_page) if urls or pages else set())
    held = pictures(directory)
    found = [each for each in held if each.image_id in ids or is_picture(each.source_url) or is_page(each.page_url)]
    return [*found, *_same_jpegs(found, directory)]


def _databases(cfg: TakedownConfig) -> list[Path]:
    return sorted(cfg.paths.artifact("crawls").rglob(DATABASE))


def _same_jpegs(found: Iterable[Held], directory: Path) -> list[Held]:
    reader = JpegReader(directory)
    try:
        jpegs = {_read(reader, held) for held in found}
        ids, sizes = {held.image_id for held in found}, {len(jpeg) for jpeg in jpegs}
        alike = (held for held in pictures(directory) if held.size in sizes and held.image_id not in ids)
        return [held for held in alike if _read(reader, held) in jpegs]
    finally:
        reader.close()


def _read(reader: JpegReader, held: Held) -> bytes:
    return reader.read({"shard": held.shard, "offset": held.offset, "size": held.size}, held.image_id)


def _tombstones(cfg: TakedownConfig, directory: Path, known: Tombstones) -> list[Tombstone]:
    """Return the tombstones that are missing yet.

    Raises:
        ArtifactError: an image_id of which nothing is known, which is probably a slip.
    """
    found = chosen(cfg, directory)
    ids = {held.image_id for held in found}
    if unknown := sorted(set(cfg.images) - ids - known.image_ids):
        raise ArtifactError(
            f"'{directory}' holds no image {', '.join(unknown)}, and none was taken down; nothing was changed. "
            "Name pictures by image_id, or by where they came from: urls=[...], pages=[...]."
        )
    date = datetime.now(UTC).isoformat(timespec="seconds")
    features = features_of([Path(cfg.paths.data)], ids)
    sources = addresses_of(_databases(cfg), ids)
    for held in found:
        sources[held.image_id] |= {held.source_url} - {""}
    reader = JpegReader(directory)
    try:
        stones = [
            Tombstone(
                image_id=held.image_id,
                reason=cfg.reason,
                date=date,
                addresses=tuple(sorted(set().union(*map(address_digests, sources[held.image_id])))),
                jpeg=jpeg_digest(_read(reader, held)),
                features=tuple(sorted(features[held.image_id])),
            )
            for held in found
        ]
    finally:
        reader.close()
    alone = [url for url in (*cfg.urls, *cfg.pages) if not known.is_taken_down(urls=[url])]
    covered = {address for stone in stones for address in stone.addresses}
    addresses = tuple(each for url in alone for each in sorted(address_digests(url)) if each not in covered)
    return [*stones, *([Tombstone(reason=cfg.reason, date=date, addresses=addresses)] if addresses else [])]


def takedown(cfg: TakedownConfig) -> Path:
    """Take pictures down and prove it; return the tombstones. Callable from tests without Hydra.

    Raises:
        ArtifactError: a stage could not do its part, or a store still holds a picture.
    """
    directory = cfg.paths.artifact("collection")
    if not directory.is_dir():
        raise ArtifactError(f"no collection in '{directory}'; set paths.data to the directory that has one")
    with exclusive(directory):
        compact(directory)  # what an interrupted takedown left half done, so that the tables are right
        before = Tombstones(directory)
        after = before.add(_tombstones(cfg, directory, before))
        log.info("%d tombstones, %d of them new", len(after.all), len(after.all) - len(before.all))
        log.info("%d shards rewritten", compact(directory))
        for database in _databases(cfg):
            forget_crawl(database, after)
    failed = [module for module in FORGETTING if _status(module, cfg)]
    if failed:
        raise ArtifactError(
            f"{' and '.join(failed)} did not end well, as is told above; the tombstones stand. Put right what is named "
            "there and run `make takedown` again, without arguments."
        )
    prove(cfg, after)
    return directory / TOMBSTONES_FILE


def forget_crawl(database: Path, tombstones: Tombstones) -> None:
    """Take pictures out of what a crawl of the network remembers and has waiting for the gate.

    Their addresses stay, as refused, so that this crawl does not ask for them again; what pages say of them goes.
    """

    def is_gone(image_id: str | None, url: str | None, body: bytes | None, verdict: bytes | None) -> bool:
        gated = unpack_verdict(verdict) if verdict else None
        jpeg = gated.jpeg if isinstance(gated, Accepted) else b""
        ids = [image_id or "", image_id_of(body) if body else ""]
        return any(tombstones.is_taken_down(image_id=each, urls=[url or ""], jpeg=jpeg) for each in ids)

    with closing(opened(database)) as db:
        db.create_function("is_gone", 4, is_gone, deterministic=True)
        db.execute("PRAGMA secure_delete = ON")
        with transaction(db):
            changed = db.execute(
                f"UPDATE urls SET state = {REFUSED}, reason = '{TAKEN_DOWN}', detail = '', image_id = NULL, "  # noqa: S608
                f"etag = NULL, modified = NULL WHERE reason != '{TAKEN_DOWN}' AND is_gone(image_id, url, NULL, NULL)"
            ).rowcount
            changed += db.execute(
                f"UPDATE outbox SET reason = '{TAKEN_DOWN}', detail = '', image_id = NULL, about = ?, body = NULL "  # noqa: S608
                f"WHERE reason IS NOT '{TAKEN_DOWN}' AND "
                f"(url IN (SELECT id FROM urls WHERE reason = '{TAKEN_DOWN}') OR is_gone(image_id, '', body, "
                "(SELECT verdict FROM gated WHERE gated.seq = outbox.seq)))",
                (About().as_json(),),
            ).rowcount
            db.execute("DELETE FROM gated WHERE seq IN (SELECT seq FROM outbox WHERE reason = ?)", (TAKEN_DOWN,))
            for table in ("mentions", "leads"):
                changed += db.execute(
                    f"DELETE FROM {table} WHERE url IN (SELECT id FROM urls WHERE reason = ?)",  # noqa: S608 - ours
                    (TAKEN_DOWN,),
                ).rowcount
        free = db.execute("PRAGMA freelist_count").fetchone()[0]  # which still hold the bytes of parcels long dropped
        if changed or free or any(tells(path, tombstones.image_ids) for path in database.parent.glob(f"{DATABASE}*")):
            db.execute("VACUUM")  # of free pages, and below of the log
            log.info("%d entries of '%s' were emptied", changed, database)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _status(module: str, cfg: TakedownConfig) -> int:
    """Run what a later package does for a takedown, as a process, because nothing here may import it."""
    paths = [override("paths.data", cfg.paths.data), override("paths.runs", cfg.paths.runs)]
    return subprocess.run([sys.executable, "-m", module, *paths]).returncode  # noqa: S603 - our own modules


def prove(cfg: TakedownConfig, tombstones: Tombstones) -> None:
    """Search all stores for all that was ever taken down, and say what was searched.

    Raises:
        ArtifactError: something is left, with the files.
    """
    roots = [path for path in (Path(cfg.paths.data), Path(cfg.paths.runs)) if path.is_dir()]
    searched = search(roots, tombstones.all)
    log.info(
        "searched %d files (%.1f MiB) below %s for %d images: %d tables decoded, %d members of tars and %d rows of "
        "features compared by digest",
        searched.num_files, searched.num_bytes / 2**20, " and ".join(map(str, roots)), len(tombstones.image_ids),
        searched.num_tables, searched.num_jpegs, searched.num_rows,
    )  # fmt: skip
    if searched.found:
        raise ArtifactError(
            f"{len(searched.found)} traces are left: {'; '.join(searched.found[:10])}. Delete what no stage knows of, "
            "take the picture down in collections that lie there too, and run `make takedown` again."
        )
    log.info("nothing but '%s' tells of them", tombstones.path)


register("takedown", TakedownConfig)

if __name__ == "__main__":
    run_stage(takedown, TakedownConfig, "takedown")
