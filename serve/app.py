"""The app: the pages and the JSON interface around the searchers of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Flask, Response

from configs.compose import Paths
from serve import pages
from serve.api.documents import register_api
from serve.api.errors import register_errors
from serve.api.request_values import MAX_BODY_BYTES, MAX_QUERY_CHARS, GetSearcher
from serve.encoders import Encoders
from serve.metrics import register_metrics
from serve.pages import shown
from serve.pages.asked import Asked, replaced, search_url
from serve.pages.quality import quality_url
from serve.pages.search import heading_of
from serve.pages.why import Explanations
from serve.query import query_for
from serve.rater import remember
from serve.searchers.base import Question
from serve.thumbnails import Thumbnails

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def secure(response: Response) -> Response:
    """Set the headers that keep foreign text harmless even if it escaped once."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def create_app(searchers: Mapping[str, GetSearcher] | GetSearcher, paths: Paths | None = None) -> Flask:
    """Build the app.

    Args:
        searchers: by run, the first of them the default, or the one there is; each is asked once a request for the
            generation in force.
        paths: where runs and their evaluations lie, and where judgements go.
    """
    app = Flask(__name__)
    app.extensions["searchers"] = dict(searchers) if isinstance(searchers, Mapping) else {"": searchers}
    app.extensions["paths"] = paths or Paths()
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.extensions["thumbnails"] = Thumbnails()
    app.extensions["explanations"] = Explanations()
    app.extensions["encoders"] = Encoders(app.extensions["paths"])
    app.register_blueprint(pages.bp)
    register_api(app)
    prepare_templates(app)
    app.after_request(remember)
    app.after_request(secure)
    register_errors(app)
    register_metrics(app)
    return app


def prepare_templates(app: Flask) -> None:
    """Give templates what they call."""
    functions = (
        shown.plural,
        shown.percent,
        shown.ratio_class,
        shown.sizes,
        shown.srcset,
        shown.thumbnail_url,
        shown.runs_served,
        heading_of,
        quality_url,
        replaced,
        search_url,
    )
    app.jinja_env.globals.update({each.__name__: each for each in functions})
    app.jinja_env.globals.update(
        max_query_chars=MAX_QUERY_CHARS, nothing_asked=Asked(Question()), search_query=query_for
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
