"""Source `sitemap`: the pages and pictures that sitemaps list, read with the rules of source `web`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from lxml import etree

from crawl.fetch.codings import decoded
from crawl.fetch.faults import Fault
from crawl.fetch.found import MAX_SITEMAP_BYTES, SITEMAP, About, Answer, Entry, Found, Link, Picture
from crawl.fetch.urls import BadUrl, canonical, host_of, origin_of
from crawl.sources.item import clean_text
from crawl.sources.web import Web

_GZIP = b"\x1f\x8b"
_IN_ROBOTS = re.compile(rb"^[ \t]*sitemap[ \t]*:[ \t]*(\S+)", re.I | re.M)
_BARE_AMPERSAND = re.compile(rb"&(?!#?\w{1,10};)")
_LISTING = ("url", "sitemap", "item", "entry")  # of sitemaps and of feeds, which sitemaps.org allows in their place
_ROOTS = ("urlset", "sitemapindex", "rss", "RDF", "feed")
_SAID = {"title": "title", "caption": "caption", "license": "licence"}


class Sitemap(Web):
    """Reads sitemaps, their indexes, their gzip and text forms, and what robots.txt names where a site is given."""

    def entries(self, start: int) -> Iterator[Entry]:
        """Yield the sitemaps to begin with; of a bare site its robots.txt names them."""
        bare = (f"{url}robots.txt" if url == f"{origin_of(url)}/" else url for url in self.start)
        return islice((Link(url, SITEMAP) for url in bare), start, None)

    def read(self, answer: Answer) -> Found:
        """Find pages, pictures and further sitemaps in a sitemap, and pictures in a page.

        Raises:
            Fault: wrong_type where it is neither XML nor a list.
        """
        if answer.kind != SITEMAP:
            return super().read(answer)
        body = decoded(answer.body, "gzip", MAX_SITEMAP_BYTES) if answer.body.startswith(_GZIP) else answer.body
        found = Found()
        if answer.url.endswith("/robots.txt"):
            named = (match.decode("utf-8", "replace") for match in _IN_ROBOTS.findall(body))
            self._links(found, named, answer.url, SITEMAP)
        elif body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            self._xml(found, body, answer.url)
        elif answer.header("content-type").startswith("text/plain") or answer.url.endswith(".txt"):
            self._links(found, body.decode("utf-8-sig", "replace").split(), answer.url, 0)
        else:
            raise Fault("wrong_type", "neither XML nor a list of addresses")
        return found

    def _links(self, found: Found, urls: Any, base: str, kind: int) -> None:
        for text in urls:
            try:
                url = canonical(text, base)
            except BadUrl as bad:
                found.refused.append(bad)
                continue
            if kind == SITEMAP or self._may_follow(url):
                found.links.append(Link(url, kind))

    def _xml(self, found: Found, body: bytes, base: str) -> None:
        if b"<![CDATA[" not in body:
            body = _BARE_AMPERSAND.sub(b"&amp;", body)  # a parser that recovers drops it with the name behind it
        parser = etree.iterparse(
            io.BytesIO(body), events=("end",), resolve_entities=False, no_network=True, huge_tree=False, recover=True
        )
        try:
            for _, element in parser:
                name = _local(element)
                if name in _LISTING:
                    location = _child(element, "loc") or _child(element, "link") or _linked(element)
                    self._links(found, [location] if location else [], base, SITEMAP if name == "sitemap" else 0)
                    self._pictures(found, element, location, base)
                    element.clear()
        except etree.XMLSyntaxError as error:
            raise Fault("wrong_type", f"no sitemap: {error}"[:200]) from None
        root = "" if parser.root is None else _local(parser.root)
        if root not in _ROOTS:
            raise Fault("wrong_type", f"<{root[:40]}> where a sitemap was expected")

    def _pictures(self, found: Found, element: Any, page: str, base: str) -> None:
        for image in (child for child in element if _local(child) == "image"):
            try:
                url = canonical(_child(image, "loc"), base)
            except BadUrl as bad:
                found.refused.append(bad)
                continue
            said = {ours: clean_text(_child(image, theirs)) for theirs, ours in _SAID.items()}
            given = {name: text for name, text in said.items() if text} | ({"page_url": page} if page else {})
            group = {"page": page, "host": host_of(url)}.get(self.config.group, "")
            found.pictures.append(Picture(url, About(provenance=given | ({"group": group} if group else {}))))


def _local(element: Any) -> str:
    return etree.QName(element).localname if isinstance(element.tag, str) else ""


def _linked(element: Any) -> str:
    """Return the address of an entry of an Atom feed."""
    links = (child for child in element if _local(child) == "link" and child.get("rel", "alternate") == "alternate")
    return next((link.get("href") or "" for link in links), "")


def _child(element: Any, name: str) -> str:
    return next(("".join(child.itertext()).strip() for child in element if _local(child) == name), "")
