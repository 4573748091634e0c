"""Which images answer a query: set algebra over posting lists, and what each part of the query keeps.

N images of the index; rows are image rows, ascending int32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from features.inverted_index import InvertedIndex
from serve.query import And, Node, Not, Or, Prefix, Tag, all_of

_MASK_FROM = 1 / 500  # of the images: from here on one bit of each image is cheaper than bisection


@dataclass(frozen=True)
class Images:
    """A set of images, or all images but a set."""

    rows: np.ndarray
    inverted: bool = False


@dataclass(frozen=True)
class Part:
    """A clause of a query with how many images it keeps by itself."""

    node: Node
    num_images: int
    without: Node  # the query that is left without it


class Matcher:
    """Answers queries from an index."""

    def __init__(self, index: InvertedIndex, related: Mapping[str, Sequence[int]]) -> None:
        self._index = index
        self._related = related

    def is_tag(self, name: str) -> bool:
        """Tell whether a name finds anything."""
        return name in self._related or self._index.tag_row(name) is not None

    def tag_rows(self, name: str) -> Sequence[int]:
        """Return the rows of the tags that a name finds: its own, and those it is related to."""
        if name in self._related:
            return self._related[name]
        row = self._index.tag_row(name)
        return () if row is None else (row,)

    def rows(self, node: Node) -> np.ndarray:
        """Return the images that a query finds."""
        return self._plain(self._images(node))

    def count(self, node: Node) -> int:
        """Return how many images a query finds."""
        return self._count(self._images(node))

    def clauses(self, node: Node) -> tuple[Part, ...]:
        """Return the parts of a query that must all hold, in the order written."""
        parts = node.parts if isinstance(node, And) else (node,)
        others = [all_of(each for each in parts if each is not part) for part in parts]
        return tuple(Part(part, self.count(part), rest) for part, rest in zip(parts, others, strict=True))

    def blamed(self, clauses: Sequence[Part]) -> Part | None:
        """Return the clause to leave out of a query that finds nothing: one without which there are images.

        Of several the one that keeps the fewest by itself, of equals the last; so where no single one will do.
        """
        helping = [clause for clause in clauses if self.count(clause.without)]
        return min(reversed(helping or clauses), key=lambda clause: clause.num_images, default=None)

    def _images(self, node: Node) -> Images:
        if isinstance(node, Tag):
            return Images(self._carrying(self.tag_rows(node.name)))
        if isinstance(node, Prefix):
            return Images(self._carrying(self._index.tags_from(node.stem)))
        if isinstance(node, Not):
            part = self._images(node.part)
            return Images(part.rows, not part.inverted)
        parts = sorted(map(self._images, node.parts), key=self._count)
        if isinstance(node, Or):  # neither is what none of them lacks
            found = reduce(self._both, (Images(part.rows, not part.inverted) for part in parts))
            return Images(found.rows, not found.inverted)
        return reduce(self._both, parts, Images(self._index.postings[:0], True))

    def _carrying(self, tag_rows: Sequence[int]) -> np.ndarray:
        if len(tag_rows) == 1:
            return self._index.posting_list(tag_rows[0])
        if isinstance(tag_rows, range) and len(tag_rows):  # lists of neighbouring tags lie together
            offsets = self._index.offsets
            return self._distinct(self._index.postings[offsets[tag_rows.start] : offsets[tag_rows.stop]])
        lists = [self._index.posting_list(row) for row in tag_rows]
        return self._distinct(np.concatenate([self._index.postings[:0], *lists]))

    def _count(self, images: Images) -> int:
        return self._index.num_images - len(images.rows) if images.inverted else len(images.rows)

    def _plain(self, images: Images) -> np.ndarray:
        if not images.inverted:
            return images.rows
        outside = np.ones(self._index.num_images, dtype=bool)
        outside[images.rows] = False
        return np.flatnonzero(outside).astype(np.int32)

    def _both(self, first: Images, second: Images) -> Images:
        if first.inverted and second.inverted:
            if not len(first.rows) or not len(second.rows):
                return second if not len(first.rows) else first
            return Images(self._distinct(np.concatenate([first.rows, second.rows])), True)
        if first.inverted or (not second.inverted and len(second.rows) < len(first.rows)):
            first, second = second, first
        inside = self._inside(first.rows, second.rows)
        return Images(first.rows[~inside if second.inverted else inside])

    def _inside(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return (n,) bool, which rows are among the others."""
        if not len(rows) or not len(others):
            return np.zeros(len(rows), dtype=bool)
        if len(rows) < self._index.num_images * _MASK_FROM:
            at = np.minimum(np.searchsorted(others, rows), len(others) - 1)
            return np.asarray(others[at] == rows)
        return np.asarray(self._mask(others)[rows])

    def _distinct(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in any order, each once, ascending."""
        if len(rows) < self._index.num_images * _MASK_FROM:
            return np.unique(rows)
        return np.flatnonzero(self._mask(rows)).astype(np.int32)

    def _mask(self, rows: np.ndarray) -> np.ndarray:
        mask = np.zeros(self._index.num_images, dtype=bool)
        mask[rows] = True
        return mask
