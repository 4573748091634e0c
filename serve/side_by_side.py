"""Two answers to one question beside each other: what moved, what only one shows, how much they share."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from serve.searchers.base import Answer, Hit, Question, Searcher

Move = Literal["same", "up", "down", "new", "dropped"]


@dataclass(frozen=True)
class Placed:
    """A hit at its rank, beside where the other side has it."""

    hit: Hit
    rank: int  # from 1
    move: Move
    steps: int = 0  # ranks up or down


@dataclass(frozen=True)
class Overlap:
    """How much two rankings share."""

    shared: int
    shown: int  # hits of the longer side

    @property
    def share(self) -> float:
        """Return the shared hits as a share of the longer side, 1 where neither shows any."""
        return self.shared / self.shown if self.shown else 1.0


def answered(searcher: Searcher, question: Question) -> tuple[Answer, float]:
    """Return an answer and the milliseconds it took."""
    start = time.perf_counter()
    answer = searcher.search(question)
    return answer, 1000 * (time.perf_counter() - start)


def ranks_of(answer: Answer) -> dict[str, int]:
    """Return the rank of each image among the hits, from 1."""
    return {hit.image_id: rank for rank, hit in enumerate(answer.hits, start=1)}


def overlap_of(left: Answer, right: Answer) -> Overlap:
    """Count what both show."""
    return Overlap(len(ranks_of(left).keys() & ranks_of(right).keys()), max(len(left.hits), len(right.hits)))


def place(left: Answer, right: Answer) -> tuple[list[Placed], list[Placed], Overlap]:
    """Place both sides: on the left what the right has dropped, on the right what moved and what is new."""
    on_left, on_right = ranks_of(left), ranks_of(right)
    lefts = [
        Placed(hit, rank, "same" if hit.image_id in on_right else "dropped")
        for rank, hit in enumerate(left.hits, start=1)
    ]
    rights = [_placed(hit, rank, on_left.get(hit.image_id)) for rank, hit in enumerate(right.hits, start=1)]
    return lefts, rights, overlap_of(left, right)


def _placed(hit: Hit, rank: int, before: int | None) -> Placed:
    if before is None:
        return Placed(hit, rank, "new")
    if before == rank:
        return Placed(hit, rank, "same")
    return Placed(hit, rank, "up" if rank < before else "down", abs(rank - before))
