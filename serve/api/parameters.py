"""Parameters of an address, each declared once: how it is read, and how the OpenAPI document tells of it.

Marshmallow, which flask-smorest would read them with, takes half a millisecond for those of a search; this takes a
few microseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flask import abort, request

T = TypeVar("T")


@dataclass(frozen=True)
class Parameter(Generic[T]):
    """One parameter: `parse` turns its text into a value, or raises ValueError with what was expected."""

    name: str
    about: str
    schema: dict[str, Any]  # JSON Schema of one value
    parse: Callable[[str], T]
    default: T
    example: str = ""
    required: bool = False

    def read(self) -> T:
        """Return the value of this request, or the default where none is given; 400 where it does not fit."""
        text = request.args.get(self.name)
        return self.default if text is None else self._parsed(text)

    def _parsed(self, text: str) -> T:
        try:
            return self.parse(text)
        except ValueError as error:
            abort(400, f"{self.name} must be {error}, got {text[:40]!r}")

    @property
    def document(self) -> dict[str, Any]:
        """Return this parameter as the OpenAPI document has it."""
        default = {} if self.default in (None, "", ()) else {"default": self.default}
        example = {"example": self.example} if self.example else {}
        schema = {**self.schema, **default}
        required = {"required": True} if self.required else {}
        return {"name": self.name, "in": "query", "description": self.about, "schema": schema, **required, **example}


@dataclass(frozen=True)
class Several(Parameter[tuple[str, ...]]):
    """A parameter that may be given several times."""

    most: int = 50

    def read(self) -> tuple[str, ...]:
        """Return all values, each once; 400 where there are too many or one does not fit."""
        texts = request.args.getlist(self.name)
        if len(texts) > self.most:
            abort(400, f"{self.name} may be given {self.most} times, got {len(texts)}")
        return tuple(dict.fromkeys(value for text in texts for value in self._parsed(text)))

    @property
    def document(self) -> dict[str, Any]:
        """Return this parameter as the OpenAPI document has it."""
        several = {"type": "array", "items": self.schema, "maxItems": self.most}
        return {**super().document, "schema": several, "style": "form", "explode": True}


def text(name: str, about: str, max_chars: int, pattern: str = "", **schema: str) -> Parameter[str]:
    """Declare a text, of a form where a pattern is given; without one it may be empty."""

    def parse(value: str) -> str:
        if len(value) > max_chars:
            raise ValueError(f"at most {max_chars} characters")
        if pattern and not re.fullmatch(pattern, value):
            raise ValueError(f"of the form {pattern}")
        return value

    example = schema.pop("example", "")
    form = {"pattern": f"^{pattern}$"} if pattern else {}
    return Parameter(name, about, {"type": "string", "maxLength": max_chars, **form, **schema}, parse, "", example)


def whole(name: str, about: str, default: int, low: int, high: int) -> Parameter[int]:
    """Declare a whole number within bounds."""

    def parse(value: str) -> int:
        # int() would also take underscores and the digits of other scripts
        if not re.fullmatch("[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number in {low}..{high}")
        return int(value)

    return Parameter(name, about, {"type": "integer", "minimum": low, "maximum": high}, parse, default)


def share(name: str, about: str) -> Parameter[float]:
    """Declare a number in [0, 1]."""

    def parse(value: str) -> float:
        number = float(value) if re.fullmatch(r"-?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?", value) else math.nan
        if not 0 <= number <= 1:
            raise ValueError("a number in 0..1")
        return number

    return Parameter(name, about, {"type": "number", "minimum": 0, "maximum": 1}, parse, 0.0)


def choice(name: str, about: str, choices: Iterable[str]) -> Parameter[str]:
    """Declare one of a few words, of which the first is the default."""
    known = list(choices)

    def parse(value: str) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return value

    return Parameter(name, about, {"type": "string", "enum": known}, parse, known[0])


def several(name: str, about: str, max_chars: int) -> Several:
    """Declare texts of which any may be given."""

    def parse(value: str) -> tuple[str, ...]:
        if not 1 <= len(value) <= max_chars:
            raise ValueError(f"of 1 to {max_chars} characters")
        return (value,)

    return Several(name, about, {"type": "string", "minLength": 1, "maxLength": max_chars}, parse, ())


def documents(*parameters: Parameter[Any]) -> dict[str, Any]:
    """Return what `Blueprint.doc` takes for these parameters."""
    return {"parameters": [parameter.document for parameter in parameters]}


def refuse_others(*parameters: Parameter[Any]) -> None:
    """Answer 400 where the address has a parameter that is none of these: a typing error would go unnoticed."""
    names = [parameter.name for parameter in parameters]
    if unknown := sorted(request.args.keys() - set(names)):
        abort(400, f"no parameter {', '.join(unknown)[:80]!r} here; there are {', '.join(names)}")
