"""One shape for every error: an object for programs, a page for people; neither shows what is inside."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from flask import Flask, render_template, request
from werkzeug.exceptions import BadRequest, HTTPException, NotFound, UnprocessableEntity
from werkzeug.wrappers import Response

from serve.api.shapes import Error, ErrorAnswer
from serve.query import QueryError
from serve.searchers.base import NoSuchImage

JSON_PATHS = ("/api/", "/health", "/ready", "/metrics")

# The headline of the page, and the message where the view gave none of its own.
WORDS = {
    400: ("That request does not add up", "Part of the address has a value that does not fit."),
    403: ("Not from there", "This may only be sent from a page of this site."),
    404: (
        "Nothing here",
        "This address leads to no page. It may be mistyped, or what it showed may be gone.",
    ),
    405: ("This address only shows things", "It answers GET requests and cannot be written to."),
    410: ("This list is gone", "What it showed was published anew; search again."),
    413: ("That is too large", "What was sent is larger than this address takes."),
    415: ("That is no JSON", "This address takes application/json."),
    500: ("Something broke on our side", "The search could not be finished. Trying again in a moment may help."),
    503: ("Too much at once", "Try again in a few seconds."),
}


def error_message(error: HTTPException) -> str:
    """Return the sentence a view gave, else ours for the status, never the library's."""
    given = error.description
    if given and given != type(error).description:
        return given
    return WORDS[error.code][1] if error.code in WORDS else error.name


def code_of(status: int) -> str:
    """Return the stable word of a status, such as `not_found`."""
    return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")


def error_response(error: HTTPException, code: str = "", position: int | None = None) -> Response:
    """Show an error as JSON under /api/ and as a page elsewhere, keeping headers such as Allow."""
    status = error.code or 500
    message = error_message(error)
    response = error.get_response()
    if request.path.startswith(JSON_PATHS):
        response.content_type = "application/json"
        response.set_data(orjson.dumps(ErrorAnswer(Error(status, code or code_of(status), message, position))))
    else:
        headline = WORDS[status][0] if status in WORDS else error.name
        response.content_type = "text/html; charset=utf-8"
        response.set_data(render_template("error.html", status=status, headline=headline, message=message))
    response.headers["Cache-Control"] = "no-store"
    return response


class RefusedPicture(UnprocessableEntity):
    """A picture that the gate refuses, with its reason as the error's code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def query_error(error: QueryError) -> Response:
    """Show a text that is no query as a bad request that says where it goes wrong; an image not there is a 404."""
    if isinstance(error, NoSuchImage):
        return error_response(NotFound(str(error)))
    return error_response(BadRequest(str(error)), "bad_query", error.position)


def register_errors(app: Flask) -> None:
    """Send every error of the app, expected or not, through `error_response`."""
    app.register_error_handler(HTTPException, error_response)
    app.register_error_handler(QueryError, query_error)
    app.register_error_handler(RefusedPicture, lambda error: error_response(error, error.reason))
