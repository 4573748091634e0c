"""Shapes of what the API sends, as dataclasses: orjson writes them, and the OpenAPI document is made of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from serve.searchers.base import Clause, Hit, Near, ScoredTag, TagCount

Schemas = dict[str, dict[str, Any]]
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


@dataclass(frozen=True)
class Error:
    """What went wrong."""

    status: int
    code: str  # stable, for programs
    message: str  # one sentence, for people
    position: int | None  # of the character of `q` where it goes wrong, from 0; null for what is no error of a query


@dataclass(frozen=True)
class ErrorAnswer:
    """The one shape of every error."""

    error: Error


@dataclass(frozen=True)
class FoundImage(Hit):
    """One result, with the addresses of its picture and its page."""

    jpeg: str
    page: str


@dataclass(frozen=True)
class SearchAnswer:
    """A page of results: matches before guesses, best first."""

    run: str
    generation: str  # of the run's published index; all of an answer comes from one
    query: str  # as it is understood
    picture: str  # that was searched by, to be asked for again without sending it
    tags: tuple[TagCount, ...]
    clauses: tuple[Clause, ...]
    blame: str  # the clause that leaves no match
    unknown: tuple[Near, ...]
    num_matches: int
    num_shown: int
    num_guesses: int
    offset: int  # of the first hit
    hits: tuple[FoundImage, ...]
    licences: tuple[TagCount, ...]
    kinds: tuple[TagCount, ...]
    exact: bool
    voted: bool
    next: str | None  # cursor of the page that follows; null on the last


@dataclass(frozen=True)
class Suggestion(TagCount):
    """A tag that the last word may become, and the whole query it makes."""

    query: str


@dataclass(frozen=True)
class SuggestAnswer:
    """Completions of a half-typed query, most frequent first."""

    query: str
    suggestions: tuple[Suggestion, ...]


@dataclass(frozen=True)
class ImageAnswer:
    """All that is known of an image."""

    run: str
    generation: str
    image_id: str
    width: int
    height: int
    title: str
    tags: tuple[str, ...]
    author: str
    licence: str
    jpeg: str
    page: str
    record: dict[str, Any]
    predicted: tuple[ScoredTag, ...]  # tags the model would give it


@dataclass(frozen=True)
class TagsAnswer:
    """A page of the tags that begin with a prefix."""

    run: str
    generation: str
    num_tags: int
    offset: int
    tags: tuple[TagCount, ...]
    next: str | None


@dataclass(frozen=True)
class ServedRun:
    """A run that is served, and its generation in force."""

    run: str
    default: bool  # answers where no run is named
    generation: str
    num_images: int
    num_tags: int


@dataclass(frozen=True)
class RunsAnswer:
    """The runs that are served."""

    runs: tuple[ServedRun, ...]


@dataclass(frozen=True)
class RunAnswer(ServedRun):
    """A run with how it was trained and how well it ranks."""

    config: dict[str, Any]
    facts: dict[str, Any]
    figures: dict[str, Any] | None  # metrics.json of its evaluation on test; null where it was not evaluated


@dataclass(frozen=True)
class Move:
    """Where one image stands in two rankings, from 1; null where it is not among the images compared."""

    image_id: str
    left: int | None
    right: int | None


@dataclass(frozen=True)
class Side:
    """What one run answers, and the milliseconds it took."""

    answer: SearchAnswer
    latency_ms: float


@dataclass(frozen=True)
class CompareAnswer:
    """The same question on two runs."""

    sides: tuple[Side, ...]
    shared: int  # images that both show
    overlap: float  # of the longer of the two lists, in [0, 1]
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class GradedImage:
    """An image judged for a topic: the mean grade of its raters, rounded, and each one's last word."""

    topic: str
    question: str
    image_id: str
    grade: int
    mean: float
    raters: int
    judgements: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Tally:
    """Blind votes on two runs: the share that the first won, its exact 95 % interval, and who is better."""

    first: str
    second: str
    first_wins: int
    second_wins: int
    ties: int
    share: float | None
    low: float
    high: float
    winner: str
    verdict: str


@dataclass(frozen=True)
class JudgementsAnswer:
    """All that people said."""

    judgements: tuple[GradedImage, ...]
    votes: tuple[Tally, ...]


@dataclass(frozen=True)
class Kept:
    """What was kept of a judgement."""

    topic: str
    grade: int | None


@dataclass(frozen=True)
class Voted:
    """What was kept of a vote, with the runs that were left and right."""

    left: str
    right: str
    winner: str


@dataclass(frozen=True)
class Health:
    """The server answers."""

    status: Literal["ok"]


@dataclass(frozen=True)
class Ready:
    """Every run has a generation that answers."""

    status: Literal["ready"]
    runs: tuple[ServedRun, ...]


def schema_of(shape: Any, schemas: Schemas) -> dict[str, Any]:
    """Return the JSON Schema of a type; those of dataclasses go into `schemas` and are referred to.

    Raises:
        TypeError: a type that no shape may have.
    """
    origin, arguments = get_origin(shape), get_args(shape)
    if is_dataclass(shape) and isinstance(shape, type):
        return _of_dataclass(shape, schemas)
    if shape in PLAIN:
        return {"type": PLAIN[shape]}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin in (Union, UnionType):
        return {"anyOf": [schema_of(each, schemas) for each in arguments]}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": schema_of(arguments[0], schemas)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": schema_of(arguments[1], schemas)}
    if shape is Any:
        return {}
    raise TypeError(f"{shape!r} is no shape of the API")


def _of_dataclass(shape: type, schemas: Schemas) -> dict[str, Any]:
    name = shape.__name__
    if name not in schemas:
        schemas[name] = {}  # known before its fields, which may refer to it
        hints = get_type_hints(shape)
        properties = {each.name: schema_of(hints[each.name], schemas) for each in fields(shape)}
        schemas[name] = {
            "type": "object",
            "description": (shape.__doc__ or "").strip().split("\n\n")[0],
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    return {"$ref": f"#/components/schemas/{name}"}
