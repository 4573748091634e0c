"""Thumbs up and down on results, by a plain form; scripts send the same and stay on the page."""

from __future__ import annotations

import re

from flask import abort, current_app, redirect, request
from flask.typing import ResponseReturnValue

from serve.api.judgements import topic_and_query
from serve.api.request_values import current_searcher, refuse_foreign_origin
from serve.judgements import Judgement, Judgements, topic_of
from serve.pages.asked import asked_argument
from serve.pages.blueprint import bp
from serve.query import query_for
from serve.rater import RATER_COOKIE, rater
from serve.searchers.base import Answer

SAID = re.compile("([01]?):([0-9a-f]{16}):([0-9]{1,7})")  # grade or nothing to take it back, picture, rank


@bp.post("/judge")
def judge() -> ResponseReturnValue:
    """Keep what a person says of a result, and go back to it."""
    refuse_foreign_origin()
    asked = asked_argument()
    said = SAID.fullmatch(request.form.get("said", ""))
    if said is None:
        abort(400, "a thumb names a picture")
    grade, image_id, rank = said.groups()
    searcher = current_searcher(asked.run)
    topic, query = topic_and_query(searcher, asked.question.text)
    if searcher.details(image_id) is None:
        abort(404, f"The collection holds no image “{image_id}”")
    judgement = Judgement(
        topic, query, image_id, int(grade) if grade else None, int(rank), searcher.run, searcher.generation, rater()
    )
    Judgements(current_app.extensions["paths"]).add(judgement)
    return redirect(f"{asked.url(page=asked.page if asked.page > 1 else '')}#{image_id}", 303)


def thumbs_of(answer: Answer) -> dict[str, int]:
    """Return what this browser said of the pictures of an answer, by image_id."""
    if not answer.query or RATER_COOKIE not in request.cookies:
        return {}
    tags = [each.tag for each in answer.tags]
    topic = topic_of(answer.query, tags[0] if len(tags) == 1 and answer.query == query_for(tags) else "")
    return Judgements(current_app.extensions["paths"]).grades_of(topic, rater())
