"""What a view needs from a searcher: plain values, no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


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
    """One result: an image, its score for the query, and what must stand beside the picture."""

    image_id: str
    score: float
    width: int
    height: int
    title: str
    tags: tuple[str, ...]
    author: str
    licence: str


@dataclass(frozen=True)
class Near:
    """What to offer for a word that is no tag."""

    word: str
    by_spelling: tuple[TagCount, ...]
    by_meaning: tuple[ScoredTag, ...]


@dataclass(frozen=True)
class Answer:
    """A page of results. `unknown` is filled, and `hits` empty, where a word is no tag."""

    query: str  # normalised, as it should stand in the search box
    tags: tuple[TagCount, ...]
    unknown: tuple[Near, ...]
    total: int  # images that carry all tags
    offset: int
    hits: tuple[Hit, ...]
    voted: bool = False  # whether a score is a cosine alone, or with votes of the nearest train images


@dataclass(frozen=True)
class ImageDetails:
    """An image's own page."""

    hit: Hit  # score is 0 here: there is no query
    record: dict[str, Any]  # every field of the collection's record, tags as given
    predicted: tuple[ScoredTag, ...]  # what the model thinks its tags are, best first


class Searcher(Protocol):
    """A loaded generation of a run: everything a page needs, read-only and safe from several threads."""

    run: str
    generation: str
    num_images: int
    num_tags: int

    def search(self, text: str, offset: int, limit: int) -> Answer:
        """Rank the images that carry all tags of `text`, best first."""
        ...

    def suggest(self, text: str, limit: int) -> tuple[TagCount, ...]:
        """Complete the last tag of a half-typed query, most frequent first."""
        ...

    def popular(self, limit: int) -> tuple[TagCount, ...]:
        """Most frequent tags."""
        ...

    def details(self, image_id: str) -> ImageDetails | None:
        """Everything known of an image, or None."""
        ...

    def jpeg(self, image_id: str) -> bytes | None:
        """The stored JPEG, or None."""
        ...
