"""`/api/v1/images/<image_id>`: all that is known of an image."""

from __future__ import annotations

from flask import Response, abort, request

from serve.api.replies import reply, unchanged
from serve.api.request_values import current_searcher
from serve.api.resource import Resource
from serve.api.search import RUN, hit_object
from serve.api.shapes import ImageAnswer

OF_THE_QUESTION = ("score", "probability", "guess")  # fields of a hit that say nothing without one

bp = Resource("images", __name__, "Images")


@bp.offers("/images/<image_id>", ImageAnswer, RUN)
def image(image_id: str) -> Response:
    """Return the record of an image, and the tags that the model would give it."""
    searcher = current_searcher(RUN.read())
    if kept := unchanged(searcher):
        return kept
    details = searcher.details(image_id)
    if details is None:
        abort(404, no_such_image(image_id))
    hit = {
        name: value
        for name, value in hit_object(details.hit, request.script_root).items()
        if name not in OF_THE_QUESTION
    }
    body = {
        "run": searcher.run,
        "generation": searcher.generation,
        **hit,
        "record": details.record,
        "predicted": details.predicted,
    }
    return reply(body, searcher)


def no_such_image(image_id: str) -> str:
    """Say that an image is not in the collection."""
    return f"The collection holds no image “{image_id[:40]}”; it may have been removed"
