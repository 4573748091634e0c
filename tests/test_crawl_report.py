"""What a crawl did, counted by hand and looked at in a real browser."""

from contextlib import closing

import pytest

from crawl.fetch.database import DONE, FAILED, REFUSED, TODO, opened, united
from crawl.fetch.found import PAGE, PICTURE, About
from crawl.fetch.report import SHOWN, write_report
from tests.browsing import needs_browser
from tests.test_browser_every_page import AXE, LEVELS, OF_LOOKS, findings

MARKUP = "<b>no host</b> & 'quotes'"


def write_database(path, hosts=1):
    """Two pictures and a failure a host, a page, one address to do; the first picture is mentioned on two pages."""
    with closing(opened(path)) as db:
        add = "INSERT INTO urls (url, host, kind, state, reason, image_id, num_bytes) VALUES (?, ?, ?, ?, ?, ?, ?)"
        for number in range(hosts):
            host, megabyte, second = f"h{number}.test", 2**20, f"{number + 2**20:016x}"
            for name, state, reason, image_id in (
                ("1", DONE, "", f"{number:016x}"), ("2", DONE, "", second), ("3", FAILED, "dns", None),
            ):  # fmt: skip
                db.execute(add, (f"http://{host}/{name}", host, PICTURE, state, reason, image_id, megabyte))
        db.execute(add, ("http://h0.test/", "h0.test", PAGE, DONE, "", None, 0))
        db.execute(add, ("http://h0.test/later", "h0.test", PICTURE, TODO, "", None, 0))
        db.execute(add, ("x:y", "", PICTURE, REFUSED, "scheme", None, 0))
        for page in (8, 9):
            about = About(("twice", MARKUP), (), {"licence": "by"})
            db.execute("INSERT INTO mentions VALUES (1, ?, ?)", (page, about.as_json()))
        db.execute("INSERT INTO asked VALUES ('h0.test', 4, 1.5, 1.0, 0, 1, 2.5, NULL)")
    return path


def rows_of(text, title):
    lines = text.split(f"{title}\n")[1].split("\n\n")[0].splitlines()
    return [line.split() for line in lines]


def test_every_table_counts_what_is_there(tmp_path):
    with closing(opened(write_database(tmp_path / "state.sqlite"))) as db:
        page = write_report(tmp_path, db, "Crawl of web, pass 1")
    text = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert ["picture", "done", "2"] in rows_of(text, "By outcome")
    assert ["picture", "failed", "dns", "1", "retry=dns"] in rows_of(text, "By outcome")
    assert rows_of(text, "By host")[1] == ["h0.test", "1", "2", "0", "1", "1", "3.0"]
    assert ["twice", "1"] in rows_of(text, "By tag")  # said on two pages, of one picture
    assert rows_of(text, "By licence")[1:] == [["by", "1"]]
    assert rows_of(text, "Politeness")[1] == ["h0.test", "4", "0.0", "1.0", "1.5", "1", "2.5"]
    assert MARKUP not in page.read_text(encoding="utf-8")


def test_a_long_table_says_how_long_it_is(tmp_path):
    with closing(united([write_database(tmp_path / "state.sqlite", hosts=SHOWN + 10)])) as db:
        write_report(tmp_path, db, "Crawl of urls, pass 1")
    text = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert f"By host\nThe first {SHOWN} of {SHOWN + 10}; the database has all.\n" in text
    assert text.count("The first") == 1


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_can_be_read_at_every_width_in_either_scheme(browser, tmp_path, width):
    with closing(opened(write_database(tmp_path / "state.sqlite", hosts=3))) as db:
        address = write_report(tmp_path, db, "Crawl of web, pass 1").as_uri()
    page = browser.new_page(viewport={"width": width, "height": 800}, bypass_csp=True)  # axe is let in
    page.goto(address)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    assert findings(page, LEVELS) == []
    page.emulate_media(color_scheme="dark")
    assert findings(page, OF_LOOKS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_text(MARKUP).count() == 1
    page.close()


@needs_browser
def test_the_page_asks_nobody_and_its_style_is_let_in(browser, tmp_path):
    with closing(opened(write_database(tmp_path / "state.sqlite"))) as db:
        address = write_report(tmp_path, db, "Crawl of web, pass 1").as_uri()
    page, complaints, asked = browser.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none"
    assert complaints == []
    assert asked == [address]
    page.close()
