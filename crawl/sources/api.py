"""What sources over documented APIs have in common: answers in JSON, keys that lie nowhere, licences to choose from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from configs.artifacts import ArtifactError
from crawl.fetch.faults import Fault
from crawl.fetch.found import API, About, Answer, Entry, Finder, Link, Picture
from crawl.fetch.urls import BadUrl, canonical
from crawl.source_config import ApiSource
from crawl.sources.item import as_json, clean_text
from crawl.sources.licences import licence_code
from crawl.sources.page import parse_html, text_of

_NOTE = "_"  # begins names of parameters that are for ourselves: they lie in the state and are never sent
_SAID_CHARS = 200  # of what an API says of a failure
_BREAKS = ("br", "p", "div", "li", "td", "th", "dd", "dt")


class Api(Finder):
    """A source that asks an API.

    Args:
        config: of the source.
        base: address of the API, checked here.
        secret: a key or token, kept out of everything that is written; empty: none.

    Raises:
        ArtifactError: the address is none.
    """

    def __init__(self, config: ApiSource, base: str, secret: str = "") -> None:
        try:
            self.base = canonical(base).partition("?")[0]
        except BadUrl as bad:
            raise ArtifactError(f"the address of the API cannot be asked for: {bad.url} ({bad.reason})") from None
        self.licences = frozenset(config.licences)
        self.grouped = config.group == "author"
        self.secret = secret

    def entries(self, start: int) -> Iterator[Entry]:
        """Yield the queries to begin with."""
        return islice((Link(url, API) for url in self.queries()), start, None)

    def queries(self) -> Iterator[str]:
        """Yield the addresses of the first queries."""
        raise NotImplementedError

    def address(self, parameters: Mapping[str, object], **notes: object) -> str:
        """Return the address of a query, with notes to ourselves for the reading of its answer."""
        return f"{self.base}?{urlencode({**parameters, **{_NOTE + name: value for name, value in notes.items()}})}"

    def asked_as(self, url: str) -> tuple[str, dict[str, str]]:
        """Return an address as it is sent: without our notes."""
        return self.address({name: value for name, value in parameters_of(url).items() if name[:1] != _NOTE}), {}

    def content(self, answer: Answer) -> dict[str, Any]:
        """Read the object that an answer holds, all its texts storable.

        Raises:
            Fault: bad_answer where there is none.
        """
        try:
            content = as_json(json.loads(answer.body))
        except (ValueError, RecursionError) as error:
            raise Fault("bad_answer", f"no JSON: {error}"[:_SAID_CHARS]) from None
        if not isinstance(content, dict):
            raise Fault("bad_answer", f"a JSON object was expected, found a {type(content).__name__}")
        return content

    def complaint(self, answer: Answer) -> str:
        """Return what an API says of a failure, as each of ours says it."""
        try:
            content = self.content(answer)
        except Fault:
            return ""
        told = content.get("detail") or content.get("message") or member(content, "error", "info") or ""
        return self.said(told if isinstance(told, str) else json.dumps(told, ensure_ascii=False))

    def said(self, *texts: object) -> str:
        """Put together what an API says of a failure, without a key that it may repeat."""
        said = ": ".join(str(text) for text in texts if text)
        return (said.replace(self.secret, "<key>") if self.secret else said)[:_SAID_CHARS]

    def picture(self, url: str, page_url: str, licence: str, about: About) -> Picture | BadUrl:
        """Return a picture, or why it is not taken.

        Args:
            url: of the picture; empty: the API has none.
            page_url: of the page that shows it.
            licence: name, code or address, for the choice by licence.
            about: what is said of it.
        """
        if not url:
            return BadUrl("no_image", page_url)
        if self.licences and licence not in self.licences and licence_code(licence) not in self.licences:
            return BadUrl("licence", url)
        return Picture(url, about)

    def about(self, tags: Iterator[str], group: str, extra: Mapping[str, Any], **provenance: str) -> About:
        """Put together what is said of a picture; what is empty is left out."""
        provenance["group"] = group if self.grouped else ""
        given = {name: text for name, text in provenance.items() if text}
        kept = {name: value for name, value in extra.items() if value not in ("", None, [], {})}
        return About(tags=tuple(dict.fromkeys(filter(None, tags))), provenance=given, extra=kept)


def parameters_of(url: str) -> dict[str, str]:
    """Return the parameters of an address, our notes among them."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


def note_of(url: str, name: str) -> str:
    """Return a note that an address carries, empty where it carries none of this name."""
    return parameters_of(url).get(_NOTE + name, "")


def secret_of(variable: str) -> str:
    """Return a key from the environment, empty where there is none.

    Raises:
        ArtifactError: it cannot be a key.
    """
    secret = os.environ.get(variable, "").strip()
    if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise ArtifactError(
            f"the environment variable {variable} holds no key: one word of printable ASCII is expected"
        )
    return secret


def member(value: Any, *names: str) -> Any:
    """Follow names into nested objects; None where there is nothing, or something else."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list; nothing of what is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def number(value: Any) -> int:
    """Read a whole number that may come as a text; 0 where it is none."""
    try:
        return int(value) if isinstance(value, int | str) else 0
    except ValueError:
        return 0


def text(value: Any) -> str:
    """Return a text, or a number as one, blanks collapsed; nothing of anything else."""
    return " ".join(str(value).split()) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def plain_text(html: Any) -> str:
    """Return what a reader sees of a text with markup: author fields and descriptions hold links and hidden spans."""
    written = text(html)
    if "<" not in written and "&" not in written:
        return written
    root = parse_html(written)
    for hidden in root.xpath("//style | //script | //*[contains(translate(@style, ' ', ''), 'display:none')]"):
        hidden.drop_tree()
    for element in root.iter(*_BREAKS):
        element.tail = f" {element.tail or ''}"
        element.text = f" {element.text or ''}" if element.tag != "br" else element.text
    return clean_text(text_of(root))
