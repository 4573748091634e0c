"""The searcher on one machine: mapped arrays of a published generation.

N images, T tags, D width of an embedding.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rapidfuzz import process
from rapidfuzz.distance import OSA

from configs.artifacts import ArtifactError, map_array, open_artifact
from configs.compose import Paths
from configs.generations import CURRENT, current_generation
from crawl.records import SPLITS, Record, from_row
from crawl.shards import JpegReader
from crawl.tags import normalise_tags
from features.config import WordsConfig
from features.inverted_index import InvertedIndex, intersect
from features.tag_vectors import TagVectors, open_words, vector_of_tag, word_space
from features.word_tables import WordTable
from serve.publish import EMBEDDINGS, RANKED, RECORDS, TAG_EMBEDDINGS, VOTES
from serve.query import parse, query_for, split_typed
from serve.searchers.base import (
    Answer,
    Clause,
    Hit,
    ImageDetails,
    Near,
    Question,
    ScoredTag,
    TagCount,
    TagOrder,
)
from train.ranking import top_k

log = logging.getLogger(__name__)
NEAR_TAGS = 5
MAX_UNKNOWN = 5  # words of a query that get neighbours; each costs a look at all tags
PREDICTED_TAGS = 12
MIN_SPELLING = 0.5  # of 1, below which two spellings have nothing in common


class LocalSearcher:
    """One published generation, read-only; safe from several threads."""

    def __init__(self, directory: Path, collection: Path, words: WordTable | None) -> None:
        manifest = open_artifact(directory, "served", make="make publish")
        self.run = str(manifest.config["run"])
        self.generation = directory.name
        self._index = InvertedIndex(directory)
        self.num_images, self.num_tags = self._index.num_images, self._index.num_tags
        self._embeddings = map_array(directory / EMBEDDINGS, "<f2", (self.num_images, None))  # (N, D)
        self._tags = map_array(directory / TAG_EMBEDDINGS, "<f4", (self.num_tags, None))  # (T, D)
        self._ranked = map_array(directory / RANKED, "<i4", (len(self._index.postings),))
        self._votes: np.ndarray | None = None  # (P,)
        if VOTES in manifest.files:
            self._votes = map_array(directory / VOTES, "<f2", (len(self._index.postings),))
        self._vectors = TagVectors(directory)
        self._records = pa.ipc.open_file(pa.memory_map(str(directory / RECORDS))).read_all()
        self._jpegs = JpegReader(collection)
        weakref.finalize(self, self._jpegs.close)  # once no request holds this generation
        self._words = words
        if words is not None and word_space(words) != manifest.must_match["word_space"]:
            log.warning("unknown words get no neighbours by meaning: %s was made with another word table", directory)
            self._words = None

    def _count(self, tag_row: int) -> TagCount:
        return TagCount(self._index.tags[tag_row], int(self._index.document_frequency[tag_row]))

    def search(self, question: Question) -> Answer:
        """Rank the images that carry all tags of a question, best first, ties by ascending image_id.

        The score of several tags is the mean of theirs; tags without a word vector have no cosine, but may have votes.
        """
        offset, limit = question.offset, question.limit
        query = parse(question.text, lambda tag: self._index.tag_row(tag) is not None)
        rows = [row for tag in query.words if (row := self._index.tag_row(tag)) is not None]
        tags = tuple(self._count(row) for row in rows)
        if query.unknown or not rows:
            unknown = tuple(self.near(word) for word in query.unknown[:MAX_UNKNOWN])
            unknown += tuple(Near(word, False, (), ()) for word in query.unknown[MAX_UNKNOWN:])
            return Answer(query_for(query.words), tags=tags, unknown=unknown, offset=offset)
        if len(rows) == 1:
            start, end = self._index.offsets[rows[0]], self._index.offsets[rows[0] + 1]
            total = int(end - start)
            page = self._ranked[start:end][offset : offset + limit]
        else:
            both = intersect([self._index.posting_list(row) for row in rows])
            total = len(both)
            page = both[top_k(self._scores(both, rows), offset + limit)[offset:]]
        clauses = tuple(
            Clause(
                query_for([each.tag]), each.num_images, query_for(other for other in query.words if other != each.tag)
            )
            for each in tags
        )
        return Answer(
            query_for(query.words),
            tags=tags,
            clauses=clauses,
            num_matches=total,
            num_shown=total,
            offset=offset,
            hits=tuple(self._hits(page, self._scores(page, rows))),
            voted=self._votes is not None,
        )

    def _mean_embedding(self, tag_rows: Sequence[int]) -> np.ndarray:
        known = [row for row in tag_rows if self._vectors.known[row]]
        return np.asarray(self._tags[known].mean(axis=0) if known else np.zeros(self._tags.shape[1], np.float32))

    def _scores(self, image_rows: np.ndarray, tag_rows: Sequence[int]) -> np.ndarray:
        cosines = self._embeddings[image_rows].astype(np.float32) @ self._mean_embedding(tag_rows)
        return np.asarray(cosines + self._mean_votes(image_rows, tag_rows))

    def _mean_votes(self, image_rows: np.ndarray, tag_rows: Sequence[int]) -> np.ndarray | float:
        """Return (n,) float32, the mean over tags of the votes on images that carry them all."""
        if self._votes is None:
            return 0.0
        postings = [
            self._index.offsets[tag] + np.searchsorted(self._index.posting_list(tag), image_rows) for tag in tag_rows
        ]
        return np.asarray(self._votes[np.stack(postings)].astype(np.float32).mean(axis=0))

    def _records_of(self, rows: np.ndarray) -> list[Record]:
        return [from_row(row) for row in self._records.take(pa.array(rows)).to_pylist()]

    def _hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        return [_hit(record, float(score)) for record, score in zip(self._records_of(rows), scores, strict=True)]

    def near(self, word: str) -> Near:
        """Return the tags nearest to a word that is none, by spelling and by the meaning of its word vector."""
        spelled = self._spelled_like(word)
        vector = None if self._words is None else vector_of_tag(word, self._words)
        if vector is None:
            return Near(word, False, spelled, ())
        scores = self._vectors.vectors @ vector
        return Near(word, False, spelled, tuple(self._scored(scores, NEAR_TAGS)))

    def _spelled_like(self, word: str) -> tuple[TagCount, ...]:
        """Return the tags the fewest slips away (a swap of neighbours is one slip), of equals the most frequent."""
        scorer = OSA.normalized_similarity
        found = process.extract(word, self._index.tags, scorer=scorer, limit=50, score_cutoff=MIN_SPELLING)
        best = sorted(found, key=lambda match: (-match[1], -self._index.document_frequency[match[2]]))
        return tuple(self._count(row) for _, _, row in best[:NEAR_TAGS])

    def _scored(self, scores: np.ndarray, limit: int) -> list[ScoredTag]:
        scores = np.where(self._vectors.known, scores, -2.0)
        best = top_k(scores, min(limit, int(self._vectors.known.sum())))
        return [ScoredTag(self._index.tags[row], float(scores[row])) for row in best]

    def suggest(self, text: str, limit: int) -> tuple[TagCount, ...]:
        """Complete the last tag of a half-typed query, most frequent first, ties by spelling."""
        settled, typing = split_typed(text)
        if not typing:
            return ()
        rows = self._index.tags_from(typing)
        already = set(parse(settled, lambda tag: self._index.tag_row(tag) is not None).words)
        frequency = self._index.document_frequency[rows.start : rows.stop]
        best = top_k(frequency, limit + len(already))
        counts = (self._count(rows.start + int(at)) for at in best)
        return tuple(count for count in counts if count.tag not in already)[:limit]

    def browse(self, prefix: str, sort: TagOrder, offset: int, limit: int) -> tuple[int, tuple[TagCount, ...]]:
        """Return how many tags begin with a prefix, and a page of them; ties by spelling."""
        rows = self._index.tags_from(prefix)
        if sort == "name":
            page = np.arange(rows.start, rows.stop)[offset : offset + limit]
        else:
            frequency = self._index.document_frequency[rows.start : rows.stop]
            page = rows.start + top_k(frequency, offset + limit)[offset:]
        return len(rows), tuple(self._count(int(row)) for row in page)

    def details(self, image_id: str) -> ImageDetails | None:
        """Return an image's record and what the model thinks its tags are, or None where there is no such image."""
        row = self._index.image_row(image_id)
        if row is None:
            return None
        record = self._records_of(np.array([row]))[0]
        predicted = self._scored(self._tags @ self._embeddings[row].astype(np.float32), PREDICTED_TAGS)
        return ImageDetails(
            _hit(record, 0.0), vars(record) | {"split": SPLITS[self._index.splits[row]]}, tuple(predicted)
        )

    def jpeg(self, image_id: str) -> bytes | None:
        """Return the stored JPEG, or None where there is no such image."""
        row = self._index.image_row(image_id)
        return None if row is None else self._jpegs.read(self._index.locations[row], image_id)


def _hit(record: Record, score: float) -> Hit:
    return Hit(
        image_id=record.image_id,
        score=score,
        probability=None,
        guess=False,
        width=record.width,
        height=record.height,
        title=record.title,
        tags=tuple(normalise_tags(record.tags)),
        author=record.author,
        licence=record.licence,
    )


class CurrentSearcher:
    """Gives the searcher of the generation in force; a newly published one takes over between two requests."""

    def __init__(self, paths: Paths, run: str) -> None:
        self._root = paths.artifact("served") / run
        self._paths = paths
        self._lock = threading.Lock()
        self._words: tuple[dict[str, Any], WordTable | None] | None = None
        self._broken = ""  # a generation that did not open, so that not every request tries
        self._searcher = self._open()

    def _open(self) -> LocalSearcher:
        directory = current_generation(self._root, make="make publish")
        manifest = open_artifact(directory, "served", make="make publish")
        words = self._open_words(manifest.facts["words"])
        return LocalSearcher(directory, self._paths.artifact("collection"), words)

    def _open_words(self, config: dict[str, Any]) -> WordTable | None:
        """Open the word table that the tag vectors were made with; without it, meaning offers nothing."""
        if self._words is None or self._words[0] != config:
            try:
                self._words = (config, open_words(WordsConfig(**config), self._paths))
            except (ArtifactError, TypeError, ValueError) as error:
                log.warning("unknown words get no neighbours by meaning: %s", error)
                self._words = (config, None)
        return self._words[1]

    def __call__(self) -> LocalSearcher:
        """Return the searcher for one request."""
        name = (self._root / CURRENT).read_text(encoding="utf-8").strip()
        fresh = name not in (self._searcher.generation, self._broken)
        if fresh and self._lock.acquire(blocking=False):  # others use the old one till then
            try:
                self._searcher = self._open()
                log.info("serving generation %s", self._searcher.generation)
            except ArtifactError as error:
                self._broken = name
                log.error("generation %s cannot be served, %s goes on: %s", name, self._searcher.generation, error)
            finally:
                self._lock.release()
        return self._searcher
