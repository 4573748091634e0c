"""Every page in a real browser: accessible, in its window, without a shift, without a complaint."""

from pathlib import Path

import axe_playwright_python
import pytest

from tests.browsing import PAGES, PICTURE, arriving_in_pieces, needs_browser, serving, stub_app, write_runs

pytestmark = needs_browser
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
OF_LOOKS = ["color-contrast", "target-size", "link-in-text-block", "scrollable-region-focusable"]
STATUSES = (400, 404)
WATCH_SHIFTS = """
window.shift = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


def findings(page, only):
    found = page.evaluate("(only) => axe.run(document, { runOnly: only, resultTypes: ['violations'] })", only)
    return [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found["violations"]]


@pytest.mark.parametrize("address", PAGES)
def test_axe_finds_nothing_in_either_scheme_and_width(open_page, address):
    with open_page(address, refused=STATUSES, color_scheme="light") as page:
        assert page.locator("h1").count() == 1
        assert page.evaluate("[...document.images].filter((img) => img.complete && !img.naturalWidth).length") == 0
        page.evaluate(AXE.read_text(encoding="utf-8"))
        assert findings(page, LEVELS) == []
        page.emulate_media(color_scheme="dark")
        assert findings(page, OF_LOOKS) == []
        page.set_viewport_size({"width": 390, "height": 844})
        assert findings(page, OF_LOOKS) == []
        page.emulate_media(color_scheme="light")
        assert findings(page, OF_LOOKS) == []


@pytest.mark.parametrize(
    "address", ["/", "/?q=animal", "/tags", "/runs/stub", "/compare?q=animal", f"/image/{PICTURE}?q=dog&why=1"]
)
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_shifts_while_pictures_load(open_page, address, width):
    with open_page("about:blank", viewport={"width": width, "height": 900}) as page:
        page.add_init_script(WATCH_SHIFTS)
        page.goto(address)
        for _ in range(4):
            page.mouse.wheel(0, 900)
            page.wait_for_load_state("networkidle")
        assert page.evaluate("window.shift") == 0


def test_nothing_shifts_where_a_page_arrives_in_pieces(browser, tmp_path):
    with serving(arriving_in_pieces(stub_app(write_runs(tmp_path)))) as address:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script(WATCH_SHIFTS)
        page.goto(f"{address}/?q=animal")
        page.wait_for_load_state("networkidle")
        assert page.locator(".tile").count() > 20
        assert page.evaluate("window.shift") == 0
        page.close()


@pytest.mark.parametrize("width", [320, 2560])
def test_no_page_is_wider_than_its_window(open_page, width):
    with open_page(refused=STATUSES, viewport={"width": width, "height": 800}) as page:
        for address in PAGES:
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, address
