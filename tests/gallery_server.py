"""A web on loopback for the crawler: galleries in every way to embed a picture, and sites that misbehave.

One server answers for all hosts by the Host header, writes raw bytes, and logs every request. The truth lies beside the
pages: which picture carries which tags, and what must become of every fault.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import ssl
import threading
import time
import zlib
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, unquote

from tests.tiny import picture

MAX_BYTES = 150_000  # of a picture and of a page, in the test's config
ETAG = ""  # behind the path of a picture
PICTURES = {number: picture(number) for number in range(120)}
HOSTS = (
    "gallery",
    "cdn",
    "traps",
    "rules",
    "slow",
    "busy",
    "bodies",
    "stalls",
    "stuck",
    "drips",
    "moves",
    "heads",
    "closed",
)


@dataclass(frozen=True)
class Asked:
    """One request, as the server saw it."""

    at: float
    host: str
    path: str
    headers: dict[str, str]


@dataclass
class Gallery:
    """The server: `with Gallery() as web:`."""

    asked: list[Asked] = field(default_factory=list)
    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # of gallery.test: path -> content type, body
    expected: dict[int, set[str]] = field(default_factory=dict)  # number of a picture -> its tags
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)  # address -> state and reason
    port: int = 0
    certificate: Path | None = None  # with its key; then it speaks TLS

    def __enter__(self) -> Gallery:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)
        build(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        tls = None
        if self.certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(self.certificate)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    def url(self, host: str, path: str) -> str:
        return f"http://{host}.test:{self.port}{path}"

    def paths(self, host: str) -> list[str]:
        return [each.path for each in self.asked if each.host == f"{host}.test"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await self._request(reader):
                if not await answer(self, request, writer):
                    break
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> Asked | None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        request = Asked(time.monotonic(), headers["host"].partition(":")[0], head[0].split(" ")[1], headers)
        self.asked.append(request)
        return request

    def count(self, request: Asked) -> int:
        return sum(each.host == request.host and each.path == request.path for each in self.asked)


def reply(body: bytes, kind: str = "text/html; charset=utf-8", status: str = "200 OK", **headers: str) -> bytes:
    lines = {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body


def moved(location: str) -> bytes:
    return reply(b"", status="302 Found", Location=location)


def jpeg(number: int, **headers: str) -> bytes:
    return reply(PICTURES[number], "image/jpeg", **headers)


def number_of(path: str) -> int:
    return int((re.findall(r"\d+", unquote(path.partition("?")[0])) or ["0"])[-1])


async def answer(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; say whether the connection goes on."""
    host, path = request.host.removesuffix(".test"), request.path
    if path == "/robots.txt":
        writer.write(robots(host))
    elif path == "/.well-known/tdmrep.json":
        rules = [
            {"location": "/reserved/free/*", "tdm-reservation": 0},
            {"location": "/reserved/", "tdm-reservation": 1},
        ]
        writer.write(reply(json.dumps(rules).encode(), "application/json") if host == "rules" else missing())
    elif host == "gallery" and path in web.pages:
        kind, body = web.pages[path]
        writer.write(gallery_page(path, kind, body))
    elif path.startswith("/to/"):
        writer.write(moved(unquote(path.removeprefix("/to/"))))
    elif path == "/round":  # from one host to the other and back
        writer.write(moved(web.url("cdn" if host == "gallery" else "gallery", "/round")))
    elif path.startswith("/moved-view/"):
        writer.write(moved(path.replace("moved-", "")))
    elif path.startswith(("/p/", "/s/", "/view/")):
        etag = f'"{path}{ETAG}"'
        unchanged = request.headers.get("if-none-match") == etag
        writer.write(reply(b"", status="304 Not Modified") if unchanged else jpeg(number_of(path), ETag=etag))
    elif host in ANSWERS:
        return await ANSWERS[host](web, request, writer)
    else:
        writer.write(missing())
    return True


def missing() -> bytes:
    return reply(b"nothing here", status="404 Not Found")


def robots(host: str) -> bytes:
    if host == "closed":
        return reply(b"", status="503 Service Unavailable")
    if host == "slow":
        return reply(b"User-agent: *\nCrawl-delay: 0.3\n", "text/plain")
    if host == "rules":
        text = "User-agent: otherbot\nDisallow: /\n\nUser-agent: tagtower\nDisallow: /private/\nAllow: /private/open\n"
        return reply(text.encode() + b"Disallow: /*.secret$\n", "text/plain")
    if host == "moves":
        return moved("/real-robots.txt")
    return missing()


def gallery_page(path: str, kind: str, body: bytes) -> bytes:
    if path == "/coded/gzip":
        return reply(gzip.compress(body), kind, Content_Encoding="gzip")
    if path == "/coded/deflate":
        return reply(zlib.compress(body)[2:-4], kind, Content_Encoding="deflate")
    if path == "/coded/twice":
        return reply(zlib.compress(gzip.compress(body)), kind, Content_Encoding="gzip, deflate")
    if path == "/coded/chunked":
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:7], body[7:]))
        return (
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + chunks
            + b"0\r\n\r\n"
        )
    return reply(body, kind, Set_Cookie="session=secret")


# Sites that misbehave


async def bodies(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    whole, name = PICTURES[100], request.path.strip("/")
    bomb = gzip.compress(bytes(20 * MAX_BYTES))
    answers = {
        "longer": reply(whole, "image/jpeg", Content_Length=str(len(whole) + 100)),
        "shorter": reply(whole, "image/jpeg", Content_Length=str(len(whole) // 2)),
        "half-open": b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n"
        + whole[: len(whole) // 2],
        "unfinished": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(whole), whole),
        "announced": reply(b"", "image/jpeg", Content_Length=str(10**9)),
        "endless": b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + bytes(MAX_BYTES + 10),
        "bomb": reply(bomb, "image/jpeg", Content_Encoding="gzip"),
        "nested": reply(b"x", "image/jpeg", Content_Encoding="gzip, gzip, gzip"),
        "brotli": reply(b"x", "image/jpeg", Content_Encoding="br"),
        "damaged": reply(gzip.compress(whole)[:-20], "image/jpeg", Content_Encoding="gzip"),
        "page": reply(b"<html>not here</html>", "image/jpeg"),
        "empty": reply(b"", "image/jpeg"),
        "svg": reply(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "textual": reply(PICTURES[110], "text/plain"),
        "partial": reply(whole[:100], "image/jpeg", status="206 Partial Content"),
    }
    writer.write(answers.get(name, missing()))
    return name not in ("longer", "half-open", "unfinished", "announced", "endless", "shorter")


async def heads(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    name = request.path.strip("/")
    if name == "garbage":
        writer.write(b"\x00\x01\x02 this is not HTTP\r\n\r\n")
    elif name == "endless":
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: yes and more\r\n" * 20_000)
        await writer.drain()
    elif name == "cut":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
    elif name == "lengths":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 500\r\n\r\nhello")
    elif name != "gone":
        writer.write(missing())
    return False


async def stalls(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    if request.path == "/body":
        writer.write(jpeg(101)[:-200])
        await writer.drain()
    await asyncio.sleep(60)
    return False


async def drips(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    for _ in range(900):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.2)
    return True


async def busy(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    first = web.count(request)
    if request.path == "/seconds.jpg":
        late = reply(b"", status="429 Too Many Requests", Retry_After="1")
        writer.write(late if first == 1 else jpeg(111))
    elif request.path == "/date.jpg":
        late = reply(b"", status="503 Service Unavailable", Retry_After=formatdate(time.time() + 2, usegmt=True))
        writer.write(late if first == 1 else jpeg(112))
    elif request.path == "/twice.jpg":
        writer.write(reply(b"", status="503 Service Unavailable") if first <= 2 else jpeg(113))
    elif request.path == "/always.jpg":
        writer.write(reply(b"", status="429 Too Many Requests", Retry_After="0"))
    else:
        status = request.path.strip("/").partition(".")[0]
        writer.write(reply(b"", status=f"{status} As Asked"))
    return True


async def moves(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    name = request.path.strip("/")
    targets = {
        "self": "/self",
        "a": "/b",
        "b": "/a",
        "file": "file:///etc/passwd",
        "data": "data:image/png;base64,AAAA",
        "metadata": "http://169.254.169.254/latest/meta-data/",
        "inside": "http://evil.test/secret",
        "octal": "http://0177.0.0.1/",
        "user": f"http://user:password@gallery.test:{web.port}/p/1.jpg",
        "page": f"http://gallery.test:{web.port}/",
        "fine": f"http://cdn.test:{web.port}/p/31.jpg",
        "nowhere": "",
        "ftp": "ftp://gallery.test/p/1.jpg",
    }
    if name.startswith("chain"):
        writer.write(moved(f"/chain{number_of(name) + 1}"))
    elif name == "real-robots.txt":
        writer.write(reply(b"User-agent: *\nDisallow: /forbidden\n", "text/plain"))
    else:
        writer.write(moved(targets[name]) if name in targets else missing())
    return True


async def rules(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    tags = {
        "/noai.jpg": {"X_Robots_Tag": "noai"},
        "/noimageai.jpg": {"X_Robots_Tag": "all, noimageai"},
        "/noindex.jpg": {"X_Robots_Tag": "noindex, nofollow"},
        "/noimageindex.jpg": {"X_Robots_Tag": "noimageindex"},
        "/ours.jpg": {"X_Robots_Tag": "tagtower: none"},
        "/theirs.jpg": {"X_Robots_Tag": "otherbot: noai, noindex"},
        "/tdm.jpg": {"TDM_Reservation": "1"},
    }
    pages = {
        "/meta-noai": "<meta name=robots content='index, noai'>",
        "/meta-noindex": "<meta name=ROBOTS content=NOINDEX>",
        "/meta-ours": "<meta name=tagtower content=noimageindex>",
        "/meta-tdm": "<meta name=tdm-reservation content=1>",
        "/meta-nofollow": "<meta name=robots content=nofollow><a href=/never>never</a>",
    }
    kept_out = b"" if request.path == "/meta-nofollow" else b"<img src=/never.jpg>"
    if request.path in tags:
        writer.write(jpeg(114 if request.path == "/theirs.jpg" else 115, **tags[request.path]))
    elif request.path in pages:
        writer.write(reply(f"<html><head>{pages[request.path]}</head>".encode() + kept_out))
    elif request.path == "/header-noindex":
        writer.write(reply(b"<img src=/never.jpg>", X_Robots_Tag="noindex"))
    elif request.path == "/header-nofollow":
        writer.write(reply(b"<a href=/never>never</a>", X_Robots_Tag="otherbot: none, tagtower: nofollow"))
    elif request.path in ("/private/open", "/reserved/free/1.jpg"):
        writer.write(jpeg(116 if request.path == "/private/open" else 117))
    else:
        writer.write(missing())
    return True


async def traps(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    path = request.path
    if path.startswith("/calendar"):
        day = number_of(path) + 1
        writer.write(reply(f"<a href=/calendar/{day}>tomorrow</a>".encode()))
    elif path.startswith("/sessions"):
        writer.write(
            reply(
                f"<a href='/sessions?PHPSESSID={len(web.asked)}'>a</a> <a href='/sessions;jsessionid=7'>b</a>".encode()
            )
        )
    elif path.startswith("/deeper"):
        writer.write(reply(f"<a href='{path.rstrip('/')}/deeper/'>down</a>".encode()))
    elif path.startswith("/level"):
        writer.write(reply(f"<a href=/level{chr(ord(path[-1]) + 1)}>down</a>".encode()))
    elif path == "/many/":
        writer.write(reply("".join(f"<a href=/many/{number}>one</a>" for number in range(40)).encode()))
    elif path == "/away":
        writer.write(moved(f"http://cdn.test:{web.port}/never"))
    elif path == "/nested":
        writer.write(reply(b"<div>" * 400 + b"<img src=/never.jpg>"))
    elif path == "/archive":
        writer.write(reply(b"PK", "application/zip"))
    elif path == "/large":
        writer.write(reply(b"<p>" + bytes(MAX_BYTES)))
    else:
        writer.write(missing())
    return True


async def slow(web: Gallery, request: Asked, writer: asyncio.StreamWriter) -> bool:
    writer.write(missing())
    return True


ANSWERS = {
    name: globals()[name] for name in ("bodies", "heads", "stalls", "drips", "busy", "moves", "rules", "traps", "slow")
}
ANSWERS["stuck"] = stalls

# The gallery


def build(web: Gallery) -> None:
    """Write down the pages of gallery.test, what they show, and what must become of every fault."""
    embeddings(web)
    met_as_pages(web)
    structured_data(web)
    charsets(web)
    odd_tags(web)
    faults(web)
    links = "".join(f"<a href='{path}'>{path}</a>\n" for path in web.pages if not path.startswith("/only-"))
    web.pages["/"] = ("text/html; charset=utf-8", f"<html><title>all</title>{links}</html>".encode())


def page(
    web: Gallery, path: str, body: str, shown: dict[int, set[str]], kind: str = "text/html; charset=utf-8"
) -> None:
    web.pages[path] = (kind, body.encode())
    for number, tags in shown.items():
        web.expected.setdefault(number, set()).update(tags)


def tag_links(*tags: str) -> str:
    return "".join(f"<a rel=tag href='/tagged/{quote(tag)}'>{tag}</a>" for tag in tags)


def embeddings(web: Gallery) -> None:
    pixel = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    cdn = f"//cdn.test:{web.port}"
    ways = [
        "<img src=/p/{n}.jpg>",
        "<img src=/s/{n}.jpg srcset='/s/{n}.jpg 320w, /p/{n}.jpg 1024w, /s/{n}.jpg 640w'>",
        "<img src=/s/{n}.jpg srcset='/s/{n}.jpg, /p/{n}.jpg 2x'>",
        "<picture><source srcset='/s/{n}.jpg 100w, /p/{n}.jpg 900w'><img src=/s/{n}.jpg></picture>",
        "<picture><source type=image/svg+xml srcset='/s/{n}.svg 9000w'><img src=/p/{n}.jpg></picture>",
        f"<img src='{pixel}' data-src=/p/{{n}}.jpg>",
        f"<img src='{pixel}' data-srcset='/s/{{n}}.jpg 10w, /p/{{n}}.jpg 20w'>",
        f"<img class=lazy src='{pixel}'><noscript><img src=/p/{{n}}.jpg></noscript>",
        "<img src=/s/{n}.jpg data-original=/p/{n}.jpg data-src=/s/{n}.jpg>",
        "<a href=/p/{n}.jpg><img src=/s/{n}.jpg></a>",
        "<a href=/p/{n}.jpg>the picture</a>",
        "<figure><img src=/p/{n}.jpg><figcaption>what it shows</figcaption></figure>",
        f"<img src={cdn}/p/{{n}}.jpg>",
        "<img src=../p/{n}.jpg>",
        "<IMG\nSRC = '\n/p/{n}.jpg\t' ALT=x>",
        "<img src='/p/{n}.jpg?a=1&amp;b=2'>",
        "<img src='/p/ü {n}.jpg'>",
        "<img src='/s/{n}.jpg' srcset='/p/a,b,{n}.jpg 2x, /s/{n}.jpg 1x'>",
        "<article><header><img src=/p/{n}.jpg></header></article><nav><img src=/s/1.jpg></nav>"
        "<footer><img src=/s/2.jpg></footer>",
        "<img data-lazy-src=/p/{n}.jpg>",
        "<img src=/p/{n}.jpg#fragment><img src='/p/{n}.jpg'>",
        "<img src='/p/{n}.jpg' srcset=' , , '>",
    ]
    for number, way in enumerate(ways):
        tags = {f"way {number}", "embedded"}
        page(web, f"/ways/{number}", way.format(n=number) + tag_links(*sorted(tags)), {number: tags})
    page(web, "/based", "<base href=/p/x/><img src=../22.jpg>" + tag_links("based"), {22: {"based"}})
    page(web, "/refresh", "<meta http-equiv=Refresh content='0; url=/only-refreshed'>", {})
    page(web, "/only-refreshed", "<img src=/p/23.jpg>" + tag_links("refreshed"), {23: {"refreshed"}})
    page(web, "/area", "<map><area href=/only-area></map><link rel='prefetch next' href=/only-next>", {})
    page(web, "/only-area", "<img src=/p/24.jpg>" + tag_links("area"), {24: {"area"}})
    page(web, "/only-next", "<img src=/p/25.jpg>" + tag_links("next"), {25: {"next"}})
    page(web, "/once", "<img src=/p/26.jpg>" + tag_links("one", "both"), {26: {"one", "both"}})
    page(web, "/again", "<img src=/p/26.jpg>" + tag_links("other", "both"), {26: {"other"}})
    page(web, "/copy", "<img src=/p/copies/26.jpg>" + tag_links("copy"), {26: {"copy"}})
    page(web, "/moved", f"<img src={web.url('moves', '/fine')}>" + tag_links("moved"), {31: {"moved"}})
    page(
        web,
        "/xhtml",
        "<html xmlns='http://www.w3.org/1999/xhtml'><img src='/p/27.jpg'/></html>",
        {27: set()},
        "application/xhtml+xml",
    )
    for number, coding in enumerate(("gzip", "deflate", "twice", "chunked"), start=32):
        page(web, f"/coded/{coding}", f"<img src=/p/{number}.jpg>" + tag_links(coding), {number: {coding}})
    several = "".join(f"<img src=/p/{number}.jpg alt='number {number}'>" for number in range(36, 41))
    page(web, "/several", several + tag_links("several"), {number: {"several"} for number in range(36, 41)})


def met_as_pages(web: Gallery) -> None:
    """Pictures without a suffix, linked as pages are before they are embedded."""
    links = [f"/view/{number}" for number in (72, 73, 75)] + ["/moved-view/74", "/only-late"]
    page(web, "/views", "".join(f"<a href={path}>one</a>" for path in links), {})
    page(
        web,
        "/viewed",
        "<img src=/view/73><img src=/moved-view/74>" + tag_links("early"),
        {73: {"early"}, 74: {"early"}},
    )
    page(web, "/only-late", "<a href=/only-later>on</a>", {})
    page(web, "/only-later", "<img src=/view/72>" + tag_links("late"), {72: {"late"}})
    thumbnails = "".join(
        f"<a href={path}><img src=/s/9.jpg></a>" for path in ("/view/76", "/moved-view/77", "/only-real")
    )
    page(web, "/behind", thumbnails + tag_links("behind"), {76: {"behind"}, 77: {"behind"}})
    page(web, "/behind-too", "<a href=/view/76><img src=/s/9.jpg></a>" + tag_links("too"), {76: {"too"}})
    page(web, "/only-real", "<img src=/p/78.jpg>" + tag_links("real"), {78: {"real"}})  # not what its thumbnail said


def structured_data(web: Gallery) -> None:
    def ld(data: object) -> str:
        return f"<script type='application/ld+json'>{json.dumps(data)}</script>"

    image = {
        "@type": "ImageObject",
        "contentUrl": "/p/41.jpg",
        "keywords": "json, linked data",
        "license": "https://l.test/by",
    }
    page(
        web,
        "/ld/one",
        ld({"@context": "https://schema.org", **image}) + "<img src=/s/41.jpg>",
        {41: {"json", "linked data"}},
    )
    graph = [
        {"@type": "WebPage", "primaryImageOfPage": {"@id": "/p/42.jpg"}},
        {"@type": "Photograph", "url": "/p/42.jpg", "keywords": ["graph", "list"]},
    ]
    page(web, "/ld/graph", ld({"@graph": graph}), {42: {"graph", "list"}})
    article = {
        "@type": "Article",
        "keywords": ["of the article"],
        "image": ["/p/43.jpg", {"@type": "ImageObject", "url": "/p/44.jpg", "keywords": "own"}],
        "publisher": {"logo": {"@type": "ImageObject", "url": "/s/3.jpg"}},
    }
    page(web, "/ld/article", ld(article), {43: {"of the article"}, 44: {"own"}})
    terms = {"@type": "ImageObject", "contentUrl": "/p/45.jpg", "keywords": [{"@type": "DefinedTerm", "name": "term"}]}
    page(web, "/ld/broken", "<script type='application/ld+json'>{broken: </script>" + ld(terms), {45: {"term"}})
    micro = "<img itemprop=contentUrl src=/p/46.jpg><span itemprop=keywords>micro, data</span>"
    micro = f"<div itemscope itemtype='https://schema.org/ImageObject'>{micro}</div>"
    page(web, "/micro", micro, {46: {"micro", "data"}})
    graph_tags = "<meta property=article:tag content=graph><meta property=article:tag content=open>"
    og = "<meta property=og:type content=article><meta property=og:image content=/p/47.jpg>" + graph_tags
    page(web, "/og", f"<html><head>{og}</head><img src=/s/47.jpg></html>", {47: {"graph", "open"}})
    site = "<head><meta property=og:type content=website><meta property=og:image content=/s/4.jpg></head>"
    page(web, "/og-site", f"<html>{site}<img src=/p/48.jpg>{tag_links('site')}</html>", {48: {"site"}})
    page(web, "/keywords", "<meta name=Keywords content='key, word ,, '><img src=/p/49.jpg>", {49: {"key", "word"}})


def charsets(web: Gallery) -> None:
    cases = [
        ("utf-8", "text/html; charset=utf-8", "", "über"),
        ("latin-1", "text/html; charset=ISO-8859-1", "", "größe"),
        ("cp1251", "text/html", "<meta charset=windows-1251>", "кошка"),
        ("shift_jis", "text/html", "<meta http-equiv=content-type content='text/html; charset=Shift_JIS'>", "猫"),
        ("utf-16", "text/html", "", "γάτα"),
        ("gb18030", "text/html; charset=gb2312", "", "猫咪"),
        ("utf-8", "text/html", "", "naïve"),
        ("koi8-r", "text/html; charset=koi8-r", "<meta charset=utf-8>", "собака"),
        ("cp1252", "text/html", "", "café"),
        ("euc-kr", "text/html; charset=euc-kr", "", "고양이"),
    ]
    for number, (codec, kind, meta, tag) in enumerate(cases, start=50):
        body = f"<html><head>{meta}</head><img src=/p/{number}.jpg><a rel=tag href=/t>{tag}</a></html>"
        web.pages[f"/charset/{number}"] = (kind, body.encode(codec))
        web.expected[number] = {tag}


def odd_tags(web: Gallery) -> None:
    tags = [
        "🦊",
        "قطة",
        "R&amp;B",
        "a_b-c",
        "  many \n blanks ",
        "x" * 300,
        "zero\u200bwidth",
        "#hash",
        "&lt;script&gt;",
        "İstanbul",
        "e\u0301",
    ]
    seen = [
        "🦊",
        "قطة",
        "R&B",
        "a_b-c",
        "many blanks",
        "x" * 300,
        "zero\u200bwidth",
        "#hash",
        "<script>",
        "İstanbul",
        "e\u0301",
    ]
    for number, (tag, text) in enumerate(zip(tags, seen, strict=True), start=60):
        page(
            web, f"/odd/{number}", f"<img src=/p/{number}.jpg><a rel='nofollow tag' href=/t>{tag}</a>", {number: {text}}
        )
    page(web, "/untagged", "<img src=/p/71.jpg><a rel=tag href=/t> </a>", {71: set()})


def faults(web: Gallery) -> None:
    """Pages of faulty pictures and links; an outcome of done comes with the picture that must be there."""
    pictures = {
        "bodies": {
            **{"/longer": "failed half_body", "/shorter": "refused truncated", "/half-open": "refused truncated"},
            **{"/unfinished": "failed half_body", "/announced": "failed too_many_bytes"},
            **{
                "/endless": "failed too_many_bytes",
                "/bomb": "failed too_many_bytes",
                "/nested": "failed nested_codings",
            },
            **{
                "/brotli": "failed unknown_coding",
                "/damaged": "failed damaged_coding",
                "/page": "refused not_an_image",
            },
            **{"/empty": "refused empty", "/svg": "refused unsupported_format", "/textual": "done 110"},
            **{"/partial": "failed status_206", "/none": "failed status_404"},
        },
        "heads": {
            **{"/garbage": "failed bad_answer", "/endless": "failed too_large_head", "/cut": "failed reset"},
            **{"/lengths": "failed bad_answer", "/gone": "failed reset"},
        },
        "stalls": {"/head": "failed stall"},
        "stuck": {"/body": "failed stall"},
        "drips": {"/drop": "failed timeout"},
        "busy": {
            **{"/seconds.jpg": "done 111", "/date.jpg": "done 112", "/twice.jpg": "done 113"},
            **{"/always.jpg": "failed status_429", "/403.jpg": "failed status_403", "/410.jpg": "failed status_410"},
            **{"/451.jpg": "failed status_451", "/500.jpg": "failed status_500", "/504.jpg": "failed status_504"},
        },
        "moves": {
            **{"/self": "refused redirect_loop", "/a": "done", "/b": "refused redirect_loop", "/chain0": "done"},
            **{"/file": "refused scheme", "/data": "refused scheme"},
            **{"/ftp": "refused scheme", "/metadata": "done", "/inside": "done", "/octal": "done"},
            **{"/user": "refused credentials", "/page": "refused not_a_picture", "/nowhere": "failed bad_redirect"},
            **{"/forbidden.jpg": "refused robots"},
        },
        "rules": {
            **{"/noai.jpg": "refused noai", "/noimageai.jpg": "refused noimageai", "/noindex.jpg": "refused noindex"},
            **{"/noimageindex.jpg": "refused noimageindex", "/ours.jpg": "refused none", "/theirs.jpg": "done 114"},
            **{"/tdm.jpg": "refused tdm_reserved", "/private/1.jpg": "refused robots", "/private/open": "done 116"},
            **{
                "/x.secret": "refused robots",
                "/reserved/1.jpg": "refused tdm_reserved",
                "/reserved/free/1.jpg": "done 117",
            },
        },
        "closed": {"/1.jpg": "failed robots_unreachable"},
        "slow": {f"/{number}.jpg": "failed status_404" for number in range(3)},
    }
    pages = {
        "rules": {
            **{"/meta-noai": "refused noai", "/meta-noindex": "refused noindex", "/meta-ours": "refused noimageindex"},
            **{"/meta-tdm": "refused tdm_reserved", "/meta-nofollow": "done", "/header-noindex": "refused noindex"},
            "/header-nofollow": "done",
        },
        "traps": {
            **{
                "/calendar/1": "done",
                "/sessions": "done",
                "/deeper/": "done",
                "/levela": "done",
                "/many/": "done",
                "/nested": "failed too_deep",
            },
            **{"/archive": "failed wrong_type", "/large": "failed too_many_bytes", "/away": "refused other_host"},
        },
    }
    elsewhere = {
        "http://evil.test/secret": "refused address",
        "http://mixed.test/1.jpg": "refused address",
        "http://gone.test/1.jpg": "failed dns",
        "http://cdn.test:1/1.jpg": "failed connect",
        "http://public.test:8080/1.jpg": "refused port",
        "http://10.0.0.1/1.jpg": "refused address",
        "http://169.254.169.254/latest/meta-data/": "refused address",
        "http://0177.0.0.1/": "refused address",
        "http://2130706433/1.jpg": "refused address",
        "http://0x7f.1/1.jpg": "refused address",
        "http://[::1]/1.jpg": "refused address",
        "http://[::ffff:127.0.0.1]/1.jpg": "refused address",
        "http://[64:ff9b::7f00:1]/1.jpg": "refused address",
        "http://100.100.100.200/1.jpg": "refused address",
        "http://0.0.0.0/1.jpg": "refused address",
        "file:///etc/passwd.jpg": "refused scheme",
        "ftp://gallery.test/1.jpg": "refused scheme",
        "http://gallery.test:99999/1.jpg": "refused malformed_url",
    }
    written = {web.url(host, path): outcome for host, each in pictures.items() for path, outcome in each.items()}
    followed = {web.url(host, path): outcome for host, each in pages.items() for path, outcome in each.items()}
    credentials = f"<img src=http://user:password@gallery.test:{web.port}/p/2.jpg>"
    long = f"<img src='/p/{'x' * 2100}.jpg'>"
    images = "".join(f"<img src='{url}'>" for url in [*written, *elsewhere]) + credentials + long
    page(web, "/faults/pictures", images + tag_links("faulty"), {})
    page(web, "/faults/pages", "".join(f"<a href='{url}'>x</a>" for url in followed), {})
    for url, outcome in {**written, **followed, **elsewhere}.items():
        state, _, reason = outcome.partition(" ")
        if state == "done" and reason:
            web.expected[int(reason)] = {"faulty"}
            reason = ""
        web.faults[url] = (state, reason)
    web.faults[web.url("moves", "/chain5")] = ("refused", "too_many_redirects")
    web.faults[web.url("traps", "/calendar/10")] = ("refused", "barren_pattern")
    web.faults[web.url("traps", "/many/39")] = ("refused", "pattern_limit")
    web.faults[web.url("traps", "/levelx")] = ("refused", "depth")
    web.faults[web.url("traps", "/deeper/deeper/deeper/")] = ("refused", "path_repeats")
