"""The search box in a real browser: suggestions by keyboard, mouse, touch and screen reader."""

import re

from tests.browsing import box_of, needs_browser, query_of, type_and_wait
from tests.stub_searcher import HOSTILE, parse

pytestmark = needs_browser


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


def test_suggestions_are_asked_for_at_once_and_come_soon(open_page):
    with open_page() as page:
        type_and_wait(page, "be")
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        took = page.evaluate(
            """async () => {
              const [box, list] = [document.querySelector("#q"), document.querySelector("#suggestions")];
              const shown = new Promise((done) => new MutationObserver(done).observe(list, { childList: true }));
              box.value = "bea";
              const start = performance.now();
              box.dispatchEvent(new InputEvent("input"));
              await shown;
              return performance.now() - start;
            }"""
        )
        assert [url.rpartition("q=")[2] for url in asked] == ["bea"]
        assert took < 2000  # some 5 ms where nothing else runs


def test_an_older_answer_never_replaces_a_newer_one(open_page):
    with open_page() as page:
        page.route(re.compile(r"suggest\?q=d$"), lambda route: page.wait_for_timeout(300) or route.continue_())
        box_of(page).press_sequentially("d")
        box_of(page).press_sequentially("og")
        page.get_by_role("option").first.wait_for()
        page.wait_for_timeout(500)
        assert page.get_by_role("option").all_inner_texts() == ["dog\n60"]


def test_first_tab_stop_is_the_way_past_the_header(open_page):
    with open_page("/?q=animal") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
