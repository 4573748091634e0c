"""Source `openverse`: openly licensed pictures of many collections, by the search of Openverse.

Documented at https://api.openverse.org/v1/: `/v1/images/` with q, tags, creator, source, license, license_type, mature,
page_size and page answers page_count and results with url, foreign_landing_url, title, creator, creator_url, license,
license_version, license_url, tags [{name, accuracy}], source. A query shows its first results alone (240 today, with a
token and without), and its terms forbid to get around that, so no query is split here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.artifacts import ArtifactError
from crawl.fetch.found import API, Answer, Found, Link, Picture
from crawl.fetch.urls import BadUrl
from crawl.source_config import OpenverseSource
from crawl.sources.api import Api, number, objects, parameters_of, secret_of, text
from crawl.sources.licences import licence_name

TOKEN = "OPENVERSE_TOKEN"  # noqa: S105 - the variable's name
ANONYMOUS_PAGE = 20  # results a page without a token
MAX_PAGES = 500  # of a query; no rule allows more
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LIMIT, _LEFT = "x-ratelimit-limit-", "x-ratelimit-available-"


class Openverse(Api):
    """Goes through the pages of queries."""

    def __init__(self, config: OpenverseSource) -> None:
        super().__init__(config, config.api, secret_of(TOKEN))
        if config.page_size > ANONYMOUS_PAGE and not self.secret:
            raise ArtifactError(
                f"source.page_size={config.page_size} needs a token in the environment variable {TOKEN}; "
                f"without one Openverse gives {ANONYMOUS_PAGE} results a page"
            )
        if not (config.search or config.tags or config.creator):
            raise ArtifactError(
                "source=openverse needs something to look for: source.search, source.tags or source.creator"
            )
        self.config = config

    def asked_as(self, url: str) -> tuple[str, dict[str, str]]:
        """Return an address as it is sent, with the token in its header."""
        headers = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
        return super().asked_as(url)[0], headers

    def queries(self) -> Iterator[str]:
        """Yield the first page of each query."""
        rules = self.config
        common = {
            "creator": rules.creator,
            "source": ",".join(rules.collections),
            "license": ",".join(rules.licences),
            "license_type": ",".join(rules.licence_types),
            "mature": "true" if rules.mature else "",
            "page_size": rules.page_size,
            "page": 1,
        }
        common = {name: value for name, value in common.items() if value}
        for words in rules.search:
            yield self.address({"q": words, **common})
        for tag in rules.tags:
            yield self.address({"tags": tag, **common})
        if not (rules.search or rules.tags):
            yield self.address(common)

    def read(self, answer: Answer) -> Found:
        """Find pictures, and from a first page all others of its query."""
        content = self.content(answer)
        found = Found(wait_s=wait_of(answer.headers))
        parameters = parameters_of(answer.url)
        if parameters.get("page") == "1":
            last = min(number(content.get("page_count")), MAX_PAGES)
            found.links = [Link(self.address({**parameters, "page": page}), API) for page in range(2, last + 1)]
        for result in objects(content.get("results")):
            picture = self._picture(result)
            if isinstance(picture, BadUrl):
                found.refused.append(picture)
            else:
                found.pictures.append(picture)
        return found

    def _picture(self, result: dict[str, Any]) -> Picture | BadUrl:
        page_url, licence = text(result.get("foreign_landing_url")), text(result.get("license")).lower()
        licence_url, source = text(result.get("license_url")), text(result.get("source"))
        tags = objects(result.get("tags"))
        by_machine = {
            text(tag.get("name")): tag["accuracy"] for tag in tags if isinstance(tag.get("accuracy"), float | int)
        }
        creator = text(result.get("creator"))
        owner = text(result.get("creator_url")) or (f"{source}/{creator}" if creator else "")
        about = self.about(
            (name for tag in tags if self._is_taken(tag) and (name := text(tag.get("name")))),
            group=owner,
            extra={"licence_url": licence_url, "source": source, "tag_accuracy": by_machine},
            title=text(result.get("title")),
            licence=licence_name(licence_url) or _name_of(licence, text(result.get("license_version"))),
            author=creator,
            page_url=page_url,
        )
        return self.picture(text(result.get("url")), page_url or self.base, licence, about)

    def _is_taken(self, tag: Mapping[str, Any]) -> bool:
        """Say whether a tag is a person's, or a machine's that is sure enough."""
        accuracy = tag.get("accuracy")
        if accuracy is None:
            return True
        least = self.config.min_accuracy
        return least is not None and isinstance(accuracy, float | int) and accuracy >= least


def _name_of(code: str, version: str) -> str:
    return licence_name(f"CC {code} {version}") or licence_name(code) or code


def wait_of(headers: Mapping[str, Sequence[str]]) -> float:
    """Return for how long nothing more is granted, by X-RateLimit-Limit-* (`20/min`) and X-RateLimit-Available-*."""
    waits = [0.0]
    for name, values in headers.items():
        limit = re.fullmatch(
            r"\s*\d+\s*/\s*([smhd])\w*\s*", next(iter(headers.get(name.replace(_LEFT, _LIMIT), ())), "")
        )
        if name.startswith(_LEFT) and limit and values and re.fullmatch(r"\s*(0|-\d+)\s*", values[0]):
            waits.append(_SECONDS[limit.group(1)])
    return max(waits)
