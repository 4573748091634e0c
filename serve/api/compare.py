"""`/api/v1/compare`: the same question on two runs."""

from __future__ import annotations

from dataclasses import replace

from flask import Response, abort

from serve.api.parameters import text
from serve.api.replies import reply
from serve.api.request_values import current_searcher
from serve.api.resource import Resource
from serve.api.search import QUESTION, question_of, refuse_nothing, search_body
from serve.api.shapes import CompareAnswer, Move
from serve.searchers.base import Searcher
from serve.side_by_side import answered, overlap_of, ranks_of

RUNS = replace(
    text("runs", "Two of the runs served, with a comma between.", 400, format="runs", example="original,best"),
    required=True,
)

bp = Resource("compare", __name__, "Runs side by side")


@bp.offers("/compare", CompareAnswer, *QUESTION, RUNS)
def compare() -> Response:
    """Ask two runs the same question: what both show, what moved, and how long each took."""
    question = question_of()
    refuse_nothing(question)
    searchers = two_searchers(RUNS.read())
    sides = [answered(searcher, question) for searcher in searchers]
    told = [
        {"answer": search_body(searcher, question, answer), "latency_ms": round(latency_ms, 3)}
        for searcher, (answer, latency_ms) in zip(searchers, sides, strict=True)
    ]
    left, right = (answer for answer, _ in sides)
    ranks, overlap = (ranks_of(left), ranks_of(right)), overlap_of(left, right)
    moves = [Move(image_id, ranks[0].get(image_id), ranks[1].get(image_id)) for image_id in ranks[1] | ranks[0]]
    return reply({"sides": told, "shared": overlap.shared, "overlap": overlap.share, "moves": moves})


def two_searchers(runs: str) -> list[Searcher]:
    """Return the searchers of two runs written with a comma between."""
    names = [name.strip() for name in runs.split(",")]
    if len(set(names)) != 2 or not all(names):
        abort(400, f"runs must name two runs with a comma between, got {runs[:80]!r}")
    return [current_searcher(name) for name in names]
