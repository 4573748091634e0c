"""`/why/<image_id>.png`: the overlay that shows which part of a picture earned its score."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cachetools import LRUCache
from flask import Response, abort, current_app

from configs.artifacts import ArtifactError
from serve.api.images import no_such_image
from serve.api.request_values import current_searcher
from serve.encoders import Encoders
from serve.pages.asked import Asked, asked_argument
from serve.pages.blueprint import bp
from serve.pages.files import DAY_S, kept
from serve.searchers.base import Hit, Searcher

if TYPE_CHECKING:
    from serve.why import Shares

KEPT = 256  # pictures with a query, a few hundred bytes each


class Explanations:
    """Shares that were computed lately: a page asks for the numbers, and then its overlay for the same."""

    def __init__(self) -> None:
        self._kept: LRUCache[tuple[str, ...], Shares] = LRUCache(KEPT)
        self._lock = threading.Lock()

    def get(self, searcher: Searcher, encoders: Encoders, asked: Asked, image_id: str) -> Shares | None:
        """Return what each place of a picture gives for a question; None where the model knows nothing of it.

        Raises:
            ArtifactError: the run's network or towers cannot be opened.
            ServiceUnavailable: too many ask at once.
        """
        question = asked.question
        key = searcher.run, searcher.generation, image_id, question.text, question.like, question.picture
        with self._lock:
            found = self._kept.get(key)
        if found is not None:
            return found
        direction, jpeg = searcher.direction(question, image_id), searcher.jpeg(image_id)
        if direction is None or jpeg is None:
            return None
        from serve.why import shares_of  # with torch, which takes seconds to import and most servers never need

        with encoders.queue.turn():
            encoder = encoders.of(searcher)
            shares = shares_of(encoder.pictures, encoder.towers.image, jpeg, direction)
        with self._lock:
            self._kept[key] = shares
        return shares


@bp.get("/why/<image_id>.png")
def why_overlay(image_id: str) -> Response:
    """Send the overlay of a picture for a question."""
    asked = asked_argument()
    searcher = current_searcher(asked.run)
    details = searcher.details(image_id)
    if details is None:
        abort(404, no_such_image(image_id))
    shares = explain(searcher, asked, image_id)
    if shares is None:
        abort(404, "The model cannot tell which part of this picture answers that search")
    return kept(draw(searcher, details.hit, shares), "image/png", DAY_S)


def explain(searcher: Searcher, asked: Asked, image_id: str) -> Shares | None:
    """Return a picture's shares for what is asked, or None where there are none to be had."""
    explanations: Explanations = current_app.extensions["explanations"]
    encoders: Encoders = current_app.extensions["encoders"]
    try:
        return explanations.get(searcher, encoders, asked, image_id)
    except ArtifactError as error:
        current_app.logger.warning("no overlay: %s", error)
        return None


def draw(searcher: Searcher, hit: Hit, shares: Shares) -> bytes:
    """Draw shares over the part of a picture that the network sees."""
    from features.single_picture import seen
    from serve.why import overlay

    encoders: Encoders = current_app.extensions["encoders"]
    box = seen(hit.width, hit.height, encoders.of(searcher).pictures.backbone)
    return overlay(shares, hit.width, hit.height, box)
