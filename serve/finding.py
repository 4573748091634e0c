"""What a question finds: matches in order and, after them, guesses by meaning.

N images, D width of an embedding, n images of an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from cachetools import LRUCache

from serve.gallery import Gallery
from serve.generation import Generation
from serve.matching import Matcher, Part
from serve.query import EVERYTHING, And, Node, Not, Tag, any_of
from serve.scoring import Direction, Leaf, directions, vectors_of
from train.ranking import top_k

MAX_GUESSES = 500
ORDERED_AT_ONCE = 1000
CACHE_BYTES = 32 * 2**20
SMALL_BYTES = 8192  # of a thing in the cache beside its arrays

T = TypeVar("T")


class Stopwatch:
    """Adds up milliseconds by step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        """Book the time since the last lap on a step."""
        now = time.perf_counter()
        self.laps[step] = round(self.laps.get(step, 0.0) + 1000 * (now - self._since), 3)
        self._since = now


class Cache:
    """What was computed lately; safe from several threads, of which two may compute the same at once."""

    def __init__(self) -> None:
        self._kept: LRUCache[Hashable, tuple[object, int]] = LRUCache(CACHE_BYTES, getsizeof=lambda kept: kept[1])
        self._lock = threading.Lock()

    def once(self, key: Hashable, compute: Callable[[], T], num_bytes: Callable[[T], int] = lambda _: 0) -> T:
        """Return what is kept for a key, or compute it and keep it unless it is too large."""
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None:
            return kept[0]  # type: ignore[return-value]  # what this key computes
        computed = compute()
        size = num_bytes(computed) + SMALL_BYTES
        with self._lock:
            if size <= CACHE_BYTES / 2:
                self._kept[key] = (computed, size)
        return computed


class Ranking:
    """Images with scores, put in order as far as they are asked for."""

    def __init__(self, rows: np.ndarray, scores: np.ndarray, keys: np.ndarray | None = None) -> None:
        """Take rows and scores (n,) in order, or with keys (n,) by which the highest comes first, ties by place."""
        self._rows, self._scores, self._keys = rows, scores, keys
        self._order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_bytes(self) -> int:
        """Return what is held in memory; mapped arrays are not."""
        arrays = (self._rows, self._scores, self._keys)
        return sum(each.nbytes for each in arrays if each is not None and not isinstance(each, np.memmap))

    def page(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and scores of places start..stop, fewer at the end."""
        if self._keys is None:
            return self._rows[start:stop], self._scores[start:stop]
        order = self._order
        if order is None or len(order) < min(stop, len(self)):
            order = self._order = top_k(self._keys, max(2 * stop, ORDERED_AT_ONCE))
        return self._rows[order[start:stop]], self._scores[order[start:stop]]


@dataclass(frozen=True)
class Asked:
    """A question that was read, whatever page of its answer is wanted."""

    node: Node
    picture: bytes  # of the embedding (D,) float32 that results are to be like; empty where there is none
    itself: int  # image row of that picture, which is no result, -1 where it is not stored
    sort: str
    cutoff: float
    licences: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass
class Found:
    """What a question finds."""

    clauses: tuple[Part, ...]
    blamed: Part | None
    num_matches: int
    matches: Ranking  # above the cut-off
    guess: Callable[[], Ranking] = field(repr=False)  # above the cut-off, too
    guessable: int | None  # how many guesses there are, where that is known without ranking them
    licences: tuple[tuple[str, int], ...]  # of the matches before filters
    kinds: tuple[tuple[str, int], ...]

    @cached_property
    def guesses(self) -> Ranking:
        """Rank the guesses, when a page first needs them."""
        return self.guess()

    @property
    def num_guesses(self) -> int:
        """Return how many guesses may follow the matches."""
        return len(self.guesses) if self.guessable is None else self.guessable

    def page(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return rows and scores of places start..stop, and how many of them are matches."""
        rows, scores = self.matches.page(start, stop)
        if start + len(rows) >= stop or not self.num_guesses:
            return rows, scores, len(rows)
        first = max(0, start - len(self.matches))
        more_rows, more_scores = self.guesses.page(first, first + stop - start - len(rows))
        return np.concatenate([rows, more_rows]), np.concatenate([scores, more_scores]), len(rows)


class Finder:
    """Finds and ranks in a generation."""

    def __init__(self, generation: Generation, matcher: Matcher, gallery: Gallery, meaning: Leaf) -> None:
        self._on = generation
        self._matcher = matcher
        self._gallery = gallery
        self._meaning = meaning

    def find(self, asked: Asked, watch: Stopwatch) -> Found:
        """Match and rank.

        Raises:
            QueryError: as `directions`.
        """
        meant = self.directions(asked)
        rows, scores = self._presorted(asked)
        ordered = scores is not None
        clauses = () if asked.node == EVERYTHING else self._matcher.clauses(asked.node)
        blamed = None if len(rows) else self._matcher.blamed(clauses)
        facets = [tuple(column.counts(rows)) for column in (self._on.licences, self._on.kinds)]
        watch.lap("match")
        least = self._least_score(asked)
        if asked.licences or asked.kinds:
            kept = self._fitting(asked, rows)
            rows, scores = rows[kept], None if scores is None else scores[kept]
        scores = self._scores(rows, meant) if scores is None else scores
        num_matches = len(rows)
        if least is not None:
            rows, scores = rows[scores >= least], scores[scores >= least]
        ordered = ordered or not meant  # then all scores are 0
        keys = -self._on.newest[rows] if asked.sort == "newest" else None if ordered else scores
        guessable = None if least is not None else self._guessable(asked, meant, num_matches)
        watch.lap("rank")
        return Found(
            clauses,
            blamed,
            num_matches,
            Ranking(rows, scores, keys),
            lambda: self._guesses(asked, meant, least),
            guessable,
            *facets,
        )

    def directions(self, asked: Asked) -> list[Direction]:
        """Return what images are scored by: the picture where there is one, else the text."""
        if asked.picture:
            return [Direction(np.frombuffer(asked.picture, np.float32))]
        return directions(asked.node, self._meaning)

    def _presorted(self, asked: Asked) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the matches with their scores in order where they lie so on the disk, else ascending without."""
        node, index = asked.node, self._on.index
        if node == EVERYTHING:
            return index.postings[:0], None
        if isinstance(node, Tag) and len(rows := self._matcher.tag_rows(node.name)) == 1 and not asked.picture:
            own = slice(index.offsets[rows[0]], index.offsets[rows[0] + 1])
            return self._on.ranked[own], self._on.ranked_scores[own]
        return self._matcher.rows(node), None

    def _scores(self, rows: np.ndarray, meant: list[Direction]) -> np.ndarray:
        """Return (n,) float32 scores: of several directions the best, cosine and votes together."""
        if not meant:
            return np.zeros(len(rows), np.float32)
        width = self._on.embeddings.shape[1]
        vectors = np.stack([np.zeros(width) if each.vector is None else each.vector for each in meant])
        scores = self._on.cosines(rows, vectors.astype(np.float32))
        for way, direction in enumerate(meant):
            for tag_row, weight in direction.votes.items():
                scores[:, way] += weight * self._votes(tag_row, rows)
        return np.asarray(scores.max(axis=1))

    def _votes(self, tag_row: int, rows: np.ndarray) -> np.ndarray | float:
        """Return (n,) float32, the votes on images for a tag, 0 on those that do not carry it."""
        carrying = self._on.index.posting_list(tag_row)
        if self._on.votes is None or not len(carrying):
            return 0.0
        at = np.minimum(np.searchsorted(carrying, rows), len(carrying) - 1)
        votes = self._on.votes[self._on.index.offsets[tag_row] + at].astype(np.float32)
        return np.where(carrying[at] == rows, votes, np.float32(0))

    def _least_score(self, asked: Asked) -> float | None:
        """Return the score that the cut-off asks for; infinite where none promises so much, None without a cut-off.

        The calibration holds for tags, so that what is like a picture is not cut.
        """
        if self._on.calibration is None or not asked.cutoff or asked.picture:
            return None
        least = self._on.calibration.threshold(asked.cutoff)
        return np.inf if least is None else least

    def _fitting(self, asked: Asked, rows: np.ndarray | slice) -> np.ndarray:
        """Return (n,) bool, which images have one of the licences and kinds asked for."""
        columns = ((self._on.licences, asked.licences), (self._on.kinds, asked.kinds))
        return np.asarray(np.logical_and.reduce([column.among(rows, values) for column, values in columns if values]))

    def _guessable(self, asked: Asked, meant: list[Direction], num_matches: int) -> int:
        """Return how many guesses may follow num_matches images that match and pass the filters."""
        if vectors_of(meant) is None:
            return 0
        filters = [(self._on.licences, asked.licences), (self._on.kinds, asked.kinds)]
        filters = [(column, values) for column, values in filters if values]
        if len(filters) > 1 or asked.itself >= 0 or (filters and _left_out(asked.node)):
            return min(MAX_GUESSES, int(self._allowed(asked).sum()))
        if filters:
            return min(MAX_GUESSES, filters[0][0].total(filters[0][1]) - num_matches)
        excluded = [asked.node, *_left_out(asked.node)]
        num_excluded = self._matcher.count(any_of(excluded)) if len(excluded) > 1 else num_matches
        return min(MAX_GUESSES, self._on.index.num_images - num_excluded)

    def _allowed(self, asked: Asked) -> np.ndarray:
        """Return (N,) bool, the images that may be guesses: no match, nothing that was left out, no filter against."""
        filtered = asked.licences or asked.kinds
        allowed = self._fitting(asked, slice(None)) if filtered else np.ones(self._on.index.num_images, dtype=bool)
        for node in (asked.node, *_left_out(asked.node)):
            if node != EVERYTHING:
                allowed[self._matcher.rows(node)] = False
        if asked.itself >= 0:
            allowed[asked.itself] = False
        return allowed

    def _guesses(self, asked: Asked, meant: list[Direction], least: float | None) -> Ranking:
        vectors = vectors_of(meant)
        if vectors is None:
            return Ranking(np.empty(0, np.int32), np.empty(0, np.float32))
        rows, scores = self._gallery.best(vectors, self._allowed(asked), MAX_GUESSES)
        kept = len(scores) if least is None else int((scores >= least).sum())
        return Ranking(rows[:kept], scores[:kept])


def _left_out(node: Node) -> list[Node]:
    """Return what a query as a whole excludes."""
    return [part.part for part in (node.parts if isinstance(node, And) else (node,)) if isinstance(part, Not)]
