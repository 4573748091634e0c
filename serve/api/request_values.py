"""What a view reads from its request: checked arguments, and the one searcher that answers it."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from flask import abort, current_app, g, request

from serve.searchers.base import Searcher

GetSearcher = Callable[[], Searcher]
MAX_QUERY_CHARS = 200
MAX_BODY_BYTES = 2**16  # but for a picture
MAX_UPLOAD_BYTES = 16 * 2**20
MAX_NUMBER = 10_000_000  # of any page or offset; beyond it lies a typing error


def current_searcher(run: str = "") -> Searcher:
    """Return the searcher of a run for this request, asked for once, so that generations cannot mix in one answer.

    Args:
        run: one of those served; none names the first. 404 where it is not served.
    """
    searchers: dict[str, GetSearcher] = current_app.extensions["searchers"]
    name = run or next(iter(searchers))
    if name not in searchers:
        abort(404, f"no run “{run[:40]}” is served here, only {', '.join(searchers)}")
    asked: dict[str, Searcher] = g.setdefault("searchers", {})
    if name not in asked:
        asked[name] = searchers[name]()
    return asked[name]


def forget_searcher(run: str = "") -> None:
    """Let `current_searcher` ask again, before anything of this request was answered."""
    g.get("searchers", {}).pop(run or next(iter(current_app.extensions["searchers"])), None)


def query_argument() -> str:
    """Return the text of `q` without outer blanks; 400 where it is too long."""
    text = request.args.get("q", "").strip()
    if len(text) > MAX_QUERY_CHARS:
        abort(400, f"q must have at most {MAX_QUERY_CHARS} characters, got {len(text)}")
    return text


def number_argument(name: str, default: int, low: int, high: int = MAX_NUMBER) -> int:
    """Return a whole number of the request's arguments; 400 where it is none or lies outside low..high."""
    text = request.args.get(name, "").strip()
    if not text:
        return default
    # int() would also take signs, underscores and the digits of other scripts.
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        abort(400, f"{name} must be a whole number in {low}..{high}, got {text[:40]!r}")
    return int(text)


def refuse_foreign_origin() -> None:
    """Answer 403 to what another site makes a browser send; browsers say where it comes from."""
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin", "")
    # A page that sends no referrer gives its origin as "null", so the site's word counts there.
    foreign = origin not in ("", "null") and urlsplit(origin).netloc != request.host
    if site not in ("same-origin", "none") or foreign or (origin == "null" and "Sec-Fetch-Site" not in request.headers):
        abort(403, "This was sent by a page of another site")
