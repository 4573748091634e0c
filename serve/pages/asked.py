"""What the address of a page asks, and the addresses of neighbouring pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast, get_args

from flask import abort, request, url_for

from serve.api.request_values import number_argument, query_argument
from serve.query import query_for
from serve.searchers.base import Question, Sort

PAGE_SIZE = 40
MAX_CHOICES = 50  # licences or kinds of one filter


@dataclass(frozen=True)
class Asked:
    """A question with the page of its results; makes the addresses that lead on from it."""

    question: Question
    page: int = 1
    run: str = ""  # empty for the default one

    @property
    def parameters(self) -> dict[str, Any]:
        """Return all that the address says, without what is as usual."""
        asked = self.question
        every = {
            "q": asked.text,
            "like": asked.like,
            "picture": asked.picture,
            "sort": asked.sort if asked.sort != "score" else "",
            "cutoff": f"{asked.cutoff:g}" if asked.cutoff else "",
            "licence": list(asked.licences),
            "kind": list(asked.kinds),
            "run": self.run,
            "page": self.page if self.page > 1 else "",
        }
        return {name: value for name, value in every.items() if value}

    def url(self, **changes: Any) -> str:
        """Return the address of the same search with some parameters changed; page 1 if not said."""
        parameters = {**self.parameters, "page": "", **changes}
        return url_for("pages.search_page", **{name: value for name, value in parameters.items() if value})

    def image_url(self, image_id: str, **more: Any) -> str:
        """Return the address of a picture's page, which keeps the way back."""
        return url_for("pages.image", image_id=image_id, **self.parameters, **more)

    @property
    def refined(self) -> bool:
        """Tell whether anything is set beside what is looked for."""
        asked = self.question
        return bool(asked.sort != "score" or asked.cutoff or asked.licences or asked.kinds)

    @property
    def empty(self) -> bool:
        """Tell whether nothing is looked for."""
        return not (self.question.text or self.question.like or self.question.picture)


def asked_argument() -> Asked:
    """Read a search from the address; 400 where a value does not fit."""
    page = number_argument("page", default=1, low=1)
    question = Question(
        text=query_argument(),
        like=request.args.get("like", "").strip()[:64],
        picture=request.args.get("picture", "").strip(),
        sort=cast(Sort, choice_argument("sort", get_args(Sort))),
        cutoff=share_argument("cutoff"),
        licences=several_argument("licence"),
        kinds=several_argument("kind"),
        offset=(page - 1) * PAGE_SIZE,
        limit=PAGE_SIZE,
    )
    return Asked(question, page, request.args.get("run", "").strip())


def choice_argument(name: str, choices: Iterable[str]) -> str:
    """Return one of a few words, the first where none is given; 400 for another."""
    known = list(choices)
    text = request.args.get(name, "").strip() or known[0]
    if text not in known:
        abort(400, f"{name} must be {' or '.join(known)}, got {text[:40]!r}")
    return text


def share_argument(name: str) -> float:
    """Return a share in 0..1, 0 where none is given; 400 for another value."""
    text = request.args.get(name, "").strip() or "0"
    if not re.fullmatch(r"[01]|0?\.[0-9]{1,4}|1\.0{1,4}", text):
        abort(400, f"{name} must be a share in 0..1 such as 0.75, got {text[:40]!r}")
    return float(text)


def several_argument(name: str) -> tuple[str, ...]:
    """Return all values of a parameter that may be given several times, each once."""
    values = tuple(dict.fromkeys(filter(None, request.args.getlist(name))))
    if len(values) > MAX_CHOICES or any(len(value) > 200 for value in values):
        abort(400, f"{name} may be given {MAX_CHOICES} times with at most 200 characters each")
    return values


def search_url(tags: Iterable[str]) -> str:
    """Return the address of the results for these tags together."""
    return url_for("pages.search_page", q=query_for(tags))


def replaced(query: str, word: str, tag: str) -> str:
    """Return a query with its unknown `word` replaced by `tag`, wherever it stands as a tag of its own."""
    written = query_for([word])
    pattern = rf"(?<![^\s,()\-]){re.escape(written)}(?![^\s,()])"
    new = query_for([tag])
    found = re.sub(pattern, lambda _: new, query, flags=re.IGNORECASE)
    return found if found != query else new
