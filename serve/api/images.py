"""`/api/v1/images/<image_id>`: all that is known of an image."""

from __future__ import annotations

from dataclasses import asdict

from flask import Blueprint, abort, jsonify
from flask.typing import ResponseReturnValue

from serve.api.request_values import current_searcher
from serve.api.search import hit_object

bp = Blueprint("images", __name__)


@bp.get("/images/<image_id>")
def image(image_id: str) -> ResponseReturnValue:
    """Return the record of an image and the tags that the model would give it."""
    details = current_searcher().details(image_id)
    if details is None:
        abort(404, no_such_image(image_id))
    hit = hit_object(details.hit)
    del hit["score"]  # there is no query to be scored against
    return jsonify({**hit, "record": details.record, "predicted": [asdict(each) for each in details.predicted]})


def no_such_image(image_id: str) -> str:
    """Say that an image is not in the collection."""
    return f"The collection holds no image “{image_id[:40]}”; it may have been removed"
