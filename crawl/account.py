"""The account of a collection: each item of each crawl is an image, a duplicate or a refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from configs.artifacts import ArtifactError

FIRST = 3  # refusals that an error quotes

State = Mapping[str, Any]  # of a crawl, as each of its shards holds it


def accounts(shards: Iterable[tuple[State, int]], finished: Mapping[str, State]) -> dict[str, dict[str, Any]]:
    """Add up what each crawl brought, by its recipe.

    Args:
        shards: state and number of images of all shards, in order.
        finished: crawls that reached the end of their source; the last items may have brought nothing to commit.

    Raises:
        ArtifactError: a crawl whose items are not all accounted for.
    """
    ends: dict[str, State] = {}
    images: Counter[str] = Counter()
    refused: dict[str, Counter[str]] = {}
    for state, num_images in shards:
        ends[state["recipe"]] = state
        images[state["recipe"]] += num_images
        refused.setdefault(state["recipe"], Counter()).update(state["refused"])
    ends |= finished
    return {
        recipe: _account(end["consumed"], images[recipe], end["duplicates"], refused.get(recipe, Counter()))
        for recipe, end in ends.items()
    }


def _account(num_items: int, num_images: int, num_duplicates: int, refused: Counter[str]) -> dict[str, Any]:
    account = {
        "num_items": num_items,
        "num_images": num_images,
        "num_duplicates": num_duplicates,
        "refused": dict(sorted(refused.items())),
    }
    accounted = num_images + num_duplicates + refused.total()
    if accounted != num_items:
        raise ArtifactError(f"{num_items} items were read but {accounted} are accounted for: {account}")
    return account


def total(crawls: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the accounts of crawls; what was gone through twice counts twice among the items."""
    sums: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for each in crawls:
        sums.update({name: each[name] for name in ("num_items", "num_images", "num_duplicates")})
        refused.update(each["refused"])
    return _account(sums["num_items"], sums["num_images"], sums["num_duplicates"], refused)


def report(account: Mapping[str, Any]) -> str:
    """Return an account as one line."""
    refused = account["refused"]
    return (
        f"{account['num_items']} items = {account['num_images']} images + {account['num_duplicates']} duplicates "
        f"+ {sum(refused.values())} refused ({_by_reason(refused) or 'none'})"
    )


def _by_reason(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items()))


def nothing_accepted(refusals: list[dict[str, str]]) -> ArtifactError:
    """Return the error for a crawl after which the collection holds no image."""
    if not refusals:
        return ArtifactError("the source lists no item, so nothing was written. Check source.path and run again.")
    reasons = _by_reason(Counter(refusal["reason"] for refusal in refusals))
    first = "; ".join(f"{each['key']}: {each['reason']} ({each['detail']})" for each in refusals[:FIRST])
    return ArtifactError(
        f"none of {len(refusals)} items became an image: {reasons}. The first of them: {first}. Nothing was written. "
        "Check source.path, of a table also source.images and source.file_column, and the limits gate.*, and run again."
    )
