"""What a view needs from a searcher: plain values.

A *match* carries what the query asks for by its tags; a *guess* does not, and is ranked by meaning alone. Matches come
before guesses, and a page of hits may end the one and begin the other. What is like a picture, without a text, are
guesses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from serve.query import QueryError

Sort = Literal["score", "newest"]
TagOrder = Literal["frequency", "name", "quality"]


class NoSuchImage(QueryError):
    """The picture that results are to be like is not in the collection."""


@dataclass(frozen=True)
class Question:
    """What is asked: tags by the grammar of serve/query.py, a picture that results are to be like, or both."""

    text: str = ""
    like: str = ""  # image_id of a stored picture
    picture: str = ""  # an uploaded one, as `pictures.encode` wrote its embedding
    sort: Sort = "score"
    cutoff: float = 0.0  # least share of right results in [0, 1], by the calibrated score; 0 shows all
    licences: tuple[str, ...] = ()  # any of them; none given, no filter
    kinds: tuple[str, ...] = ()
    offset: int = 0
    limit: int = 40


@dataclass(frozen=True)
class TagCount:
    """A tag and how many images of the collection carry it."""

    tag: str
    num_images: int


@dataclass(frozen=True)
class ScoredTag:
    """A tag with a cosine similarity in [-1, 1]."""

    tag: str
    score: float


@dataclass(frozen=True)
class Hit:
    """One result: an image, its score for the question, and what must stand beside the picture."""

    image_id: str
    score: float
    probability: float | None  # that it is right, by the calibrated score; None where the run has no calibration
    guess: bool
    width: int
    height: int
    title: str
    tags: tuple[str, ...]
    author: str
    licence: str


@dataclass(frozen=True)
class Clause:
    """A part of a query, as it was written, with how many images it keeps by itself (`-car`: those without)."""

    text: str
    num_images: int
    without: str  # the query with this clause left out


@dataclass(frozen=True)
class Near:
    """What to offer for a word that is no tag."""

    word: str
    ranked: bool  # whether its word vector ranks the gallery
    by_spelling: tuple[TagCount, ...]  # three at most, best first
    by_meaning: tuple[ScoredTag, ...]


@dataclass(frozen=True)
class Answer:
    """A page of results.

    Where a word is no tag there are no matches, and where its word vector is known, guesses over the whole gallery.
    """

    query: str  # normalised, as it should stand in the search box
    tags: tuple[TagCount, ...] = ()  # that a hit must or may carry, in the order written
    clauses: tuple[Clause, ...] = ()
    blame: str = ""  # text of the clause that leaves no match, empty where there is one
    unknown: tuple[Near, ...] = ()
    num_matches: int = 0  # before the cut-off
    num_shown: int = 0  # matches above the cut-off
    num_guesses: int = 0  # that may follow, above the cut-off; 0 where none are offered
    offset: int = 0
    hits: tuple[Hit, ...] = ()
    licences: tuple[TagCount, ...] = ()  # of the matches before filters, most frequent first, for the filter
    kinds: tuple[TagCount, ...] = ()
    exact: bool = True  # whether guesses come from a scan of the whole gallery; False where an index approximates it
    voted: bool = False  # whether a score is a cosine alone, or with votes of the nearest train images
    timing: dict[str, float] = field(default_factory=dict)  # milliseconds by step: parse, match, rank, records


@dataclass(frozen=True)
class ImageDetails:
    """An image's own page."""

    hit: Hit  # score is 0 here: there is no question
    record: dict[str, Any]  # every field of the collection's record, tags as given
    predicted: tuple[ScoredTag, ...]  # what the model thinks its tags are, best first


class Searcher(Protocol):
    """A loaded generation of a run: everything a page needs, read-only and safe from several threads."""

    run: str
    generation: str
    num_images: int
    num_tags: int

    def search(self, question: Question) -> Answer:
        """Rank what answers the question, matches before guesses.

        Raises:
            QueryError: the text is no query; it says where and why. Or the picture's text holds none.
            NoSuchImage: `like` names no image.
        """
        ...

    def direction(self, question: Question, image_id: str) -> np.ndarray | None:
        """Return the unit vector (D,) float32 by which an image is scored; None where there is none or no image.

        Raises:
            QueryError: as `search`.
        """
        ...

    def suggest(self, text: str, limit: int) -> tuple[TagCount, ...]:
        """Complete the last tag of a half-typed query, most frequent first."""
        ...

    def browse(self, prefix: str, sort: TagOrder, offset: int, limit: int) -> tuple[int, tuple[TagCount, ...]]:
        """Return how many tags begin with a prefix, and a page of them; quality is the evaluation's AP by tag."""
        ...

    def details(self, image_id: str) -> ImageDetails | None:
        """Everything known of an image, or None."""
        ...

    def jpeg(self, image_id: str) -> bytes | None:
        """The stored JPEG, or None."""
        ...
