"""What a view reads from its request: checked arguments, and the one searcher that answers it."""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import abort, current_app, g, request

from serve.searchers.base import Searcher

GetSearcher = Callable[[], Searcher]
MAX_QUERY_CHARS = 200
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
