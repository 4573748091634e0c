"""`/runs/<run>`: how good a run is, with its best and worst tags."""

from __future__ import annotations

import threading

from cachetools import TTLCache
from flask import current_app, render_template, url_for
from flask.typing import ResponseReturnValue

from configs.artifacts import ArtifactError
from serve.api.request_values import current_searcher
from serve.pages.blueprint import bp
from serve.pages.shown import runs_served
from serve.quality import Quality, TagQuality, open_quality
from serve.query import query_for
from serve.searchers.base import Hit, Question, Searcher

NUM_SHOWN = 5  # pictures of a tag
SHOWN_CONFIG = (
    "objective",
    "depth",
    "embed_dim",
    "learning_rate",
    "batch_size",
    "max_epochs",
    "tag_residual",
    "tag_voting",
    "voters",
    "margin",
    "temperature",
    "seed",
)
_read: TTLCache[tuple[str, str], Quality] = TTLCache(maxsize=8, ttl=60)  # an evaluation may be made anew meanwhile
_reading = threading.Lock()


@bp.get("/runs/<run>")
def quality(run: str) -> ResponseReturnValue:
    """Show what the evaluation of a run that is served says."""
    searcher = current_searcher(run if any(runs_served()) else "")
    found = quality_of(searcher.run)
    if isinstance(found, str):
        return render_template("quality.html", searcher=searcher, quality=None, problem=found, best=(), worst=())
    return render_template(
        "quality.html",
        searcher=searcher,
        quality=found,
        problem="",
        best=with_pictures(searcher, found.best),
        worst=with_pictures(searcher, found.worst),
        settings={name: found.config[name] for name in SHOWN_CONFIG if name in found.config}
        | {"backbone": found.config.get("backbone", {}).get("name", "")},
    )


def quality_of(run: str) -> Quality | str:
    """Return a run's quality, or a sentence where it was not evaluated."""
    paths = current_app.extensions["paths"]
    with _reading:
        try:
            key = str(paths.run(run)), run
            if key not in _read:
                _read[key] = open_quality(paths, run)
            return _read[key]
        except ArtifactError as error:
            return str(error)


def with_pictures(searcher: Searcher, tags: tuple[TagQuality, ...]) -> list[tuple[TagQuality, tuple[Hit, ...]]]:
    """Pair tags with their first pictures."""
    asked = ((each, Question(query_for([each.tag]), limit=NUM_SHOWN)) for each in tags)
    return [(each, searcher.search(question).hits) for each, question in asked]


def quality_url() -> str:
    """Return the address of the default run's quality."""
    return url_for("pages.quality", run=runs_served()[0] or "served")
