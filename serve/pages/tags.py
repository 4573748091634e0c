"""`/tags`: every tag to browse, by frequency, name or quality, from a beginning on."""

from __future__ import annotations

import math
from typing import cast, get_args

from flask import abort, render_template, request
from flask.typing import ResponseReturnValue

from crawl.tags import normalise_tag
from serve.api.request_values import MAX_QUERY_CHARS, current_searcher, number_argument
from serve.pages.asked import choice_argument
from serve.pages.blueprint import bp
from serve.searchers.base import TagCount, TagOrder

TAGS_PAGE = 200
STEPS = 5  # sizes of type by frequency


@bp.get("/tags")
def tag_index() -> ResponseReturnValue:
    """Show a page of the tags, the more frequent the larger."""
    prefix = normalise_tag(request.args.get("prefix", "")[:MAX_QUERY_CHARS])
    sort = cast(TagOrder, choice_argument("sort", get_args(TagOrder)))
    page = number_argument("page", default=1, low=1)
    total, tags = current_searcher().browse(prefix, sort, (page - 1) * TAGS_PAGE, TAGS_PAGE)
    pages = max(1, -(-total // TAGS_PAGE))
    if page > pages:
        abort(404, f"page must lie in 1..{pages}, got {page}")
    return render_template(
        "tags.html", tags=steps_of(tags), prefix=prefix, sort=sort, total=total, page=page, pages=pages
    )


def steps_of(tags: tuple[TagCount, ...]) -> list[tuple[TagCount, int]]:
    """Give each tag a step of size in 1..5, by the logarithm of its frequency among those shown."""
    logs = [math.log(max(1, each.num_images)) for each in tags]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    spread = max(high - low, 1e-9)
    return [(each, 1 + round((STEPS - 1) * (value - low) / spread)) for each, value in zip(tags, logs, strict=True)]
