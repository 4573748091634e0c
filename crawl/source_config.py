"""Typed configuration of the sources: what is read, of whom, and where tags and the rest stand in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date

from omegaconf import MISSING

# Codes of licences as Creative Commons and Openverse have them; the open ones allow any use and any change.
OPEN_LICENCES = ("cc0", "pdm", "by", "by-sa")
CC_LICENCES = (*OPEN_LICENCES, "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")
OTHER_LICENCES = {"wikimedia": ("gfdl", "fal"), "flickr": ("nkc", "usgov")}
FLICKR_SIZES = ("o", "6k", "5k", "4k", "3k", "k", "h", "l", "c", "z", "m", "w", "n")


@dataclass
class SourceConfig:
    """What every source has in common; the group file names the kind."""

    name: str = MISSING  # folder, table, webdataset, web, sitemap, urls, wikimedia, openverse or flickr
    path: str = MISSING  # directory, table file or glob of shards

    def __post_init__(self) -> None:
        kind = type(self).name
        if kind != MISSING and self.name != kind:
            raise ValueError(
                f"source.name is {kind} in this group and fixed, got '{self.name}'; "
                "choose a kind with source=folder, source=table, source=web or another"
            )


@dataclass
class FolderSource(SourceConfig):
    """A folder a tag, nested folders several."""

    name: str = "folder"  # fixed, it names the kind


@dataclass
class TableSource(SourceConfig):
    """JSONL, CSV or Parquet, one row an image; columns beside the named ones go to `extra`."""

    name: str = "table"  # fixed, it names the kind
    images: str = ""  # folder that relative image paths start from; the table's own folder when empty
    file_column: str = "file"  # column with the path of the image, relative to `images`
    tags_column: str = "tags"  # column with a list, or a text separated by `tag_separator`
    tag_separator: str = ","  # splits the tags column where the format has no lists (CSV)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_separator(self.tag_separator)


@dataclass
class WebDatasetSource(SourceConfig):
    """Tar shards with text or JSON sidecars, img2dataset's dumps included."""

    name: str = "webdataset"  # fixed, it names the kind
    tags_key: str = "tags"  # JSON key with a list, or a text separated by `tag_separator`
    tag_separator: str = ","  # splits a text of tags

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_separator(self.tag_separator)


def _check_separator(separator: str) -> None:
    if not separator:
        raise ValueError("source.tag_separator must be at least one character, got ''")


@dataclass
class NetworkSource(SourceConfig):
    """What sources of the network have in common; how they ask is the matter of `fetch`."""

    path: str = ""  # of a list of addresses; the others have none


@dataclass
class WebSource(NetworkSource):
    """Pages that are followed from link to link. Selectors are CSS, or XPath where they begin with `/`, `.` or `(`."""

    name: str = "web"  # fixed, it names the kind
    start: list[str] = field(default_factory=list)  # pages to begin with
    hosts: list[str] = field(
        default_factory=list
    )  # whose pages are read, subdomains included; those of `start` if empty
    follow: list[str] = field(default_factory=lambda: ["a", "area", "link[rel~=next]"])  # selectors of links
    follow_match: str = ""  # regular expression that a followed address must contain
    follow_skip: str = ""  # regular expression that it must not
    page_match: str = ""  # pictures are taken from pages whose address contains this; empty: from all
    picture_match: str = ""  # regular expression that a picture's address must contain
    picture_skip: str = ""  # regular expression that it must not
    block: str = ""  # selector of what holds one picture with its tags, where a page shows several; empty: the page
    picture: str = ""  # selector within the block; empty: structured data, else all but thumbnails of pages to read
    tags: str = ""  # selector; empty: structured data, `rel=tag` links and meta keywords
    title: str = ""  # selector; empty: structured data, the title attribute, the page's title
    caption: str = ""  # selector; empty: structured data, figcaption, alt
    licence: str = ""  # selector; empty: structured data, `rel=license` links
    author: str = ""  # selector; empty: structured data, meta author, `rel=author` links
    tag_separator: str = ","  # splits a text of tags
    structured: bool = True  # read JSON-LD, OpenGraph and microdata
    group: str = "page"  # what never straddles splits: page, author, host or none

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_separator(self.tag_separator)
        if self.group not in GROUPS:
            raise ValueError(f"source.group must be one of {', '.join(GROUPS)}, got '{self.group}'")
        for name in ("follow_match", "follow_skip", "page_match", "picture_match", "picture_skip"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"source.{name} is no regular expression: {error}") from None


@dataclass
class SitemapSource(WebSource):
    """Pages and pictures that sitemaps list; no links are followed unless `follow` says so."""

    name: str = "sitemap"  # fixed, it names the kind
    follow: list[str] = field(default_factory=list)  # selectors of links


@dataclass
class UrlsSource(NetworkSource):
    """JSONL, CSV or Parquet with an address of a picture a row; img2dataset's column names are understood."""

    name: str = "urls"  # fixed, it names the kind
    path: str = MISSING  # table file, or a folder or glob of them
    url_column: str = ""  # empty: url, URL, image_url, source_url
    tags_column: str = ""  # empty: tags, keywords; a list, or a text separated by `tag_separator`
    tag_separator: str = ","  # splits a text of tags

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_separator(self.tag_separator)


@dataclass
class PartSource(NetworkSource):
    """Rows of a list that one worker crawls; made where a list is split, not chosen."""

    name: str = "part"  # fixed, it names the kind


@dataclass
class ApiSource(NetworkSource):
    """What sources over the APIs of photo collections have in common."""

    search: list[str] = field(default_factory=list)  # texts to look for, each a query of its own
    licences: list[str] = field(default_factory=lambda: list(OPEN_LICENCES))  # codes; empty: under any or none
    group: str = "author"  # what never straddles splits: author (whoever uploaded), or none

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*CC_LICENCES, *OTHER_LICENCES.get(self.name, ()))
        if unknown := [code for code in self.licences if code not in known]:
            raise ValueError(f"source.licences must be of {', '.join(known)}; got '{unknown[0]}'")
        if self.group not in ("author", "none"):
            raise ValueError(f"source.group must be author or none, got '{self.group}'")


@dataclass
class WikimediaSource(ApiSource):
    """Files of Wikimedia Commons, or of another MediaWiki, by category and by text."""

    name: str = "wikimedia"  # fixed, it names the kind
    licences: list[str] = field(default_factory=lambda: [*OPEN_LICENCES, "gfdl", "fal"])  # codes; empty: any or none
    project: str = "https://commons.wikimedia.org"  # a wiki; or the address of its api.php
    categories: list[str] = field(default_factory=list)  # names, with or without `Category:`
    depth: int = 0  # levels of subcategories, 0 to 10
    tags: str = "categories"  # categories (those of each file, hidden ones left out), or asked (what led to the file)
    width: int = 960  # px, of the version that is fetched; standard are 250, 330, 500, 960, 1280, 1920; 0: the original

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.depth <= 10:
            raise ValueError(f"source.depth must lie in 0..10, got {self.depth}")
        if self.width < 0:
            raise ValueError(f"source.width must be 0 (the original) or more, got {self.width}")
        if self.tags not in ("categories", "asked"):
            raise ValueError(f"source.tags must be categories or asked, got '{self.tags}'")


@dataclass
class OpenverseSource(ApiSource):
    """Openly licensed pictures of many collections, by Openverse's search: the first results of each query."""

    name: str = "openverse"  # fixed, it names the kind
    api: str = "https://api.openverse.org/v1/images/"  # address of the search
    tags: list[str] = field(default_factory=list)  # each a query of its own, beside `search`
    creator: str = ""  # name of whoever made them; empty: everybody
    collections: list[str] = field(default_factory=list)  # Openverse's sources, such as flickr; empty: all
    licence_types: list[str] = field(default_factory=list)  # commercial, modification; beside `licences`
    mature: bool = False  # include what Openverse calls sensitive
    min_accuracy: float | None = None  # of tags by machines, 0 to 1; null: people's tags alone
    page_size: int = 20  # results a page, at most 20 without a token

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.page_size <= 500:
            raise ValueError(f"source.page_size must lie in 1..500, got {self.page_size}")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise ValueError(f"source.min_accuracy must lie in 0..1 or be null, got {self.min_accuracy}")
        if unknown := set(self.licence_types) - {"commercial", "modification"}:
            raise ValueError(f"source.licence_types must be of commercial, modification; got '{min(unknown)}'")


@dataclass
class FlickrSource(ApiSource):
    """Pictures of Flickr by text, tags or person; the key comes from the environment variable FLICKR_API_KEY."""

    name: str = "flickr"  # fixed, it names the kind
    api: str = "https://api.flickr.com/services/rest/"  # address of the API
    tags: list[str] = field(default_factory=list)  # that pictures must carry, as `tag_mode` says
    tag_mode: str = "all"  # all of the tags, or any
    user: str = ""  # id of the person whose pictures are looked through; empty: everybody's
    since: str = "2004-01-01"  # day of upload, UTC
    until: str = ""  # day of upload, that day included; empty: now, and on a refresh what came since
    sizes: list[str] = field(default_factory=lambda: list("lczom"))  # suffixes of versions, the first that there is

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tag_mode not in ("all", "any"):
            raise ValueError(f"source.tag_mode must be all or any, got '{self.tag_mode}'")
        if not self.sizes or set(self.sizes) - set(FLICKR_SIZES):
            raise ValueError(f"source.sizes must be of {', '.join(FLICKR_SIZES)}; got {self.sizes}")
        for name in ("since", "until"):
            try:
                date.fromisoformat(getattr(self, name) or "2004-01-01")
            except ValueError:
                raise ValueError(
                    f"source.{name} must be a day such as 2024-12-31, got '{getattr(self, name)}'"
                ) from None
        if self.until and self.since > self.until:
            raise ValueError(f"source.since must not come after source.until, got {self.since} and {self.until}")


TORCHVISION_SETS = (
    *("caltech101", "caltech256", "cifar10", "cifar100", "dtd", "eurosat", "fashion_mnist", "fgvc_aircraft"),
    *("flickr30k", "flickr8k", "flowers102", "food101", "imagenette", "kmnist", "mnist", "oxford_iiit_pet"),
    *("places365", "stanford_cars", "stl10", "sun397", "voc2007", "voc2012"),
)
CAPTIONED = ("flickr8k", "flickr30k")  # sets with captions in place of classes, which torchvision does not download


@dataclass
class TorchvisionSource(SourceConfig):
    """A data set that torchvision reads, class names as tags; its own splits are united."""

    name: str = "torchvision"  # fixed, it names the kind
    set: str = "imagenette"  # one of TORCHVISION_SETS
    download: bool = False  # let torchvision download it into source.path where it is not there
    annotations: str = ""  # of flickr8k and flickr30k: the file of captions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set not in TORCHVISION_SETS:
            raise ValueError(f"source.set must be one of {', '.join(TORCHVISION_SETS)}, got '{self.set}'")
        if bool(self.annotations) != (self.set in CAPTIONED):
            raise ValueError(
                f"source.annotations is a file of captions for {' and '.join(CAPTIONED)}, and for no other"
            )
        if self.download and self.set in CAPTIONED:
            raise ValueError(f"source.download cannot be had for {self.set}: its authors ask to be asked")


SOURCES = (
    *(FolderSource, TableSource, WebDatasetSource, TorchvisionSource, WebSource, SitemapSource, UrlsSource),
    *(WikimediaSource, OpenverseSource, FlickrSource),
)
GROUPS = ("page", "author", "host", "none")
