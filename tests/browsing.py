"""A site of two stub runs and a real browser before it, shared by the tests of the pages."""

import csv
import io
import json
import os
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from waitress.server import create_server

from configs.artifacts import seal
from configs.compose import Paths
from crawl.config import GateOptions
from crawl.ingest import ingest
from features.config import FeatureSpaceConfig
from features.single_picture import SinglePicture
from serve.app import create_app
from serve.busy import Queue
from tests.stub_searcher import TAGS, WIDTH, StubSearcher, image_id_of
from tests.tiny import HISTOGRAM
from train.towers import TwoTowers

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDED = "TAGTOWER_NEEDS_BROWSER" in os.environ  # set where a skipped browser would go unnoticed
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not NEEDED, reason="no chromium, chromium-browser or google-chrome on PATH"
)
QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
WAIT_S = 60.0  # a machine may be busy with other things
PICTURE = image_id_of(30)
PAGES = [
    "/api/v1/",
    "/",
    "/?q=animal",
    "/?q=animal&page=3",
    "/?q=animal+dgo",
    "/?q=puppy",
    "/?q=dog+beach",
    "/?q=%22say+%22%22hi%22%22%22",
    "/?q=dog+(cat",
    "/?q=animal&cutoff=0.95",
    f"/?like={PICTURE}",
    f"/image/{PICTURE}?q=dog",
    f"/image/{PICTURE}?q=dog&why=1",
    "/by-picture",
    "/tags",
    "/tags?prefix=zz&sort=name",
    "/compare",
    "/compare?q=animal",
    "/compare?q=animal&blind=1",
    "/compare/voted?q=animal&winner=left",
    "/runs/stub",
    "/runs/other",
    "/x",
]


class StubEncoders:
    """Stands in for the gate's process and the networks: the gate in this process, histograms, a small tower."""

    def __init__(self):
        self.queue = Queue(waiting=1)
        self.pictures = SinglePicture(FeatureSpaceConfig(backbone=HISTOGRAM), gate="")
        self.towers = TwoTowers(tag_dim=4, image_dim=99, embed_dim=WIDTH, depth=1).eval()

    def of(self, searcher):
        return self

    def ingest(self, content):
        return ingest(content, GateOptions())

    def embedding(self, jpeg):
        return np.eye(WIDTH, dtype=np.float32)[1]


def write_evaluation(run_dir, run):
    """Write what the quality page reads of an evaluation, of two systems and the stub's tags."""
    directory = run_dir / "evaluation" / "test"
    directory.mkdir(parents=True)
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6, "num_queries": 8}
    systems = {"trained": {"map": figure, "auc": figure}, "random": {"map": {**figure, "mean": 0.1}, "auc": figure}}
    question = {"num_queries": 8, "num_candidates": 100, "systems": systems}
    metrics = {"run": run, "questions": {"gallery": question, "within_tag": question}}
    (directory / "metrics.json").write_text(json.dumps(metrics))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["question", "system", "tag", "num_relevant", "num_candidates", "map", "auc"])
    writer.writerows(["gallery", "trained", tag, 9, 100, 0.95 - 0.1 * at, 0.5] for at, tag in enumerate(TAGS))
    (directory / "per_tag.csv").write_text(table.getvalue())
    promise = {"asked": 0.5, "score": 0.3, "promise": 0.5, "test_precision": 0.48, "test_low": 0.4, "test_high": 0.55}
    calibration = {"promises": [{**promise, "test_kept": 0.7}], "judged_on": {"ece_15_equal_width": 0.01}}
    (directory / "calibration.json").write_text(json.dumps(calibration))
    rows = "".join(f"{at / 10},{at / 10},{at / 10},{1 - at / 10}\n" for at in range(11))
    (directory / "calibration.csv").write_text("score,promise,test_precision,test_kept\n" + rows)
    names = ["metrics.json", "per_tag.csv", "calibration.json", "calibration.csv"]
    seal(directory, "evaluation", config={}, files=names)
    (run_dir / "history.csv").write_text("epoch,train_loss,val_map\n0,2,0.1\n1,1,0.4\n")
    config = {"run": run, "objective": "hinge", "margin": 0.3 if run == "stub" else 0.5}
    seal(run_dir, "run", config=config, files=["history.csv"])


def write_runs(folder):
    """Write the evaluations of both runs and return their paths."""
    paths = Paths(data=str(folder / "data"), runs=str(folder / "runs"))
    for run in ("stub", "other"):
        write_evaluation(paths.run(run), run)
    return paths


def stub_app(paths):
    """Return the app of two stub runs."""
    runs = {"stub": StubSearcher(), "other": StubSearcher("other", turned=7)}
    app = create_app({name: lambda run=run: run for name, run in runs.items()}, paths)
    app.extensions["encoders"] = StubEncoders()
    return app


def arriving_in_pieces(app):
    """Return the app as over a slow line: a page comes by fifths."""

    def slow(environ, start_response):
        def start(status, headers, exc_info=None):
            return start_response(status, [pair for pair in headers if pair[0] != "Content-Length"], exc_info)

        answer = app(environ, start)
        body = b"".join(answer)
        getattr(answer, "close", lambda: None)()
        size = len(body) // 5 + 1
        for piece in range(0, len(body), size):
            yield body[piece : piece + size]
            if environ["PATH_INFO"] == "/":
                time.sleep(0.1)

    return slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with serving(stub_app(write_runs(tmp_path_factory.mktemp("site")))) as address:
        yield address


@contextmanager
def serving(app):
    """Serve an app and give its address."""
    server = create_server(app, host="127.0.0.1", port=0, threads=8)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.trigger.pull_trigger(server.close)  # in the server's own thread; its loop ends with its last socket
    thread.join(timeout=WAIT_S)
    server.task_dispatcher.shutdown()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser(site):  # closed before the site, which waits for its connections
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-sync", *QUIET.split()]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    """Open addresses of the site; afterwards no complaint of the browser and no foreign request may be left."""

    @contextmanager
    def opened(address="/", refused=(404,), **options):
        context = browser.new_context(base_url=site, **{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(1000 * WAIT_S)
        page = context.new_page()
        complaints, asked = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        page.wait_for_timeout(0)  # lets what was said so far arrive
        said = list(complaints)  # not what closing cuts off
        context.close()
        # The browser reports each page that answers with an error in its console, which is what such a page should do.
        expected = [f"status of {status}" for status in refused]
        unexpected = [text for text in said if not any(each in text for each in expected)]
        assert not unexpected, f"the browser complains: {unexpected}"
        foreign = [url for url in asked if not url.startswith(site)]
        assert not foreign, f"asked of other hosts: {foreign}"

    return opened


def until(condition, what):
    """Wait until a condition holds, with a deadline; `wait_for_function` fails under our policy."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.02)


def box_of(page):
    return page.get_by_role("combobox", name="Search pictures by tag")


def type_and_wait(page, text):
    box_of(page).press_sequentially(text)
    page.get_by_role("option").first.wait_for()


def query_of(page):
    return page.locator("#q").input_value()
