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
RELATIONS = ("alias", "broader", "plural")


def normalise_tag(text: str) -> str:
    """Return the one spelling under which a tag is indexed and searched; idempotent.

    One pass: `_` and blanks of any kind become a blank; control, format, private and unassigned characters go
    (general category C); NFKC, casefold, NFKC; blanks collapsed to one and trimmed; cut to 100 characters.
    Passes repeat until nothing changes, because folding one character can bring out another that folds again.
    A hyphen stays. What is left may be empty. Of a longer text the first 1,000 characters count.
    """
    text = text[:_MAX_CHARS_READ]
    while (folded := _fold(text)) != text:
        text = folded
    return text


def _fold(text: str) -> str:
    spaced = (" " if char == "_" or char.isspace() else char for char in text)
    visible = "".join(char for char in spaced if unicodedata.category(char)[0] != "C")
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
    """Return the aliases, plurals and broader tags of a tag: images that carry one may well show the tag too."""
    its_plurals = {plural for plural, singulars in relations["plural"].items() if tag in singulars}
    return its_plurals.union(*(relations[name].get(tag, set()) for name in RELATIONS))
