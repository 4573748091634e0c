"""`/api/v1/suggest`: complete the last tag of a half-typed query; `/api/v1/tags`: browse them all."""

from __future__ import annotations

from typing import cast, get_args

from flask import Response

from serve.api.parameters import choice, text, whole
from serve.api.replies import cursor_of, offset_of, reply, unchanged
from serve.api.request_values import MAX_QUERY_CHARS, current_searcher
from serve.api.resource import Resource
from serve.api.search import CURSOR, MAX_LIMIT, RUN
from serve.api.shapes import SuggestAnswer, TagsAnswer
from serve.query import completed
from serve.searchers.base import TagOrder

TYPED = text("q", "A half-typed query.", MAX_QUERY_CHARS, example="traf")
NUM_SUGGESTIONS = whole("limit", "Most suggestions.", 8, 1, 50)
PREFIX = text("prefix", "What the tags begin with.", 100, example="do")
ORDER = choice("sort", "By number of images, by name, or by how well the run ranks them.", get_args(TagOrder))
NUM_TAGS = whole("limit", "Most tags of a page.", 100, 1, MAX_LIMIT)

bp = Resource("suggest", __name__, "Tags")


@bp.offers("/suggest", SuggestAnswer, TYPED, NUM_SUGGESTIONS, RUN)
def suggest() -> Response:
    """Complete the last tag of a half-typed query, most frequent first, each with the whole query it makes."""
    typed, limit = TYPED.read().lstrip(), NUM_SUGGESTIONS.read()
    searcher = current_searcher(RUN.read())
    if kept := unchanged(searcher):
        return kept
    suggestions = [
        {"tag": each.tag, "num_images": each.num_images, "query": completed(typed, each.tag)}
        for each in searcher.suggest(typed, limit)
    ]
    return reply({"query": typed, "suggestions": suggestions}, searcher)


@bp.offers("/tags", TagsAnswer, PREFIX, ORDER, NUM_TAGS, CURSOR, RUN)
def tags() -> Response:
    """List the tags that begin with a prefix, with how many images carry each."""
    prefix, order, limit, run = PREFIX.read(), cast(TagOrder, ORDER.read()), NUM_TAGS.read(), RUN.read()
    offset = offset_of(CURSOR.read(), run)
    searcher = current_searcher(run)
    if kept := unchanged(searcher):
        return kept
    num_tags, page = searcher.browse(prefix, order, offset, limit)
    end = offset + len(page)
    body = TagsAnswer(
        searcher.run,
        searcher.generation,
        num_tags,
        offset,
        page,
        cursor_of(searcher, end) if page and end < num_tags else None,
    )
    return reply(body, searcher)
