"""Source `web`: pages followed from link to link, with pictures and what is said of them found by rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from configs.artifacts import ArtifactError
from crawl.fetch.found import About, Answer, Entry, Finder, Found, Link, Picture
from crawl.fetch.manners import forbids_following, opted_out
from crawl.fetch.urls import BadUrl, canonical, host_of
from crawl.source_config import WebSource
from crawl.sources.item import clean_text
from crawl.sources.largest import is_picture_file, versions
from crawl.sources.page import Described, Page, check_selector, text_of

SELECTORS = ("block", "picture", "tags", "title", "caption", "licence", "author")
MAX_LISTED = 20_000  # pictures, or links, of a page: more would hold up all other hosts
MAX_TAGS = 1_000  # of a picture, and
MAX_CHARS = 2_000  # of a tag or text: a page that says this much of every picture would fill the disk
MAX_HTML_DEPTH = 200  # libxml2 leaves out what is deeper than 256, so that the page would be read in part
_FURNITURE = "ancestor::nav or ancestor::header[not(ancestor::article)] or ancestor::footer or ancestor::aside"
_KEYWORDS = "//meta[translate(@name, 'KEYWORDS', 'keywords') = 'keywords' or @property = 'article:tag']"
_HAS_DATA = "boolean(//script[@type] | //*[@itemscope] | //meta[starts-with(@property, 'og:')])"
_TAG_LINKS = "a[rel~=tag]"
_LICENCE = "//a[contains(concat(' ', @rel, ' '), ' license ')]/@href | //link[@rel = 'license']/@href"
_AUTHOR = "//meta[@name = 'author'] | //a[@rel = 'author']"

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Common:
    """What a page says of all its pictures."""

    tags: tuple[str, ...]
    title: str
    licence: str
    author: str


class Web(Finder):
    """Finds links and pictures in pages by the rules of a config, and by what pages describe themselves.

    Args:
        config: of the source.
        agent: our product name, which meta elements may address.
    """

    def __init__(self, config: WebSource, agent: str) -> None:
        self.config = config
        self.agent = agent
        try:
            self.start = [canonical(url) for url in config.start]
        except BadUrl as bad:
            raise ArtifactError(
                f"source.start has an address that cannot be asked for: '{bad.url}' ({bad.reason}); "
                "give whole ones, which begin with http:// or https://"
            ) from None
        if not self.start:
            raise ArtifactError("source.start is empty: give the addresses to begin with, source.start=[https://...]")
        for key in SELECTORS:
            if getattr(config, key):
                check_selector(f"source.{key}", getattr(config, key))
        for selector in config.follow:
            check_selector("source.follow", selector)
        started = {host_of(url).removeprefix("www.") for url in self.start}  # which many sites have with it and without
        self.hosts = [host.lower() for host in config.hosts] or sorted(started)

    def entries(self, start: int) -> Iterator[Entry]:
        """Yield the pages to begin with."""
        return islice((Link(url) for url in self.start), start, None)

    def read(self, answer: Answer) -> Found:
        """Find links and pictures in a page."""
        page = Page(answer, MAX_HTML_DEPTH)
        directives = page.directives()
        reserved = page.reservation()
        found = Found(
            opt_out="tdm_reserved" if reserved else opted_out(directives, self.agent),
            reserved=reserved,
            nofollow=forbids_following(directives, self.agent),
        )
        if re.search(self.config.page_match, page.url):
            found.pictures = _united(self.pictures(page))
        found.links = [Link(url) for url in dict.fromkeys(self.links(page))]
        found.refused, found.behind = page.refused, _united(filter(self._wanted, page.behind))
        return found

    # Links

    def links(self, page: Page) -> Iterator[str]:
        """Yield the pages to read after this one."""
        elements = [element for selector in self.config.follow for element in page.select(selector)]
        written = [each if isinstance(each, str) else each.get("href") or "" for each in elements]
        for text in self._bounded(page, [*page.refreshes(), *written]):
            url = page.address(text)
            if url and self._may_follow(url):
                yield url

    def may_read(self, url: str) -> bool:
        """Say whether a page lies on one of the hosts whose pages are read."""
        host = host_of(url)
        return any(host == each or host.endswith(f".{each}") for each in self.hosts)

    def _may_follow(self, url: str) -> bool:
        rules = self.config
        if not self.may_read(url) or is_picture_file(url):
            return False
        skipped = rules.follow_skip and re.search(rules.follow_skip, url)
        return not skipped and re.search(rules.follow_match, url) is not None

    # Pictures

    def pictures(self, page: Page) -> Iterator[Picture]:
        """Yield the pictures of a page with what is said of them."""
        rules = self.config
        blocks = page.select(rules.block) if rules.block else [None]
        for block in blocks:
            yield from filter(self._wanted, self._of_block(page, block))

    def _wanted(self, picture: Picture) -> bool:
        skipped = self.config.picture_skip and re.search(self.config.picture_skip, picture.url)
        return not skipped and re.search(self.config.picture_match, picture.url) is not None

    def _of_block(self, page: Page, block: Any) -> Iterator[Picture]:
        common = self._common(page, block)
        if self.config.picture:
            chosen, thumbnails = page.select(self.config.picture, block), False
        elif self.config.structured and block is None and (described := self._described(page)):
            for each in self._bounded(page, described):
                if (url := page.address(each.url)) not in ("", page.url):
                    yield Picture(url, self._about(page, block, common, each, url))
            return
        else:
            chosen, thumbnails = _all_pictures(page, block), block is None
        captions: dict[Any, str] = {}
        for element in self._bounded(page, chosen):
            if behind := self._leads_to(page, element) if thumbnails else "":
                about = self._about(page, block, common, _said_beside(element, captions), behind)
                page.behind.append(Picture(behind, about))
            elif url := self._largest(page, element):
                yield Picture(url, self._about(page, block, common, _said_beside(element, captions), url))

    @staticmethod
    def _bounded(page: Page, listed: Sequence[_T]) -> Sequence[_T]:
        """Return what is looked at of a list on a page, and note where that is not all."""
        if len(listed) > MAX_LISTED:
            page.refused.append(BadUrl("page_too_long", f"{page.url}#{len(listed)}-where-{MAX_LISTED}-are-read"))
        return listed[:MAX_LISTED]

    def _described(self, page: Page) -> list[Described]:
        if not page.root.xpath(_HAS_DATA):
            return []
        from crawl.sources.structured import described_pictures  # extruct brings all of RDF with it

        return described_pictures(page, self._separator)

    def _leads_to(self, page: Page, element: Any) -> str:
        """Return the page to read that a picture leads to: that one has it larger and tells of it, or is it."""
        link = next(element.iterancestors("a"), None) if element.tag == "img" else None
        try:
            url = "" if link is None else canonical(link.get("href") or "", page.base)
        except BadUrl:
            return ""
        return url if url != page.url and url and self._may_follow(url) else ""

    def _largest(self, page: Page, element: Any) -> str:
        refused_before = len(page.refused)
        for text in versions(element):
            if url := page.address(text):
                del page.refused[refused_before:]  # a placeholder beside the picture itself
                return url
        return ""

    @property
    def _separator(self) -> str:
        return self.config.tag_separator

    def _common(self, page: Page, block: Any) -> _Common:
        rules = self.config
        whole = block is None
        tags = self._split(page.texts(rules.tags, block)) if rules.tags else []
        if not rules.tags:
            tags = page.texts(_TAG_LINKS, block) + (self._split(page.texts(_KEYWORDS)) if whole else [])
        return _Common(
            tags=_kept(tags),
            title=_one(page, rules.title, block) or (_one(page, "title", None) if whole else ""),
            licence=_one(page, rules.licence or _LICENCE, block if rules.licence else None),
            author=_one(page, rules.author or _AUTHOR, block if rules.author else None),
        )

    def _split(self, texts: Iterable[str]) -> list[str]:
        return [part.strip() for text in texts for part in text.split(self._separator) if part.strip()]

    def _about(self, page: Page, block: Any, common: _Common, said: Described, url: str) -> About:
        """Put together what a rule names, else what is said of the picture itself, else of the page."""
        rules = self.config
        caption = _one(page, rules.caption, block) if rules.caption else said.caption
        provenance = {
            "title": (common.title if rules.title else said.title) or common.title,
            "caption": caption,
            "licence": (common.licence if rules.licence else said.licence) or common.licence,
            "author": (common.author if rules.author else said.author) or common.author,
        }
        given = {name: clean_text(text)[:MAX_CHARS] for name, text in provenance.items() if text}
        given["page_url"] = page.url
        group = {"page": page.url, "author": given.get("author", ""), "host": host_of(url)}.get(rules.group, "")
        tags = common.tags if rules.tags or not said.tags else _kept(said.tags)
        return About(tags=tags, provenance={**given, "group": group} if group else given)


def _kept(tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(clean_text(tag)[:MAX_CHARS] for tag in islice(tags, MAX_TAGS)))


def _one(page: Page, selector: str, within: Any) -> str:
    return next(iter(page.texts(selector, within)), "") if selector else ""


def _all_pictures(page: Page, block: Any) -> list[Any]:
    """Return the embedded pictures of a page that is not furniture, and links that lead to nothing but a picture."""
    start = page.root if block is None else block
    embedded = start.xpath(".//img" if block is not None else f".//img[not({_FURNITURE})]")
    linked = [a for a in start.xpath(".//a[@href][not(.//img)]") if is_picture_file(a.get("href"))]
    return [*embedded, *linked]


def _said_beside(element: Any, captions: dict[Any, str]) -> Described:
    """Return what stands in an element and in the figure around it.

    Args:
        element: a picture, or its address.
        captions: of figures that were looked into, which may hold many pictures.
    """
    if isinstance(element, str):
        return Described()
    for figure in element.iterancestors("figure"):
        if figure not in captions:
            captions[figure] = next(filter(None, map(text_of, figure.iter("figcaption"))), "")
    told = (captions[figure] for figure in element.iterancestors("figure"))
    caption = next(filter(None, told), "") or text_of(element.get("alt") or "")
    title = element.get("title") or (text_of(element) if element.tag == "a" else "")
    return Described(title=text_of(title), caption=caption)


def _united(pictures: Iterable[Picture]) -> list[Picture]:
    """Unite what a page says of one picture in several places."""
    mentions: dict[str, list[About]] = {}
    for picture in pictures:
        mentions.setdefault(picture.url, []).append(picture.about)
    return [Picture(url, About.united(abouts)) for url, abouts in mentions.items()]
