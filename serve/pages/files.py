"""Pictures, their thumbnails, and the classes that size them."""

from __future__ import annotations

from flask import Response, abort, current_app, make_response, request

from serve.api.images import no_such_image
from serve.api.request_values import current_searcher
from serve.pages.blueprint import bp
from serve.pages.shown import MAX_RATIO, MIN_RATIO
from serve.thumbnails import WIDTHS, Thumbnails

DAY_S = 24 * 3600


@bp.get("/images/<image_id>.jpg")
def jpeg(image_id: str) -> Response:
    """Send the stored JPEG; it changes only with the gate, so browsers may keep it a day."""
    content = current_searcher().jpeg(image_id)
    if content is None:
        abort(404, no_such_image(image_id))
    return kept(content, "image/jpeg", DAY_S)


@bp.get("/thumbnails/<int:width>/<image_id>.jpg")
def thumbnail(width: int, image_id: str) -> Response:
    """Send a picture at one of a few widths, or as it is where it is no wider."""
    if width not in WIDTHS:
        abort(404, f"Thumbnails are {', '.join(map(str, WIDTHS))} pixels wide, not {width}")
    thumbnails: Thumbnails = current_app.extensions["thumbnails"]
    found = thumbnails.get(current_searcher(), image_id, width)
    if found is None:
        abort(404, no_such_image(image_id))
    content, etag = found
    return kept(content, "image/jpeg", 30 * DAY_S, etag)


@bp.get("/ratios.css")
def ratios() -> Response:
    """Give each aspect ratio its class: the policy of the page forbids style attributes, even for a number."""
    rules = (f".r{percent}{{--r:{percent / 100}}}" for percent in range(MIN_RATIO, MAX_RATIO + 1))
    return kept("\n".join(rules).encode(), "text/css; charset=utf-8", 0)


def kept(content: bytes, content_type: str, max_age_s: int, etag: str = "") -> Response:
    """Return a file that browsers keep; with no age they ask each time whether it is still the same."""
    response = make_response(content)
    response.content_type = content_type
    if max_age_s:
        response.cache_control.public = True
        response.cache_control.max_age = max_age_s
    else:
        response.cache_control.no_cache = True
    response.set_etag(etag) if etag else response.add_etag()
    response.make_conditional(request)
    return response
