"""What a question finds: matches in order and, after them, guesses by meaning.

N images, D width of an embedding, n images of an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from cachetools import LRUCache

from serve.gallery import Gallery
from serve.generation import Generation
from serve.matching import Matcher, Part
from serve.meaning import Meaning
from serve.query import EVERYTHING, And, Node, Not, Or, Prefix, Tag, any_of
from serve.scoring import directions
from train.ranking import top_k

MAX_GUESSES = 500
ORDERED_AT_ONCE = 1000
MANY_TAGS = 8  # of a prefix; from here on all their postings are looked at
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

    def __init__(
        self,
        rows: np.ndarray,
        keys: np.ndarray | None,
        scores: np.ndarray | None,
        score: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Take images.

        Args:
            rows: (n,) image rows.
            keys: (n,) the highest comes first, ties by place; None where rows are in order.
            scores: (n,) float32, or None where they are not known yet.
            score: gives them for some rows then.
        """
        self._rows, self._keys, self._scores, self._score = rows, keys, scores, score
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
        at: slice | np.ndarray = slice(start, stop)
        if self._keys is not None:
            order = self._order
            if order is None or len(order) < min(stop, len(self)):
                order = self._order = top_k(self._keys, max(2 * stop, ORDERED_AT_ONCE))
            at = order[start:stop]
        rows = self._rows[at]
        if self._scores is not None:
            return rows, self._scores[at]
        assert self._score is not None
        return rows, self._score(rows)


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

    def __init__(self, generation: Generation, matcher: Matcher, gallery: Gallery, meaning: Meaning) -> None:
        self._on = generation
        self._matcher = matcher
        self._gallery = gallery
        self._meaning = meaning
        self._known = meaning.known  # (T,) bool, tags with a vector

    def find(self, asked: Asked, watch: Stopwatch) -> Found:
        """Match and rank.

        Raises:
            QueryError: as `directions`.
        """
        meant = self.directions(asked)
        rows, ordered = self._matches(asked)
        clauses = () if asked.node == EVERYTHING else self._matcher.clauses(asked.node)
        blamed = None if len(rows) else self._matcher.blamed(clauses)
        facets = [tuple(column.counts(rows)) for column in (self._on.licences, self._on.kinds)]
        watch.lap("match")
        least = self._least_score(asked)
        if asked.licences or asked.kinds:
            rows = rows[self._fitting(asked, rows)]
        num_matches = len(rows)
        scores = None if ordered and least is None else self._scores(asked, rows)
        if scores is not None and least is not None:
            rows, scores = rows[scores >= least], scores[scores >= least]
        keys = -self._on.newest[rows] if asked.sort == "newest" else None if ordered else scores
        guessable = None if least is not None else self._guessable(asked, meant, num_matches)
        watch.lap("rank")
        return Found(
            clauses,
            blamed,
            num_matches,
            Ranking(rows, keys, scores, lambda page: self._scores(asked, page)),
            lambda: self._guesses(asked, meant, least),
            guessable,
            *facets,
        )

    def directions(self, asked: Asked) -> list[np.ndarray]:
        """Return the vectors (D,) by which guesses are scored: the picture where there is one, else the text."""
        if asked.picture:
            return [np.frombuffer(asked.picture, np.float32)]
        return directions(asked.node, self._meaning)

    def _matches(self, asked: Asked) -> tuple[np.ndarray, bool]:
        """Return the rows of the matches, and whether they lie in order of score already; ascending otherwise."""
        node, index = asked.node, self._on.index
        if node == EVERYTHING:
            return index.postings[:0], True
        if isinstance(node, Tag) and len(rows := self._matcher.tag_rows(node.name)) == 1 and not asked.picture:
            return self._on.ranked[index.offsets[rows[0]] : index.offsets[rows[0] + 1]], True
        return self._matcher.rows(node), not asked.picture and self._carried(node, index.postings[:0]) is None

    def _scores(self, asked: Asked, rows: np.ndarray) -> np.ndarray:
        """Return (n,) float32 scores of matches: how like the picture they are, or how good for the tags they carry."""
        if asked.picture:
            return self._on.cosines(rows, np.frombuffer(asked.picture, np.float32)[None])[:, 0]
        scores = self._carried(asked.node, rows)
        if scores is None:
            return np.zeros(len(rows), np.float32)
        return np.asarray(np.maximum(scores, -1))  # of images that are there for what they do not carry

    def _carried(self, node: Node, rows: np.ndarray) -> np.ndarray | None:
        """Return (n,) float32 scores for a part of a query, -inf where an image does not hold it.

        The mean of what must hold, the best of what an image has of OR; None where a part says nothing of a score.
        """
        if isinstance(node, Tag | Prefix):
            tag_rows = (
                self._matcher.tag_rows(node.name) if isinstance(node, Tag) else self._on.index.tags_from(node.stem)
            )
            return self._best_of(tag_rows, rows)
        if isinstance(node, Not):
            return None
        parts = [scores for part in node.parts if (scores := self._carried(part, rows)) is not None]
        if not parts:
            return None
        return np.asarray(np.max(parts, axis=0) if isinstance(node, Or) else np.mean(parts, axis=0))

    def _best_of(self, tag_rows: Sequence[int], rows: np.ndarray) -> np.ndarray | None:
        """Return (n,) float32, the best score of each image for the tags it carries, None where none has a meaning."""
        index, known = self._on.index, self._known
        if not len(tag_rows) or not (known[list(tag_rows)].any() or self._on.votes is not None):
            return None
        if len(tag_rows) > MANY_TAGS:
            best = np.full(index.num_images, -np.inf, np.float32)
            for tag_row in tag_rows:
                part = slice(index.offsets[tag_row], index.offsets[tag_row + 1])
                np.maximum.at(best, index.postings[part], self._on.scores[part])
            return np.asarray(best[rows])
        found = np.full(len(rows), -np.inf, np.float32)
        for tag_row in tag_rows:
            carrying = index.posting_list(tag_row)
            if len(carrying):
                at = np.minimum(np.searchsorted(carrying, rows), len(carrying) - 1)
                scores = self._on.scores[index.offsets[tag_row] + at]
                np.maximum(found, scores, out=found, where=carrying[at] == rows)
        return found

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

    def _guessable(self, asked: Asked, meant: list[np.ndarray], num_matches: int) -> int:
        """Return how many guesses may follow num_matches images that match and pass the filters."""
        if not meant:
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

    def _guesses(self, asked: Asked, meant: list[np.ndarray], least: float | None) -> Ranking:
        if not meant:
            return Ranking(np.empty(0, np.int32), None, np.empty(0, np.float32))
        rows, scores = self._gallery.best(np.stack(meant).astype(np.float32), self._allowed(asked), MAX_GUESSES)
        kept = len(scores) if least is None else int((scores >= least).sum())
        return Ranking(rows[:kept], None, scores[:kept])


def _left_out(node: Node) -> list[Node]:
    """Return what a query as a whole excludes."""
    return [part.part for part in (node.parts if isinstance(node, And) else (node,)) if isinstance(part, Not)]
