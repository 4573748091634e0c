"""Sealing the collection, and rewriting its shards without what was taken down.

A shard is rewritten as it was written: its tar first, its Parquet file last. Between the two the offsets of the old
table are wrong; readers see that by the headers in the tar, and the next call finds the picture in the table and
rewrites the shard from the names in the tar.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from configs.artifacts import MANIFEST, ArtifactError, Manifest, describe_file, read_manifest, remove_partials, seal
from crawl.account import accounts, total
from crawl.records import from_row
from crawl.shards import (
    COMPACTED,
    DAMAGED_OR_OTHER,
    RELATIONS_FILE,
    ShardWriter,
    committed_shards,
    compacted_digest,
    num_images,
    shard_state,
)
from crawl.tombstones import TAKEN_DOWN, Tombstones

log = logging.getLogger(__name__)
NEAR = "near"  # folder of thumbnails by which copies are found, which belong to the rows of a shard
Account = dict[str, Any]


def files_of(shard: Path) -> tuple[str, str, str]:
    """Return the names of a shard's files, given its Parquet file."""
    return shard.name, f"{shard.stem}.tar", f"refused/{shard.stem}.jsonl"


def seal_shards(
    directory: Path,
    shards: Sequence[Path],
    crawls: Mapping[str, Mapping[str, Any]],
    earlier: Manifest | None,
    *,
    config: Mapping[str, Any],
    must_match: Mapping[str, str],
    recipe: str,
) -> tuple[Manifest, dict[str, Account]]:
    """Write the manifest over some shards, which takes the place of the earlier one in one step.

    Args:
        directory: of the collection.
        shards: Parquet files, in order.
        crawls: by recipe, those that reached the end of their source.
        earlier: the manifest so far, of which files that were not written since are not hashed again.
        config: of the stage.
        must_match: fingerprint of the gate.
        recipe: of the last crawl.

    Returns:
        The manifest, and the account of each crawl by its recipe.
    """
    relations = [RELATIONS_FILE] if (directory / RELATIONS_FILE).is_file() else []
    names = [*(name for shard in shards for name in files_of(shard)), *relations]
    described = {**_unchanged(directory, earlier, set(names) - {RELATIONS_FILE})}
    described |= {name: describe_file(directory / name) for name in names if name not in described}
    states = [shard_state(path) for path in shards]
    content = {
        **{name: entry["sha256"] for name, entry in described.items() if not name.endswith(".parquet")},
        "rows": [state["rows"] for state in states],
    }
    each = accounts(((state, num_images(path)) for state, path in zip(states, shards, strict=True)), crawls)
    gone = Tombstones(directory).image_ids
    manifest = seal(
        directory,
        "collection",
        config=config,
        files=names,
        content=content,
        must_match=must_match,
        facts={
            **total(each.values()),
            "crawls": list(crawls.values()),
            **({COMPACTED: compacted_digest(gone)} if gone else {}),
        },
        recipe=recipe,
        described=described,
    )
    return manifest, each


def _unchanged(directory: Path, earlier: Manifest | None, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what is known of files that were not written since the manifest was."""
    if earlier is None:
        return {}
    sealed_at = (directory / MANIFEST).stat().st_mtime_ns
    kept = (name for name in names if name in earlier.files)
    return {name: earlier.files[name] for name in kept if (directory / name).stat().st_mtime_ns < sealed_at}


def compact(directory: Path) -> int:
    """Rewrite the shards that hold a picture that was taken down, and seal what was sealed; return how many.

    The caller holds the collection alone. Shards of a crawl that is not finished are rewritten, too, and what a killed
    one left of a shard that it did not commit is removed.
    """
    for folder in (directory, directory / "refused"):
        remove_partials(folder)
    shards = committed_shards(directory)
    for tar in directory.glob("*.tar"):
        if tar.with_suffix(".parquet") not in shards:
            tar.unlink()
            (directory / "refused" / f"{tar.stem}.jsonl").unlink(missing_ok=True)
    tombstones = Tombstones(directory)
    touched = [path for path in shards if _holds(path, tombstones)] if tombstones.all else []
    for path in touched:
        _rewrite(directory, path, tombstones)
    _seal_again(directory, shards, tombstones)
    return len(touched)


def _seal_again(directory: Path, shards: Sequence[Path], tombstones: Tombstones) -> None:
    manifest = read_manifest(directory)
    nothing = compacted_digest(())
    if manifest is None or manifest.facts.get(COMPACTED, nothing) == compacted_digest(tombstones.image_ids):
        return
    seal_shards(
        directory,
        [path for path in shards if path.name in manifest.files],
        {each["recipe"]: each for each in manifest.facts["crawls"]},
        manifest,
        config=manifest.config,
        must_match=manifest.must_match,
        recipe=manifest.recipe,
    )


def _holds(shard: Path, tombstones: Tombstones) -> bool:
    """Tell whether a shard's table or its list of refusals names what was taken down."""
    ids = pq.read_table(shard, columns=["image_id"])["image_id"].to_pylist()
    if not tombstones.image_ids.isdisjoint(ids):
        return True
    return any(_tells(entry, tombstones) for entry in _refusals(shard))


def _tells(refusal: Mapping[str, str], tombstones: Tombstones) -> bool:
    """Tell whether a refusal gives away what was taken down, by its address or the image_id in a file's name."""
    told = f"{refusal['key']} {refusal['detail']}"
    named = any(image_id in told for image_id in tombstones.image_ids)
    return named or ("://" in refusal["key"] and tombstones.is_taken_down(urls=[refusal["key"]]))


def _refusals(shard: Path) -> list[dict[str, str]]:
    """Return the refusals that a shard's commit counted; one that was killed may have listed more."""
    listed = (shard.parent / "refused" / f"{shard.stem}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in listed[: sum(shard_state(shard)["refused"].values())]]


def _rewrite(directory: Path, shard: Path, tombstones: Tombstones) -> None:
    """Write a shard anew; a picture that was taken down counts as refused from now on, so that the account holds."""
    log.info("rewriting %s", shard.with_suffix(".tar"))
    for thumbnails in (directory / NEAR).glob(f"{shard.stem}-*.npy"):
        thumbnails.unlink()
    state = {key: value for key, value in shard_state(shard).items() if key not in ("rows", "refused")}
    writer = ShardWriter(directory, int(shard.stem))
    try:
        for refusal in _refusals(shard):
            kept = refusal if not _tells(refusal, tombstones) else {**refusal, "key": "", "detail": ""}
            writer.refuse(**kept)
        with tarfile.open(shard.with_suffix(".tar"), mode="r:") as archive:
            members = {member.name: member for member in archive}
            for row in pq.read_table(shard).to_pylist():
                gone = row["image_id"] in tombstones.image_ids
                if not gone and row["offset"] < 0:
                    writer.add_tags(from_row(row))
                elif not gone:
                    stored = archive.extractfile(members[f"{row['image_id']}.jpg"])
                    writer.add_image(from_row(row), stored.read() if stored else b"")
                elif row["offset"] >= 0:
                    writer.refuse("", TAKEN_DOWN, "")
        writer.commit(state)
    except (KeyError, tarfile.TarError) as error:
        raise ArtifactError(
            f"'{shard.with_suffix('.tar')}' is not what its table says ({error}); {DAMAGED_OR_OTHER}"
        ) from error
    finally:
        writer.discard()
