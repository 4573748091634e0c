"""A page of a stranger, parsed within bounds: its text, its base, what it asks of crawlers, and selectors on it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lxml.html
from lxml import etree
from parsel import Selector
from w3lib.encoding import html_to_unicode

from configs.artifacts import ArtifactError
from crawl.fetch.faults import Fault
from crawl.fetch.found import Answer, Picture
from crawl.fetch.manners import reservation
from crawl.fetch.urls import BadUrl, canonical

HTML_TYPES = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml", "")
_BLANKS = re.compile(r"\s+")
_REFRESH = re.compile(r"[\d.]*\s*(?:[;,]\s*(?:url\s*=\s*)?|url\s*=\s*)['\"]?([^'\">]*)", re.I)
_SILENT = re.compile(r"\s*(mailto|javascript|tel|sms|about|blob|whatsapp|skype|android-app|ios-app):", re.I)


@dataclass(frozen=True)
class Described:
    """A picture and what is said of it; empty where nothing is."""

    url: str = ""
    tags: tuple[str, ...] = ()
    title: str = ""
    caption: str = ""
    licence: str = ""
    author: str = ""


class Page:
    """One HTML page.

    Args:
        answer: of the server.
        max_depth: elements inside each other; deeper pages are refused.

    Raises:
        Fault: wrong_type or too_deep.
    """

    def __init__(self, answer: Answer, max_depth: int) -> None:
        mime = answer.header("content-type").partition(";")[0].strip().lower()
        if mime not in HTML_TYPES:
            raise Fault("wrong_type", f"{mime[:60]} where a page was expected")
        self.url = answer.url
        self.headers = answer.headers
        _, text = html_to_unicode(answer.header("content-type"), answer.body, auto_detect_fun=_guessed_charset)
        self.root = parse_html(text)
        if _is_deeper(self.root, max_depth):
            raise Fault("too_deep", f"more than {max_depth} elements inside each other")
        self.refused: list[BadUrl] = []
        self.behind: list[Picture] = []  # thumbnails that lead to pages which are read
        self.base = self._base()
        self._selector = Selector(root=self.root, type="html")

    def _base(self) -> str:
        for href in self.root.xpath("//base/@href")[:1]:
            try:
                return canonical(str(href), self.url)
            except BadUrl:
                break
        return self.url

    def address(self, text: str) -> str:
        """Return an address on the page as an absolute one; empty, and noted, where it is none to ask for."""
        if not text.strip() or _SILENT.match(text):
            return ""
        try:
            return canonical(text, self.base)
        except BadUrl as bad:
            self.refused.append(bad)
            return ""

    def directives(self) -> list[tuple[str, str]]:
        """Return what meta elements tell crawlers: the name of the agent meant, and directives with commas."""
        found = self.root.xpath("//meta[@name and @content]")
        return [(str(meta.get("name")).strip(), str(meta.get("content"))) for meta in found]

    def reservation(self) -> bool | None:
        """Say whether meta elements reserve the page from text and data mining, None where they say nothing."""
        return reservation(text for name, text in self.directives() if name.lower() == "tdm-reservation")

    def refreshes(self) -> Iterator[str]:
        """Yield the addresses that meta elements lead on to."""
        for content in self.root.xpath("//meta[translate(@http-equiv, 'REFSH', 'refsh') = 'refresh']/@content"):
            if match := _REFRESH.match(str(content).strip()):
                yield match.group(1)

    def select(self, selector: str, within: Any = None) -> list[Any]:
        """Return elements or texts that a selector names: XPath where it begins with `/`, `.` or `(`, else CSS.

        XPath that begins with a dot, and CSS, look within an element where one is given.
        """
        start = self._selector if within is None else Selector(root=within, type="html")
        is_xpath = selector.startswith(("/", "./", "..", "("))
        return [each.root for each in (start.xpath(selector) if is_xpath else start.css(selector))]

    def texts(self, selector: str, within: Any = None) -> list[str]:
        """Return the non-empty texts of what a selector names."""
        return [text for each in self.select(selector, within) if (text := text_of(each))]


def check_selector(key: str, selector: str) -> None:
    """Refuse what is neither CSS nor XPath.

    Raises:
        ArtifactError: naming the key.
    """
    blank = Selector(text="<p></p>")
    try:
        blank.xpath(selector) if selector.startswith(("/", "./", "..", "(")) else blank.css(selector)
    except (ValueError, SyntaxError, RuntimeError, etree.XPathError) as error:  # the middle two are cssselect's
        raise ArtifactError(f"{key} is neither CSS nor XPath: {selector!r} ({error})") from None


def text_of(found: Any) -> str:
    """Return the text of an element, of a meta element its content, or of a text itself, blanks collapsed."""
    if isinstance(found, str):
        return _BLANKS.sub(" ", found).strip()
    if not isinstance(found.tag, str):
        return ""
    if found.tag in ("meta", "data"):
        return text_of(found.get("content") or found.get("value") or "")
    return text_of("".join(found.itertext()))


def _guessed_charset(body: bytes) -> str:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def parse_html(text: str) -> Any:
    """Parse without lifting libxml2's own limits, and without touching the network or entities."""
    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=False, no_network=True)
    clean = text.replace("\0", "").encode("utf-8", "replace")
    try:
        root = lxml.html.document_fromstring(clean or b"<html></html>", parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError):  # nothing but comments, say
        root = lxml.html.document_fromstring(b"<html></html>", parser=parser)
    return root


def _is_deeper(root: Any, max_depth: int) -> bool:
    depth, level = 1, [root]
    while level:
        level = [child for element in level for child in element]
        depth += 1
        if level and depth > max_depth:
            return True
    return False
