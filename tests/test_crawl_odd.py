"""Answers that are odd, and yet tell what they bring: their pictures come whole, and at once."""

import gzip
import zlib

import pytest

import crawl.collect
from crawl.collect import collect
from crawl.source_config import WebSource
from tests import gallery_server
from tests.gallery_server import PICTURES, Gallery
from tests.test_crawl_state import list_config
from tests.test_crawl_web import fetch_options, outcomes, tags_of, web_config
from tests.tiny import QuickGate

OK = b"HTTP/1.1 200 OK\r\n"
GIVEN = b"Content-Type: image/jpeg\r\n"


def chunked(body, trailers=b""):
    middle = len(body) // 2
    pieces = b"".join(b"%X;name=value\r\n%s\r\n" % (len(each), each) for each in (body[:middle], body[middle:]))
    return b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n" + trailers + b"\r\n"


def sized(body):
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


JPEG = {number: PICTURES[number] for number in range(20)}
# Path -> answer, and whether the server closes the connection behind it.
WHOLE = {
    "0-trailers": (OK + GIVEN + chunked(JPEG[0], b"X-Digest: 1\r\nX-More: 2\r\n"), False),
    "1-interim": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK + sized(JPEG[1]),
        False,
    ),
    "2-old": (b"HTTP/1.0 200 OK\r\n" + GIVEN + b"\r\n" + JPEG[2], True),
    "3-folded": (OK + b"Content-Type: image/\r\n jpeg\r\nX-Folded: a\r\n\tb\r\n" + sized(JPEG[3]), False),
    "4-many": (OK + b"".join(b"X-%d: y\r\n" % number for number in range(900)) + sized(JPEG[4]), False),
    "5-bare": (b"HTTP/1.1 200\r\n" + GIVEN + sized(JPEG[5]), False),
    "6-coded": (OK + b"Content-Encoding: gzip\r\n" + sized(gzip.compress(JPEG[6])), False),
    "7-coded": (OK + b"Content-Encoding: deflate\r\n" + chunked(zlib.compress(JPEG[7])), False),
    "8-identity": (OK + b"Content-Encoding: identity\r\n" + sized(JPEG[8]), False),
    "9-lower": (b"HTTP/1.1 200 ok\r\ncontent-LENGTH:  %d  \r\n\r\n" % len(JPEG[9]) + JPEG[9], False),
    "10-closing": (OK + b"Connection: close\r\n" + sized(JPEG[10]), True),
    "11-announced": (OK + sized(JPEG[11]), True),  # keep-alive, and closed all the same
    "12-both": (OK + b"Content-Length: 3\r\n" + chunked(JPEG[12]), False),  # RFC 9112, 6.3: the coding counts
    "13-junk": (OK + sized(JPEG[13]) + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\njunk", False),
    "14-newlines": (OK.replace(b"\r", b"") + b"Content-Length: %d\n\n" % len(JPEG[14]) + JPEG[14], False),
    "15-long": (OK + b"Set-Cookie: " + b"x" * 30_000 + b"\r\n" + sized(JPEG[15]), False),
    "16-twice": (OK + b"Content-Length: %d\r\n" % len(JPEG[16]) + sized(JPEG[16]), False),
    "17-latin": (b"HTTP/1.1 200 D\xe9j\xe0 vu\r\nX-Name: \xff\xfe\r\n" + sized(JPEG[17]), False),
    "18-none": (OK + b"Content-Encoding: none\r\n" + sized(JPEG[18]), False),
    "19-empty": (OK + b"X-Empty:\r\nX-Empty: \r\n" + sized(JPEG[19]), False),
}


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(crawl.collect, "IsolatedGate", QuickGate)

    async def odd(web, request, writer):
        answer, closes = WHOLE.get(request.path.strip("/"), (gallery_server.missing(), False))
        for start in range(0, len(answer), 700):  # in pieces that part lines and heads anywhere
            writer.write(answer[start : start + 700])
            await writer.drain()
        return not closes

    monkeypatch.setitem(gallery_server.ANSWERS, "slow", odd)
    monkeypatch.setattr(gallery_server, "robots", lambda host: gallery_server.missing())
    with Gallery() as web:
        yield web


def test_odd_answers_bring_whole_pictures(web, tmp_path):
    config = list_config(web, tmp_path, [{"url": web.url("slow", f"/{name}")} for name in WHOLE])
    assert set(tags_of(collect(config))) == set(range(len(WHOLE)))
    assert set(outcomes(config).values()) == {("done", "")}
    assert len([each for each in web.asked if each.path[1].isdigit()]) == len(WHOLE)


def test_a_page_may_be_larger_than_a_picture(web, tmp_path):
    web.pages["/long"] = ("text/html", b"<img src=/p/1.jpg>" + b" " * 120_000)
    source = WebSource(start=[web.url("gallery", "/long")])
    assert tags_of(collect(web_config(web, tmp_path, source=source, fetch=fetch_options(max_bytes=20_000)))) == {
        1: set()
    }
