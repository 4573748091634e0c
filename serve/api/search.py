"""`/api/v1/search`: ranked images of a query, as the page shows them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Blueprint, abort, jsonify, url_for
from flask.typing import ResponseReturnValue

from serve.api.request_values import current_searcher, number_argument, query_argument
from serve.searchers.base import Answer, Hit, Question

PAGE_SIZE = 40
MAX_LIMIT = 200

bp = Blueprint("search", __name__)


@bp.get("/search")
def search() -> ResponseReturnValue:
    """Return `limit` hits from `offset`; an unknown word is a 404 that also names what is near it."""
    text = query_argument()
    if not text:
        abort(400, "q must name at least one tag, got nothing")
    offset = number_argument("offset", default=0, low=0)
    limit = number_argument("limit", default=PAGE_SIZE, low=1, high=MAX_LIMIT)
    searcher = current_searcher()
    answer = searcher.search(Question(text, offset=offset, limit=limit))
    if not answer.tags and not answer.unknown:
        abort(400, f"q must name at least one tag, got {text!r}")
    body = {
        **asdict(answer),
        "hits": [hit_object(hit) for hit in answer.hits],
        "limit": limit,
        "run": searcher.run,
        "generation": searcher.generation,
    }
    if answer.unknown:
        return jsonify({"error": {"status": 404, "message": unknown_message(answer)}, **body}), 404
    return jsonify(body)


def unknown_message(answer: Answer) -> str:
    """Name the words that are no tag."""
    words = ", ".join(f"“{near.word}”" for near in answer.unknown)
    return f"No picture is tagged {words}"


def hit_object(hit: Hit) -> dict[str, Any]:
    """Return a hit as plain values, with the addresses of its picture and its page."""
    return {
        **asdict(hit),
        "jpeg": url_for("pages.jpeg", image_id=hit.image_id),
        "page": url_for("pages.image", image_id=hit.image_id),
    }
