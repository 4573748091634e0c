"""`/health`, `/ready` and `/metrics`: whether the server lives, whether it answers, and how it does."""

from __future__ import annotations

import logging

from flask import Response, abort

from configs.artifacts import ArtifactError
from serve import metrics
from serve.api.replies import reply
from serve.api.resource import Resource
from serve.api.runs import served_runs
from serve.api.shapes import Health, Ready

log = logging.getLogger(__name__)
bp = Resource("health", __name__, "Operation")


@bp.offers("/health", Health)
def health() -> Response:
    """Say that the server lives; nothing is searched."""
    return reply(Health("ok"))


@bp.offers("/ready", Ready, errors={503: "No generation can be opened"})
def ready() -> Response:
    """Name the generation of each run; an error where one has none that answers."""
    try:
        return reply(Ready("ready", served_runs()))
    except (ArtifactError, OSError) as error:
        log.error("not ready: %s", error)
        abort(503, "A run that is served has no generation that can be opened")


@bp.offers("/metrics", str)
def scrape() -> Response:
    """Return counts and latencies of all workers in the text format of Prometheus."""
    response = Response(metrics.exposition(), content_type=metrics.CONTENT_TYPE)
    response.headers["Cache-Control"] = "no-store"
    return response
