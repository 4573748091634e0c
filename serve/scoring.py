"""What a query means: the directions by which images that do not carry its tags are scored.

D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod

import numpy as np

from serve.query import Node, Not, Or, Prefix, QueryError, Tag

MAX_DIRECTIONS = 64

Leaf = Callable[[Tag | Prefix], np.ndarray | None]  # (D,) float32, None where nothing is known of what it means


def directions(node: Node, leaf: Leaf) -> list[np.ndarray]:
    """Return the vectors (D,) of a query, whose best product with an embedding is the score; none where it means none.

    Tags that must all hold score by their mean, of those with OR the best counts: a picture of a cat is as good an
    answer to `dog OR cat` as it is to `cat`, whatever it has of a dog. What is left out adds nothing. The mean of a
    best is the best of means, so that OR within AND becomes one direction for each way to choose.

    Raises:
        QueryError: there are too many ways.
    """
    if isinstance(node, Tag | Prefix):
        vector = leaf(node)
        return [] if vector is None else [vector]
    if isinstance(node, Not):
        return []
    meant = [found for part in node.parts if (found := directions(part, leaf))]
    if isinstance(node, Or):
        return [vector for found in meant for vector in found]
    ways = prod(map(len, meant))
    if ways > MAX_DIRECTIONS:
        raise QueryError(f"The words with OR can be chosen in {ways} ways, at most {MAX_DIRECTIONS} can be ranked", 0)
    return [np.asarray(np.mean(chosen, axis=0), np.float32) for chosen in product(*meant)] if meant else []
