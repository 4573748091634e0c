"""`/image/<image_id>`: one picture with all that is known of it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from flask import abort, render_template, request
from flask.typing import ResponseReturnValue

from serve.api.images import no_such_image
from serve.api.request_values import current_searcher
from serve.pages.asked import asked_argument
from serve.pages.blueprint import bp
from serve.pages.why import explain
from serve.searchers.base import Hit, ImageDetails, Question, Searcher

NUM_ALIKE = 12
NUM_NEAREST = 6  # that carry what is asked for, beside an explanation

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
    "split": "Used for",
}
SHOWN_ELSEWHERE = {"image_id", "tags", "title", "caption", "width", "height", "extra"}


@bp.get("/image/<image_id>")
def image(image_id: str) -> ResponseReturnValue:
    """Show one image with all that is known of it; the rest of the address leads back to the search."""
    asked = asked_argument()
    searcher = current_searcher(asked.run)
    details = searcher.details(image_id)
    if details is None:
        abort(404, no_such_image(image_id))
    shares = explain(searcher, asked, image_id) if request.args.get("why") == "1" and not asked.empty else None
    return render_template(
        "image.html",
        details=details,
        facts=facts_of(details),
        asked=asked,
        shares=shares,
        nearest=alike(searcher, image_id, NUM_NEAREST, asked.question.text) if shares and asked.question.text else (),
        alike=alike(searcher, image_id, NUM_ALIKE),
    )


def alike(searcher: Searcher, image_id: str, limit: int, text: str = "") -> tuple[Hit, ...]:
    """Return the pictures most like one, without itself; with a text those that carry what it asks for."""
    answer = searcher.search(Question(text, like=image_id, limit=limit + 1))
    return tuple(hit for hit in answer.hits if hit.image_id != image_id and not (text and hit.guess))[:limit]


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
