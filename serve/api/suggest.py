"""`/api/v1/suggest`: complete the last tag of a half-typed query."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from serve.api.request_values import current_searcher, number_argument, query_argument
from serve.query import completed

NUM_SUGGESTIONS = 8

bp = Blueprint("suggest", __name__)


@bp.get("/suggest")
def suggest() -> ResponseReturnValue:
    """Return tags that the last word may become, and for each the whole query it makes."""
    query_argument()  # for its check of the length; a blank at the end says that the last tag is finished
    text = request.args.get("q", "").lstrip()
    limit = number_argument("limit", default=NUM_SUGGESTIONS, low=1, high=50)
    suggestions = [
        {"tag": each.tag, "num_images": each.num_images, "query": completed(text, each.tag)}
        for each in current_searcher().suggest(text, limit)
    ]
    return jsonify({"query": text, "suggestions": suggestions})
