"""`/api/v1/judgements` and `/api/v1/votes`: thumbs and blind votes, kept and exported."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from flask import Response, abort, current_app, make_response

from configs.compose import Paths
from serve.api.parameters import choice
from serve.api.replies import reply
from serve.api.request_values import (
    MAX_NUMBER,
    MAX_QUERY_CHARS,
    current_searcher,
    refuse_foreign_origin,
)
from serve.api.resource import Resource, Sent
from serve.api.shapes import JudgementsAnswer, Kept, Voted
from serve.judgements import MAX_GRADE, TIE, Judgement, Judgements, Vote, qrels_text, topic_of
from serve.query import query_for
from serve.rater import rater
from serve.searchers.base import Answer, Question, Searcher

FORMAT = choice("format", "JSON with every judgement, or TREC's qrels.", ("json", "trec"))
NAME = ma.validate.Length(min=1, max=200)

bp = Resource("judgements", __name__, "Judgements of people")


class Strict(ma.Schema):
    """A body whose fields are all known."""

    class Meta:
        """Refuses what is not declared."""

        unknown = ma.RAISE


class Whole(ma.fields.Integer):
    """A whole number as JSON Schema has it: 3 and 3.0, but neither "3" nor true."""

    def _validated(self, value: Any) -> int:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
        if not whole:
            raise self.make_error("invalid", input=value)
        return int(value)


class JudgementBody(Strict):
    """A thumb up (1) or down (0), a finer grade up to 3, or null to take back what was said."""

    q = ma.fields.String(
        required=True,
        validate=ma.validate.Length(min=1, max=MAX_QUERY_CHARS),
        metadata={"format": "tag-query", "description": "The query that was asked."},
    )
    image_id = ma.fields.String(
        required=True, validate=ma.validate.Regexp("^[0-9a-f]{16}$"), metadata={"format": "image-id"}
    )
    grade = Whole(required=True, allow_none=True, validate=ma.validate.Range(min=0, max=MAX_GRADE))
    rank = Whole(
        required=True,
        validate=ma.validate.Range(min=1, max=MAX_NUMBER),
        metadata={"description": "At which the image was shown, from 1."},
    )
    run = ma.fields.String(load_default="", validate=ma.validate.Length(max=200), metadata={"format": "run"})


class VoteBody(Strict):
    """Which side of a blind comparison is better."""

    q = ma.fields.String(
        required=True, validate=ma.validate.Length(min=1, max=MAX_QUERY_CHARS), metadata={"format": "tag-query"}
    )
    runs = ma.fields.List(
        ma.fields.String(validate=NAME, metadata={"format": "run"}),
        required=True,
        validate=ma.validate.Length(equal=2),
        metadata={"uniqueItems": True, "description": "The two runs compared, in any order."},
    )
    better = ma.fields.String(required=True, validate=ma.validate.OneOf(["left", "right", TIE]))


def store() -> Judgements:
    """Return the store of this app's paths."""
    paths: Paths = current_app.extensions["paths"]
    return Judgements(paths)


def topic_and_query(searcher: Searcher, text: str) -> tuple[str, str]:
    """Return the topic of a query, and the query as answers write it; 400 where it asks for nothing."""
    answer: Answer = searcher.search(Question(text, limit=1))
    if not answer.query:
        abort(400, f"q must name at least one tag, got {text!r}")
    tags = [each.tag for each in answer.tags]
    alone = tags[0] if len(tags) == 1 and answer.query == query_for(tags) else ""
    return topic_of(answer.query, alone), answer.query


@bp.offers("/judgements", Kept, sent=Sent("What is said.", JudgementBody))
def judge(said: dict[str, Any]) -> Response:
    """Keep what a person says of a result.

    Browsers are told apart by a random cookie; the last word of each on an image counts. Judgements are exported for
    evaluation and never trained on. Pages of other sites are refused.
    """
    refuse_foreign_origin()
    searcher = current_searcher(said["run"])
    topic, query = topic_and_query(searcher, said["q"])
    if searcher.details(said["image_id"]) is None:
        abort(404, f"The collection holds no image “{said['image_id']}”")
    store().add(
        Judgement(
            topic, query, said["image_id"], said["grade"], said["rank"], searcher.run, searcher.generation, rater()
        )
    )
    response = reply(Kept(topic, said["grade"]))
    response.status_code = 201
    return response


@bp.offers("/judgements", JudgementsAnswer, FORMAT, also="text/plain")
def judgements() -> Response:
    """Export all judgements and votes, as JSON or as TREC's qrels, which hold the judgements alone."""
    if FORMAT.read() == "trec":
        response = make_response(qrels_text(store().graded()))
        response.content_type = "text/plain; charset=utf-8"
        response.headers["Cache-Control"] = "no-store"
        return response
    return reply({"judgements": store().graded(), "votes": store().votes()})


@bp.offers("/votes", Voted, sent=Sent("Which side is better.", VoteBody))
def vote(said: dict[str, Any]) -> Response:
    """Keep which side of a blind comparison a person found better, and tell which run was on which.

    Sides fall as a coin does, the same way for the same browser and query, and are told only now.
    """
    refuse_foreign_origin()
    first, second = sorted(said["runs"])
    if first == second:
        abort(400, f"runs must name two runs, got {first} twice")
    searchers = [current_searcher(name) for name in (first, second)]
    query = topic_and_query(searchers[0], said["q"])[1]
    who = rater()
    left, right = store().sides(query, (first, second), who)
    winner = {"left": left, "right": right}.get(said["better"], TIE)
    store().add(Vote(query, first, second, searchers[0].generation, searchers[1].generation, winner, who))
    response = reply(Voted(left, right, winner))
    response.status_code = 201
    return response
