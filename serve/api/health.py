"""`/health`: whether the server answers, and with which generation of which run."""

from __future__ import annotations

from flask import Blueprint, jsonify
from flask.typing import ResponseReturnValue

from serve.api.request_values import current_searcher

bp = Blueprint("health", __name__)


@bp.get("/health")
def health() -> ResponseReturnValue:
    """Name what is being served."""
    searcher = current_searcher()
    return jsonify(
        status="ok",
        run=searcher.run,
        generation=searcher.generation,
        num_images=searcher.num_images,
        num_tags=searcher.num_tags,
    )
