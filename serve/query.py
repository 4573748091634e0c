"""The query language: tags side by side mean AND, quotes hold a phrase together; and its inverse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crawl.tags import normalise_tag

MAX_PHRASE_WORDS = 5
_TOKEN = re.compile(r'"((?:[^"]|"")*)"?|([^\s",]+)|,')


class QueryError(ValueError):
    """A text is no query: a sentence for people, and the character (from 0) where it goes wrong."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Query:
    """The tags of a query in the order written, each once; `unknown` ones are no tags of the index."""

    words: tuple[str, ...]
    unknown: tuple[str, ...]


def parse(text: str, is_tag: Callable[[str], bool]) -> Query:
    """Split a query into tags; never raises.

    Blanks and commas stand between tags. Words with nothing but blanks between them are joined to the longest tag
    they spell from left to right, so `traffic light dog` finds *traffic light* and *dog* where both are tags; a comma
    keeps words apart. In quotes a quotation mark is written twice; one that is not closed ends with the text.
    """
    words: list[str] = []
    bare: list[str] = []
    for match in _TOKEN.finditer(text):
        phrase, word = match.groups()
        if word is not None:
            bare += normalise_tag(word).split()
        else:
            words += _longest_tags(bare, is_tag)
            bare = []
            words.append(normalise_tag((phrase or "").replace('""', '"')))
    words += _longest_tags(bare, is_tag)
    distinct = tuple(dict.fromkeys(word for word in words if word))
    return Query(distinct, tuple(word for word in distinct if not is_tag(word)))


def _longest_tags(bare: list[str], is_tag: Callable[[str], bool]) -> list[str]:
    found = []
    start = 0
    while start < len(bare):
        lengths = range(min(MAX_PHRASE_WORDS, len(bare) - start), 1, -1)
        length = next((n for n in lengths if is_tag(" ".join(bare[start : start + n]))), 1)
        found.append(" ".join(bare[start : start + length]))
        start += length
    return found


def query_for(tags: Iterable[str]) -> str:
    """Write tags as one query, the inverse of `parse`: a tag that holds a blank, comma or quote stands in quotes.

    A quote inside is written twice, as in CSV: `5" disk` becomes `"5"" disk"`. A comma stands between two tags
    without quotes, which might together spell a third one.
    """
    text, quoted = "", True
    for tag in tags:
        between = "" if not text else " " if quoted or _needs_quotes(tag) else ", "
        quoted = _needs_quotes(tag)
        text += between + ('"' + tag.replace('"', '""') + '"' if quoted else tag)
    return text


def _needs_quotes(tag: str) -> bool:
    return bool(set(tag) & set(' ,"'))


def start_of_last_tag(text: str) -> int:
    """Return where the tag being typed begins; the end of the text where it stops between tags.

    Quotes are counted rather than parsed: a doubled quote closes and opens again at once.
    """
    start, quoted = 0, False
    for position, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif (char.isspace() or char == ",") and not quoted:
            start = position + 1
    return start


def completed(text: str, tag: str) -> str:
    """Return a half-typed query with its last tag replaced by `tag`."""
    return text[: start_of_last_tag(text)] + query_for([tag])


def split_typed(text: str) -> tuple[str, str]:
    """Split a half-typed query into what is settled and the normalised beginning of the tag being typed."""
    start = start_of_last_tag(text)
    return text[:start], normalise_tag(text[start:].lstrip('"').replace('""', '"'))
