"""What a query means: the directions by which its images are scored.

D width of an embedding, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod

import numpy as np

from serve.query import Node, Not, Or, Prefix, QueryError, Tag

MAX_DIRECTIONS = 64


@dataclass(frozen=True)
class Direction:
    """A vector whose product with an image's embedding is its score, and the tags whose votes are added."""

    vector: np.ndarray | None  # (D,) float32; None where nothing is known of what it means
    votes: Mapping[int, float] = field(default_factory=dict)  # tag row -> weight


Leaf = Callable[[Tag | Prefix], Direction]


def directions(node: Node, leaf: Leaf) -> list[Direction]:
    """Return the directions of a query, by the best of which an image is scored; none where it only says what not.

    Tags that must all hold score by their mean, of those with OR the best counts: a picture of a cat is as good an
    answer to `dog OR cat` as it is to `cat`, whatever it has of a dog. What is left out adds nothing. The mean of a
    best is the best of means, so that OR within AND becomes one direction for each way to choose.

    Raises:
        QueryError: there are too many ways.
    """
    if isinstance(node, Tag | Prefix):
        return [leaf(node)]
    if isinstance(node, Not):
        return []
    meant = [found for part in node.parts if (found := directions(part, leaf))]
    if isinstance(node, Or):
        return [direction for found in meant for direction in found]
    ways = prod(map(len, meant))
    if ways > MAX_DIRECTIONS:
        raise QueryError(f"The words with OR can be chosen in {ways} ways, at most {MAX_DIRECTIONS} can be ranked", 0)
    return [_mean(chosen) for chosen in product(*meant)] if meant else []


def _mean(parts: tuple[Direction, ...]) -> Direction:
    vectors = [part.vector for part in parts if part.vector is not None]
    votes: dict[int, float] = {}
    for part in parts:
        for row, weight in part.votes.items():
            votes[row] = votes.get(row, 0.0) + weight / len(parts)
    return Direction(np.mean(vectors, axis=0) if vectors else None, votes)


def vectors_of(found: Iterable[Direction]) -> np.ndarray | None:
    """Return (K, D) float32, the directions that have a vector, or None where none has."""
    vectors = [direction.vector for direction in found if direction.vector is not None]
    return np.stack(vectors).astype(np.float32) if vectors else None
