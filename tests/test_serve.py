"""The search page and its JSON: what is shown, what is refused, and that foreign text stays text."""

import dataclasses
import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import pytest

from serve.api.request_values import current_searcher
from serve.app import create_app
from serve.pages.asked import replaced
from serve.pages.image import is_web_address
from serve.pages.shown import MAX_RATIO, MIN_RATIO, ratio_class
from serve.query import completed, query_for
from serve.searchers.base import Near
from tests.stub_searcher import HOSTILE, QUOTED, StubSearcher, image_id_of, parse

PICTURE = image_id_of(30)  # carries most tags, and the hostile title and author
PAGES = ["/", "/?q=animal", "/?q=animal&page=3", "/?q=dgo", "/?q=dog+beach", f"/image/{PICTURE}?q=dog"]
SCRIPTS = {f"/static/{name}.js" for name in ("suggest", "by_picture", "results", "judge")}
ERRORS = [("/?page=x", 400), ("/nowhere", 404), ("/broken", 500)]


class Tags(HTMLParser):
    """Collects the elements of a page and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.title = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "title" and not self.title:
            self.title = data
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag, **wanted):
        wanted = {name.rstrip("_"): value for name, value in wanted.items()}
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


@pytest.fixture(scope="module")
def client():
    app = create_app(StubSearcher)

    @app.get("/broken")
    def broken():
        raise RuntimeError("secret of the inside")

    app.add_url_rule("/api/v1/broken", view_func=broken)
    return app.test_client()


def page_of(client, address, status=200):
    response = client.get(address)
    assert response.status_code == status, address
    return Tags(response.text)


def test_start_page_says_what_is_searched_and_offers_popular_tags(client):
    page = page_of(client, "/")
    assert "120 pictures under 8 tags" in page.text
    assert "stub" in page.text
    assert "/?q=animal" in [a["href"] for a in page.all("a")]


@pytest.mark.parametrize("voted", [False, True])
def test_results_say_whether_votes_are_part_of_the_score(voted, monkeypatch):
    search = StubSearcher.search
    monkeypatch.setattr(
        StubSearcher, "search", lambda self, *asked: dataclasses.replace(search(self, *asked), voted=voted)
    )
    client = create_app(lambda: StubSearcher()).test_client()
    page = client.get("/?q=animal").get_data(as_text=True)
    assert ("votes of the most similar pictures" in page) == voted
    assert ("at most 1, higher is better" in page) == (not voted)
    assert client.get("/api/v1/search?q=animal").get_json()["voted"] == voted


def test_results_show_count_score_credit_and_size_of_every_picture(client):
    page = page_of(client, "/?q=animal")
    pictures = page.all("img")
    assert "106 pictures tagged animal" in page.text
    assert len(pictures) == 40
    assert all(int(a["width"]) > 0 and int(a["height"]) > 0 and a["alt"] for a in pictures)
    assert page.text.count("CC-BY-4.0") == 40
    assert len(page.all("bdi", class_="author")) == 40
    assert re.search(r"Score 0\.\d\d ", page.text)
    assert "cosine" in page.text


def test_only_pictures_below_the_first_rows_are_lazy(client):
    lazy = ["loading" in a for a in page_of(client, "/?q=animal").all("img")]
    assert lazy == [False] * 8 + [True] * 32


def test_several_tags_show_the_count_of_each_and_lead_to_each_alone(client):
    page = page_of(client, "/?q=animal+dog")
    assert [a["href"] for a in page.all("a", class_="chip")] == ["/?q=animal", "/?q=dog"]
    assert "tagged animal and dog" in page.text
    assert "dog 60" in page.text


def test_unknown_word_is_named_and_each_offer_replaces_only_that_word(client):
    page = page_of(client, "/?q=animal+dgo", 404)
    links = [a["href"] for a in page.all("a", class_="chip")]
    assert "No picture is tagged dgo" in page.text
    assert links[:3] == ["/?q=animal+dog", "/?q=animal+%22traffic+light%22", "/?q=animal+animal"]
    assert "animal 0.71" in page.text


def test_known_tags_that_never_meet_are_explained_with_their_counts(client):
    page = page_of(client, "/?q=dog+beach")
    assert "No picture is tagged dog and beach" in page.text
    assert "beach is what leaves nothing over, though 60 pictures have it by itself" in page.text
    assert page.all("a", class_="button")[0]["href"] == "/?q=dog"
    assert [a["href"] for a in page.all("a", class_="remove")] == ["/?q=beach", "/?q=dog"]


@pytest.mark.parametrize(("page", "prev", "next_"), [(1, [], ["2"]), (2, [""], ["3"]), (3, ["2"], [])])
def test_paging_links_lead_to_the_neighbours_that_exist(client, page, prev, next_):
    tags = page_of(client, f"/?q=animal&page={page}")
    for rel, expected in (("prev", prev), ("next", next_)):
        found = [parse_qs(urlsplit(a["href"]).query).get("page", [""])[0] for a in tags.all("a", rel=rel)]
        assert found == expected
    assert f"Page {page} of 3" in tags.text


def test_pages_together_show_every_picture_once(client):
    shown = [a["src"] for page in (1, 2, 3) for a in page_of(client, f"/?q=animal&page={page}").all("img")]
    assert len(shown) == len(set(shown)) == 106


def test_page_behind_the_last_is_an_error_that_names_the_range(client):
    assert "page must lie in 1..3" in page_of(client, "/?q=animal&page=4", 404).text


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "1_0", "٣", "99999999999"])
def test_page_that_is_no_page_number_is_refused(client, value):
    assert "page must be a whole number in 1.." in page_of(client, f"/?q=dog&page={value}", 400).text


def test_query_of_two_hundred_characters_passes_and_one_more_is_refused(client):
    page_of(client, "/?q=" + "x" * 200, 404)
    assert "at most 200 characters, got 201" in page_of(client, "/?q=" + "x" * 201, 400).text


def test_image_page_shows_record_prediction_and_way_back(client):
    page = page_of(client, f"/image/{PICTURE}?q=animal+dog&page=2")
    assert "/?q=animal+dog&page=2" in [a["href"] for a in page.all("a")]
    shown = "CC-BY-4.0|drawing|20 KiB|PNG|Camera|[1, 2]|pixels|carried|guess"
    for expected in [*shown.split("|"), HOSTILE]:
        assert expected in page.text
    assert "Fetched" not in page.text  # the record has no such value


def test_guesses_are_marked_apart_from_tags_that_the_picture_carries(client):
    page = page_of(client, f"/image/{PICTURE}")
    assert len(page.all("li", class_="carried")) == 5
    assert len(page.all("li", class_="guess")) == 3


def test_only_web_addresses_become_links(client):
    links = page_of(client, f"/image/{PICTURE}").all("a", rel="noopener noreferrer nofollow")
    assert [a["href"] for a in links] == ["https://pictures.example/page"]


@pytest.mark.parametrize("text", ["javascript:alert(1)", "data:text/html,x", "//a.example", "http://[", "https:", ""])
def test_text_that_is_no_web_address_is_told_apart(text):
    assert not is_web_address(text)


@pytest.mark.parametrize(
    "address", [*PAGES, f"/?q=%22{HOSTILE}%22", f"/?q={HOSTILE}+zz", "/?q=%22say+%22%22hi%22%22%22"]
)
def test_hostile_markup_is_text_on_every_page(client, address):
    response = client.get(address)
    page = Tags(response.text)
    assert {a.get("src") for a in page.all("script")} - SCRIPTS == set()
    assert not any(name.startswith("on") or name == "style" for _, attrs in page.elements for name in attrs)
    assert not page.all("style")


@pytest.mark.parametrize("tag", ["dog", "traffic light", QUOTED, HOSTILE, "猫"])
def test_link_of_a_tag_searches_for_that_tag(client, tag):
    links = [a["href"] for a in page_of(client, "/").all("a")]
    asked = [parse_qs(urlsplit(href).query).get("q", [""])[0] for href in links]
    assert [tag] in map(parse, asked)


@pytest.mark.parametrize(
    ("tags", "text"),
    [(["dog", "beach"], "dog, beach"), (["traffic light", "dog"], '"traffic light" dog'), ([QUOTED], '"say ""hi"""')],
)
def test_tags_are_written_as_the_grammar_reads_them(tags, text):
    assert query_for(tags) == text
    assert parse(text) == tags


@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("tr", '"traffic light"'),
        ("dog ", 'dog "traffic light"'),
        ('dog "traffic li', 'dog "traffic light"'),
        ('"big dog" tr', '"big dog" "traffic light"'),
    ],
)
def test_completion_replaces_only_the_last_tag(typed, whole):
    assert completed(typed, "traffic light") == whole


def test_unknown_word_beside_parts_that_found_something_is_no_headline(client, monkeypatch):
    search, near = StubSearcher.search, Near("puppy", True, (), ())
    monkeypatch.setattr(
        StubSearcher, "search", lambda self, asked: dataclasses.replace(search(self, asked), unknown=(near,))
    )
    page = client.get("/?q=dog").text
    assert "is ranked by the meaning" not in page
    assert "No picture is tagged <mark><bdi>puppy</bdi></mark>; the other parts found" in page
    assert "<h1>No picture" not in page


@pytest.mark.parametrize(
    ("query", "word", "tag", "expected"),
    [
        ("dgo, old, caat", "caat", "cat", "dgo, old, cat"),
        ("dgo -(caat OR dgo)", "dgo", "dog", "dog -(caat OR dog)"),
        ("dgood dgo", "dgo", "traffic light", 'dgood "traffic light"'),
        ('"trafic light" car', "trafic light", "traffic light", '"traffic light" car'),
        ("-dgo", "dgo", "dog", "-dog"),
    ],
)
def test_replacement_changes_the_word_and_leaves_the_rest_as_written(query, word, tag, expected):
    assert replaced(query, word, tag) == expected


def test_picture_is_sent_once_and_then_known_by_its_etag(client):
    first = client.get(f"/images/{PICTURE}.jpg")
    again = client.get(f"/images/{PICTURE}.jpg", headers={"If-None-Match": first.headers["ETag"]})
    assert first.content_type == "image/jpeg"
    assert first.headers["Cache-Control"] == "public, max-age=86400"
    assert first.data[:2] == b"\xff\xd8"
    assert (again.status_code, again.data) == (304, b"")
    assert client.get("/images/0.jpg").status_code == client.get("/image/0").status_code == 404


def test_ratio_of_every_class_is_in_the_stylesheet(client):
    sheet = client.get("/ratios.css").text
    assert all(f".r{percent}{{--r:" in sheet for percent in range(MIN_RATIO, MAX_RATIO + 1))


@pytest.mark.parametrize(("size", "classes"), [((300, 200), "r150"), ((1, 9), "r66 whole"), ((9, 1), "r300 whole")])
def test_box_takes_the_ratio_of_its_picture_within_bounds(size, classes):
    hit = dataclasses.replace(StubSearcher().hit(0, 0.0), width=size[0], height=size[1])
    assert ratio_class(hit) == classes


@pytest.mark.parametrize("address", [*PAGES, *(a for a, _ in ERRORS), f"/images/{PICTURE}.jpg", "/static/style.css"])
def test_every_response_carries_the_policy(client, address):
    headers = client.get(address, buffered=True).headers  # buffered: a static file is closed again
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert not re.search("unsafe|http|data:", policy)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("address", [*PAGES, *(a for a, _ in ERRORS)])
def test_every_page_has_language_title_landmarks_and_one_headline(client, address):
    page = Tags(client.get(address).text)
    assert page.all("html", lang="en")
    assert re.fullmatch(r"Tagtower: .+|.+ · Tagtower", page.title)
    assert len(page.all("main", id="main")) == len(page.all("form", role="search")) == len(page.all("h1")) == 1
    assert page.all("a", class_="skip", href="#main")


@pytest.mark.parametrize(("address", "status"), ERRORS)
def test_errors_have_one_page_shape_that_shows_no_internals(client, address, status):
    page = page_of(client, address, status)
    assert f"Error {status}" in page.text
    assert "To the search" in page.text
    assert "secret" not in page.text


def test_writing_is_refused_with_what_is_allowed(client):
    page = client.post("/")
    assert page.status_code == 405
    assert "GET" in page.headers["Allow"]
    assert "Error 405" in Tags(page.text).text


def test_query_of_marks_alone_names_no_tag(client):
    assert "Popular tags" in page_of(client, '/?q=""').text


@pytest.mark.parametrize("address", ["/", "/?q=dog", "/?q=dgo", "/api/v1/search?q=dog", f"/image/{PICTURE}"])
def test_one_request_asks_for_the_searcher_once(address):
    served = []

    def swapping():
        served.append(StubSearcher(run=f"run{len(served)}"))
        return served[-1]

    client = create_app(swapping).test_client()
    client.get(address)
    assert len(served) == 1


def test_swap_within_a_request_does_not_reach_it():
    runs = iter(["old", "new"])
    app = create_app(lambda: StubSearcher(run=next(runs)))
    with app.test_request_context("/"):
        assert [current_searcher().run, current_searcher().run] == ["old", "old"]
    with app.test_request_context("/"):
        assert current_searcher().run == "new"


def test_error_page_stands_where_no_searcher_can_be_had():
    def none():
        raise OSError("no generation")

    response = create_app(none).test_client().get("/?q=dog")
    assert response.status_code == 500
    assert "no generation" not in response.text


def test_several_runs_are_served_by_name_and_the_first_where_none_is_named():
    app = create_app({"first": lambda: StubSearcher("first"), "second": lambda: StubSearcher("second")})
    with app.test_request_context("/"):
        assert [current_searcher(run).run for run in ("", "second", "first")] == ["first", "second", "first"]
