"""Picture page, search by picture, tags, comparison and quality in a real browser."""

import re

import pytest

from tests.browsing import PICTURE, needs_browser, until
from tests.stub_searcher import jpeg_of

pytestmark = needs_browser
UPLOAD = {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": jpeg_of(1)}
DROP = """async ([kind, bytes]) => {
  const carrier = new DataTransfer();
  carrier.items.add(new File([new Uint8Array(bytes)], "mine.jpg", { type: "image/jpeg" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: carrier, bubbles: true })
    : new DragEvent(kind, { dataTransfer: carrier, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""


def test_overlay_says_why_and_can_be_taken_off(open_page):
    with open_page(f"/image/{PICTURE}?q=dog") as page:
        page.get_by_role("link", name="Why here?").click()
        overlay = page.locator("img.overlay")
        until(lambda: overlay.evaluate("(img) => img.complete && img.naturalWidth > 0"), "the overlay")
        assert "Approximate" in page.locator(".why").inner_text()  # histograms have no places
        below = page.locator(".stage .picture").bounding_box()
        assert overlay.bounding_box() == below
        page.get_by_label("Show the overlay").uncheck()
        assert not overlay.is_visible()


def test_overlay_is_taken_off_without_javascript(open_page):
    with open_page(f"/image/{PICTURE}?q=dog&why=1", java_script_enabled=False) as page:
        page.get_by_label("Show the overlay").uncheck()
        assert not page.locator("img.overlay").is_visible()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_picture_dropped_or_pasted_on_any_page_searches_with_it(open_page, way):
    with open_page("/tags") as page:
        if way == "drop":
            page.evaluate(DROP, ["dragover", list(jpeg_of(1))])
            assert page.get_by_text("Drop the picture to search with it").is_visible()
        page.evaluate(DROP, [way, list(jpeg_of(1))])
        page.wait_for_url(re.compile(r"/\?picture=[\w-]{171}$"))
        assert page.locator("h1").inner_text() == "Pictures like yours"


def test_camera_opens_the_chooser(open_page):
    with open_page() as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("link", name="Search by picture").click()
        chooser.value.set_files(UPLOAD)
        page.wait_for_url(re.compile(r"/\?picture="))


def test_picture_is_searched_with_without_javascript(open_page):
    with open_page("/", java_script_enabled=False) as page:
        page.get_by_role("link", name="Search by picture").click()
        page.locator("#picture").set_input_files(UPLOAD)
        page.locator("#upload").get_by_role("button", name="Search").click()
        page.wait_for_url(re.compile(r"/\?picture="))
        assert page.locator("h1").inner_text() == "Pictures like yours"


def test_refused_picture_is_told_in_a_sentence_with_its_reason(open_page):
    with open_page("/by-picture", refused=(422,)) as page:
        text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture at all"}
        page.locator("#picture").set_input_files(text)
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert "That file is no picture." in alert.inner_text()
        assert "not_an_image" in alert.inner_text()


def test_tags_are_browsed_by_name_and_beginning_without_javascript(open_page):
    with open_page("/tags", java_script_enabled=False) as page:
        assert page.locator("h1").inner_text() == "8 tags"
        page.get_by_label("Begins with").fill("Tr")
        page.get_by_label("Sort").select_option("name")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**prefix=Tr**")
        assert page.locator(".cloud bdi").all_inner_texts() == ["traffic light"]
        page.get_by_role("link", name=re.compile("traffic light")).click()
        page.wait_for_url("**/?q=%22traffic+light%22")


def test_two_runs_stand_side_by_side_with_what_moved(open_page):
    with open_page("/compare?q=animal") as page:
        assert page.get_by_role("heading", level=2).all_inner_texts()[0].startswith("stub")
        assert page.locator(".versus li.up, .versus li.new").count() > 0
        assert "pictures stand on both sides" in page.locator(".overlap").inner_text()
        assert page.locator("tbody th").all_inner_texts() == ["margin"]


@pytest.mark.parametrize("javascript", [True, False])
def test_blind_vote_names_the_runs_only_afterwards(open_page, javascript):
    with open_page("/compare?q=dog&blind=1", java_script_enabled=javascript) as page:
        main = page.locator("main")
        assert "other" not in main.inner_text()
        assert "stub" not in main.inner_text()
        left = page.locator(".versus section").first.locator("a.view").first.get_attribute("href")
        page.get_by_role("button", name="Left is better").click()
        page.get_by_role("heading", name=re.compile("^You chose (stub|other)$")).wait_for()
        assert "run=" not in left
        assert re.search(r"interval 0\.\d\d to [01]\.\d\d", page.locator(".verdict").inner_text())


def test_quality_page_shows_tables_plots_and_tags_with_pictures(open_page):
    with open_page("/runs/stub") as page:
        assert "0.500 (0.400-0.600)" in page.locator("tr.mine").first.inner_text()
        assert page.locator(".plot svg").count() == 3
        best = page.get_by_role("region", name="Ranked best")
        assert best.locator("img").count() > 5
        page.get_by_role("link", name="other", exact=True).click()
        page.wait_for_url("**/runs/other")
