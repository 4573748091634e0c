"""The answers of MediaWiki, Openverse and Flickr as they document them, from one process or over loopback."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from crawl.fetch.database import DONE, FAILED, REFUSED
from crawl.fetch.faults import TRANSIENT, Fault
from crawl.fetch.found import API, PICTURE, Answer
from crawl.fetch.register import Bounds
from crawl.fetch.state import State
from tests.tiny import picture

KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "openverse-token-DLBYIcfnKfolaXKcmMC8RIDCavc2hW"
BOUNDS = Bounds(max_depth=20, max_per_host=1_000_000, max_per_pattern=10_000, max_barren=1_000, max_redirects=5)
FLICKR_LICENCES = {
    0: ("All Rights Reserved", ""),
    1: ("Attribution-NonCommercial-ShareAlike License", "https://creativecommons.org/licenses/by-nc-sa/2.0/"),
    4: ("Attribution License", "https://creativecommons.org/licenses/by/2.0/"),
    5: ("Attribution-ShareAlike License", "https://creativecommons.org/licenses/by-sa/2.0/"),
    7: ("No known copyright restrictions", "https://www.flickr.com/commons/usage/"),
    8: ("United States Government Work", "http://www.usa.gov/copyright.shtml"),
    9: ("Public Domain Dedication (CC0)", "https://creativecommons.org/publicdomain/zero/1.0/"),
    10: ("Public Domain Mark", "https://creativecommons.org/publicdomain/mark/1.0/"),
    12: ("CC BY-SA 4.0", "https://creativecommons.org/licenses/by-sa/4.0/"),
}


@dataclass
class Reply:
    """An answer on its way out."""

    content: object
    status: int = 200
    headers: dict = field(default_factory=dict)

    def body(self):
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


@dataclass
class PhotoApi:
    """What all three share: a log of requests, and replies that are given before any other."""

    first: list = field(default_factory=list)  # replies for the first requests
    log: list = field(default_factory=list)  # parameters of every request, with the headers under ""

    def reply(self, url, headers):
        parameters = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
        assert not [name for name in parameters if name.startswith("_")], "a note to ourselves was sent"
        self.log.append({**parameters, "": {**headers, "at": time.time()}})
        return self.first.pop(0) if self.first else self.answer(parameters, headers)


@dataclass
class Wiki(PhotoApi):
    """A MediaWiki: categories with their members, and files."""

    host: str = "http://wiki.test"
    categories: dict = field(default_factory=dict)  # title -> ids of files and titles of subcategories
    files: dict = field(default_factory=dict)  # id -> what is special about it
    list_limit: int = 500
    category_limit: int = 500  # categories of all files of an answer together

    def answer(self, parameters, headers):
        assert (parameters["formatversion"], parameters["format"], parameters["maxlag"]) == ("2", "json", "5")
        return self.listed(parameters) if "list" in parameters else self.details(parameters)

    def listed(self, parameters):
        if parameters["list"] == "search":
            found = [(each, "file") for each, file in self.files.items() if parameters["srsearch"] in file["title"]]
            begin, name = int(parameters.get("sroffset", 0)), "search"
        else:
            members = self.categories.get(parameters["cmtitle"], [])
            kinds = {True: "subcat", False: "file"}
            found = [(each, kinds[isinstance(each, str)]) for each in members]
            found = [(each, kind) for each, kind in found if kind in parameters["cmtype"].split("|")]
            begin, name = int(parameters.get("cmcontinue", "page|0").partition("|")[2]), "categorymembers"
        piece = found[begin : begin + self.list_limit]
        rows = [self.row(each, kind) for each, kind in piece]
        if name == "search":
            rows = [{key: value for key, value in row.items() if key != "type"} for row in rows]
        content = {"batchcomplete": True, "query": {name: rows}}
        if begin + self.list_limit < len(found):
            further = begin + self.list_limit
            content["continue"] = (
                {"sroffset": further, "continue": "-||"}
                if name == "search"
                else {"cmcontinue": f"page|{further}", "continue": "-||"}
            )
        return Reply(content)

    def row(self, each, kind):
        if kind == "subcat":
            return {"pageid": 9000 + len(each), "ns": 14, "title": each, "type": kind}
        return {"pageid": each, "ns": 6, "title": f"File:{self.files[each]['title']}", "type": kind}

    def details(self, parameters):
        asked = [int(each) for each in parameters["pageids"].split("|")]
        assert len(asked) <= 50
        budget, pages, cut = self.category_limit, [], False
        for page_id in asked:
            page = self.page(page_id, "iiurlwidth" in parameters)
            if "categories" in parameters["prop"]:
                assert parameters["clshow"] == "!hidden"
                named = page.pop("categories", [])
                if named[:budget]:
                    page["categories"] = [{"ns": 14, "title": f"Category:{name}"} for name in named[:budget]]
                cut = cut or len(named) > budget
                budget = max(0, budget - len(named))
            pages.append(page)
        content = {"query": {"pages": pages}, "batchcomplete": not cut}
        if cut:
            content["continue"] = {"clcontinue": "1|X", "continue": "||imageinfo"}
        return Reply(content)

    def page(self, page_id, is_thumb):
        file = self.files.get(page_id)
        if file is None:
            return {"pageid": page_id, "missing": True}
        page = {"pageid": page_id, "ns": 6, "title": f"File:{file['title']}", "categories": file.get("categories", [])}
        if file.get("is_missing"):
            return {**page, "imagerepository": ""}
        name = file["title"].replace(" ", "_")
        info = {
            "user": file.get("user", "Uploader"),
            "url": f"{self.host}/pictures/{page_id}.jpg",
            "descriptionurl": f"{self.host}/wiki/File:{name}",
            "mime": file.get("mime", "image/jpeg"),
            "extmetadata": {name: {"value": value} for name, value in file.get("metadata", {}).items()},
        }
        if is_thumb:
            info["thumburl"] = f"{self.host}/pictures/thumb/{page_id}.jpg"
        return {**page, "imageinfo": [info]}


@dataclass
class Openverse(PhotoApi):
    """Openverse's search of images."""

    results: list = field(default_factory=list)
    max_pages: int = 20
    limit: tuple = ()  # requests granted, period

    def answer(self, parameters, headers):
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            return Reply({"detail": "Authentication credentials were not provided or have expired."}, 401)
        size, page = int(parameters["page_size"]), int(parameters["page"])
        if size > 20 and not token:
            return Reply({"detail": "page_size may not exceed 20 for anonymous requests"}, 401)
        pages = min(self.max_pages, -(-len(self.results) // size))
        if page > max(1, pages):
            return Reply({"detail": {"page": [f"Ensure this value is less than or equal to {pages}."]}}, 400)
        head = {}
        if self.limit:
            granted, period = self.limit
            head["X-RateLimit-Limit-anon_burst"] = f"{granted}/{period}"
            head["X-RateLimit-Available-anon_burst"] = str(granted - len(self.log))
        content = {"result_count": len(self.results), "page_count": pages, "page_size": size, "page": page}
        return Reply({**content, "results": self.results[(page - 1) * size : page * size]}, headers=head)


@dataclass
class Flickr(PhotoApi):
    """Flickr's licences and search."""

    photos: list = field(default_factory=list)  # with `dateupload`
    max_results: int = 4000
    crowded_s: int = 10**12  # longer spans are said to hold more than that
    fails: tuple = ()  # code and message of every search
    date: str = "Fri, 01 Jan 2010 00:00:00 GMT"  # of its answers

    def answer(self, parameters, headers):
        if parameters.get("api_key") != KEY:
            return Reply({"stat": "fail", "code": 100, "message": "Invalid API Key (Key has invalid format)"})
        assert (parameters["format"], parameters["nojsoncallback"]) == ("json", "1")
        if parameters["method"] == "flickr.photos.licenses.getInfo":
            named = [{"id": each, "name": name, "url": url} for each, (name, url) in FLICKR_LICENCES.items()]
            return Reply({"licenses": {"license": named}, "stat": "ok"}, headers={"Date": self.date})
        if self.fails:
            return Reply({"stat": "fail", "code": self.fails[0], "message": self.fails[1]})
        return Reply({"photos": self.found(parameters), "stat": "ok"})

    def found(self, parameters):
        first, last = int(parameters["min_upload_date"]), int(parameters["max_upload_date"])
        found = [photo for photo in self.photos if first <= photo["dateupload"] <= last]
        if wanted := parameters.get("license"):
            found = [photo for photo in found if str(photo.get("license", "?")) in [*wanted.split(","), "?"]]
        size, page = int(parameters["per_page"]), int(parameters["page"])
        pages = -(-len(found) // size)
        page = min(page, self.max_results // size)  # beyond, the last page comes again and again
        rows = found[(page - 1) * size : page * size]
        total = self.max_results + 1 if last - first > self.crowded_s else len(found)
        return {"page": page, "pages": pages, "perpage": size, "total": str(total), "photo": rows}


@dataclass
class Walked:
    """What a crawl over an API alone has found."""

    pictures: dict  # address -> About
    refused: list  # (reason, address)
    failed: list  # (kind, detail)
    waits: list  # seconds
    num_requests: int


def walked(finder, api, directory, bounds=BOUNDS, attempts=3):
    """Ask an API in this process whatever a finder wants to know, and return what the state holds in the end."""
    state = State(directory / "state.sqlite", bounds)
    state.add_entries(list(finder.entries(0)), 0, True)
    waits, num_requests = [], 0
    while jobs := [job for host in state.hosts("", 100) for job in state.jobs(host, 1e18, 10_000) if job.kind == API]:
        job = jobs[0]
        state.take(job)
        url, headers = finder.asked_as(job.url)
        reply, num_requests = api.reply(url, headers), num_requests + 1
        lower = {name.lower(): [value] for name, value in reply.headers.items()}
        try:
            if reply.status != 200:
                raise Fault(f"status_{reply.status}", finder.complaint(Answer(job.url, API, lower, reply.body())))
            found = finder.read(Answer(job.url, API, lower, reply.body()))
        except Fault as fault:
            again = fault.kind in TRANSIENT and job.attempts + 1 < attempts
            state.fail(job, fault.kind, fault.detail, reply.status, 0.0 if again else None)
            continue
        waits += [found.wait_s] if found.wait_s else []
        state.finish_page(job, [*found.pictures, *found.refused, *found.links], _ok())
    rows = state.db.execute("SELECT id, url, kind, state, reason, detail FROM urls ORDER BY id").fetchall()
    result = Walked(
        pictures={
            row[1]: state.mentioned(row[0]) for row in rows if row[2] == PICTURE and row[3] not in (REFUSED, FAILED)
        },
        refused=[(row[4], row[1]) for row in rows if row[3] == REFUSED],
        failed=[(row[4], row[5]) for row in rows if row[3] == FAILED],
        waits=waits,
        num_requests=num_requests,
    )
    assert all(row[3] in (DONE, REFUSED, FAILED) for row in rows if row[2] == API)
    state.close()
    return result


def _ok():
    from crawl.fetch.state import Answered

    return Answered(200)


class PhotoServer:
    """All of them at one address of loopback, and the pictures: `/pictures/7.jpg` is `picture(7)`."""

    def __init__(self, delay_s=0.0):
        self.wiki, self.openverse, self.flickr = Wiki(), Openverse(), Flickr()
        self.delay_s = delay_s  # before each picture
        self.asked = []  # paths and headers of requests that are no API's
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                reply = server.reply(self.path, dict(self.headers))
                body = reply.body()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = self.wiki.host = f"http://{self.host}"

    def reply(self, path, headers):
        apis = {"/w/api.php": self.wiki, "/v1/images/": self.openverse, "/services/rest/": self.flickr}
        if api := apis.get(path.partition("?")[0]):
            reply = api.reply(path, headers)
            reply.headers.setdefault("X-Robots-Tag", "noindex")  # as frameworks say of all their answers in JSON
            return reply
        self.asked.append((path, headers))
        if path == "/robots.txt":  # speaks of pages and pictures, not of an API that its owner documents
            return Reply(
                b"User-agent: *\nDisallow: /w/\nDisallow: /v1/\nDisallow: /services/\n",
                headers={"Content-Type": "text/plain"},
            )
        if path.startswith("/pictures/"):
            time.sleep(self.delay_s)
            number = int(path.rpartition("/")[2].partition(".")[0])
            return Reply(picture(number), headers={"Content-Type": "image/jpeg", "ETag": f'"{number}"'})
        return Reply(b"", 404)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
