"""What sites ask of crawlers, read as its standards have it, and what a small body may unpack to."""

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawl.fetch.codings import decoded
from crawl.fetch.faults import Fault
from crawl.fetch.manners import (
    header_opt_out,
    opted_out,
    read_reservations,
    read_site,
    retry_after_s,
    robots_tags,
)
from crawl.fetch.urls import BadUrl, canonical, pattern_of

PAGE = "https://example.org/a/b.html"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"", ""),
        (200, b"User-agent: *\nDisallow: /", "robots"),
        (200, b"User-agent: *\nDisallow: /a\nAllow: /a/b", ""),
        (200, b"User-agent: *\nDisallow: /a/b\nAllow: /a", "robots"),
        (200, b"User-agent: *\nAllow: /a\nDisallow: /a", ""),
        (200, b"User-agent: *\nDisallow: /*.html$", "robots"),
        (200, b"User-agent: *\nDisallow: /*.htm$", ""),
        (200, b"User-agent: other\nDisallow: /", ""),
        (200, b"User-agent: *\nDisallow: /\n\nUser-agent: TagTower\nDisallow: /x", ""),
        (200, b"User-agent: *\nDisallow: /x\n\nUser-agent: tagtower\nDisallow: /a", "robots"),
        (200, b"User-agent: Tagtower/1.0 (any)\nDisallow: /a", "robots"),
        (200, b"User-agent: tag\nAllow: /\n\nUser-agent: *\nDisallow: /", "robots"),
        (200, b"User-agent: tag\nDisallow: /", ""),
        (200, b"User-agent: tagtower2\nDisallow: /", "robots"),
        (200, b"User-agent: tagtower-news\nDisallow: /", ""),
        (200, b"user-agent : * # all\rDisallow: /a\rUser-agent: tagtower # us\rDisallow: /x", ""),
        (200, b"User-agent: x\nUser-agent: tagtower\nDisallow: /a", "robots"),
        (200, b"User-agent: tagtower\nDisallow: /x\n\nUser-agent: *\n\nUser-agent: Tagtower\nDisallow: /a", "robots"),
        (200, b"\xef\xbb\xbfUser-agent: *\nDisallow: /", "robots"),
        (200, b"<html>not a robots file</html>", ""),
        (200, b"#" * 600_000 + b"\nUser-agent: *\nDisallow: /", ""),
        (404, b"User-agent: *\nDisallow: /", ""),
        (403, b"", ""),
        (429, b"", "robots_unreachable"),
        (500, b"", "robots_unreachable"),
        (503, b"", "robots_unreachable"),
        (0, b"timeout", "timeout"),
        (0, b"dns", "dns"),
    ],
)
def test_robots_txt_decides_as_rfc_9309_has_it(status, body, reason):
    assert read_site(status, body, b"", "Tagtower").forbids(PAGE, "Tagtower") == reason


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b"User-agent: *\nCrawl-delay: 7", 7),
        (b"User-agent: tagtower\nCrawl-delay: 0.5\n\nUser-agent: *\nCrawl-delay: 9", 0.5),
        (b"User-agent: *\nRequest-rate: 1/20", 20),
        (b"User-agent: *\nCrawl-delay: soon", 0),
    ],
)
def test_crawl_delay_is_read(body, seconds):
    assert read_site(200, body, b"", "Tagtower").delay_s == seconds


@pytest.mark.parametrize(
    ("path", "reserved"),
    [
        ("/free/1.jpg", False),
        ("/1.jpg", True),
        ("/a/1.png", False),
        ("/a/1.gif", True),
        ("/end", True),
        ("/end/x", True),
    ],
)
def test_the_first_reservation_that_fits_a_path_counts(path, reserved):
    rules = [
        {"location": "/free/", "tdm-reservation": 0},
        {"location": "/*.png$", "tdm-reservation": 0},
        {"location": "/", "tdm-reservation": 1, "tdm-policy": "https://example.org/policy.json"},
    ]
    site = read_site(404, b"", json.dumps(rules).encode(), "Tagtower")
    assert site.forbids(f"https://example.org{path}", "Tagtower") == ("tdm_reserved" if reserved else "")


@pytest.mark.parametrize(
    ("location", "path", "fits"),
    [
        ("/", "/a?b=1", True),
        ("/a", "/ab", True),
        ("/a", "/A", False),
        ("/a$", "/a?b=1", False),
        ("/*?b=", "/a?b=1", True),
        ("/%7Eann", "/~ann/1.jpg", True),
        ("/~ann", "/%7eann/1.jpg", True),
        ("/katze/m\u00fcde", "/katze/m%C3%BCde.jpg", True),
        ("/m%c3%bcde", "/m\u00fcde", True),
        ("/a%2Fb", "/a/b", False),
        ("/path/foo-%24", "/path/foo-$", True),
        ("/path/foo-%24", "/path/foo-%24", True),
        ("/path/foo-%24", "/path/foo-", False),
        ("/*/b/*.jpg$", "/a/b/c/b/1.jpg.jpg", True),
        ("/*.jpg$", "/1.jpg.png", False),
        ("/a*b*c", "/acb", False),
        ("*.jpg", "/1.jpg?x", True),
        ("/" + "*a" * 40 + "*b", "/" + "a" * 2000, False),
        ("/%2a/", "/*/1.jpg", True),
        ("/%2a/", "/a/1.jpg", False),
    ],
)
def test_escapes_of_a_reservation_mean_what_they_mean_in_an_address(location, path, fits):
    rules = json.dumps([{"location": location, "tdm-reservation": 1}]).encode()
    site = read_site(404, b"", rules, "Tagtower")
    assert site.forbids(canonical(f"https://example.org{path}"), "Tagtower") == ("tdm_reserved" if fits else "")


@pytest.mark.parametrize(("value", "reserved"), [(1, True), ("1", True), (0, False), (2, False), (None, False)])
def test_a_value_that_is_none_sets_nothing_and_no_later_rule_counts(value, reserved):
    rules = [{"location": "/a", "tdm-reservation": value}, {"location": "/", "tdm-reservation": 1}]
    site = read_site(404, b"", json.dumps(rules).encode(), "Tagtower")
    assert (site.forbids("https://example.org/a", "Tagtower") == "tdm_reserved") is reserved


@pytest.mark.parametrize(
    ("header", "within", "out"),
    [
        (["1"], None, "tdm_reserved"),
        (["1"], False, ""),
        (["0"], True, "tdm_reserved"),
        ([], True, "tdm_reserved"),
        (["0"], None, ""),
        (["yes"], None, ""),
        ([], None, ""),
    ],
)
def test_what_a_page_says_of_its_reservation_goes_before_its_header(header, within, out):
    assert header_opt_out({"tdm-reservation": header}, "Tagtower", within) == out


@pytest.mark.parametrize("text", [b"", b"{", b"[1, null]", b'[{"location": 3}]', b"[" * 100_000])
def test_reservations_that_cannot_be_read_say_nothing(text):
    assert read_reservations(text) == []


@pytest.mark.parametrize(
    ("value", "directive"),
    [
        ("all", ""),
        ("noai", "noai"),
        ("NoImageAI", "noimageai"),
        ("nofollow, noarchive", ""),
        ("none", "none"),
        ("otherbot: noai", ""),
        ("otherbot: noai, tagtower: noindex", "noindex"),
        ("TagTower: noai", "noai"),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST", ""),
        ("max-image-preview: none", ""),
    ],
)
def test_x_robots_tag_is_read_for_us_and_for_all(value, directive):
    assert opted_out(robots_tags([value]), "Tagtower") == directive
    assert header_opt_out({"x-robots-tag": [value]}, "Tagtower") == directive


def test_a_header_may_reserve_a_picture():
    assert header_opt_out({"tdm-reservation": ["1"]}, "Tagtower") == "tdm_reserved"
    assert header_opt_out({"tdm-reservation": ["0"]}, "Tagtower") == ""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("1.5", 1.5),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("9999999999", 9_999_999_999),  # for whoever calls to cap, not to take for nothing
        ("9" * 50, None),
        ("Thu, 99 Foo", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert retry_after_s(value, 40.0) == seconds


@given(st.binary(max_size=2000), st.lists(st.sampled_from(["gzip", "deflate"]), max_size=2))
def test_codings_are_undone_in_turn(content, names):
    body = content
    for name in names:
        body = gzip.compress(body) if name == "gzip" else zlib.compress(body)
    assert decoded(body, ", ".join(names), 10_000) == content


def test_gzip_in_several_members_is_whole():
    body = b"".join(gzip.compress(bytes([number]) * 3) for number in range(5)) + b"padding behind it"
    assert decoded(body, "gzip", 15) == b"".join(bytes([number]) * 3 for number in range(5))
    for bound in (14, 2):
        with pytest.raises(Fault, match="too_many_bytes"):
            decoded(body, "gzip", bound)
    with pytest.raises(Fault, match="damaged_coding"):
        decoded(gzip.compress(b"") * 1_002, "gzip", 15)


@pytest.mark.parametrize(
    ("body", "header", "kind"),
    [
        (gzip.compress(bytes(10_001)), "gzip", "too_many_bytes"),
        (zlib.compress(bytes(10**7)), "deflate", "too_many_bytes"),
        (gzip.compress(gzip.compress(bytes(10**7))), "gzip, gzip", "too_many_bytes"),
        (b"x", "gzip, gzip, gzip", "nested_codings"),
        (b"x", "br", "unknown_coding"),
        (b"x", "gzip", "damaged_coding"),
        (b"x", "deflate", "damaged_coding"),
        (gzip.compress(b"whole")[:-4], "gzip", "damaged_coding"),
    ],
)
def test_codings_are_undone_within_bounds(body, header, kind):
    with pytest.raises(Fault) as caught:
        decoded(body, header, 10_000)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("../c.jpg#top", "https://example.org/c.jpg"),
        ("//cdn.example.org/x", "https://cdn.example.org/x"),
        ("HTTPS://Example.ORG:443/?b=2&a=1", "https://example.org/?b=2&a=1"),
        ("/x y/ü?q=ö", "https://example.org/x%20y/%C3%BC?q=%C3%B6"),
        ("/p;jsessionid=ABC?PHPSESSID=1&a=2", "https://example.org/p?a=2"),
        ("http://münchen.example/", "http://xn--mnchen-3ya.example/"),
        ("\n /a\tb ", "https://example.org/ab"),
        ("https://example.org/open/../private/1", "https://example.org/private/1"),
        ("/open/%2e%2E/private/./1/.", "https://example.org/private/1/"),
        ("https://example.org/../..", "https://example.org/"),
        ("..\\img\\c.jpg?a\\b", "https://example.org/img/c.jpg?a%5Cb"),
        ("\\\\cdn.example.org\\x", "https://cdn.example.org/x"),
        ("/%7ea%c3%bc%2f?%61=%2F", "https://example.org/~a%C3%BC%2F?a=%2F"),
        ("https://example.org./x", "https://example.org/x"),
        ("/100%/%zz", "https://example.org/100%/%zz"),
    ],
)
def test_an_address_has_one_spelling(url, expected):
    assert canonical(url, PAGE) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "scheme"),
        ("data:image/png;base64,AA", "scheme"),
        ("http://user@example.org/", "credentials"),
        ("http://example.org\\@evil.example/", "credentials"),
        ("http:///x", "malformed_url"),
        ("http://example.org:0/", "malformed_url"),
        ("http://[::1/", "malformed_url"),
        ("http://[fe80::1%25eth0]/", "malformed_url"),
        ("http://two words.example/", "malformed_url"),
        ("http://a..example/", "malformed_url"),
        ("http://%65vil.example/", "malformed_url"),
        ("http://" + "x" * 64 + ".example/", "malformed_url"),
        ("http://" + "x." * 130 + "example/", "malformed_url"),
        ("/" + "x" * 2100, "url_too_long"),
        ("/a/b/a/b/a/b", "path_repeats"),
        ("/" + "/".join(map(str, range(30))), "path_too_deep"),
    ],
)
def test_what_is_no_address_to_ask_for_has_a_reason(url, reason):
    with pytest.raises(BadUrl) as caught:
        canonical(url, PAGE)
    assert caught.value.reason == reason


def test_addresses_that_differ_in_numbers_follow_one_pattern():
    assert pattern_of("http://x.org/cal/2024/05?month=3") == pattern_of("http://x.org/cal/1999/12?month=11")
    assert pattern_of("http://x.org/photo/deadbeef01") == pattern_of("http://x.org/photo/0123456789ab")
    assert pattern_of("http://x.org/photo/face") != pattern_of("http://x.org/photo/fade")
