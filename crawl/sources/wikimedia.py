"""Source `wikimedia`: pictures of Wikimedia Commons, or of another MediaWiki, by category or by text.

Documented at https://www.mediawiki.org/wiki/API: list=categorymembers and list=search name files, 500 at a time;
prop=imageinfo (url, thumburl, mime, user, extmetadata) and prop=categories tell of 50 files at a time. A list goes on
with the parameters of `continue`. Details do not: where some are left over, the batch is asked again in halves, so that
every answer tells the whole of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from configs.artifacts import ArtifactError
from crawl.fetch.faults import Fault
from crawl.fetch.found import API, Answer, Found, Link, Picture
from crawl.fetch.urls import BadUrl
from crawl.source_config import WikimediaSource
from crawl.sources.api import Api, member, note_of, number, objects, parameters_of, plain_text, text

BATCH = 50  # titles a request, for whoever has no special rights
MAX_LAG_S = 5  # replicas that lag more are left alone, as https://www.mediawiki.org/wiki/Manual:Maxlag_parameter asks
_PASSING = ("maxlag", "ratelimited", "readonly", "internal_api_error")
_COMMON = {"action": "query", "format": "json", "formatversion": 2, "maxlag": MAX_LAG_S}
_METADATA = "LicenseShortName|LicenseUrl|Artist|ImageDescription|ObjectName"
_PREFIX = "Category:"  # which every wiki understands, whatever its language


class Wikimedia(Api):
    """Goes through categories and search results, and from there to the files."""

    def __init__(self, config: WikimediaSource) -> None:
        project = config.project.rstrip("/")
        super().__init__(config, project if project.endswith("/api.php") else f"{project}/w/api.php")
        if not (config.categories or config.search):
            raise ArtifactError("source=wikimedia needs something to look for: source.categories or source.search")
        self.config = config
        self.asked = [*config.categories, *config.search]

    def queries(self) -> Iterator[str]:
        """Yield the categories and texts to begin with."""
        for place, name in enumerate(self.config.categories):
            plain = name.strip().removeprefix(_PREFIX).removeprefix(_PREFIX.lower())
            yield self._members(_PREFIX + plain, place, self.config.depth)
        for place, words in enumerate(self.config.search, start=len(self.config.categories)):
            yield self.address(
                {**_COMMON, "list": "search", "srsearch": words, "srnamespace": 6, "srlimit": "max"}, of=place
            )

    def _members(self, category: str, place: int, depth: int) -> str:
        kinds = "file|subcat" if depth else "file"
        listed = {"list": "categorymembers", "cmtitle": category, "cmtype": kinds, "cmprop": "ids|title|type"}
        return self.address({**_COMMON, **listed, "cmlimit": "max"}, of=place, depth=depth)

    def _details(self, page_ids: list[str], place: int) -> str:
        asked = {"prop": "imageinfo", "iiprop": "url|mime|user|extmetadata", "iiextmetadatafilter": _METADATA}
        if self.config.width:
            asked["iiurlwidth"] = str(self.config.width)
        if self.config.tags == "categories":
            asked |= {"prop": "imageinfo|categories", "clshow": "!hidden", "cllimit": "max"}
        return self.address({**_COMMON, **asked, "pageids": "|".join(page_ids)}, of=place)

    def read(self, answer: Answer) -> Found:
        """Find files and subcategories in a list, and pictures in details.

        Raises:
            Fault: busy where the wiki asks to come back later, api_error where it cannot do what is asked.
        """
        content = self.content(answer)
        if error := content.get("error"):
            code = text(member(error, "code"))
            kind = "busy" if code.startswith(_PASSING) else "api_error"
            raise Fault(kind, self.said(code, text(member(error, "info"))))
        is_list = "list" in parameters_of(answer.url)
        return self._read_list(answer.url, content) if is_list else self._read_details(answer.url, content)

    def _read_list(self, url: str, content: dict[str, Any]) -> Found:
        query = member(content, "query")
        listed = objects(member(query, "categorymembers")) + objects(member(query, "search"))
        place, depth = number(note_of(url, "of")), number(note_of(url, "depth"))
        subcategories = [text(each.get("title")) for each in listed if each.get("type") == "subcat" and depth]
        files = [str(each["pageid"]) for each in listed if each.get("type") != "subcat" and number(each.get("pageid"))]
        batches = (files[start : start + BATCH] for start in range(0, len(files), BATCH))
        urls = [self._details(batch, place) for batch in batches]
        urls += [self._members(title, place, depth - 1) for title in subcategories]
        if isinstance(further := content.get("continue"), dict):
            urls.append(self.address({**parameters_of(url), **further}))
        return Found(links=[Link(each, API) for each in urls])

    def _read_details(self, url: str, content: dict[str, Any]) -> Found:
        page_ids, place = parameters_of(url)["pageids"].split("|"), number(note_of(url, "of"))
        if "continue" in content and len(page_ids) > 1:
            half = len(page_ids) // 2
            return Found(links=[Link(self._details(part, place), API) for part in (page_ids[:half], page_ids[half:])])
        found = Found()
        for page in objects(member(content, "query", "pages")):
            picture = self._picture(page, place)
            if isinstance(picture, BadUrl):
                found.refused.append(picture)
            else:
                found.pictures.append(picture)
        return found

    def _picture(self, page: dict[str, Any], place: int) -> Picture | BadUrl:
        versions = objects(page.get("imageinfo"))
        file = versions[0] if versions else {}
        page_url = text(file.get("descriptionurl")) or f"{self.base}?curid={number(page.get('pageid'))}"
        if file and not text(file.get("mime")).startswith("image/"):
            return BadUrl("not_a_picture", page_url)
        metadata = {name: text(member(file, "extmetadata", name, "value")) for name in _METADATA.split("|")}
        user = text(file.get("user"))
        original = text(file.get("url"))
        url = (text(file.get("thumburl")) if self.config.width else "") or original
        licence_url = metadata["LicenseUrl"]
        about = self.about(
            self._tags(page, place),
            group=f"{urlsplit(self.base).netloc}/{user}" if user else "",
            extra={"licence_url": licence_url, "original_url": original if original != url else ""},
            title=plain_text(metadata["ObjectName"]) or _title_of(page),
            caption=plain_text(metadata["ImageDescription"]),
            licence=plain_text(metadata["LicenseShortName"]) or licence_url,
            author=plain_text(metadata["Artist"]) or user,
            page_url=page_url,
        )
        return self.picture(url, page_url, metadata["LicenseShortName"] or licence_url, about)

    def _tags(self, page: dict[str, Any], place: int) -> Iterator[str]:
        if self.config.tags == "asked":
            yield self.asked[place].removeprefix(_PREFIX).strip()
            return
        for category in objects(page.get("categories")):
            yield text(category.get("title")).partition(":")[2].replace("_", " ")


def _title_of(page: dict[str, Any]) -> str:
    name = text(page.get("title")).partition(":")[2]
    return name.rpartition(".")[0] or name
