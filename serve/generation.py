"""A published generation on disk: what `serve/publish.py` writes and a searcher maps, without torch.

N images, T tags, P postings, D width of an embedding.
"""

from __future__ import annotations

import json
import mmap
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_open,
    atomic_write,
    digest,
    map_array,
    open_artifact,
    read_manifest,
    save_array,
)
from configs.compose import Paths
from configs.generations import current_generation
from crawl.records import Record
from crawl.shards import RELATIONS_FILE, Collection
from crawl.tags import normalise_tag
from features.inverted_index import InvertedIndex
from train.calibrated import CALIBRATION, Calibration, read_calibration

KIND, SCHEMA_VERSION = "served", 2
MAKE = "make publish"
PUBLISH_VERSION = 5
EMBEDDINGS, TAG_EMBEDDINGS = "embeddings.npy", "tag_embeddings.npy"
RANKED, SCORES = "ranked.npy", "scores.npy"
VOTES = "votes.npy"  # only where the run votes
RECORDS, RECORD_OFFSETS = "records.jsonl", "record_offsets.npy"
LICENCES, KINDS, FACETS = "licences.npy", "kinds.npy", "facets.json"
NEWEST = "newest.npy"
RELATED = "related.json"
TOWERS = "towers.safetensors"
GALLERY = "gallery.faiss"  # only where a scan of all embeddings would be slow
QUALITY = "quality.npy"  # only where the run was evaluated
TAG_VECTOR_FILES = ("vectors.npy", "known.npy")
SMALL_BYTES = 64 * 2**20  # of embeddings, which may well stay in memory
FEW_ROWS, MANY_ROWS = 1024, 16384
_ROWS_AT_ONCE = 2048  # more do not fit into the cache as float32
_SIGN_AND_VALUE = np.int32(-0x70002000)  # 0x8FFFE000: of a shifted and sign-extended float16

_normalised = lru_cache(maxsize=2**16)(normalise_tag)  # the same tags come again and again


def rank_postings(
    index: InvertedIndex, embeddings: np.ndarray, tag_embeddings: np.ndarray, votes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return each posting list by falling score, ties by ascending row, and the score of each posting where it lies.

    Args:
        index: with P postings.
        embeddings: (N, D) float16.
        tag_embeddings: (T, D) float32; a zero row leaves its list ascending, but for votes.
        votes: (P,) float16, added to the scores.

    Returns:
        (P,) int32 image rows and (P,) float32.
    """
    ranked = np.array(index.postings)
    posting_scores = np.empty(len(ranked), np.float32)
    for tag_row in range(index.num_tags):
        rows = index.posting_list(tag_row)
        scores = cosines(embeddings, rows, tag_embeddings[[tag_row]])[:, 0]
        start, end = index.offsets[tag_row], index.offsets[tag_row + 1]
        if votes is not None:
            scores += votes[start:end]
        order = np.argsort(-scores, kind="stable")
        ranked[start:end] = rows[order]
        posting_scores[start:end] = scores
    return ranked, posting_scores


def write_embeddings(
    directory: Path,
    index: InvertedIndex,
    embeddings: np.ndarray,
    tag_embeddings: np.ndarray,
    votes: np.ndarray | None = None,
) -> None:
    """Write embeddings, votes and presorted lists, shaped as in `rank_postings`."""
    save_array(directory / EMBEDDINGS, embeddings)
    save_array(directory / TAG_EMBEDDINGS, tag_embeddings)
    if votes is not None:
        save_array(directory / VOTES, votes)
    ranked, posting_scores = rank_postings(index, embeddings, tag_embeddings, votes)
    save_array(directory / RANKED, ranked)
    save_array(directory / SCORES, posting_scores)


def cosines(embeddings: np.ndarray, rows: np.ndarray | slice, vectors: np.ndarray) -> np.ndarray:
    """Return (n, K) float32 products of some embeddings (N, D) float16 with vectors (K, D), computed by chunks."""
    num_rows = len(rows) if isinstance(rows, np.ndarray) else len(embeddings[rows])
    found = np.empty((num_rows, len(vectors)), np.float32)
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        taken = np.take(embeddings, rows[part], axis=0, mode="clip") if isinstance(rows, np.ndarray) else None
        found[part] = as_float32(embeddings[rows][part] if taken is None else taken) @ vectors.T
    return found


def as_float32(halves: np.ndarray) -> np.ndarray:
    """Return finite float16 as float32, five times as fast as numpy: bits to their new places, then the exponent."""
    bits = halves.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_AND_VALUE
    floats = bits.view(np.float32)
    floats *= np.float32(2.0**112)  # the difference of the biases, exact for the smallest numbers, too
    return floats


def write_records(directory: Path, records: Iterable[Record]) -> None:
    """Write records in the order of image rows, two lines each: what a hit shows, then all of it, both JSON."""
    offsets = [0]
    with atomic_open(directory / RECORDS) as stream:
        remaining = iter(records)
        while batch := list(islice(remaining, _ROWS_AT_ONCE)):
            lines = [_record_lines(record) for record in batch]
            stream.write(b"".join(lines))
            offsets += (offsets[-1] + np.cumsum([len(each) for each in lines])).tolist()
    save_array(directory / RECORD_OFFSETS, np.array(offsets, np.int64))


def _record_lines(record: Record) -> bytes:
    tags = sorted({normalised for tag in record.tags if (normalised := _normalised(tag))})
    shown = [record.image_id, record.width, record.height, record.title, tags]
    whole = json.dumps(vars(record))  # numbers and half characters of `extra` that orjson refuses
    return orjson.dumps([*shown, record.author, record.licence]) + b"\n" + whole.encode() + b"\n"


def write_columns(
    directory: Path, licences: Sequence[str], kinds: Sequence[str], dates: Sequence[str], locations: np.ndarray
) -> None:
    """Write what images are filtered and sorted by, each in the order of image rows.

    Licences and kinds become rows of a table of their different values with how many images have each.

    Args:
        directory: of the generation.
        licences: (N,) texts.
        kinds: (N,) texts.
        dates: (N,) ISO 8601, or empty. The newest comes first, those without a date last.
        locations: (N,) `LOCATION`; of equal dates, the image that came last into the collection is the newest.
    """
    tables = {}
    for name, file, values in (("licences", LICENCES, licences), ("kinds", KINDS, kinds)):
        found, codes = _coded(values)
        tables[name] = dict(zip(found, np.bincount(codes, minlength=len(found)).tolist(), strict=True))
        save_array(directory / file, codes)
    atomic_write(directory / FACETS, json.dumps(tables, ensure_ascii=False))
    order = np.lexsort((locations["offset"], locations["shard"], _coded(dates)[1]))[::-1]
    newest = np.empty(len(order), np.int32)
    newest[order] = np.arange(len(order), dtype=np.int32)
    save_array(directory / NEWEST, newest)


def _coded(values: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the different values, ascending, and (n,) int32 rows of them."""
    found = sorted(set(values))
    code = {value: at for at, value in enumerate(found)}
    return found, np.fromiter((code[value] for value in values), np.int32, len(values))


def related_rows(index: InvertedIndex, relations: Mapping[str, Mapping[str, set[str]]]) -> dict[str, list[int]]:
    """Return for each name that finds other tags than itself alone the rows of all tags it finds, ascending.

    An alias finds its tag and the other way round, as do singular and plural; a broader tag finds the narrower ones,
    and what these find in turn.
    """
    finds: dict[str, set[str]] = {}
    for relation, pairs in relations.items():
        for tag, others in pairs.items():
            for other in others:
                finds.setdefault(other, set()).add(tag)
                if relation != "broader":
                    finds.setdefault(tag, set()).add(other)
    found = {}
    for name in sorted(finds):
        reached, waiting = {name}, [name]
        while waiting:
            fresh = finds.get(waiting.pop(), set()) - reached
            reached |= fresh
            waiting += fresh
        rows = sorted(row for tag in reached if (row := index.tag_row(tag)) is not None)
        if rows and rows != [index.tag_row(name)]:
            found[name] = rows
    return found


def recipe_of(paths: Paths, run: str) -> str:
    """Return the recipe of the generation that publishing a run now would make.

    Raises:
        ArtifactError: something that it is made of is missing.
    """
    inputs = {
        "run": open_artifact(paths.run(run), "run", make=f'make train ARGS="run={run}"').content_id,
        "collection": Collection(paths.artifact("collection")).content_id,
    }
    for kind in ("index", "tag_vectors"):
        directory = current_generation(paths.artifact(kind), make=f"make {kind}")
        inputs[kind] = open_artifact(directory, kind, make=f"make {kind}").content_id
    evaluation = evaluation_of(paths, run, inputs["run"])
    inputs["evaluation"] = "" if evaluation is None else evaluation.content_id
    relations = paths.artifact("collection") / RELATIONS_FILE
    inputs["relations"] = relations.read_text(encoding="utf-8-sig") if relations.is_file() else ""
    return digest([PUBLISH_VERSION, inputs])


def evaluation_of(paths: Paths, run: str, content_id: str) -> Manifest | None:
    """Return the evaluation on test of a run as it is now, or None."""
    manifest = read_manifest(paths.run(run) / "evaluation" / "test")
    return manifest if manifest is not None and manifest.provenance.get("run") == content_id else None


def is_published(paths: Paths, run: str) -> bool:
    """Tell whether the generation in force is what publishing the run now would make; needs no torch.

    Raises:
        ArtifactError: as `recipe_of`.
    """
    root = paths.artifact(KIND) / run
    try:
        manifest = open_artifact(current_generation(root, MAKE), KIND, MAKE, SCHEMA_VERSION)
    except ArtifactError:
        return False
    return manifest.recipe == recipe_of(paths, run)


class Records:
    """Records of a generation by image row, read where they lie; safe from several threads.

    They are not mapped: around each one touched the kernel would map 64 KiB or more.

    Raises:
        ArtifactError: a file is missing or cut.
    """

    def __init__(self, directory: Path, num_images: int) -> None:
        path = directory / RECORDS
        # The view gives plain integers several times faster than the array.
        self._offsets = map_array(directory / RECORD_OFFSETS, "<i8", (num_images + 1,)).data
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error
        weakref.finalize(self, os.close, self._descriptor)
        if os.fstat(self._descriptor).st_size != self._offsets[num_images]:
            raise ArtifactError(f"'{path}' does not have the size that {RECORD_OFFSETS} says; run `make verify`")

    def _lines(self, row: int) -> bytes:
        start = self._offsets[row]
        return os.pread(self._descriptor, self._offsets[row + 1] - start, start)

    def shown(self, row: int) -> list[Any]:
        """Return image_id, width, height, title, normalised tags, author and licence."""
        lines = self._lines(row)
        found: list[Any] = orjson.loads(lines[: lines.index(b"\n")])
        return found

    def whole(self, row: int) -> dict[str, Any]:
        """Return every field of the record."""
        found: dict[str, Any] = json.loads(self._lines(row).split(b"\n", 2)[1])
        return found


class Column:
    """A column of few different values."""

    def __init__(self, counts: Mapping[str, int], codes: np.ndarray) -> None:
        self.values = values = list(counts)
        self._totals = counts
        self.codes = codes  # (N,) int32, rows of `values`
        self._code = {value: code for code, value in enumerate(values)}

    def among(self, rows: np.ndarray | slice, wanted: Iterable[str]) -> np.ndarray:
        """Return (n,) bool, which of some image rows have any of the wanted values."""
        allowed = np.zeros(len(self.values), dtype=bool)
        allowed[[self._code[value] for value in wanted if value in self._code]] = True
        return np.asarray(allowed[self.codes[rows]])

    def total(self, wanted: Iterable[str]) -> int:
        """Return how many images have any of the wanted values."""
        return sum(self._totals.get(value, 0) for value in set(wanted))

    def counts(self, rows: np.ndarray) -> Iterator[tuple[str, int]]:
        """Yield the values that some image rows have with how many have it, most frequent first, ties by value."""
        counts = np.bincount(self.codes[rows], minlength=len(self.values))
        for code in np.argsort(-counts, kind="stable"):
            if not counts[code]:
                return
            yield self.values[code], int(counts[code])


class Generation:
    """A generation opened: mapped arrays and small tables, read-only.

    Raises:
        ArtifactError: it is unfinished, of another format, or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = open_artifact(directory, KIND, MAKE, SCHEMA_VERSION)
        self.index = index = InvertedIndex(directory)
        num_images, num_tags, num_postings = index.num_images, index.num_tags, len(index.postings)
        self.embeddings = map_array(directory / EMBEDDINGS, "<f2", (num_images, None))  # (N, D)
        self.tag_embeddings = map_array(directory / TAG_EMBEDDINGS, "<f4", (num_tags, self.embeddings.shape[1]))
        self.ranked = map_array(directory / RANKED, "<i4", (num_postings,))
        self.scores = map_array(directory / SCORES, "<f4", (num_postings,))  # of postings, where they lie in the index
        self.votes: np.ndarray | None = None  # (P,)
        if VOTES in self.manifest.files:
            self.votes = map_array(directory / VOTES, "<f2", (num_postings,))
        self.newest = map_array(directory / NEWEST, "<i4", (num_images,))  # 0 is the newest image
        tables = self._json(FACETS)
        self.licences = Column(tables["licences"], map_array(directory / LICENCES, "<i4", (num_images,)))
        self.kinds = Column(tables["kinds"], map_array(directory / KINDS, "<i4", (num_images,)))
        self.related: dict[str, list[int]] = self._json(RELATED)
        self.records = Records(directory, num_images)
        self.quality: np.ndarray | None = None  # (T,) AP of the evaluation, NaN where a tag was not judged
        if QUALITY in self.manifest.files:
            self.quality = map_array(directory / QUALITY, "<f4", (num_tags,))
        self._embeddings_file = os.open(directory / EMBEDDINGS, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._embeddings_file)
        self.calibration: Calibration | None = None
        if CALIBRATION in self.manifest.files:
            self.calibration = read_calibration(directory / CALIBRATION)

    def _json(self, name: str) -> Any:
        path = self.directory / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{path}' cannot be read ({error}); `make verify` lists what is damaged") from error

    def cosines(self, rows: np.ndarray | slice, vectors: np.ndarray) -> np.ndarray:
        """Return (n, K) float32 products of the embeddings of some images with vectors (K, D).

        Around each row touched the kernel maps 64 KiB or more, so that of a large gallery few rows are read where they
        lie, and of many the memory is given back as one goes; the page cache keeps it.
        """
        mapped = self.embeddings
        if mapped.nbytes <= SMALL_BYTES or isinstance(rows, slice):
            return cosines(mapped, rows, vectors)
        if len(rows) <= FEW_ROWS:
            size, start = mapped.shape[1] * mapped.itemsize, mapped.offset  # type: ignore[attr-defined]  # of a memmap
            read = [os.pread(self._embeddings_file, size, start + row * size) for row in rows.tolist()]
            halves = np.frombuffer(b"".join(read), mapped.dtype).reshape(-1, mapped.shape[1])
            return np.asarray(as_float32(halves) @ vectors.T)
        found = np.empty((len(rows), len(vectors)), np.float32)
        for first in range(0, len(rows), MANY_ROWS):
            part = slice(first, first + MANY_ROWS)
            found[part] = cosines(mapped, rows[part], vectors)
            mapped.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]  # of a memmap
        return found
