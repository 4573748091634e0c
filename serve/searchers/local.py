"""The searcher on one machine: mapped arrays of a published generation.

N images, T tags, D width of an embedding.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import OSA

from crawl.records import SPLITS
from crawl.shards import JpegReader
from crawl.tags import normalise_tag
from features.word_tables import WordTable
from serve.finding import Asked, Cache, Finder, Found, Stopwatch
from serve.gallery import Gallery
from serve.generation import Generation
from serve.matching import Matcher
from serve.meaning import Meaning
from serve.pictures import decode
from serve.query import EVERYTHING, Node, QueryError, Tag, parse, split_typed, tags_of, write
from serve.searchers.base import (
    Answer,
    Clause,
    Hit,
    ImageDetails,
    Near,
    NoSuchImage,
    Question,
    ScoredTag,
    TagCount,
    TagOrder,
)
from train.ranking import top_k

NEAR_BY_SPELLING, NEAR_BY_MEANING = 3, 5
MAX_UNKNOWN = 5  # words of a query that get neighbours; each costs a look at all tags
PREDICTED_TAGS = 12
MIN_SPELLING = 0.5  # of 1, below which two spellings have nothing in common


class LocalSearcher:
    """One published generation, read-only; safe from several threads."""

    def __init__(self, directory: Path, collection: Path, words: WordTable | None) -> None:
        self._on = Generation(directory)
        self.run = str(self._on.manifest.config["run"])
        self.generation = directory.name
        self._index = self._on.index
        self.num_images, self.num_tags = self._index.num_images, self._index.num_tags
        self._matcher = Matcher(self._index, self._on.related)
        self._gallery = Gallery(self._on)
        self._meaning = Meaning(self._on, self._matcher, words)
        self._finder = Finder(self._on, self._matcher, self._gallery, self._meaning)
        self._cache = Cache()
        self._jpegs = JpegReader(collection)
        weakref.finalize(self, self._jpegs.close)  # once no request holds this generation

    def search(self, question: Question) -> Answer:
        """Rank what answers the question, matches before guesses, both best first, ties by ascending image_id.

        Raises:
            QueryError: the text is no query, or the picture none.
            NoSuchImage: the picture to be like is not in the collection.
        """
        watch = Stopwatch()
        asked = self._asked(question)
        watch.lap("parse")
        if asked.node == EVERYTHING and not asked.picture:
            return Answer("", offset=question.offset)
        found = self._cache.once(asked, lambda: self._finder.find(asked, watch), lambda found: found.matches.num_bytes)
        hits = self._hits(found, question, not asked.picture, watch)
        said = self._cache.once(("said", asked.node), lambda: self._said(asked.node))
        clauses = tuple(Clause(write(each.node), each.num_images, write(each.without)) for each in found.clauses)
        return Answer(
            query=write(asked.node),
            tags=said[0],
            clauses=clauses,
            blame="" if found.blamed is None else write(found.blamed.node),
            unknown=said[1],
            num_matches=found.num_matches,
            num_shown=len(found.matches),
            num_guesses=found.num_guesses,
            offset=question.offset,
            hits=hits,
            licences=tuple(TagCount(*each) for each in found.licences),
            kinds=tuple(TagCount(*each) for each in found.kinds),
            exact=self._gallery.exact,
            voted=self._on.votes is not None,
            timing=watch.laps,
        )

    def direction(self, question: Question, image_id: str) -> np.ndarray | None:
        """Return the unit vector (D,) float32 by which an image is scored; None where there is none or no image.

        Raises:
            QueryError: as `search`.
        """
        row = self._index.image_row(image_id)
        vectors = self._finder.directions(self._asked(question))
        if row is None or not vectors:
            return None
        best = max(vectors, key=lambda vector: float(self._on.embeddings[row].astype(np.float32) @ vector))
        return np.asarray(best / max(float(np.linalg.norm(best)), 1e-12), dtype=np.float32)

    def _asked(self, question: Question) -> Asked:
        node = parse(question.text, self._matcher.is_tag)
        picture, itself = b"", -1
        if question.like:
            row = self._index.image_row(question.like)
            if row is None:
                raise NoSuchImage(f"The collection holds no image “{question.like[:40]}” to look like", 0)
            picture, itself = self._on.embeddings[row].astype(np.float32).tobytes(), row
        elif question.picture:
            try:
                picture = decode(question.picture, self._on.embeddings.shape[1]).tobytes()
            except ValueError as error:
                raise QueryError(str(error), 0) from None
        return Asked(node, picture, itself, question.sort, question.cutoff, question.licences, question.kinds)

    def _said(self, node: Node) -> tuple[tuple[TagCount, ...], tuple[Near, ...]]:
        """Return the tags of a query that are known with their counts, and what is near to those that are not."""
        names = tags_of(node)
        known = tuple(TagCount(name, self._matcher.count(Tag(name))) for name in names if self._matcher.is_tag(name))
        unknown = [name for name in (*names, *tags_of(node, wanted=False)) if not self._matcher.is_tag(name)]
        near = [self.near(name) for name in unknown[:MAX_UNKNOWN]]
        return known, (*near, *(Near(name, False, (), ()) for name in unknown[MAX_UNKNOWN:]))

    def _hits(self, found: Found, question: Question, probable: bool, watch: Stopwatch) -> tuple[Hit, ...]:
        rows, scores, num_matches = found.page(question.offset, question.offset + question.limit)
        watch.lap("rank")
        probabilities: Sequence[float | None] = [None] * len(rows)
        if probable and self._on.calibration is not None:
            probabilities = self._on.calibration.probability_of(scores).tolist()
        shown = zip(rows.tolist(), scores.tolist(), probabilities, strict=True)
        hits = tuple(self._hit(row, score, chance, at >= num_matches) for at, (row, score, chance) in enumerate(shown))
        watch.lap("records")
        return hits

    def _hit(self, row: int, score: float, probability: float | None, guess: bool) -> Hit:
        image_id, width, height, title, tags, author, licence = self._on.records.shown(row)
        return Hit(image_id, score, probability, guess, width, height, title, tuple(tags), author, licence)

    def near(self, word: str) -> Near:
        """Return the tags nearest to a word that is none, by spelling and by the meaning of its word vector."""
        rows = spelled_like(word, self._index.tags, self._index.document_frequency)
        spelled, scores = self._counts(rows), self._meaning.near(word)
        if scores is None:
            return Near(word, False, spelled, ())
        return Near(word, True, spelled, tuple(self._scored(scores, NEAR_BY_MEANING)))

    def _scored(self, scores: np.ndarray, limit: int) -> list[ScoredTag]:
        scores = np.where(self._meaning.known, scores, -2.0)
        best = top_k(scores, min(limit, int(self._meaning.known.sum())))
        return [ScoredTag(self._index.tags[row], float(scores[row])) for row in best]

    def _counts(self, tag_rows: Iterable[int]) -> tuple[TagCount, ...]:
        return tuple(TagCount(self._index.tags[row], int(self._index.document_frequency[row])) for row in tag_rows)

    def suggest(self, text: str, limit: int) -> tuple[TagCount, ...]:
        """Complete the last tag of a half-typed query, most frequent first, ties by spelling."""
        settled, typing = split_typed(text)
        if not typing:
            return ()
        try:
            already = set(tags_of(parse(settled, self._matcher.is_tag)))
        except QueryError:  # a bracket that is still open
            already = set()
        rows = self._index.tags_from(typing)
        best = top_k(self._index.document_frequency[rows.start : rows.stop], limit + len(already))
        counts = self._counts(rows.start + int(at) for at in best)
        return tuple(count for count in counts if count.tag not in already)[:limit]

    def browse(self, prefix: str, sort: TagOrder, offset: int, limit: int) -> tuple[int, tuple[TagCount, ...]]:
        """Return how many tags begin with a prefix, and a page of them; of equals the most frequent, then by spelling.

        Quality is the average precision of the run's evaluation; tags that were not judged come last.
        """
        rows = self._index.tags_from(normalise_tag(prefix))
        part = slice(rows.start, rows.stop)
        order = np.arange(len(rows))
        if sort == "frequency":
            order = top_k(self._index.document_frequency[part], offset + limit)
        elif sort == "quality":
            quality = order * 0.0 if self._on.quality is None else np.nan_to_num(self._on.quality[part], nan=-1.0)
            order = np.lexsort((-self._index.document_frequency[part], -quality))
        return len(rows), self._counts((rows.start + order[offset : offset + limit]).tolist())

    def details(self, image_id: str) -> ImageDetails | None:
        """Return an image's record and what the model thinks its tags are, or None where there is no such image."""
        row = self._index.image_row(image_id)
        if row is None:
            return None
        predicted = self._scored(self._on.tag_embeddings @ self._on.embeddings[row].astype(np.float32), PREDICTED_TAGS)
        record = self._on.records.whole(row) | {"split": SPLITS[self._index.splits[row]]}
        return ImageDetails(self._hit(row, 0.0, None, False), record, tuple(predicted))

    def jpeg(self, image_id: str) -> bytes | None:
        """Return the stored JPEG, or None where there is no such image."""
        row = self._index.image_row(image_id)
        return None if row is None else self._jpegs.read(self._index.locations[row], image_id)


def spelled_like(word: str, tags: Sequence[str], frequency: np.ndarray) -> list[int]:
    """Return the rows of the tags the fewest slips away, a swap of neighbours being one; of equals the most frequent.

    Slips count by the length of the longer word. One slip in the sample's tags of five letters or more leaves the
    intended one among these in 99.97 %, in shorter ones in 97 %.
    """
    found = process.extract(word, tags, scorer=OSA.normalized_similarity, limit=50, score_cutoff=MIN_SPELLING)
    best = sorted(found, key=lambda match: (-match[1], -frequency[match[2]]))
    return [row for _, _, row in best[:NEAR_BY_SPELLING]]
