"""What is read from pages and sitemaps: rules, versions of a picture, links, opt-outs."""

import gzip
import json

import pytest
from lxml import html

import crawl.sources.largest
import crawl.sources.web
from configs.artifacts import ArtifactError
from crawl.fetch.faults import Fault
from crawl.fetch.found import PAGE, SITEMAP, Answer
from crawl.source_config import SitemapSource, WebSource
from crawl.sources.largest import parse_srcset, versions
from crawl.sources.sitemap import Sitemap
from crawl.sources.web import Web

URL = "https://example.org/gallery/1"
HTML = {"content-type": ["text/html; charset=utf-8"]}


def read(text, url=URL, headers=HTML, **rules):
    finder = Web(WebSource(start=[URL], **rules), "Tagtower")
    return finder.read(Answer(url, PAGE, headers, text if isinstance(text, bytes) else text.encode()))


def shown(found):
    return {picture.url.removeprefix("https://example.org"): picture.about for picture in found.pictures}


BLOCKS = """
<title>All</title>
<div class=item><a href=/1.html><img data-big=/big/1.jpg src=/1.jpg></a>
<h2>One</h2><p class=t>cat; small</p><i>Ann</i></div>
<div class=item><img data-big=/big/2.jpg src=/2.jpg><h2>Two</h2><p class=t>dog</p><i>Bob</i></div>
"""


def test_rules_say_where_the_parts_of_each_block_stand():
    rules = {"block": ".item", "picture": "./img/@data-big | ./a/img/@data-big", "tags": ".t", "tag_separator": ";"}
    rules |= {"title": "h2::text", "author": ".//i", "group": "author"}
    about = shown(read(BLOCKS, **rules))
    assert {url: each.tags for url, each in about.items()} == {"/big/1.jpg": ("cat", "small"), "/big/2.jpg": ("dog",)}
    assert about["/big/2.jpg"].provenance == {"title": "Two", "author": "Bob", "group": "Bob", "page_url": URL}


def test_addresses_of_pictures_and_links_may_be_chosen():
    found = read(BLOCKS + "<a href=/2.html>x</a>", picture_match=r"/2\.", follow_skip="2")
    assert list(shown(found)) == ["/2.jpg"]
    assert [link.url for link in found.links] == ["https://example.org/1.html"]


def test_pictures_are_taken_from_pages_that_match_alone():
    assert read(BLOCKS, page_match="/photo/").pictures == []
    assert len(read(BLOCKS, page_match="/gallery/", picture="img").pictures) == 2


def test_thumbnails_are_left_to_the_pages_they_lead_to():
    listed = """
        <a href=/p/1><img src=t1.jpg></a> <a href=""><img src=here.jpg></a> <a href=http://[><img src=bad.jpg></a>
        <a href=https://other.example/p><img src=abroad.jpg></a> <a href=/full.jpg><img src=t2.jpg></a>"""
    names = [url.rpartition("/")[2] for url in shown(read(listed))]
    assert names == ["here.jpg", "bad.jpg", "abroad.jpg", "full.jpg"]
    assert "https://example.org/gallery/t1.jpg" in [each.url for each in read(listed, block="a").pictures]


@pytest.mark.parametrize("selector", ["div[", "//div[", "h2::nonsense"])
def test_what_is_no_selector_is_told(selector):
    with pytest.raises(ArtifactError, match=r"source\.tags is neither CSS nor XPath"):
        read("", tags=selector)


def test_a_start_page_is_needed_and_must_be_one_to_ask_for():
    with pytest.raises(ArtifactError, match=r"source\.start is empty"):
        Web(WebSource(), "Tagtower")
    with pytest.raises(ArtifactError, match=r"'file:///x' \(scheme\)"):
        Web(WebSource(start=["file:///x"]), "Tagtower")


def test_other_hosts_are_not_followed_but_their_pictures_are_taken():
    found = read("<a href=https://other.org/>x</a><a href=//sub.example.org/>y</a><img src=https://cdn.net/1.jpg>")
    assert [link.url for link in found.links] == ["https://sub.example.org/"]
    assert [picture.url for picture in found.pictures] == ["https://cdn.net/1.jpg"]


@pytest.mark.parametrize(
    ("meta", "opt_out", "nofollow"),
    [
        ("<meta name=robots content='noindex, nofollow'>", "noindex", True),
        ("<meta name=robots content=none>", "none", True),
        ("<meta name=tagtower content=noimageai>", "noimageai", False),
        ("<meta name=otherbot content=noai>", "", False),
        ("<meta name=tdm-reservation content=1>", "tdm_reserved", False),
        ("<meta name=description content=noai>", "", False),
    ],
)
def test_pages_may_keep_their_pictures_out(meta, opt_out, nofollow):
    found = read(f"<html><head>{meta}</head><img src=/1.jpg></html>")
    assert (found.opt_out, found.nofollow) == (opt_out, nofollow)


@pytest.mark.parametrize(
    ("body", "headers", "kind"),
    [
        (b"PK", {"content-type": ["application/zip"]}, "wrong_type"),
        (b"<div>" * 250 + b"x", HTML, "too_deep"),
        (b"<div>" * 9000 + b"x", HTML, "too_deep"),
    ],
)
def test_pages_that_are_none_or_too_deep_are_refused(body, headers, kind):
    with pytest.raises(Fault) as caught:
        read(body, headers=headers)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "body", [b"", b"<!-- -->", b"\0\0", b"<", b"plain text", b"<html", b"&#0;&#xD800;<img src=/1.jpg>"]
)
def test_odd_pages_are_read_all_the_same(body):
    assert len(read(body).pictures) == (b"img" in body)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg", [((0, 1), "a.jpg")]),
        ("a.jpg 2x, b.jpg 300w", [((0, 2), "a.jpg"), ((300, 1), "b.jpg")]),
        ("a,b.jpg 1x,c.jpg", [((0, 1), "a,b.jpg"), ((0, 1), "c.jpg")]),
        ("a.jpg, b.jpg 1.5x", [((0, 1), "a.jpg"), ((0, 1.5), "b.jpg")]),
        (" , ,", []),
        ("a.jpg 100w 50h, b.jpg 200w", [((100, 1), "a.jpg"), ((200, 1), "b.jpg")]),
        ("a.jpg nonsense", [((0, 1), "a.jpg")]),
        ("a.jpg calc(1, 2) 2x, b.jpg (3, 4", [((0, 2), "a.jpg"), ((0, 1), "b.jpg")]),
        (" " * 200_000, []),
        (" ," * 100_000 + "a.jpg" + " (" * 100_000, [((0, 1), "a.jpg")]),
        ("data:image/gif;base64,AA== 1x, b.jpg 2x", [((0, 1), "data:image/gif;base64,AA=="), ((0, 2), "b.jpg")]),
    ],
)
def test_srcsets_are_split_as_html_has_it(text, expected):
    assert parse_srcset(text) == expected


@pytest.mark.parametrize(
    ("markup", "largest"),
    [
        ("<img src=s.jpg srcset='m.jpg 500w, l.jpg 900w'>", "l.jpg"),
        ("<img src=s.jpg srcset='l.jpg 3x, m.jpg 2x'>", "l.jpg"),
        ("<img src=s.jpg data-src=m.jpg data-full=l.jpg>", "l.jpg"),
        ("<a href=l.png><img src=s.jpg srcset='m.jpg 900w'></a>", "l.png"),
        ("<a href=page.html><img src=l.jpg></a>", "l.jpg"),
        ("<picture><source srcset='l.webp 900w'><source srcset='m.jpg 500w'><img src=s.jpg></picture>", "l.webp"),
        ("<picture><source type=image/jxl srcset='x.jxl 9000w'><img src=l.jpg></picture>", "l.jpg"),
    ],
)
def test_the_largest_version_comes_first(markup, largest):
    image = html.fragment_fromstring(f"<div>{markup}</div>").find(".//img")
    assert next(versions(image)) == largest


@pytest.mark.parametrize(
    ("content", "leads_to"),
    [
        ("0; url=/next", ["/next"]),
        (" 5.5 , URL = /next ", ["/next"]),
        ("0;URL='/next'", ["/next"]),
        ("0;/next", ["/next"]),
        ("url=/next", ["/next"]),
        ("30", []),
        (" " * 100_000 + "x", []),
        ("1" + " " * 100_000 + "x", []),
    ],
)
def test_a_refresh_leads_on(content, leads_to):
    found = read(f'<meta http-equiv="refresh" content="{content}">')
    assert [link.url.removeprefix("https://example.org") for link in found.links] == leads_to


@pytest.mark.parametrize(
    "body",
    [
        "<figure>" + "<img src=a>" * 2_000 + "<figcaption>x</figcaption>" * 2_000 + "</figure>",
        "<picture>" + "<source srcset='a 1w'></source>" * 2_000 + "<img src=b>" * 2_000 + "</picture>",
    ],
    ids=["captions", "sources"],
)
def test_a_small_page_takes_little_work(body, monkeypatch):
    """Every picture of it could look at everything else."""
    steps = []
    text_of, parse = crawl.sources.web.text_of, crawl.sources.largest.parse_srcset
    monkeypatch.setattr(crawl.sources.web, "text_of", lambda found: steps.append(0) or text_of(found))
    monkeypatch.setattr(crawl.sources.largest, "parse_srcset", lambda text: steps.append(0) or parse(text))
    assert len(read(body).pictures) == 1
    assert len(steps) < 200 * 2_000


def test_what_a_page_says_and_lists_is_kept_within_bounds(monkeypatch):
    for name, bound in (("MAX_LISTED", 3), ("MAX_TAGS", 2), ("MAX_CHARS", 4)):
        monkeypatch.setattr(crawl.sources.web, name, bound)
    images = "".join(f"<img src=/{number}.jpg alt=yyyyyyyyy>" for number in range(5))
    links = "".join(f"<a rel=tag href=/{number}>{number} and more</a>" for number in range(5))
    found = read(f"<title>xxxxxxxxx</title>{images}{links}")
    assert list(shown(found)) == ["/0.jpg", "/1.jpg", "/2.jpg"]
    about = shown(found)["/2.jpg"]
    assert about.tags == ("0 an", "1 an")
    assert (about.provenance["title"], about.provenance["caption"]) == ("xxxx", "yyyy")
    assert about.provenance["page_url"] == URL
    assert len(found.links) == 3
    assert [each.reason for each in found.refused] == ["page_too_long", "page_too_long"]


def test_pictures_that_a_graph_names_by_reference_come_with_what_is_said_there():
    graph = [
        {"@type": "WebPage", "primaryImageOfPage": {"@id": "#main"}},
        {"@type": "Article", "keywords": ["fox", "snow"], "headline": "A fox", "image": {"@id": "#main"}},
        {"@type": "ImageObject", "@id": "#main", "contentUrl": "/l.jpg", "caption": "In snow"},
        {"@type": "Article", "image": [{"@id": "#nobody"}]},
    ]
    found = read(f"<script type='Application/LD+JSON; charset=utf-8'>{json.dumps({'@graph': graph})}</script>")
    assert list(shown(found)) == ["/l.jpg"]
    about = shown(found)["/l.jpg"]
    assert about.tags == ("fox", "snow")
    assert (about.provenance["title"], about.provenance["caption"]) == ("A fox", "In snow")


def test_logos_and_portraits_of_a_graph_are_no_pictures_of_the_page():
    logo = {"@type": "ImageObject", "@id": "#logo", "url": "/logo.png"}
    graph = [
        {"@type": "Organization", "logo": logo, "image": {"@id": "#logo"}},
        {"@type": ["Person"], "image": {"@type": "ImageObject", "url": "/portrait.jpg"}},
    ]
    script = f"<script type=application/ld+json>{json.dumps({'@graph': graph})}</script>"
    assert list(shown(read(f"{script}<img src=/1.jpg>"))) == ["/1.jpg"]


def test_a_graph_that_refers_in_circles_is_read_once():
    ring = [{"@id": f"#{n}", "url": f"/{n}.jpg", "image": [{"@id": f"#{m}"} for m in range(30)]} for n in range(30)]
    assert len(read(f"<script type=application/ld+json>{json.dumps(ring)}</script>").pictures) == 30


SITEMAP_XML = b"""<?xml version="1.0"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:image="http://www.google.com/schemas/sitemap-image/1.1">
<url><loc> https://example.org/1 </loc><image:image><image:loc>https://cdn.net/1.jpg</image:loc><image:title>One</image:title>
<image:license>https://l.org/by</image:license></image:image></url>
<url><loc>https://other.org/2</loc></url><url><loc>file:///etc/passwd</loc></url></urlset>"""


def read_sitemap(body, kind="application/xml", url="https://example.org/sitemap.xml"):
    finder = Sitemap(SitemapSource(start=["https://example.org/"]), "Tagtower")
    return finder.read(Answer(url, SITEMAP, {"content-type": [kind]}, body))


@pytest.mark.parametrize("body", [SITEMAP_XML, gzip.compress(SITEMAP_XML)], ids=["plain", "gzip"])
def test_a_sitemap_lists_pages_of_its_own_hosts_and_pictures(body):
    found = read_sitemap(body)
    assert [link.url for link in found.links] == ["https://example.org/1"]
    assert [
        (each.url, each.about.provenance["title"], each.about.provenance["licence"]) for each in found.pictures
    ] == [("https://cdn.net/1.jpg", "One", "https://l.org/by")]
    assert [bad.reason for bad in found.refused] == ["scheme"]


def test_an_index_leads_to_sitemaps_and_robots_txt_too():
    index = b"<sitemapindex><sitemap><loc>https://example.org/a.xml.gz</loc></sitemap></sitemapindex>"
    assert [(link.url, link.kind) for link in read_sitemap(index).links] == [("https://example.org/a.xml.gz", SITEMAP)]
    robots = b"User-agent: *\nDisallow: /x\nSitemap: https://example.org/s.xml\n"
    found = read_sitemap(robots, "text/plain", "https://example.org/robots.txt")
    assert [link.url for link in found.links] == ["https://example.org/s.xml"]


def test_a_bare_site_is_asked_for_its_robots_txt():
    finder = Sitemap(SitemapSource(start=["https://example.org/", "https://example.org/s.xml"]), "Tagtower")
    assert [entry.url for entry in finder.entries(0)] == ["https://example.org/robots.txt", "https://example.org/s.xml"]


def test_entities_of_a_sitemap_are_not_followed():
    bomb = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>https://example.org/&x;</loc></url></urlset>'
    assert [link.url for link in read_sitemap(bomb).links] == ["https://example.org/&x"]


def test_what_is_neither_xml_nor_a_list_is_no_sitemap():
    with pytest.raises(Fault) as caught:
        read_sitemap(b"\x89PNG", "image/png")
    assert caught.value.kind == "wrong_type"


@pytest.mark.parametrize(
    ("body", "links"),
    [
        (b"<urlset><url><loc>https://example.org/1?a=1&b=2&amp;c=&#51;</loc></url></urlset>", ["1?a=1&b=2&c=3"]),
        (b"<urlset><url><loc><![CDATA[https://example.org/1?a=1&b=2]]></loc></url></urlset>", ["1?a=1&b=2"]),
        (b"<rss><channel><link>https://example.org/</link><item><link>https://example.org/1</link></item></channel></rss>",
         ["1"]),
        (b"<feed xmlns='http://w3.org/2005/Atom'><entry><link rel='self' href='/x'/><link href='/1'/></entry></feed>",
         ["1"]),
    ],
    ids=["ampersand", "cdata", "rss", "atom"],
)  # fmt: skip
def test_careless_sitemaps_and_feeds_list_pages_too(body, links):
    assert [link.url.removeprefix("https://example.org/") for link in read_sitemap(body).links] == links


def test_a_list_without_its_type_is_known_by_its_name_and_a_page_is_no_sitemap():
    found = read_sitemap(b"https://example.org/1", kind="application/octet-stream", url="https://example.org/map.txt")
    assert [link.url for link in found.links] == ["https://example.org/1"]
    for broken in (b"<", b"<!-- -->", b"<?xml version='1.0'?>"):
        with pytest.raises(Fault, match="wrong_type"):
            read_sitemap(broken)
    with pytest.raises(Fault, match="<html> where a sitemap was expected"):
        read_sitemap(b"<html><body>Not found</body></html>", kind="text/html")
