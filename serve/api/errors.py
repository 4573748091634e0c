"""One shape for every error: an object for programs, a page for people; neither shows what is inside."""

from __future__ import annotations

import json

from flask import Flask, render_template, request
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.wrappers import Response

from serve.query import QueryError

JSON_PATHS = ("/api/", "/health")

# The headline of the page, and the message where the view gave none of its own.
WORDS = {
    400: ("That request does not add up", "Part of the address has a value that does not fit."),
    404: (
        "Nothing here",
        "This address leads to no page. It may be mistyped, or what it showed may be gone.",
    ),
    405: ("This address only shows things", "It answers GET requests and cannot be written to."),
    500: ("Something broke on our side", "The search could not be finished. Trying again in a moment may help."),
}


def error_message(error: HTTPException) -> str:
    """Return the sentence a view gave, else ours for the status, never the library's."""
    given = error.description
    if given and given != type(error).description:
        return given
    return WORDS[error.code][1] if error.code in WORDS else error.name


def error_response(error: HTTPException) -> Response:
    """Show an error as JSON under /api/ and as a page elsewhere, keeping headers such as Allow."""
    status = error.code or 500
    message = error_message(error)
    response = error.get_response()
    if request.path.startswith(JSON_PATHS):
        response.content_type = "application/json"
        response.set_data(json.dumps({"error": {"status": status, "message": message}}))
    else:
        headline = WORDS[status][0] if status in WORDS else error.name
        response.content_type = "text/html; charset=utf-8"
        response.set_data(render_template("error.html", status=status, headline=headline, message=message))
    return response


def register_errors(app: Flask) -> None:
    """Send every error of the app, expected or not, through `error_response`."""
    app.register_error_handler(HTTPException, error_response)
    app.register_error_handler(QueryError, lambda error: error_response(BadRequest(str(error))))
