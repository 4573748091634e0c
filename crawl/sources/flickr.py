"""Source `flickr`: pictures of Flickr by text, tags or person, with open licences by default.

Documented at https://www.flickr.com/services/api/: flickr.photos.licenses.getInfo names the licences by number;
flickr.photos.search answers photos {page, pages, total, photo: [...]} with id, owner, title and the extras asked for:
license, owner_name, tags, machine_tags, description and url_*. A query shows 4,000 pictures at most, so where there are
more its span of upload dates is halved, down to a second.

Without `until` the first span is as many seconds long as a power of two, the first that reaches beyond now. So a
refresh asks the very same questions again, and pictures uploaded meanwhile stand at their end; once time has left a
span behind, the next is twice as long, and its first half is what was asked before. What is gone from Flickr stays in
the collection, until it is taken down.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

from configs.artifacts import ArtifactError
from crawl.fetch.faults import Fault
from crawl.fetch.found import API, Answer, Found, Link, Picture
from crawl.fetch.urls import BadUrl
from crawl.source_config import FlickrSource
from crawl.sources.api import Api, member, note_of, number, objects, parameters_of, plain_text, secret_of, text
from crawl.sources.licences import licence_code, licence_name

KEY = "FLICKR_API_KEY"
MAX_RESULTS = 4000  # of a query
PAGE = 500  # pictures a page, the most there are
_PASSING = ("10", "105", "106")  # codes of failures: search, service or operation not available at the moment
_LICENCES, _SEARCH = "flickr.photos.licenses.getInfo", "flickr.photos.search"


class Flickr(Api):
    """Asks which licences there are, and goes through spans of upload dates."""

    def __init__(self, config: FlickrSource) -> None:
        secret = secret_of(KEY)
        if not secret:
            raise ArtifactError(f"source=flickr needs an API key of Flickr in the environment variable {KEY}")
        super().__init__(config, config.api, secret)
        if not (config.search or config.tags or config.user):
            raise ArtifactError("source=flickr needs something to look for: source.search, source.tags or source.user")
        self.config = config

    def asked_as(self, url: str) -> tuple[str, dict[str, str]]:
        """Return an address as it is sent, with the key."""
        plain, headers = super().asked_as(url)
        ours = {"format": "json", "nojsoncallback": 1, "api_key": self.secret}
        return f"{plain}&{urlencode(ours)}", headers

    def queries(self) -> Iterator[str]:
        """Yield the question for licences, from which all else follows."""
        yield self.address({"method": _LICENCES})

    def read(self, answer: Answer) -> Found:
        """Find the queries to make, from the licences; pictures and further pages, or halves, from a search.

        Raises:
            Fault: busy where Flickr asks to come back later, api_error where it cannot do what is asked.
        """
        content = self.content(answer)
        if content.get("stat") != "ok":
            code, message = text(content.get("code")), text(content.get("message"))
            raise Fault("busy" if code in _PASSING else "api_error", self.said(code, message or "no stat=ok"))
        if parameters_of(answer.url).get("method") == _LICENCES:
            return Found(links=[Link(url, API) for url in self._searches(content, answer.header("date"))])
        return self._read_search(answer.url, content)

    def _searches(self, content: dict[str, Any], now: str) -> Iterator[str]:
        names: dict[str, str] = {}
        for each in objects(member(content, "licenses", "license")):
            url, name = text(each.get("url")), text(each.get("name"))
            if not self.licences or (licence_code(url) or licence_code(name)) in self.licences:
                names[text(each.get("id"))] = licence_name(url) or name
        if not names:
            raise Fault("api_error", f"no licence of Flickr is one of {', '.join(sorted(self.licences))}")
        rules = self.config
        since = _second_of(rules.since)
        parameters: dict[str, object] = {
            "method": _SEARCH,
            "license": ",".join(names) if self.licences else "",
            "tags": ",".join(rules.tags),
            "tag_mode": rules.tag_mode if rules.tags else "",
            "user_id": rules.user,
            "min_upload_date": since,
            "max_upload_date": _second_of(rules.until, days=1) - 1 if rules.until else _beyond(now, since),
            "sort": "date-posted-asc",
            "media": "photos",
            "content_types": 0,
            "safe_search": 1,
            "extras": ",".join(
                [
                    "license",
                    "owner_name",
                    "tags",
                    "machine_tags",
                    "description",
                    *(f"url_{size}" for size in rules.sizes),
                ]
            ),
            "per_page": PAGE,
            "page": 1,
        }
        given = {name: value for name, value in parameters.items() if value != ""}
        for words in rules.search or [""]:
            yield self.address({**given, **({"text": words} if words else {})}, licences=urlencode(names))

    def _read_search(self, url: str, content: dict[str, Any]) -> Found:
        parameters, photos = parameters_of(url), content.get("photos")
        found = Found()
        if parameters["page"] == "1":
            total, pages = number(member(photos, "total")), number(member(photos, "pages"))
            first, last = int(parameters["min_upload_date"]), int(parameters["max_upload_date"])
            if total > MAX_RESULTS and first < last:
                middle = (first + last) // 2
                halves = ((first, middle), (middle + 1, last))
                spans = ({"min_upload_date": start, "max_upload_date": end} for start, end in halves)
                return Found(links=[Link(self.address({**parameters, **span}), API) for span in spans])
            if total > MAX_RESULTS:  # of one second
                found.refused.append(BadUrl("result_limit", self.address(parameters, total=total)))
            last_page = min(pages, MAX_RESULTS // PAGE)
            found.links = [Link(self.address({**parameters, "page": page}), API) for page in range(2, last_page + 1)]
        licences = dict(parse_qsl(note_of(url, "licences"), keep_blank_values=True))
        for photo in objects(member(photos, "photo")):
            picture = self._picture(photo, licences)
            if isinstance(picture, BadUrl):
                found.refused.append(picture)
            else:
                found.pictures.append(picture)
        return found

    def _picture(self, photo: dict[str, Any], licences: dict[str, str]) -> Picture | BadUrl:
        owner, photo_id = text(photo.get("owner")), text(photo.get("id"))
        page_url = f"https://www.flickr.com/photos/{owner}/{photo_id}"  # as Flickr documents addresses of pages
        machine_tags = text(photo.get("machine_tags")).split()
        licence = licences.get(text(photo.get("license")), "")
        about = self.about(
            (tag for tag in text(photo.get("tags")).split() if tag not in machine_tags),
            group=f"flickr/{owner}" if owner else "",
            extra={"machine_tags": machine_tags},
            title=_content(photo.get("title")),
            caption=plain_text(_content(photo.get("description"))),
            licence=licence,
            author=text(photo.get("ownername")),
            page_url=page_url if owner and photo_id else "",
        )
        url = next(filter(None, (text(photo.get(f"url_{size}")) for size in self.config.sizes)), "")
        return self.picture(url, page_url, licence, about)


def _content(value: Any) -> str:
    """Return a text that comes as such, or inside an object."""
    return text(value) or text(member(value, "_content"))


def _second_of(day: str, days: int = 0) -> int:
    return int((datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=days)).timestamp())


def _beyond(now: str, since: int) -> int:
    """Return the last second of the shortest span of a power of two that begins at `since` and reaches beyond now."""
    passed = max(0, _second_of_answer(now) - since)
    return since + (1 << passed.bit_length()) - 1


def _second_of_answer(header: str) -> int:
    """Return the time of an answer by its Date header, else by our clock."""
    try:
        return int(parsedate_to_datetime(header).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return int(time.time())
