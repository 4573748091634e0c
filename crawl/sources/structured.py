"""What a page says of its pictures for machines: JSON-LD, microdata and OpenGraph, by extruct."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from extruct.jsonld import JsonLdExtractor
from extruct.opengraph import OpenGraphExtractor
from extruct.w3cmicrodata import MicrodataExtractor

from crawl.sources.page import Described, Page

MAX_NESTING = 40
_LINKED_DATA = (
    "//script[starts-with(normalize-space(translate(@type, 'APLICTONDJS', 'aplictondjs')), 'application/ld+json')]"
)
_PICTURE_TYPES = {"ImageObject", "Photograph", "Photo", "Painting", "VisualArtwork", "Drawing"}
_ADDRESSES = ("contentUrl", "url", "@id")
_PICTURES = {"image", "photo", "primaryImageOfPage", "associatedMedia"}
_PARTIES = {"Organization", "NewsMediaOrganization", "Corporation", "Brand", "Person"}  # with logos and portraits
# What leads to people, firms and small versions, whose pictures are not meant.
_ASIDE = {"logo", "publisher", "author", "creator", "thumbnail", "thumbnailUrl", "provider", "copyrightHolder", "brand"}


def described_pictures(page: Page, separator: str) -> list[Described]:
    """Return the pictures that a page describes: those of JSON-LD and microdata, else those of OpenGraph."""
    nodes = [*_with_references(list(_json_ld(page)), separator), *_microdata(page)]
    found = [picture for node in nodes for picture in _pictures(node, Described(), separator, 0)]
    return found or _open_graph(page)


def _json_ld(page: Page) -> Iterator[Any]:
    extractor = JsonLdExtractor()
    for script in page.root.xpath(_LINKED_DATA):
        script.set("type", "application/ld+json")  # the one spelling that extruct knows
        try:
            yield from extractor.extract_items(script)
        except (ValueError, RecursionError):  # one broken script says nothing of the others
            continue


def _with_references(nodes: list[Any], separator: str) -> list[Any]:
    """Put pictures where nodes name them by their @id alone, as the graphs of many blogs do."""
    named = {each["@id"]: each for each in _objects(nodes) if isinstance(each.get("@id"), str) and len(each) > 1}
    for node in _objects(nodes):
        for name in _PICTURES & node.keys():
            value = node[name]
            node[name] = [_referred(each, named, separator) for each in (value if isinstance(value, list) else [value])]
    return nodes


def _objects(nodes: list[Any]) -> Iterator[dict[str, Any]]:
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _referred(value: Any, named: dict[str, dict[str, Any]], separator: str) -> Any:
    """Return a picture that is named by its @id as an object of texts alone: references may go round in circles."""
    if not isinstance(value, dict) or value.keys() - {"@id", "@type"} or not isinstance(value.get("@id"), str):
        return value
    node = named.get(value["@id"], {})
    if not (url := _first_text(node, _ADDRESSES[:2])):
        return value
    said = _with(Described(), node, separator)
    texts = {"name": said.title, "caption": said.caption, "license": said.licence, "author": said.author}
    return {"contentUrl": url, "keywords": list(said.tags), **texts}


def _microdata(page: Page) -> Iterator[Any]:
    if page.root.xpath("boolean(//*[@itemscope])"):
        yield from map(_as_json_ld, MicrodataExtractor().extract_items(page.root, page.base))


def _as_json_ld(item: Any) -> Any:
    if isinstance(item, list):
        return [_as_json_ld(each) for each in item]
    if not isinstance(item, dict) or "properties" not in item:
        return item
    return {"@type": item.get("type", ""), **{name: _as_json_ld(each) for name, each in item["properties"].items()}}


def _pictures(node: Any, about: Described, separator: str, depth: int) -> Iterator[Described]:
    """Yield the pictures in a node; what stands above holds for what says nothing itself."""
    if isinstance(node, list) and depth <= MAX_NESTING:
        for each in node:
            yield from _pictures(each, about, separator, depth + 1)
    if not isinstance(node, dict) or depth > MAX_NESTING or _types(node) & _PARTIES:
        return
    about = _with(about, node, separator)
    if _types(node) & _PICTURE_TYPES and (url := _first_text(node, _ADDRESSES)):
        yield replace(about, url=url)
    for name, value in node.items():
        if name in _PICTURES:
            yield from _pictures(_as_pictures(value), about, separator, depth + 1)
        elif name not in _ASIDE:
            yield from _pictures(value, about, separator, depth + 1)


def _as_pictures(value: Any) -> list[Any]:
    """Return what stands where pictures are meant as nodes of pictures."""
    nodes = [
        {"url": each} if isinstance(each, str) else each for each in (value if isinstance(value, list) else [value])
    ]
    return [{**each, "@type": "ImageObject"} if isinstance(each, dict) else each for each in nodes]


def _with(about: Described, node: dict[str, Any], separator: str) -> Described:
    return Described(
        tags=tuple(_keywords(node.get("keywords"), separator)) or about.tags,
        title=_first_text(node, ("name", "headline")) or about.title,
        caption=_first_text(node, ("caption", "description")) or about.caption,
        licence=_first_text(node, ("license", "acquireLicensePage")) or about.licence,
        author=_first_text(node, ("author", "creator", "copyrightHolder", "creditText")) or about.author,
    )


def _types(node: dict[str, Any]) -> set[str]:
    named = node.get("@type") or ""
    return {str(each).rstrip("/").rpartition("/")[2] for each in (named if isinstance(named, list) else [named])}


def _first_text(node: dict[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = node.get(name)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                each = each.get("name") or each.get("url") or each.get("@id") or each.get("@value")
            if isinstance(each, str) and each.strip():
                return " ".join(each.split())
    return ""


def _keywords(value: Any, separator: str) -> Iterator[str]:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict):
            each = each.get("name") or each.get("@value") or each.get("termCode")
        if isinstance(each, str):
            yield from (" ".join(part.split()) for part in each.split(separator) if part.strip())


def _open_graph(page: Page) -> list[Described]:
    """Return what OpenGraph names; the picture of a whole site (`og:type` website) is not one of the page."""
    properties = [pair for item in OpenGraphExtractor().extract_items(page.root) for pair in item["properties"]]
    first = {name: value for name, value in reversed(properties)}
    if first.get("og:type", "website").strip().lower() == "website":
        return []
    tags = tuple(" ".join(value.split()) for name, value in properties if name == "article:tag" and value.strip())
    author = first.get("article:author", "")
    about = Described(
        tags=tags,
        title=" ".join(first.get("og:title", "").split()),
        caption=" ".join((first.get("og:image:alt") or first.get("og:description") or "").split()),
        author="" if "://" in author else author,
    )
    urls = dict.fromkeys(value for name, value in properties if name in ("og:image", "og:image:url") and value.strip())
    return [replace(about, url=url) for url in urls]
