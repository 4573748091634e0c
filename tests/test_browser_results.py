"""Results in a real browser: rows, endless scrolling, refining, thumbs; with and without JavaScript."""

import re

import pytest

from tests.browsing import needs_browser, until
from tests.stub_searcher import image_id_of

pytestmark = needs_browser


def shown(page):
    return page.locator("#shown").inner_text()


def address(page):
    return page.evaluate("location.pathname + location.search")


def tiles(page):
    return page.locator(".tile").count()


def scroll_to_end(page, until_tiles):
    def enough():
        page.mouse.wheel(0, 2000)
        return tiles(page) >= until_tiles

    until(enough, f"{until_tiles} pictures")


def test_search_pages_and_image_work_without_javascript(open_page):
    with open_page(java_script_enabled=False) as page:
        page.locator("#q").fill("animal")
        page.get_by_role("button", name="Search").click()
        page.wait_for_url("**/?q=animal")
        assert page.locator("h1").inner_text() == "106 pictures tagged animal"
        page.get_by_role("link", name="Next").click()
        page.wait_for_url("**page=2")
        assert "Page 2 of 3" in page.inner_text("nav.pages")
        page.locator("a.view").nth(3).click()
        page.get_by_role("heading", name="About this picture").wait_for()
        page.get_by_role("link", name="Back to animal").click()
        page.wait_for_url("**/?q=animal&page=2")
        assert "Page 2 of 3" in page.inner_text("nav.pages")


def test_scrolling_goes_on_and_the_address_names_the_page_seen(open_page):
    with open_page("/?q=animal") as page:
        scroll_to_end(page, 106)
        page.locator(".leaf[data-page='3'] .tile").last.scroll_into_view_if_needed()
        until(lambda: address(page) == "/?q=animal&page=3", "the address of page 3")
        page.evaluate("scrollTo(0, 0)")
        until(lambda: address(page) == "/?q=animal", "the address of page 1")
        shown = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.id)")
        assert len(shown) == len(set(shown)) == 106


def test_back_returns_to_the_place_one_left(open_page):
    with open_page("/?q=animal") as page:
        scroll_to_end(page, 80)
        tile = page.locator(".leaf[data-page='2'] .tile").nth(20)
        tile.evaluate("(tile) => scrollTo(0, tile.getBoundingClientRect().top + scrollY - 250)")
        until(lambda: "page=2" in address(page), "the address of page 2")
        image_id, before = tile.get_attribute("id"), tile.bounding_box()["y"]
        tile.locator("a.view").click()
        page.get_by_role("heading", name="About this picture").wait_for()
        page.go_back()
        page.locator(f"[id='{image_id}']").wait_for()
        until(lambda: abs(page.locator(f"[id='{image_id}']").bounding_box()["y"] - before) < 3, "the place before")


def test_slider_shows_fewer_without_a_new_page_and_the_address_keeps_it(open_page):
    with open_page("/?q=animal") as page:
        assert shown(page) == "All 106 shown"
        page.evaluate("window.same = true")
        page.locator("#cutoff").fill("0.8")
        until(lambda: shown(page) == "18 of 106 shown", "the cut-off's count")
        assert page.locator("#cutoff-value").inner_text() == "80 % expected right"
        assert (tiles(page), address(page).rpartition("?")[2]) == (18, "q=animal&cutoff=0.8")
        assert page.evaluate("window.same")
        page.reload()
        assert shown(page) == "18 of 106 shown"


def test_slider_is_moved_by_keys_and_keeps_the_focus(open_page):
    with open_page("/?q=animal") as page:
        page.locator("#cutoff").focus()
        page.keyboard.press("End")
        until(lambda: shown(page) == "0 of 106 shown", "the highest cut-off")
        assert page.get_by_role("link", name="Show all").is_visible()
        page.keyboard.press("Home")
        until(lambda: shown(page) == "All 106 shown", "no cut-off")
        assert page.evaluate("document.activeElement.id") == "cutoff"


def test_cutoff_sort_and_filters_work_without_javascript(open_page):
    with open_page("/?q=animal", java_script_enabled=False) as page:
        page.locator("#cutoff").fill("0.8")
        page.get_by_label("Sort").select_option("newest")
        page.locator("summary", has_text="Filter").click()
        page.get_by_role("checkbox", name="photo").check()
        page.get_by_role("button", name="Apply").click()
        page.wait_for_url("**cutoff=0.8**")
        assert shown(page) == "4 of 26 shown"
        assert address(page).rpartition("?")[2] == "q=animal&sort=newest&kind=photo&cutoff=0.8"
        rows = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.id)")
        assert rows == [image_id_of(row) for row in (15, 12, 6, 3)]


def test_filter_narrows_and_can_be_taken_back(open_page):
    with open_page("/?q=animal") as page:
        page.locator("summary", has_text="Filter").click()
        page.get_by_role("checkbox", name="photo").check()
        until(lambda: shown(page) == "All 26 shown", "photos alone")
        page.get_by_role("checkbox", name="photo").uncheck()
        until(lambda: shown(page) == "All 106 shown", "all kinds")


def test_guesses_stand_apart_below_the_matches(open_page):
    with open_page("/?q=%22say+%22%22hi%22%22%22") as page:
        assert page.locator("h1").inner_text().startswith("18 pictures tagged")
        heading = page.get_by_role("heading", name="Guesses")
        last = page.locator(".grid:not(.guesses) .tile").last
        assert heading.bounding_box()["y"] > last.bounding_box()["y"]
        assert page.locator(".grid.guesses").first.get_attribute("start") == "19"


def test_clause_can_be_left_out(open_page):
    with open_page("/?q=animal+dog") as page:
        page.get_by_role("link", name="Leave out animal").click()
        page.wait_for_url("**/?q=dog")


def test_blamed_clause_is_named_and_left_out_by_a_click(open_page):
    with open_page("/?q=dog+beach") as page:
        assert page.locator(".blame mark").inner_text() == "beach"
        page.get_by_role("link", name=re.compile("without it")).click()
        page.wait_for_url("**/?q=dog")


def test_query_error_stands_at_the_box_with_its_place(open_page):
    with open_page("/?q=dog+(cat", refused=(400,)) as page:
        box = page.locator("#q")
        assert box.get_attribute("aria-invalid") == "true"
        assert (
            page.locator(f"[id='{box.get_attribute('aria-describedby')}']").inner_text() == "A bracket is not closed."
        )
        assert page.locator(".written mark").inner_text() == "("


def test_thumb_is_kept_and_pressed_again_taken_back(open_page):
    with open_page("/?q=dog") as page:
        thumb = page.get_by_role("button", name="Good result").first
        thumb.click()
        until(lambda: thumb.get_attribute("aria-pressed") == "true", "the thumb to be pressed")
        page.reload()
        until(lambda: thumb.get_attribute("aria-pressed") == "true", "the thumb to be remembered")
        page.get_by_role("button", name="Bad result").first.click()
        until(lambda: thumb.get_attribute("aria-pressed") == "false", "the other thumb to count")
        page.get_by_role("button", name="Bad result").first.click()
        until(
            lambda: page.get_by_role("button", name="Bad result").first.get_attribute("aria-pressed") == "false",
            "the thumb to be taken back",
        )


def test_thumb_without_javascript_comes_back_to_its_picture(open_page):
    with open_page("/?q=dog&page=2", java_script_enabled=False) as page:
        tile = page.locator(".tile").nth(3)
        tile.hover()
        tile.get_by_role("button", name="Bad result").click()
        page.wait_for_url(re.compile(rf"\?q=dog&page=2#{tile.get_attribute('id')}$"))
        assert page.get_by_role("button", name="Bad result").nth(3).get_attribute("aria-pressed") == "true"


def test_more_like_this_leads_on_from_any_result(open_page):
    with open_page("/?q=dog") as page:
        tile = page.locator(".tile").first
        tile.hover()
        tile.get_by_role("link", name="More like this").click()
        page.get_by_role("heading", name="Pictures like this one").wait_for()


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


def test_picture_links_stand_far_enough_apart_for_a_finger(open_page):
    with open_page("/?q=animal", viewport={"width": 390, "height": 844}) as page:
        heights = page.evaluate("[...document.querySelectorAll('.tags a')].map((a) => a.offsetHeight)")
        assert min(heights) >= 24
