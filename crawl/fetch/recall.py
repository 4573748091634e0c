"""What the databases of crawls tell of pictures in the collection: where each of them came from, in any crawl."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path

from crawl.fetch.database import opened

_FETCHED = """
WITH RECURSIVE
pages(id) AS (
    SELECT id FROM urls WHERE is_page(url)
    UNION SELECT target FROM urls JOIN pages USING (id) WHERE target IS NOT NULL
),
chain(id) AS (
    SELECT id FROM urls WHERE is_picture(url)
    UNION SELECT mentions.url FROM mentions JOIN pages ON pages.id = mentions.page
    UNION SELECT url FROM mentions WHERE is_page(iif(json_valid(about), json_extract(about, '$[2].page_url'), ''))
    UNION SELECT target FROM urls JOIN chain USING (id) WHERE target IS NOT NULL
)
SELECT url, image_id FROM chain JOIN urls USING (id)
"""


def fetched_from(
    databases: Sequence[Path], is_picture: Callable[[str], bool], is_page: Callable[[str], bool]
) -> set[str]:
    """Return the images that came from addresses or were shown on pages, through any redirects.

    The collection tells of one address and one page of each picture: the last of a chain of redirects, and the first
    of several that brought equal bytes.

    Args:
        databases: of crawls; a part of one may have handed an address over to another.
        is_picture: says whether an address of a picture is meant.
        is_page: says whether an address of a page is meant.
    """
    passed: set[str] = set()
    image_ids: set[str] = set()
    grown = True
    while grown:
        before = len(passed)
        for database in databases:
            with closing(opened(database)) as db:
                db.create_function("is_picture", 1, lambda url: url in passed or is_picture(url))
                db.create_function("is_page", 1, lambda url: bool(url) and is_page(url))
                rows = db.execute(_FETCHED).fetchall()
            passed.update(url for url, _ in rows)
            image_ids.update(image_id for _, image_id in rows if image_id)
        grown = len(passed) > before
    return image_ids


def addresses_of(databases: Iterable[Path], image_ids: Iterable[str]) -> dict[str, set[str]]:
    """Return the addresses that each of some images came from."""
    found: dict[str, set[str]] = {image_id: set() for image_id in image_ids}
    for database in databases:
        with closing(opened(database)) as db:
            for image_id, url in db.execute("SELECT image_id, url FROM urls WHERE image_id IS NOT NULL"):
                if image_id in found:
                    found[image_id].add(url)
    return found
