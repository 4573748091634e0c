"""One normalisation of tags for index and queries alike, and the relations between tags."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from configs.artifacts import ArtifactError

TAG_RULES = "1"  # version of `normalise_tag`: tag rules are a space that must match
MAX_TAG_CHARS = 100
_MAX_CHARS_READ = 1000  # ordering combining marks costs the square of their number
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs"})
RELATIONS = ("alias", "broader", "plural")


def normalise_tag(text: str) -> str:
    """Return the one spelling under which a tag is indexed and searched; idempotent.

    One pass: `_` and blanks of any kind become a blank; control, format and private characters and lone surrogates
    go (general categories Cc, Cf, Co, Cs; unassigned ones stay, because which these are depends on the version of
    Python); NFKC, casefold, NFKC; blanks collapsed to one and trimmed; cut to 100 characters.
    Passes repeat until nothing changes, because folding one character can bring out another that folds again.
    A hyphen stays. What is left may be empty. Of a longer text the first 1,000 characters count.
    """
    text = text[:_MAX_CHARS_READ]
    while (folded := _fold(text)) != text:
        text = folded
    return text


def _fold(text: str) -> str:
    spaced = (" " if char == "_" or char.isspace() else char for char in text)
    visible = "".join(char for char in spaced if unicodedata.category(char) not in _INVISIBLE)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return " ".join(folded.split())[:MAX_TAG_CHARS].rstrip()


def normalise_tags(tags: Iterable[str]) -> list[str]:
    """Normalise the tags of one image: empty ones dropped, doubles united, ascending."""
    return sorted({normalised for tag in tags if (normalised := normalise_tag(tag))})


def read_relations(path: Path) -> dict[str, dict[str, set[str]]]:
    """Read `tag_relations.csv`: relation -> tag -> the tags it stands in that relation to.

    Rows are `tag,relation,other`: `puppy,broader,dog` (dog is broader), `auto,alias,car`, `dogs,plural,dog`.
    A file that is not there holds no relations.

    Raises:
        ArtifactError: a file that is no table, a row of another shape or with an unknown relation.
    """
    relations: dict[str, dict[str, set[str]]] = {name: {} for name in RELATIONS}
    if not path.is_file():
        return relations
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ArtifactError(f"{path.name} is no CSV in UTF-8: {error}") from error
    for number, row in enumerate(rows, start=2):
        tag, relation, other = (row.get(column) or "" for column in ("tag", "relation", "other"))
        tag, other = normalise_tag(tag), normalise_tag(other)
        if relation not in RELATIONS or not tag or not other or None in row:
            raise ArtifactError(
                f"{path.name} line {number}: expected tag,relation,other with a relation of "
                f"{', '.join(RELATIONS)}; found {list(row.values())}"
            )
        relations[relation].setdefault(tag, set()).add(other)
        if relation == "alias":
            relations[relation].setdefault(other, set()).add(tag)
    return relations


def related_tags(tag: str, relations: dict[str, dict[str, set[str]]]) -> set[str]:
    """Return the tags that stand in any relation to a tag: images that carry one may well show the tag too.

    Aliases and plurals both ways, broader tags, and narrower ones: what is tagged puppy shows a dog.
    """
    named = set().union(*(relations[name].get(tag, set()) for name in RELATIONS))
    naming = (other for name in RELATIONS for other, named_by_it in relations[name].items() if tag in named_by_it)
    return named.union(naming) - {tag}
