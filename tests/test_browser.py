"""The search page in a real browser: keyboard, touch, no JavaScript, no layout shift, nothing from elsewhere."""

import os
import re
import shutil
import threading
from contextlib import contextmanager

import pytest
from waitress.server import create_server

from serve.app import create_app
from tests.stub_searcher import HOSTILE, StubSearcher, image_id_of, parse

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDED = "TAGTOWER_NEEDS_BROWSER" in os.environ  # set where a skipped browser would go unnoticed
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not NEEDED, reason="no chromium, chromium-browser or google-chrome on PATH"
)

QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
PICTURE = image_id_of(30)
PAGES = ["/", "/?q=animal", "/?q=animal&page=3", "/?q=animal+dgo", "/?q=dog+beach", f"/image/{PICTURE}?q=dog", "/x"]
WATCH_SHIFTS = """
window.shift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="module")
def site():
    searcher = StubSearcher()
    server = create_server(create_app(lambda: searcher), host="127.0.0.1", port=0, threads=8)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}"
    server.trigger.pull_trigger(server.close)  # in the server's own thread; its loop ends with its last socket
    thread.join(timeout=10)
    server.task_dispatcher.shutdown()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser(site):  # closed before the site, which waits for its connections
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
    def opened(address="/", **options):
        context = browser.new_context(base_url=site, **{"viewport": {"width": 1280, "height": 800}, **options})
        page = context.new_page()
        complaints, asked = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        yield page
        context.close()
        # The browser reports each page that answers 404 in its console, which is what such a page should do.
        assert [text for text in complaints if "status of 404" not in text] == []
        assert [url for url in asked if not url.startswith(site)] == []

    return opened


def box_of(page):
    return page.get_by_role("combobox", name="Search pictures by tag")


def type_and_wait(page, text):
    box_of(page).press_sequentially(text)
    page.get_by_role("option").first.wait_for()


def query_of(page):
    return page.locator("#q").input_value()


def test_arrow_and_enter_complete_the_last_tag_and_search(open_page):
    with open_page() as page:
        type_and_wait(page, "dog tr")
        assert page.get_by_role("option").all_inner_texts() == ["traffic light\n40"]
        box_of(page).press("ArrowDown")
        assert box_of(page).get_attribute("aria-activedescendant") == "suggestion-0"
        box_of(page).press("Enter")
        page.wait_for_url(re.compile(r"\?q=dog\+%22traffic\+light%22$"))
        assert query_of(page) == 'dog "traffic light"'


def test_listbox_tells_assistive_technology_its_state(open_page):
    with open_page() as page:
        assert box_of(page).get_attribute("aria-expanded") == "false"
        type_and_wait(page, "d")
        box = box_of(page)
        listbox = page.get_by_role("listbox", name="Suggested tags")
        assert box.get_attribute("aria-expanded") == "true"
        assert box.get_attribute("aria-controls") == listbox.get_attribute("id")
        assert page.locator("form.search [role=status]").inner_text() == "1 suggested tag"
        box.press("ArrowUp")
        assert page.get_by_role("option", selected=True).inner_text() == "dog\n60"
        box.press("ArrowUp")
        assert page.get_by_role("option", selected=True).count() == 0


def test_escape_closes_the_list_and_leaves_the_text(open_page):
    with open_page() as page:
        type_and_wait(page, "d")
        box_of(page).press("Escape")
        assert page.get_by_role("option").count() == 0
        assert query_of(page) == "d"


def test_enter_without_a_choice_searches_what_was_typed(open_page):
    with open_page() as page:
        type_and_wait(page, "dog")
        box_of(page).press("Enter")
        page.wait_for_url("**/?q=dog")


def test_typing_on_takes_back_the_choice(open_page):
    with open_page() as page:
        type_and_wait(page, "d")
        box_of(page).press("ArrowDown")
        page.keyboard.type("o")
        assert box_of(page).get_attribute("aria-activedescendant") is None


def test_tab_completes_a_chosen_tag_and_stays_else_it_moves_on(open_page):
    with open_page() as page:
        type_and_wait(page, "tr")
        box_of(page).press("ArrowDown")
        box_of(page).press("Tab")
        assert query_of(page) == '"traffic light" '
        assert page.evaluate("document.activeElement.name") == "q"
        box_of(page).press("Tab")
        assert page.evaluate("document.activeElement.name") != "q"


def test_mouse_click_on_a_suggestion_searches(open_page):
    with open_page() as page:
        type_and_wait(page, "be")
        page.get_by_role("option").first.click()
        page.wait_for_url("**/?q=beach")


def test_touch_tap_on_a_suggestion_searches(open_page):
    with open_page(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}) as page:
        box_of(page).tap()
        type_and_wait(page, "be")
        page.get_by_role("option").first.tap()
        page.wait_for_url("**/?q=beach")


def test_hostile_suggestion_is_shown_as_text(open_page):
    with open_page() as page:
        type_and_wait(page, "<scr")
        assert page.get_by_role("option").locator("bdi").inner_text() == HOSTILE
        page.get_by_role("option").first.click()
        page.wait_for_url("**/?q=**")
        assert parse(query_of(page)) == [HOSTILE]


def test_search_pages_and_image_work_without_javascript(open_page):
    with open_page(java_script_enabled=False) as page:
        page.locator("#q").fill("animal")
        page.get_by_role("button", name="Search").click()
        assert page.locator("h1").inner_text() == "106 pictures tagged animal"
        page.get_by_role("link", name="Next").click()
        assert "Page 2 of 3" in page.inner_text("nav.pages")
        page.locator("a.view").nth(3).click()
        assert page.get_by_role("heading", name="About this picture").is_visible()
        page.get_by_role("link", name="Back to animal").click()
        assert "Page 2 of 3" in page.inner_text("nav.pages")


@pytest.mark.parametrize("address", ["/", "/?q=animal", f"/image/{PICTURE}"])
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_shifts_while_pictures_load(open_page, address, width):
    with open_page("about:blank", viewport={"width": width, "height": 900}) as page:
        page.add_init_script(WATCH_SHIFTS)
        page.goto(address)
        for _ in range(4):
            page.mouse.wheel(0, 900)
            page.wait_for_load_state("networkidle")
        assert page.evaluate("window.shift") < 0.001


@pytest.mark.parametrize("width", [320, 360, 1440, 2560])
def test_no_page_is_wider_than_its_window(open_page, width):
    with open_page(viewport={"width": width, "height": 800}) as page:
        for address in PAGES:
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, address


@pytest.mark.parametrize("width", [390, 1440])
def test_pictures_of_a_row_are_equally_high_and_keep_their_ratio(open_page, width):
    with open_page("/?q=animal&page=2", viewport={"width": width, "height": 900}) as page:
        boxes = page.evaluate(
            """[...document.querySelectorAll(".tile .picture")].map((img) => {
              const { top, right, width, height } = img.getBoundingClientRect();
              const own = img.getAttribute("width") / img.getAttribute("height");
              return { top, right, height, shown: width / height, own, whole: img.classList.contains("whole") };
            })"""
        )
        rows = [[each for each in boxes if each["top"] == top] for top in sorted({each["top"] for each in boxes})]
        right = page.evaluate("document.querySelector('.grid').getBoundingClientRect().right")
        assert len(rows) > 4
        for row in rows:
            assert max(each["height"] for each in row) - min(each["height"] for each in row) < 1
        assert all(abs(max(each["right"] for each in row) - right) < 1 for row in rows[:-1])
        assert all(abs(each["shown"] / each["own"] - 1) < 0.02 for each in boxes if not each["whole"])


@pytest.mark.parametrize("width", [390, 1440])
def test_few_pictures_in_the_last_row_stay_small(open_page, width):
    with open_page(
        "/?q=%22say+%22%22hi%22%22%22+%22traffic+light%22", viewport={"width": width, "height": 900}
    ) as page:
        heights = page.evaluate("[...document.querySelectorAll('.tile .picture')].map((img) => img.clientHeight)")
        assert heights
        assert heights[-1] < 200


def test_first_tab_stop_is_the_way_past_the_header(open_page):
    with open_page("/?q=animal") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_pages_run_without_a_complaint_of_the_browser(open_page, scheme):
    with open_page(color_scheme=scheme) as page:
        for address in PAGES:
            page.goto(address)
            page.wait_for_load_state("load")
            assert page.locator("h1").count() == 1
            broken = "[...document.images].filter((img) => img.complete && !img.naturalWidth).length"
            assert page.evaluate(broken) == 0


def test_picture_links_stand_far_enough_apart_for_a_finger(open_page):
    with open_page("/?q=animal", viewport={"width": 390, "height": 844}) as page:
        heights = page.evaluate("[...document.querySelectorAll('.tags a')].map((a) => a.offsetHeight)")
        assert min(heights) >= 24
