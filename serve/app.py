"""The search page around a `Searcher`, and the app that serves it with the JSON interface."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, abort, make_response, render_template, request, url_for
from flask.typing import ResponseReturnValue

from configs.compose import Paths
from serve.api import health, images, search, suggest
from serve.api.errors import register_errors
from serve.api.request_values import MAX_QUERY_CHARS, GetSearcher, current_searcher, number_argument, query_argument
from serve.query import query_for
from serve.searchers.base import Answer, Hit, ImageDetails, Question, Searcher, TagCount

PAGE_SIZE = search.PAGE_SIZE
NUM_SHELF = 12  # popular tags shown with a picture on the start page
NUM_POPULAR = 40
MIN_RATIO, MAX_RATIO = 66, 300  # width in percent of height; what lies outside is letterboxed in the grid

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}

# Fields of a record that the image page lists, with their labels; title, tags and caption stand on their own.
FACTS = {
    "author": "Author",
    "licence": "Licence",
    "kind": "Kind",
    "size": "Size",
    "labels": "Labels",
    "page_url": "Found on",
    "source_url": "Original file",
    "original_format": "Original format",
    "original_bytes": "Original size",
    "fetched_at": "Fetched",
    "group": "Group",
}
SHOWN_ELSEWHERE = {"image_id", "tags", "title", "caption", "width", "height", "extra"}

bp = Blueprint("pages", __name__)


@bp.get("/")
def search_page() -> ResponseReturnValue:
    """Show the start page, or the results where `q` is given."""
    text = query_argument()
    page = number_argument("page", default=1, low=1)
    searcher = current_searcher()
    if not text:
        return start_page(searcher)
    answer = searcher.search(Question(text, offset=(page - 1) * PAGE_SIZE, limit=PAGE_SIZE))
    if answer.unknown:
        popular = searcher.browse("", "frequency", 0, NUM_SHELF)[1]
        return render_template("unknown.html", answer=answer, popular=popular), 404
    if not answer.tags:  # nothing but blanks and marks
        return start_page(searcher)
    pages = max(1, -(-answer.num_matches // PAGE_SIZE))
    if page > pages:
        abort(404, f"page must lie in 1..{pages} for “{answer.query}”, got {page}")
    return render_template("results.html", answer=answer, page=page, pages=pages)


def start_page(searcher: Searcher) -> str:
    """Show the search box, the most frequent tags with a picture each, and the next ones as chips."""
    popular = searcher.browse("", "frequency", 0, NUM_POPULAR)[1]
    shelf = shelf_of(searcher, popular[:NUM_SHELF])
    shown = [tag for tag, _ in shelf]
    return render_template(
        "start.html", searcher=searcher, shelf=shelf, popular=[tag for tag in popular if tag not in shown]
    )


def shelf_of(searcher: Searcher, tags: Iterable[TagCount]) -> list[tuple[TagCount, Hit]]:
    """Pair tags with one of their best pictures each, none of them twice where that can be avoided."""
    shelf: list[tuple[TagCount, Hit]] = []
    for tag in tags:
        hits = searcher.search(Question(query_for([tag.tag]), limit=NUM_SHELF)).hits
        shown = {hit.image_id for _, hit in shelf}
        fresh = [hit for hit in hits if hit.image_id not in shown][:4]
        if hits:
            shelf.append((tag, min(fresh or hits, key=squareness)))
    return shelf


def squareness(hit: Hit) -> float:
    """Return how far a picture is from a square: what the cards of the start page would cut off."""
    return max(hit.width, hit.height) / max(1, min(hit.width, hit.height))


@bp.get("/image/<image_id>")
def image(image_id: str) -> str:
    """Show one image with all that is known of it; `q` and `page` lead back to the search."""
    query, page = query_argument(), number_argument("page", default=1, low=1)
    details = current_searcher().details(image_id)
    if details is None:
        abort(404, images.no_such_image(image_id))
    return render_template("image.html", details=details, facts=facts_of(details), query=query, page=page)


@bp.get("/images/<image_id>.jpg")
def jpeg(image_id: str) -> Response:
    """Send the stored JPEG; it changes only with the gate, so browsers may keep it a day."""
    content = current_searcher().jpeg(image_id)
    if content is None:
        abort(404, images.no_such_image(image_id))
    response = make_response(content)
    response.content_type = "image/jpeg"
    response.cache_control.public = True
    response.cache_control.max_age = 24 * 3600
    response.add_etag()
    response.make_conditional(request)
    return response


@bp.get("/ratios.css")
def ratios() -> Response:
    """Give each aspect ratio its class: the policy of the page forbids style attributes, even for a number."""
    rules = (f".r{percent}{{--r:{percent / 100}}}" for percent in range(MIN_RATIO, MAX_RATIO + 1))
    response = make_response("\n".join(rules))
    response.content_type = "text/css; charset=utf-8"
    response.cache_control.no_cache = True
    response.add_etag()
    response.make_conditional(request)
    return response


def ratio_class(hit: Hit) -> str:
    """Return the classes that size a picture's box; `whole` where the box is nearer square than the picture."""
    percent = round(100 * hit.width / max(hit.height, 1))
    boxed = min(max(percent, MIN_RATIO), MAX_RATIO)
    return f"r{boxed}" if boxed == percent else f"r{boxed} whole"


def facts_of(details: ImageDetails) -> list[tuple[str, str, str | None]]:
    """List what the record says as label, text and, where it may be followed, address."""
    record = {**details.record, "size": f"{details.hit.width} by {details.hit.height} pixels"}
    facts = [(FACTS[name], _text(name, record.get(name))) for name in FACTS]
    further = {name: value for name, value in record.items() if name not in FACTS and name not in SHOWN_ELSEWHERE}
    extra = record.get("extra") or {}
    further |= extra if isinstance(extra, dict) else {"extra": extra}
    facts += [(_label(name), _text(name, value)) for name, value in further.items()]
    return [(label, text, text if is_web_address(text) else None) for label, text in facts if text]


def _label(name: str) -> str:
    return str(name).replace("_", " ").strip().capitalize()


def _text(name: str, value: Any) -> str:
    """Write a value of a record for people; empty where it says nothing."""
    if value is None or value == "" or (name == "original_bytes" and not value):
        return ""
    if name == "original_bytes":
        return f"{int(value) / 1024:,.0f} KiB" if int(value) >= 1024 else f"{value} bytes"
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def is_web_address(text: str) -> bool:
    """Tell whether a foreign text may become a link: http or https with a host, never `javascript:`."""
    try:
        parts = urlsplit(text)
    except ValueError:  # an unfinished IPv6 address
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc) and not any(map(str.isspace, text))


def search_url(tags: Iterable[str]) -> str:
    """Return the address of the results for these tags together."""
    return url_for("pages.search_page", q=query_for(tags))


def replaced(answer: Answer, word: str, tag: str) -> str:
    """Return the query of an answer with its unknown `word` replaced by `tag`, the other words as they were."""
    unknown = [near.word for near in answer.unknown]
    words = [known.tag for known in answer.tags if known.tag not in unknown] + unknown
    words.sort(key=lambda each: answer.query.find(query_for([each])))
    return query_for(dict.fromkeys(tag if each == word else each for each in words))


def replaced_url(answer: Answer, word: str, tag: str) -> str:
    """Return the address of the same search with one unknown word replaced."""
    return url_for("pages.search_page", q=replaced(answer, word, tag))


def plural(number: int, one: str, many: str) -> str:
    """Write a number with its noun: `1 picture`, `1,254 pictures`."""
    return f"{number:,} {one if number == 1 else many}"


def secure(response: Response) -> Response:
    """Set the headers that keep foreign text harmless even if it escaped once."""
    for name, value in SECURITY_HEADERS.items():
        response.headers[name] = value
    return response


def create_app(searchers: Mapping[str, GetSearcher] | GetSearcher, paths: Paths | None = None) -> Flask:
    """Build the app.

    Args:
        searchers: by run, the first of them the default, or the one there is; each is asked once a request for the
            generation in force.
        paths: where runs and their evaluations lie, and where judgements go.
    """
    app = Flask(__name__)
    app.extensions["searchers"] = dict(searchers) if isinstance(searchers, Mapping) else {"": searchers}
    app.extensions["paths"] = paths or Paths()
    app.register_blueprint(bp)
    for resource in (search.bp, suggest.bp, images.bp):
        app.register_blueprint(resource, url_prefix="/api/v1")
    app.register_blueprint(health.bp)
    app.jinja_env.globals.update(
        max_query_chars=MAX_QUERY_CHARS,
        plural=plural,
        ratio_class=ratio_class,
        replaced_url=replaced_url,
        search_url=search_url,
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.after_request(secure)
    register_errors(app)
    return app
