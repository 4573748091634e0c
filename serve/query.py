"""The query language: text to a tree and back, and what completes a half-typed text.

`dog beach` both, `dog OR cat` either, `-car` without, `(dog OR cat) -car` brackets, `"traffic light"` a phrase, `bird*`
any tag that begins so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedInput

from crawl.tags import normalise_tag

MAX_CHARS = 1000
MAX_DEPTH = 20  # of brackets
MAX_PARTS = 64  # words, phrases and prefixes
MAX_PHRASE_WORDS = 5

# Phones turn quotes, and keyboards of East Asia write wide marks; of these `normalise_tag` leaves but 、 in a tag.
_QUOTES, _COMMAS, _OPEN, _CLOSE, _BARS = '"＂“”„‟', ",，、،", "(（", ")）", "|｜"  # noqa: RUF001
_SPECIAL = _QUOTES + _COMMAS + _OPEN + _CLOSE + _BARS
_END = rf"(?=[\s{_SPECIAL}]|\Z)"
_GRAMMAR = rf"""
start: either
either: every (OR every)*
every: (WORD | PHRASE | bracketed | negated | COMMA)*
bracketed: OPEN either CLOSE
negated: MINUS (WORD | PHRASE | bracketed | negated)
OPEN: /[{_OPEN}]/
CLOSE: /[{_CLOSE}]/
PHRASE: /["＂](?:[^"]|"")*"\*?|["＂](?:[^"]|"")*\Z|[“”„‟][^"＂“”„‟]*["＂“”„‟]\*?|[“”„‟][^"＂“”„‟]*\Z/
OR.3: /[{_BARS}]|OR{_END}/
COMMA.3: /[{_COMMAS}]|-+(?=[\s{_COMMAS}{_CLOSE}{_BARS}]|\Z)|AND{_END}/
MINUS.2: /-|NOT(?=\s+\S)/
WORD: /[^\s{_SPECIAL}]+/
%ignore /\s+/
"""  # noqa: RUF001


class QueryError(ValueError):
    """A text is no query: a sentence for people, and the character (from 0) where it goes wrong."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Tag:
    """Pictures that carry a tag, by its normalised name."""

    name: str


@dataclass(frozen=True)
class Prefix:
    """Pictures that carry any tag that begins so."""

    stem: str


@dataclass(frozen=True)
class Not:
    """Pictures that a part does not hold."""

    part: Node


@dataclass(frozen=True)
class And:
    """Pictures that every part holds: two or more different ones, none of them an And; all pictures without parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Or:
    """Pictures that any part holds: two or more different ones, none of them an Or."""

    parts: tuple[Node, ...]


Node = Tag | Prefix | Not | And | Or
EVERYTHING = And(())  # of an empty query


@dataclass(frozen=True)
class _Words:
    """Words with nothing but blanks between them, which may spell tags together."""

    words: tuple[str, ...]


def all_of(parts: Iterable[Node]) -> Node:
    """Return the And of parts, flat and each once."""
    found: Node = _joined(And, parts)
    return found


def any_of(parts: Iterable[Node]) -> Node:
    """Return the Or of parts, flat and each once; EVERYTHING where there are none."""
    found: Node = _joined(Or, parts)
    return found


def _joined(kind: type[And] | type[Or], parts: Iterable[Any]) -> Any:
    flat = [each for part in parts for each in (part.parts if isinstance(part, kind) else (part,))]
    distinct = tuple(dict.fromkeys(each for each in flat if each != EVERYTHING))
    return distinct[0] if len(distinct) == 1 else kind(distinct) if distinct else EVERYTHING


def none_of(part: Node) -> Node:
    """Return what a part does not hold; nothing said stays nothing said."""
    return part.part if isinstance(part, Not) else part if part == EVERYTHING else Not(part)


class _Builder(Transformer[Token, Any]):
    """Builds the tree while the text is parsed, without recursion."""

    def start(self, children: list[Any]) -> Any:
        return children[0]

    def either(self, children: list[Any]) -> Any:
        return _joined(Or, (each for each in children if not isinstance(each, Token)))

    def every(self, children: list[Any]) -> Any:
        parts: list[Any] = []
        for child in children:
            if not isinstance(child, Token):
                parts.append(child)
            elif child.type != "WORD" or "*" in child:
                parts.append(_leaf(child) if child.type != "COMMA" else EVERYTHING)
            elif parts and isinstance(parts[-1], _Words):
                parts[-1] = _Words((*parts[-1].words, *normalise_tag(child).split()))
            else:
                parts.append(_Words(tuple(normalise_tag(child).split())))
        return _joined(And, (part for part in parts if part != _Words(())))

    def bracketed(self, children: list[Any]) -> Any:
        return children[1]

    def negated(self, children: list[Any]) -> Any:
        part = children[1]
        return none_of(_leaf(part) if isinstance(part, Token) else part)


def _leaf(token: Token) -> Any:
    """Read a phrase, a prefix or a word on its own; EVERYTHING where nothing is left of it."""
    text = str(token)
    starred = text.endswith("*")
    if token.type == "PHRASE":
        inner = text[1:-1] if starred else text[1:]
        closed = bool(inner) and inner[-1] in _QUOTES
        starred = starred and closed
        text = (inner[:-1] if closed else text[1:]).replace('""', '"')
    elif starred:
        text = text[:-1]
    name = normalise_tag(text)
    if (starred and not name) or (token.type == "WORD" and "*" in text):
        at = (token.start_pos or 0) + str(token).index("*")
        raise QueryError(
            f"The star at character {at + 1} must end a word, as in bird*; in quotes it is a character like others", at
        )
    if not name:
        return EVERYTHING
    return Prefix(name) if starred else Tag(name)


_PARSER = Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=_Builder())


def parse(text: str, is_tag: Callable[[str], bool]) -> Node:
    """Read a query; EVERYTHING where it says nothing.

    Blanks and commas stand for AND, `OR` and `|` bind looser, `-` holds for the next word, phrase or bracket. Words
    with nothing but blanks between them are joined to the longest tag they spell from left to right, so
    `traffic light dog` finds *traffic light* and *dog* where both are tags; a comma keeps words apart. In quotes a
    quotation mark is written twice; a phrase that is not closed ends with the text. `OR` with nothing on one side is
    let pass, as one types it.

    Raises:
        QueryError: brackets do not match, a star or a minus stands alone, or the text is too long or deep.
    """
    node: Node = _resolved(_syntax(text), is_tag)
    return node


@lru_cache(maxsize=4096)
def _syntax(text: str) -> Any:
    if len(text) > MAX_CHARS:
        raise QueryError(f"A query has at most {MAX_CHARS} characters, this one has {len(text)}", MAX_CHARS)
    try:
        _check(list(_PARSER.lex(text)))
        return _PARSER.parse(text)
    except UnexpectedInput as error:
        at = error.pos_in_stream if isinstance(error.pos_in_stream, int) and error.pos_in_stream >= 0 else len(text)
        raise QueryError(f"Something to leave out is missing before character {at + 1}, as in -car", at) from None


def _check(tokens: list[Token]) -> None:
    """Refuse brackets that do not match, and what is too deep or too much."""
    opened: list[int] = []
    parts = 0
    for token in tokens:
        at = token.start_pos or 0
        parts += token.type in ("WORD", "PHRASE")
        if token.type == "OPEN":
            opened.append(at)
        elif token.type == "CLOSE" and not opened:
            raise QueryError(f"The bracket at character {at + 1} closes none that was opened", at)
        elif token.type == "CLOSE":
            opened.pop()
        if len(opened) > MAX_DEPTH:
            raise QueryError(f"Brackets may lie {MAX_DEPTH} deep, that at character {at + 1} lies deeper", at)
        if parts > MAX_PARTS:
            raise QueryError(f"A query has at most {MAX_PARTS} words; character {at + 1} begins one more", at)
    if opened:
        raise QueryError(f"The bracket at character {opened[-1] + 1} is not closed", opened[-1])


def _resolved(node: Any, is_tag: Callable[[str], bool]) -> Any:
    if isinstance(node, _Words):
        return all_of(map(Tag, _longest_tags(node.words, is_tag)))
    if isinstance(node, Not):
        return none_of(_resolved(node.part, is_tag))
    if isinstance(node, And | Or):
        return _joined(type(node), (_resolved(part, is_tag) for part in node.parts))
    return node


def _longest_tags(words: tuple[str, ...], is_tag: Callable[[str], bool]) -> list[str]:
    found = []
    start = 0
    while start < len(words):
        lengths = range(min(MAX_PHRASE_WORDS, len(words) - start), 1, -1)
        length = next((n for n in lengths if is_tag(" ".join(words[start : start + n]))), 1)
        found.append(" ".join(words[start : start + length]))
        start += length
    return found


def write(node: Node) -> str:
    """Write a tree as a query, the inverse of `parse` whatever the tags are.

    What holds a blank or a mark stands in quotes, a quote inside written twice, as in CSV: `5" disk` becomes
    `"5"" disk"`. A comma stands between two words without quotes, which might together spell a third tag.
    """
    if isinstance(node, Tag):
        return _quoted(node.name)
    if isinstance(node, Prefix):
        return _quoted(node.stem) + "*"
    if isinstance(node, Not):
        return "-" + _bracketed(node.part)
    if isinstance(node, Or):
        return " OR ".join(map(_bracketed, node.parts))
    text, bare = "", False
    for part in node.parts:
        written = _bracketed(part)
        joins = isinstance(part, Tag) and not written.startswith('"')
        text += ("" if not text else ", " if bare and joins else " ") + written
        bare = joins
    return text


def _bracketed(node: Node) -> str:
    return f"({write(node)})" if isinstance(node, And | Or) else write(node)


def _quoted(name: str) -> str:
    plain = not set(name) & {*_SPECIAL, " ", "*"} and not name.startswith("-")
    return name if plain else '"' + name.replace('"', '""') + '"'


def query_for(tags: Iterable[str]) -> str:
    """Write tags as a query for the pictures that carry all of them."""
    return write(all_of(map(Tag, tags)))


def tags_of(node: Node, wanted: bool = True) -> tuple[str, ...]:
    """Return the tags that a hit must or may carry, each once in the order written; `wanted=False`: must not."""
    return tuple(dict.fromkeys(_tags(node, wanted)))


def _tags(node: Node, wanted: bool) -> Iterable[str]:
    if isinstance(node, Tag):
        return (node.name,) if wanted else ()
    if isinstance(node, Not):
        return _tags(node.part, not wanted)
    if isinstance(node, And | Or):
        return (name for part in node.parts for name in _tags(part, wanted))
    return ()


def start_of_last_tag(text: str) -> int:
    """Return where the tag being typed begins; the end of the text where it stops between tags.

    Quotes are counted rather than parsed: a doubled quote closes and opens again at once.
    """
    start, quoted = 0, False
    for position, char in enumerate(text):
        if char in _QUOTES:
            quoted = not quoted
        elif not quoted and (char.isspace() or char in _SPECIAL or (char == "-" and position == start)):
            start = position + 1
    return start


def completed(text: str, tag: str) -> str:
    """Return a half-typed query with its last tag replaced by `tag`."""
    return text[: start_of_last_tag(text)] + query_for([tag])


def split_typed(text: str) -> tuple[str, str]:
    """Split a half-typed query into what is settled and the normalised beginning of the tag being typed."""
    start = start_of_last_tag(text)
    if re.fullmatch("OR|AND|NOT", text[start:]):
        return text, ""
    return text[:start], normalise_tag(text[start:].lstrip(_QUOTES).rstrip("*").replace('""', '"'))
