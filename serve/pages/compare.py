"""`/compare`: the same query by two runs side by side; blind, sides have no names and one votes."""

from __future__ import annotations

import random
from typing import Any

from flask import abort, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from configs.artifacts import ArtifactError, open_artifact
from serve.api.judgements import topic_and_query
from serve.api.request_values import current_searcher, query_argument, refuse_foreign_origin
from serve.judgements import TIE, Judgements, Vote
from serve.pages.blueprint import bp
from serve.pages.shown import runs_served
from serve.query import query_for
from serve.rater import rater
from serve.searchers.base import Question
from serve.side_by_side import answered, place

NUM_COMPARED = 20
NUM_OFFERED = 200  # of the most frequent tags, from which the next blind question is drawn
LEFT, RIGHT = "left", "right"


@bp.get("/compare")
def compare() -> ResponseReturnValue:
    """Show two runs on one query; with `blind=1` unnamed, in an order that the question and a coin decide."""
    runs, text = two_runs(), query_argument()
    blind = request.args.get("blind", "") == "1"
    if not text:
        return render_template(
            "compare_start.html", runs=runs, blind=blind, verdict=verdict_of(runs), offered=offered(blind)
        )
    question = Question(text, limit=NUM_COMPARED)
    found = {run: answered(current_searcher(run), question) for run in runs}
    text = topic_and_query(current_searcher(runs[0]), text)[1]  # as written by all who vote on it
    shown = sides_of(text, runs) if blind else runs
    answers = [found[run] for run in shown]
    left, right, overlap = place(answers[0][0], answers[1][0])
    return render_template(
        "compare.html",
        text=text,
        runs=runs,
        shown=shown,
        blind=blind,
        columns=[left, right],
        answers=[answer for answer, _ in answers],
        milliseconds=[took for _, took in answers],
        overlap=overlap,
        difference={} if blind else config_difference(runs),
    )


@bp.post("/compare")
def vote() -> ResponseReturnValue:
    """Keep a blind vote, and tell which side was which."""
    refuse_foreign_origin()
    runs, chosen = two_runs(), request.form.get("winner", "")
    if chosen not in (LEFT, RIGHT, TIE):
        abort(400, "a vote names left, right or tie")
    text = topic_and_query(current_searcher(runs[0]), query_argument())[1]
    sides = sides_of(text, runs)
    winner = {LEFT: sides[0], RIGHT: sides[1], TIE: TIE}[chosen]
    first, second = sorted(runs)
    judgements().add(
        Vote(
            text,
            first,
            second,
            current_searcher(first).generation,
            current_searcher(second).generation,
            winner,
            rater(),
        )
    )
    return redirect(url_for("pages.voted", q=text, runs=",".join(runs), winner=chosen), 303)


@bp.get("/compare/voted")
def voted() -> ResponseReturnValue:
    """Tell what was voted for, how the votes stand, and offer the next question."""
    runs, text = two_runs(), query_argument()
    sides = sides_of(text, runs)
    chosen = request.args.get("winner", "")
    if chosen not in (LEFT, RIGHT, TIE):
        abort(400, "winner must be left, right or tie")
    return render_template(
        "voted.html", runs=runs, text=text, sides=sides, chosen=chosen, verdict=verdict_of(runs), offered=offered(True)
    )


def two_runs() -> tuple[str, str]:
    """Return the runs to compare, by default the first two that are served."""
    served = runs_served()
    asked = [run for run in request.args.get("runs", "").split(",") if run] or served[:2]
    if len(served) < 2:
        abort(404, "Only one run is served here; serve several with runs=[original,best]")
    if len(asked) != 2 or asked[0] == asked[1] or not set(asked) <= set(served):
        abort(400, f"runs must name two of {', '.join(served)}, got {', '.join(asked)[:80]}")
    return asked[0], asked[1]


def judgements() -> Judgements:
    """Return the store of what people say."""
    return Judgements(current_app.extensions["paths"])


def sides_of(text: str, runs: tuple[str, str]) -> tuple[str, str]:
    """Return the runs as they stand left and right of a blind question for this person."""
    return judgements().sides(text, runs, rater())


def verdict_of(runs: tuple[str, str]) -> dict[str, Any] | None:
    """Return how the blind votes on two runs stand."""
    pair = sorted(runs)
    return next((each for each in judgements().votes() if [each["first"], each["second"]] == pair), None)


def offered(blind: bool) -> list[str]:
    """Return queries to begin with: frequent tags, drawn anew each time where one votes."""
    _, tags = current_searcher(runs_served()[0]).browse("", "frequency", 0, NUM_OFFERED if blind else 8)
    queries = [query_for([each.tag]) for each in tags]
    return random.sample(queries, min(8, len(queries))) if blind else queries


def config_difference(runs: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """Return key -> run -> value where the recipes of two runs differ; none where they cannot be read."""
    from train.systems import config_difference  # with it comes the whole evaluation, which a server seldom needs

    paths = current_app.extensions["paths"]
    try:
        configs = {run: open_artifact(paths.run(run), "run", make="make train").config for run in runs}
    except ArtifactError:
        return {}
    return {key: row for key, row in config_difference(configs).items() if key != "run"}
