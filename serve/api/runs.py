"""`/api/v1/runs`: what is served, how it was trained and how well it ranks."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response, abort, current_app

from configs.artifacts import read_manifest
from configs.compose import Paths
from serve.api.replies import reply
from serve.api.request_values import current_searcher
from serve.api.resource import Resource
from serve.api.shapes import RunAnswer, RunsAnswer, ServedRun

bp = Resource("runs", __name__, "Runs")


def served_runs() -> tuple[ServedRun, ...]:
    """Return the runs that are served, the default first."""
    names: list[str] = list(current_app.extensions["searchers"])
    searchers = [current_searcher(name) for name in names]
    return tuple(
        ServedRun(each.run, place == 0, each.generation, each.num_images, each.num_tags)
        for place, each in enumerate(searchers)
    )


@bp.offers("/runs", RunsAnswer)
def runs() -> Response:
    """List the runs that are served, the default first."""
    return reply(RunsAnswer(served_runs()))


@bp.offers("/runs/<run>", RunAnswer)
def run(run: str) -> Response:
    """Return a run's generation, its configuration, and the figures of its evaluation on test."""
    found = next((each for each in served_runs() if each.run == run), None)
    if found is None:
        abort(404, f"no run “{run[:40]}” is served here")
    paths: Paths = current_app.extensions["paths"]
    manifest = read_manifest(paths.run(run))
    body: dict[str, Any] = {
        **vars(found),
        "config": manifest.config if manifest else {},
        "facts": manifest.facts if manifest else {},
        "figures": figures_of(paths, run),
    }
    return reply(body)


def figures_of(paths: Paths, run: str) -> dict[str, Any] | None:
    """Return what the evaluation of a run on test found, or None where it was not evaluated."""
    metrics = paths.run(run) / "evaluation" / "test" / "metrics.json"
    if not metrics.is_file():
        return None
    found: dict[str, Any] = orjson.loads(metrics.read_bytes())
    return found
