"""A blueprint of the API: one decorator routes an operation, checks its parameters and writes its documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

import marshmallow as ma
from flask import Response, abort
from flask_smorest import Blueprint
from webargs import ValidationError
from webargs.flaskparser import FlaskParser

from serve.api.parameters import Parameter, refuse_others

View = Callable[..., Response]


@dataclass(frozen=True)
class Sent:
    """What a request sends in its body: JSON of a schema, or a picture's bytes where there is none."""

    about: str
    schema: type[ma.Schema] | None = None
    types: tuple[str, ...] = ("application/json",)


class BodyParser(FlaskParser):
    """Reads a body as its schema says; 400 with the first thing that does not fit."""

    DEFAULT_VALIDATION_STATUS = 400

    def handle_error(self, error: ValidationError, *_: Any, **__: Any) -> NoReturn:
        """Answer 400."""
        field, told = _first(error.messages)
        abort(400, f"{field}: {told}" if field else told)


def _first(messages: Any, field: str = "") -> tuple[str, str]:
    while not isinstance(messages, str):
        if isinstance(messages, dict):
            name, messages = next(iter(messages.items()))
            field = field if name in ("json", "_schema") else f"{field}.{name}".lstrip(".")
        else:
            messages = messages[0]
    return field, messages


class Resource(Blueprint):  # type: ignore[misc] # flask-smorest has no types
    """Operations on one thing; `shapes` collects what they answer."""

    ARGUMENTS_PARSER = BodyParser()

    def __init__(self, name: str, import_name: str, description: str) -> None:
        super().__init__(name, import_name, description=description)
        self.shapes: list[type] = []

    def offers(
        self,
        rule: str,
        answer: type,
        *parameters: Parameter[Any],
        sent: Sent | None = None,
        errors: dict[int, str] | None = None,
        also: str = "",
    ) -> Callable[[View], View]:
        """Route GET, or POST where something is sent, to a view that answers JSON of a shape.

        Args:
            rule: below the prefix of the API.
            answer: the shape; `str` for plain text.
            parameters: that the address may have; others are refused.
            sent: the body; that of a schema is the view's argument.
            errors: what may go wrong beside what always may, by status.
            also: another type of content that the view may answer.
        """
        if answer is not str:
            self.shapes.append(answer)
        method, status = ("POST", 201) if sent and sent.schema else ("POST" if sent else "GET", 200)

        def decorate(view: View) -> View:
            @wraps(view)
            def checked(*arguments: object, **values: object) -> Response:
                refuse_others(*parameters)
                return view(*arguments, **values)

            offered = self.arguments(sent.schema, description=sent.about)(checked) if sent and sent.schema else checked
            plain = answer is str
            schema = {"type": "string"} if plain else answer.__name__
            offered = self.response(status, schema, content_type="text/plain" if plain else None)(offered)
            if also:
                offered = self.alt_response(status, schema={"type": "string"}, content_type=also)(offered)
            for code, about in (errors or {}).items():
                offered = self.alt_response(code, schema="ErrorAnswer", description=about)(offered)
            told: dict[str, Any] = {"parameters": [each.document for each in parameters]}
            if sent and sent.schema is None:
                told["requestBody"] = _picture_body(sent)
            self.route(rule, methods=[method])(self.doc(**told)(offered))
            return view

        return decorate


def _picture_body(sent: Sent) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"}
    content = {each: {"schema": schema} for each in sent.types}
    return {"required": True, "description": sent.about, "content": content}
