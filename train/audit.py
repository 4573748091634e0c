"""Stage `audit`: name the pictures that straddle train, val and test, before anything is trained.

Reads   data/index, data/collection, data/thumbnails/thumbnail-<8 hex>, which it makes for images that have none
Writes  data/audit/<generation>/{pairs.csv, left_out.txt, manifest.json}

It looks at pixels alone, so that runs on all backbones are judged by the same images. Of a straddling pair the side in
train stays, and the one in val or test is left out; of val and test, the one in val.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from configs.artifacts import ArtifactError, Manifest, atomic_write, digest, open_artifact, seal
from configs.compose import Paths, register, resolved, run_stage
from configs.generations import CURRENT, add_generation, current_generation
from crawl.near_copies import PICTURE_PX, PROBES, THUMBNAIL_PX, candidates, is_flat, similarity
from crawl.records import SPLITS, TEST, TRAIN, VAL
from crawl.shards import Collection, JpegReader, splits_of
from features.backbones import THUMBNAIL
from features.config import FeatureSpaceConfig, ImageFeaturesConfig
from features.extract import extract
from features.image_features import open_features
from features.inverted_index import InvertedIndex, open_index
from features.pictures import PictureReader, pixels
from features.runtimes import cores
from train.config import AuditConfig
from train.runs import Inputs

log = logging.getLogger(__name__)
AUDIT_VERSION = 1  # raised when the same pictures would give other pairs
COMPARED = replace(THUMBNAIL, resize_px=PICTURE_PX, crop_px=PICTURE_PX)  # how pictures are decoded to be compared
PAIRS_AT_ONCE = 1024
SURELY = 0.999  # similarity from which whole pictures are compared, too
EXAMPLES = 3  # in the sentence that stops a training
PAIRS, LEFT_OUT_IDS = "pairs.csv", "left_out.txt"
SIDES = (
    (TRAIN, VAL),
    (TRAIN, TEST),
    (VAL, TEST),
)  # the second of a pair is asked about, and left out unless it is test


@dataclass(frozen=True, order=True)
class Pair:
    """Two images of different splits that should not stand in two."""

    image: int  # row of the one left out, or to be
    other: int
    kind: str  # exact: equal pixels; near: a copy, changed; group: it belongs to the other's group, too
    similarity: float
    mirrored: bool = False


def open_thumbnails(paths: Paths, index: InvertedIndex, gate: str) -> np.ndarray:
    """Return thumbnails (N, S, S) float16 of all images, made now where there are none."""
    extract(ImageFeaturesConfig(paths, THUMBNAIL, runtime="torch", device="cpu"))
    rows, _ = open_features(FeatureSpaceConfig(paths, THUMBNAIL), gate, index.image_ids)
    return rows.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)


def equal_rows(thumbnails: np.ndarray) -> np.ndarray:
    """Return (N,) int64, the same number for equal thumbnails, the first row that has it."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in thumbnails)
    return np.fromiter((first.setdefault(each, row) for row, each in enumerate(digests)), np.int64, len(thumbnails))


def straddling_candidates(thumbnails: np.ndarray, splits: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return pairs of images of different splits that may be copies.

    Of equal thumbnails in a split the first stands for all, so that a picture uploaded a thousand times does not cost a
    million pairs.

    Args:
        thumbnails: (N, S, S).
        splits: (N,).
        same: (N,) the first row of an equal thumbnail.

    Returns:
        (n, 3) int64: two image rows, of which the second may be a part of the first, and a probe; several for a pair.
    """
    _, standing = np.unique(same * len(SPLITS) + splits, return_index=True)
    first = {(same[row], splits[row]): row for row in standing}
    equal = [
        (row, first[same[row], one], 0)
        for one, two in SIDES
        for row in np.flatnonzero(splits == two)
        if (same[row], one) in first
    ]
    found = [np.array(equal, dtype=np.int64).reshape(-1, 3)]
    detailed = standing[~is_flat(thumbnails[standing])]
    for sides in SIDES:
        one, two = (detailed[splits[detailed] == split] for split in sides)
        for asked, others in ((one, two), (two, one)):
            near = candidates(thumbnails[asked], thumbnails[others])
            found.append(np.column_stack([asked[near[:, 0]], others[near[:, 1]], near[:, 2]]))
    return np.concatenate(found)


class Comparison:
    """Compares the pictures themselves."""

    def __init__(self, index: InvertedIndex, collection: Path) -> None:
        self._index = index
        self._jpegs = JpegReader(collection)
        self._reader = PictureReader(index, collection, COMPARED, cores())

    def pairs(self, asked: np.ndarray, least: float) -> list[Pair]:
        """Return those of candidates (n, 3) that are copies, each once."""
        found: dict[tuple[int, int], Pair] = {}
        for start in tqdm(
            range(0, len(asked), PAIRS_AT_ONCE), desc="comparing", mininterval=1.0, disable=not len(asked)
        ):
            chunk = asked[start : start + PAIRS_AT_ONCE]
            rows = np.unique(chunk[:, :2])
            pictures = dict(zip(rows.tolist(), next(self._reader.batches(rows, len(rows))), strict=True))
            for whole, part, probe in chunk.tolist():
                image, other = self._in_order(whole, part)
                if (image, other) not in found:
                    alike = similarity(pictures[whole], pictures[part], probe)
                    if alike >= least:
                        found[image, other] = self._pair(image, other, alike, probe)
        return list(found.values())

    def _in_order(self, one: int, other: int) -> tuple[int, int]:
        """Return first the one that is left out: of val before test, of test before train."""
        leaving = {VAL: 0, TEST: 1, TRAIN: 2}
        return (one, other) if leaving[self._index.splits[one]] < leaving[self._index.splits[other]] else (other, one)

    def _pair(self, image: int, other: int, alike: float, probe: int) -> Pair:
        exact = alike >= SURELY and np.array_equal(pixels(self._read(image)), pixels(self._read(other)))
        return Pair(image, other, "exact" if exact else "near", round(alike, 4), probe >= PROBES // 2)

    def _read(self, row: int) -> bytes:
        return self._jpegs.read(self._index.locations[row], self._index.image_id(row))

    def close(self) -> None:
        """Stop the threads and close the shards."""
        self._reader.close()
        self._jpegs.close()


def copies(index: InvertedIndex, thumbnails: np.ndarray, collection: Path, least: float) -> list[Pair]:
    """Return the pairs of images that are copies across splits."""
    splits = np.asarray(index.splits).astype(np.int64)
    same = equal_rows(thumbnails)
    asked = straddling_candidates(thumbnails, splits, same)
    log.info("%d pairs of pictures to compare", len(np.unique(np.sort(asked[:, :2], axis=1), axis=0)))
    comparison = Comparison(index, collection)
    try:
        found = comparison.pairs(asked, least)
    finally:
        comparison.close()
    alike = np.argsort(same * len(SPLITS) + splits, kind="stable")
    keys = (same * len(SPLITS) + splits)[alike]
    listed = {(pair.image, pair.other): pair for pair in found}
    for pair in found:  # to the images that this one stands for
        key = same[pair.image] * len(SPLITS) + splits[pair.image]
        for row in alike[np.searchsorted(keys, key) : np.searchsorted(keys, key, side="right")].tolist():
            listed.setdefault((row, pair.other), replace(pair, image=row))
    return sorted(listed.values())


def bridges(index: InvertedIndex, collection: Collection) -> list[Pair]:
    """Return the images that came again in another group, whose images stand in another split.

    Raises:
        ArtifactError: the index splits an image otherwise than by its group.
    """
    table = collection.table(["group", "offset"])
    image_ids = np.asarray(index.image_ids)
    ids = np.array(table.column("image_id").to_pylist(), dtype="S16")
    rows = np.minimum(np.searchsorted(image_ids, ids), len(image_ids) - 1)
    known = image_ids[rows] == ids
    rows, groups = rows[known], np.array(table.column("group").to_pylist(), dtype=object)[known]
    first = table.column("offset").to_numpy()[known] >= 0
    splits, by_group = np.asarray(index.splits), splits_of(groups)
    if (by_group[first] != splits[rows[first]]).any():
        raise ArtifactError(f"'{index.directory}' splits images otherwise than by their groups. Run `make index`.")
    member = dict(zip(reversed(groups[first]), reversed(rows[first]), strict=True))
    again = np.flatnonzero(~first & (by_group != splits[rows]))
    found = {(int(rows[at]), int(member[groups[at]])) for at in again if groups[at] in member}
    return sorted(Pair(image, other, "group", 1.0) for image, other in found)


def left_out_rows(pairs: list[Pair], splits: np.ndarray) -> np.ndarray:
    """Return the rows, ascending, of val and test that may not judge.

    Copies of copies count: a chain that reaches train leaves val and test, any other one leaves val. A picture of two
    groups leaves by itself; the other images of its groups stay.
    """
    chained = [pair for pair in pairs if pair.kind != "group"]
    ends = np.array([(pair.image, pair.other) for pair in chained], dtype=np.int64).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), ends.T), shape=(len(splits), len(splits)))
    _, chain = connected_components(links, directed=False)
    linked = np.zeros(len(splits), dtype=bool)
    linked[ends] = True
    with_train = np.zeros(len(splits), dtype=bool)
    with_train[chain[linked & (splits == TRAIN)]] = True
    leaving = linked & ((splits == VAL) | ((splits == TEST) & with_train[chain]))
    leaving[[pair.image for pair in pairs if pair.kind == "group" and splits[pair.image] != TRAIN]] = True
    return np.flatnonzero(leaving)


def pairs_csv(pairs: list[Pair], index: InvertedIndex) -> str:
    """Return the pairs as CSV, the image left out first."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image_id", "other_image_id", "split", "other_split", "kind", "mirrored", "similarity"])
    for pair in pairs:
        ids = [index.image_id(row) for row in (pair.image, pair.other)]
        splits = [SPLITS[index.splits[row]] for row in (pair.image, pair.other)]
        writer.writerow([*ids, *splits, pair.kind, str(pair.mirrored).lower(), f"{pair.similarity:.4f}"])
    return stream.getvalue()


def subject(index: Manifest) -> dict[str, str]:
    """Return what an audit is of."""
    return {"index": index.content_id, "collection": index.provenance["collection"]}


def audit(cfg: AuditConfig) -> Path:
    """Audit the index in force and return the audit's generation. Callable from tests without Hydra."""
    index, index_manifest = open_index(cfg.paths)
    recipe = digest([AUDIT_VERSION, cfg.similarity, subject(index_manifest)])

    def write(directory: Path) -> Manifest:
        log.info("auditing %d images for copies across splits", index.num_images)
        collection = Collection(cfg.paths.artifact("collection"))
        thumbnails = open_thumbnails(cfg.paths, index, index_manifest.must_match["gate"])
        pairs = bridges(index, collection) + copies(index, thumbnails, collection.directory, cfg.similarity)
        leaving = left_out_rows(pairs, np.asarray(index.splits))
        atomic_write(directory / PAIRS, pairs_csv(pairs, index))
        atomic_write(directory / LEFT_OUT_IDS, "".join(f"{index.image_id(row)}\n" for row in leaving))
        kinds = [pair.kind for pair in pairs]
        return seal(
            directory,
            "audit",
            config=resolved(cfg),
            files=[PAIRS, LEFT_OUT_IDS],
            provenance=subject(index_manifest),
            facts={
                "pairs": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
                "left_out": {SPLITS[split]: int((index.splits[leaving] == split).sum()) for split in (VAL, TEST)},
            },
            recipe=recipe,
        )

    directory, built = add_generation(cfg.paths.artifact("audit"), "audit", recipe, write)
    facts = open_artifact(directory, "audit", make="make audit").facts
    log.info(
        "%s: %s, pairs that straddle the splits: %s; left out of val and test: %d and %d",
        "audit" if built else "already done", directory,
        ", ".join(f"{number} {kind}" for kind, number in facts["pairs"].items()) or "none", *facts["left_out"].values(),
    )  # fmt: skip
    return directory


def settle_audit(paths: Paths) -> tuple[Path, Manifest]:
    """Return the audit in force, made now where there is none of the index in force."""
    _, index = open_index(paths)
    root, cfg = paths.artifact("audit"), AuditConfig(paths)
    if (root / CURRENT).is_file():
        directory = current_generation(root, make="make audit")
        found = open_artifact(directory, "audit", make="make audit")
        if found.provenance == subject(index):
            return directory, found
        cfg = AuditConfig(paths, found.config["similarity"])
    directory = audit(cfg)
    return directory, open_artifact(directory, "audit", make="make audit")


def left_out_images(paths: Paths, index: InvertedIndex) -> tuple[np.ndarray, dict[str, str]]:
    """Return the rows of val and test that straddle the splits, and what they add to a recipe: nothing if none do."""
    directory, manifest = settle_audit(paths)
    ids = (directory / LEFT_OUT_IDS).read_text(encoding="ascii").split()
    rows = np.searchsorted(np.asarray(index.image_ids), np.array(ids, dtype="S16"))
    if len(ids):
        told = " and ".join(f"{count} {name} images" for name, count in manifest.facts["left_out"].items())
        log.info("left out, because they straddle the splits: %s", told)
    return rows, {"left_out": digest(ids)} if ids else {}


def audited(inputs: Inputs, paths: Paths) -> Inputs:
    """Return inputs whose val and test hold no image that straddles the splits."""
    rows, content = left_out_images(paths, inputs.index)
    if not len(rows):
        return inputs
    counts = {SPLITS[split]: int((inputs.index.splits[rows] == split).sum()) for split in (VAL, TEST)}
    return replace(inputs, index=inputs.index.without(rows), content={**inputs.content, **content}, left_out=counts)


def check_leakage(paths: Paths, index: InvertedIndex, max_leakage: float) -> None:
    """Stop where too much straddles the splits.

    Raises:
        ArtifactError: more than that share of val or of test, with examples and the way out.
    """
    directory, manifest = settle_audit(paths)
    for name, count in manifest.facts["left_out"].items():
        size = int((index.splits == SPLITS.index(name)).sum())
        if count > max_leakage * size:
            raise ArtifactError(
                f"{count} of {size} {name} images ({count / size:.1%}) straddle the splits, more than max_leakage="
                f"{max_leakage:g}: {'; '.join(_examples(directory, name))}. '{directory / PAIRS}' names all. Give what "
                "belongs together one `group` in the source, or take copies out of it; or train without them in val "
                f"and test, with max_leakage={math.ceil(100 * count / size) / 100:g}."
            )


def _examples(directory: Path, split: str) -> list[str]:
    """Return the first pairs of a split in words."""
    with (directory / PAIRS).open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == split][:EXAMPLES]
    return [
        f"{row['image_id']} ({split}) and {row['other_image_id']} ({row['other_split']}), {row['kind']}" for row in rows
    ]


register("audit", AuditConfig)

if __name__ == "__main__":
    run_stage(audit, AuditConfig, "audit")
