"""Sources over APIs: what they ask, what they take from documented answers, and what they never write down."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crawl.sources.flickr
from configs.artifacts import ArtifactError
from crawl.fetch.faults import Fault
from crawl.fetch.found import API, Answer
from crawl.fetch.outbox import Outbox
from crawl.fetch.register import Bounds
from crawl.source_config import FlickrSource, OpenverseSource, WikimediaSource
from crawl.sources.api import number, plain_text, text
from crawl.sources.flickr import Flickr
from crawl.sources.licences import licence_code, licence_name
from crawl.sources.openverse import Openverse, wait_of
from crawl.sources.wikimedia import Wikimedia
from tests import photo_apis
from tests.photo_apis import KEY, TOKEN, Reply, walked

WIKI, OPENVERSE, FLICKR = "http://wiki.test", "http://openverse.test/v1/images/", "http://flickr.test/services/rest/"
CC_BY_SA = {
    "LicenseShortName": "CC BY-SA 4.0",
    "LicenseUrl": "https://creativecommons.org/licenses/by-sa/4.0",
    "Artist": '<a href="//wiki.test/wiki/User:Ann">Ann &amp; Bob</a><span style="display: none;">Q7</span>',
    "ImageDescription": "<p>A cat.<br>Asleep.</p><style>.x{}</style>",
    "ObjectName": "Sleeping cat",
}
SMALL_TRAP = Bounds(max_depth=20, max_per_host=1_000_000, max_per_pattern=30, max_barren=8, max_redirects=5)


@pytest.fixture
def wiki_of(tmp_path):
    """Crawl a wiki in this process."""

    def run(api, bounds=photo_apis.BOUNDS, **options):
        return walked(Wikimedia(WikimediaSource(project=WIKI, **options)), api, tmp_path, bounds)

    return run


@pytest.fixture
def openverse_of(tmp_path, monkeypatch):
    """Crawl Openverse in this process."""

    def run(api, token="", bounds=photo_apis.BOUNDS, **options):
        monkeypatch.setenv("OPENVERSE_TOKEN", token)
        return walked(
            Openverse(OpenverseSource(**{"api": OPENVERSE, "search": ["cat"], **options})), api, tmp_path, bounds
        )

    return run


@pytest.fixture
def flickr_of(tmp_path, monkeypatch):
    """Crawl Flickr in this process."""
    monkeypatch.setenv("FLICKR_API_KEY", KEY)

    def run(api, bounds=photo_apis.BOUNDS, **options):
        return walked(Flickr(FlickrSource(**{"api": FLICKR, "search": ["cat"], **options})), api, tmp_path, bounds)

    return run


def file(title, *categories, licence="CC BY-SA 4.0", **values):
    return {"title": title, "categories": list(categories), "metadata": {"LicenseShortName": licence}, **values}


def result(number, **values):
    common = {
        "id": f"00000000-0000-4000-8000-{number:012d}",
        "title": f"Picture {number}",
        "url": f"https://pictures.test/{number}.jpg",
        "foreign_landing_url": f"https://pages.test/{number}",
        "creator": "Ann",
        "creator_url": "https://pages.test/ann",
        "license": "by",
        "license_version": "2.0",
        "license_url": "https://creativecommons.org/licenses/by/2.0/",
        "source": "flickr",
        "tags": [{"name": "cat", "accuracy": None}],
    }
    return common | values


def photo(number, at=1_200_000_000, **values):
    common = {
        "id": str(number),
        "owner": "12037949754@N01",
        "ownername": "Bees",
        "title": f"Photo {number}",
        "description": {"_content": ""},
        "license": "5",
        "tags": "cat tabby",
        "machine_tags": "",
        "dateupload": at + number,
        "url_l": f"https://live.flickr.test/{number}_l.jpg",
    }
    return common | values


# Wikimedia


def test_a_file_of_a_wiki_comes_with_categories_licence_author_and_page(wiki_of):
    cat = {"title": "Cat 1.jpg", "categories": ["Black cats", "Katzen (Felis)"], "metadata": CC_BY_SA, "user": "Ann"}
    found = wiki_of(photo_apis.Wiki(categories={"Category:Cats": [7]}, files={7: cat}), categories=["Cats"])
    about = found.pictures["http://wiki.test/pictures/thumb/7.jpg"]
    assert about.tags == ("Black cats", "Katzen (Felis)")
    assert about.provenance == {
        "title": "Sleeping cat",
        "caption": "A cat. Asleep.",
        "licence": "CC BY-SA 4.0",
        "author": "Ann & Bob",
        "page_url": "http://wiki.test/wiki/File:Cat_1.jpg",
        "group": "wiki.test/Ann",
    }
    assert about.extra == {"licence_url": CC_BY_SA["LicenseUrl"], "original_url": "http://wiki.test/pictures/7.jpg"}


def test_the_original_is_taken_where_no_width_is_given(wiki_of):
    api = photo_apis.Wiki(categories={"Category:Cats": [7]}, files={7: file("A.jpg")})
    assert list(wiki_of(api, categories=["Cats"], width=0).pictures) == ["http://wiki.test/pictures/7.jpg"]
    assert "iiurlwidth" not in api.log[-1]


def test_a_list_of_a_wiki_is_read_to_its_end_in_batches_of_fifty(wiki_of):
    files = {number: file(f"F{number}.jpg", "Cats") for number in range(1, 124)}
    api = photo_apis.Wiki(categories={"Category:Cats": list(files)}, files=files, list_limit=60)
    found = wiki_of(api, categories=["Category:Cats"])
    assert len(found.pictures) == 123
    # Lists of 60, 60 and 3; details of 50 + 10, 50 + 10 and 3.
    assert found.num_requests == 3 + 5


def test_subcategories_are_read_to_the_depth_asked_for(wiki_of):
    files = {number: file(f"F{number}.jpg") for number in range(1, 5)}
    tree = {
        "Category:A": [1, "Category:B"],
        "Category:B": [2, "Category:C", "Category:A"],  # a circle
        "Category:C": [3, "Category:D"],
        "Category:D": [4],
    }
    api = photo_apis.Wiki(categories=tree, files=files)
    found = wiki_of(api, categories=["A"], depth=2)
    assert sorted(re.findall(r"(\d)\.jpg", " ".join(found.pictures))) == ["1", "2", "3"]
    assert found.failed == []


def test_a_batch_with_categories_left_over_is_asked_again_in_halves(wiki_of):
    many = [f"Tag {number}" for number in range(9)]
    files = {number: file(f"F{number}.jpg", *many) for number in range(1, 5)}
    api = photo_apis.Wiki(categories={"Category:Cats": list(files)}, files=files, category_limit=20)
    found = wiki_of(api, categories=["Cats"])
    assert [about.tags for about in found.pictures.values()] == [tuple(many)] * 4
    assert found.num_requests == 1 + 1 + 2  # the list, four files (36 categories), twice two


def test_a_single_file_with_more_than_an_answer_holds_comes_with_what_there_is(wiki_of):
    files = {1: file("F1.jpg", "a", "b", "c")}
    api = photo_apis.Wiki(categories={"Category:Cats": [1]}, files=files, category_limit=2)
    assert [about.tags for about in wiki_of(api, categories=["Cats"]).pictures.values()] == [("a", "b")]


def test_what_led_to_a_file_can_be_its_tag(wiki_of):
    files = {1: file("red cat.jpg", "Maintenance of something"), 2: file("dog.jpg")}
    api = photo_apis.Wiki(categories={"Category:Dogs": [2, 1]}, files=files)
    found = wiki_of(api, categories=["Category:Dogs"], search=["cat"], tags="asked")
    tags = {url[-5:]: set(about.tags) for url, about in found.pictures.items()}
    assert tags == {"1.jpg": {"Dogs", "cat"}, "2.jpg": {"Dogs"}}
    assert all("categories" not in asked.get("prop", "") for asked in api.log)


def test_a_search_of_a_wiki_goes_on_where_the_last_answer_ended(wiki_of):
    files = {number: file(f"cat {number}.jpg") for number in range(1, 8)}
    api = photo_apis.Wiki(files=files, list_limit=3)
    assert len(wiki_of(api, search=["cat"]).pictures) == 7
    assert [asked.get("sroffset") for asked in api.log if "list" in asked] == [None, "3", "6"]
    assert {asked["srnamespace"] for asked in api.log if "list" in asked} == {"6"}


@pytest.mark.parametrize(
    ("licences", "kept"),
    [
        (None, ["1", "2", "3", "5"]),
        (["by-sa"], ["1"]),
        (["gfdl", "cc0"], ["3", "5"]),
        ([], ["1", "2", "3", "4", "5", "6"]),
    ],
)
def test_files_of_other_licences_are_refused_and_counted(wiki_of, licences, kept):
    names = ["CC BY-SA 4.0", "Public domain", "CC0", "Fair use", "GFDL 1.2", ""]
    files = {number: file(f"F{number}.jpg", licence=name) for number, name in enumerate(names, start=1)}
    options = {} if licences is None else {"licences": licences}
    found = wiki_of(photo_apis.Wiki(categories={"Category:X": list(files)}, files=files), categories=["X"], **options)
    assert re.findall(r"(\d)\.jpg", " ".join(found.pictures)) == kept
    assert [reason for reason, _ in found.refused] == ["licence"] * (6 - len(kept))


def test_what_is_no_picture_is_refused_by_name(wiki_of):
    files = {
        1: file("Talk.ogg", mime="application/ogg"),
        2: file("Lost.jpg", is_missing=True),
        3: file("Bare.jpg", metadata={}),
    }
    api = photo_apis.Wiki(categories={"Category:X": [1, 2, 3, 4]}, files={**files, 4: file("gone")})
    del api.files[4]
    api.row = lambda each, kind: {"pageid": each, "type": kind}
    found = wiki_of(api, categories=["X"], licences=[])
    assert sorted(reason for reason, _ in found.refused) == ["no_image", "no_image", "not_a_picture"]
    (about,) = found.pictures.values()
    assert about.provenance == {
        "title": "Bare",
        "author": "Uploader",
        "page_url": "http://wiki.test/wiki/File:Bare.jpg",
        "group": "wiki.test/Uploader",
    }


def lagged(**headers):
    error = {"code": "maxlag", "info": "Waiting for 10.64.0.1: 6.1 seconds lagged.", "lag": 6.1}
    return Reply({"error": error, "docref": "See the API"}, headers={"Retry-After": "5", **headers})


def test_a_wiki_that_lags_is_asked_again_and_given_up_in_the_end(wiki_of):
    categories, files = {"Category:X": [1]}, {1: file("F1.jpg")}
    api = photo_apis.Wiki(first=[lagged(), lagged()], categories=categories, files=files)
    assert len(wiki_of(api, categories=["X"]).pictures) == 1


def test_a_wiki_that_always_lags_is_given_up(wiki_of):
    found = wiki_of(photo_apis.Wiki(first=[lagged() for _ in range(3)]), categories=["X"])
    assert found.failed == [("busy", "maxlag: Waiting for 10.64.0.1: 6.1 seconds lagged.")]


def test_what_a_wiki_cannot_do_is_told_in_its_words(wiki_of):
    error = {"error": {"code": "invalidcategory", "info": 'The category name "Category:" is not valid.'}}
    found = wiki_of(photo_apis.Wiki(first=[Reply(error)]), categories=[" "])
    assert found.failed == [("api_error", 'invalidcategory: The category name "Category:" is not valid.')]
    assert found.num_requests == 1


class EndlessWiki(photo_apis.Wiki):
    """Always has more."""

    def listed(self, parameters):
        further = int(parameters.get("cmcontinue", "page|0").partition("|")[2]) + 1
        rows = [{"pageid": 1, "type": "file", "title": "File:F1.jpg"}]
        going_on = {"cmcontinue": f"page|{further}", "continue": "-||"}
        return Reply({"query": {"categorymembers": rows}, "continue": going_on})


def test_a_continuation_that_brings_nothing_new_ends(wiki_of):
    found = wiki_of(EndlessWiki(files={1: file("F1.jpg")}), SMALL_TRAP, categories=["X"])
    assert len(found.pictures) == 1
    assert [reason for reason, _ in found.refused] == ["barren_pattern"]
    assert found.num_requests < 15


def test_a_continuation_that_leads_back_ends(wiki_of):
    class Circle(photo_apis.Wiki):
        def listed(self, parameters):
            other = "page|1" if parameters.get("cmcontinue") == "page|2" else "page|2"
            return Reply({"query": {"categorymembers": []}, "continue": {"cmcontinue": other, "continue": "-||"}})

    assert wiki_of(Circle(), categories=["X"]).num_requests == 3


def test_the_address_of_another_wikis_api_is_taken_as_it_is():
    finder = Wikimedia(WikimediaSource(project="https://wiki.example/api.php", categories=["category:Cats"]))
    (url,) = finder.queries()
    assert url.startswith("https://wiki.example/api.php?action=query&")
    assert "cmtitle=Category%3ACats&" in url


# Openverse


def test_a_result_of_openverse_comes_with_tags_licence_creator_and_page(openverse_of):
    tags = [
        {"name": "cat", "accuracy": None},
        {"name": "mammal", "accuracy": 0.97},
        {"name": "  odd\ttag ", "accuracy": None},
        {"name": "", "accuracy": None},
        {"name": None},
        "no object",
        {"name": "cat", "accuracy": None},
    ]
    found = openverse_of(photo_apis.Openverse(results=[result(1, tags=tags)]))
    about = found.pictures["https://pictures.test/1.jpg"]
    assert about.tags == ("cat", "odd tag")
    assert about.provenance == {
        "title": "Picture 1",
        "licence": "CC BY 2.0",
        "author": "Ann",
        "page_url": "https://pages.test/1",
        "group": "https://pages.test/ann",
    }
    assert about.extra == {
        "licence_url": "https://creativecommons.org/licenses/by/2.0/",
        "source": "flickr",
        "tag_accuracy": {"mammal": 0.97},
    }


@pytest.mark.parametrize(("least", "tags"), [(None, ("cat",)), (0.9, ("cat", "mammal")), (0.98, ("cat",))])
def test_tags_by_machines_are_taken_where_they_are_sure_enough(openverse_of, least, tags):
    given_tags = [
        {"name": "cat", "accuracy": None},
        {"name": "mammal", "accuracy": 0.97},
        {"name": "dog", "accuracy": "x"},
    ]
    found = openverse_of(photo_apis.Openverse(results=[result(1, tags=given_tags)]), min_accuracy=least)
    assert found.pictures["https://pictures.test/1.jpg"].tags == tags


def test_all_pages_that_openverse_grants_are_read_and_none_beyond(openverse_of):
    api = photo_apis.Openverse(results=[result(number) for number in range(1000)], max_pages=12)
    found = openverse_of(api)
    assert len(found.pictures) == 240
    assert [asked["page"] for asked in api.log] == [str(page) for page in range(1, 13)]
    assert found.failed == []


def test_openverse_is_asked_for_what_the_config_says(openverse_of):
    api = photo_apis.Openverse()
    options = {"creator": "Ann", "collections": ["flickr", "met"], "licence_types": ["commercial"], "mature": True}
    openverse_of(api, token=TOKEN, search=["cat"], tags=["dog"], page_size=50, licences=["by", "cc0"], **options)
    asked = [{name: value for name, value in each.items() if name} for each in api.log]
    common = {"creator": "Ann", "source": "flickr,met", "license": "by,cc0", "license_type": "commercial"}
    common |= {"mature": "true", "page_size": "50", "page": "1"}
    assert asked == [{"q": "cat", **common}, {"tags": "dog", **common}]
    assert {each[""]["Authorization"] for each in api.log} == {f"Bearer {TOKEN}"}


def test_results_that_the_filter_let_through_are_filtered_again(openverse_of):
    odd = [result(1, license="BY-SA"), result(2, license="by-nc"), result(3, license=None), result(4, url=None)]
    found = openverse_of(photo_apis.Openverse(results=odd))
    assert list(found.pictures) == ["https://pictures.test/1.jpg"]
    assert found.refused == [
        ("licence", "https://pictures.test/2.jpg"),
        ("licence", "https://pictures.test/3.jpg"),
        ("no_image", "https://pages.test/4"),
    ]


def test_a_picture_on_two_pages_is_one_with_the_tags_of_both(openverse_of):
    again = result(1, tags=[{"name": "kitten", "accuracy": None}])
    found = openverse_of(photo_apis.Openverse(results=[*(result(number) for number in range(20)), again]))
    assert len(found.pictures) == 20
    assert found.pictures["https://pictures.test/1.jpg"].tags == ("cat", "kitten")


def test_openverse_that_lies_about_its_pages_is_left_at_a_bound(openverse_of):
    class Endless(photo_apis.Openverse):
        def answer(self, parameters, headers):
            return Reply({"page_count": 10**9, "results": []})

    found = openverse_of(Endless(), bounds=SMALL_TRAP)
    assert found.num_requests <= 30
    assert {reason for reason, _ in found.refused} == {"pattern_limit"}


@pytest.mark.parametrize(
    ("status", "content", "failed"),
    [
        (401, {"detail": "Invalid token."}, ("status_401", "Invalid token.")),
        (
            400,
            {"detail": {"license": ["License 'x' does not exist."]}},
            ("status_400", '{"license": ["License \'x\' does not exist."]}'),
        ),
        (404, b"<html>", ("status_404", "")),
        (200, b"<html>", ("bad_answer", "no JSON: Expecting value: line 1 column 1 (char 0)")),
        (200, [1], ("bad_answer", "a JSON object was expected, found a list")),
        (200, b"[" * 100_000, ("bad_answer", "no JSON: ")),
    ],
)
def test_a_failure_is_told_in_the_words_of_the_api(openverse_of, status, content, failed):
    found = openverse_of(photo_apis.Openverse(first=[Reply(content, status)]))
    ((kind, detail),) = found.failed
    assert (kind, detail[: len(failed[1])]) == failed
    assert found.num_requests == 1


def test_a_limit_that_is_used_up_is_waited_for(openverse_of):
    api = photo_apis.Openverse(results=[result(number) for number in range(60)], limit=(2, "min"))
    assert openverse_of(api).waits == [60.0, 60.0]  # after the second of three requests, and after the third


@pytest.mark.parametrize(
    ("limit", "left", "wait"),
    [
        ("20/min", "0", 60),
        ("1/second", "-1", 1),
        ("200/day", "0", 86400),
        ("100/h", "0", 3600),
        ("20/min", "1", 0),
        ("x", "0", 0),
    ],
)
def test_limits_are_read_from_headers(limit, left, wait):
    assert wait_of({"x-ratelimit-limit-a": [limit], "x-ratelimit-available-a": [left]}) == wait
    assert wait_of({"x-ratelimit-available-a": [left]}) == 0


# Flickr


def test_a_photo_of_flickr_comes_with_tags_licence_owner_and_page(flickr_of):
    described = photo(
        7,
        title="Bees &amp; hive",
        description={"_content": 'From <a href="http://x.test" rel="nofollow">here</a>'},
        tags="猫 tabby geo:lat=51 tabby",
        machine_tags="geo:lat=51 dc:title=x",
    )
    found = flickr_of(photo_apis.Flickr(photos=[described]))
    about = found.pictures["https://live.flickr.test/7_l.jpg"]
    assert about.tags == ("猫", "tabby")
    assert about.provenance == {
        "title": "Bees &amp; hive",
        "caption": "From here",
        "licence": "CC BY-SA 2.0",
        "author": "Bees",
        "page_url": "https://www.flickr.com/photos/12037949754@N01/7",
        "group": "flickr/12037949754@N01",
    }
    assert about.extra == {"machine_tags": ["geo:lat=51", "dc:title=x"]}


def test_flickr_is_asked_for_open_licences_by_their_numbers(flickr_of):
    api = photo_apis.Flickr()
    flickr_of(api, search=["red cat", "dog"], tags=["a", "b"], user="1@N01", since="2009-12-31")
    first, *searches = [{name: value for name, value in asked.items() if name} for asked in api.log]
    assert first == {
        "method": "flickr.photos.licenses.getInfo",
        "format": "json",
        "nojsoncallback": "1",
        "api_key": KEY,
    }
    assert [asked["text"] for asked in searches] == ["red cat", "dog"]
    asked = searches[0]
    assert asked["license"] == "4,5,9,10,12"
    assert (asked["tags"], asked["tag_mode"], asked["user_id"]) == ("a,b", "all", "1@N01")
    assert (asked["min_upload_date"], asked["max_upload_date"]) == (
        "1262217600",
        str(1262217600 + 2**17 - 1),
    )  # the Date of the answer is 86,400 seconds on
    assert asked["extras"] == "license,owner_name,tags,machine_tags,description,url_l,url_c,url_z,url_o,url_m"
    assert (asked["media"], asked["safe_search"], asked["api_key"]) == ("photos", "1", KEY)


def test_the_last_day_belongs_to_the_span(flickr_of):
    api = photo_apis.Flickr()
    flickr_of(api, since="1970-01-02", until="1970-01-02")
    assert (api.log[1]["min_upload_date"], api.log[1]["max_upload_date"]) == ("86400", "172799")


def asked_spans(api):
    """Length of the spans that were searched, and their pages; forget them."""
    searches = [asked for asked in api.log if asked["method"] == "flickr.photos.search"]
    api.log.clear()
    return [
        (int(asked["max_upload_date"]) - int(asked["min_upload_date"]) + 1, int(asked["page"])) for asked in searches
    ]


def refreshed(finder, api, directory):
    outbox = Outbox(directory / "state.sqlite")
    outbox.begin_pass(refresh=True)
    outbox.close()
    return walked(finder, api, directory)


def test_a_refresh_finds_new_uploads_where_it_asked_before(tmp_path, monkeypatch):
    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    finder = Flickr(FlickrSource(search=["cat"], since="2009-12-31"))
    api = photo_apis.Flickr(photos=[photo(number, at=1262217600) for number in range(3)])
    assert len(walked(finder, api, tmp_path).pictures) == 3
    assert asked_spans(api) == [(2**17, 1)]
    api.photos.append(photo(3, at=1262304000))
    api.date = "Fri, 01 Jan 2010 06:00:00 GMT"
    assert len(refreshed(finder, api, tmp_path).pictures) == 4
    assert asked_spans(api) == [(2**17, 1)]


def test_a_span_that_time_has_left_behind_is_half_of_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    monkeypatch.setattr(crawl.sources.flickr, "MAX_RESULTS", 4)
    monkeypatch.setattr(crawl.sources.flickr, "PAGE", 4)
    finder = Flickr(FlickrSource(search=["cat"], since="2009-12-31"))
    api = photo_apis.Flickr(photos=[photo(number, at=1262217600) for number in range(4)], max_results=4)
    walked(finder, api, tmp_path)
    assert asked_spans(api) == [(2**17, 1)]
    api.photos.append(photo(4, at=1262217600 + 2**17))
    api.date = "Sat, 02 Jan 2010 00:00:00 GMT"
    assert len(refreshed(finder, api, tmp_path).pictures) == 5
    assert asked_spans(api) == [(2**17, 1), (2**18, 1), (2**17, 1)]  # what was asked before, all, the other half


@pytest.mark.parametrize("max_results", [12, 40])
def test_spans_with_more_than_flickr_shows_are_halved(flickr_of, monkeypatch, max_results):
    monkeypatch.setattr(crawl.sources.flickr, "MAX_RESULTS", max_results)
    monkeypatch.setattr(crawl.sources.flickr, "PAGE", 4)
    crowded = [photo(number, at=number**3 % 1013 * 1000) for number in range(150)]
    found = flickr_of(
        photo_apis.Flickr(photos=crowded, max_results=max_results), since="1970-01-01", until="1970-01-12"
    )
    assert len(found.pictures) == 150
    assert found.refused == found.failed == []


def test_a_second_with_more_than_flickr_shows_is_said_to_be_cut(flickr_of, monkeypatch):
    monkeypatch.setattr(crawl.sources.flickr, "MAX_RESULTS", 8)
    monkeypatch.setattr(crawl.sources.flickr, "PAGE", 4)
    crowded = [photo(number, dateupload=100) for number in range(20)]
    found = flickr_of(photo_apis.Flickr(photos=crowded, max_results=8), since="1970-01-01", until="1970-01-01")
    assert len(found.pictures) == 8
    ((reason, url),) = found.refused
    assert (reason, "min_upload_date=100&max_upload_date=100" in url, KEY in url) == ("result_limit", True, False)


def test_flickr_that_always_has_more_is_left_at_a_bound(flickr_of):
    class Endless(photo_apis.Flickr):
        def found(self, parameters):
            return {"page": 1, "pages": "99999", "total": "10000000", "photo": []}

    found = flickr_of(Endless(), bounds=SMALL_TRAP)
    assert found.num_requests <= 31
    assert found.refused


@pytest.mark.parametrize(
    ("licences", "numbers", "kept"),
    [
        (["by-nc-sa"], "1", ["1"]),
        (["nkc", "usgov"], "7,8", ["7", "8"]),
        ([], None, ["0", "1", "5", "7", "8", "99", "None"]),
    ],
)
def test_photos_are_chosen_by_licence(flickr_of, licences, numbers, kept):
    photos = [photo(each or 0, license=str(each), url_l=f"https://x.test/{each}") for each in (0, 1, 5, 7, 8, 99, None)]
    api = photo_apis.Flickr(photos=photos)
    found = flickr_of(api, licences=licences)
    assert [url.rpartition("/")[2] for url in found.pictures] == kept
    assert api.log[1].get("license") == numbers


def test_a_photo_that_says_no_licence_is_refused_where_one_is_asked_for(flickr_of):
    silent = photo(1)
    del silent["license"]
    found = flickr_of(photo_apis.Flickr(photos=[silent]))
    assert found.refused == [("licence", "https://live.flickr.test/1_l.jpg")]


def test_the_first_size_that_a_photo_has_is_taken(flickr_of):
    no_large = {"url_l": None, "url_o": "https://live.flickr.test/2_o.png"}
    photos = [photo(1, url_o="https://live.flickr.test/1_o.png"), photo(2, **no_large), photo(3, url_l="")]
    found = flickr_of(photo_apis.Flickr(photos=photos), sizes=["l", "o"])
    assert list(found.pictures) == ["https://live.flickr.test/1_l.jpg", "https://live.flickr.test/2_o.png"]
    assert found.refused == [("no_image", "https://www.flickr.com/photos/12037949754@N01/3")]


@pytest.mark.parametrize(
    ("code", "requests", "failed"),
    [(105, 4, ("busy", "105: Not now")), (3, 2, ("api_error", "3: Not now"))],
)
def test_failures_of_flickr_are_passing_or_final_by_their_code(flickr_of, code, requests, failed):
    found = flickr_of(photo_apis.Flickr(fails=(code, "Not now")))
    assert (found.num_requests, found.failed) == (requests, [failed])


def test_a_key_that_an_answer_repeats_is_not_written_down(flickr_of):
    found = flickr_of(photo_apis.Flickr(fails=(100, f"Invalid API Key {KEY}")))
    assert found.failed == [("api_error", "100: Invalid API Key <key>")]


def test_a_licence_that_flickr_does_not_have_any_more_is_an_error(flickr_of, monkeypatch):
    monkeypatch.setattr(photo_apis, "FLICKR_LICENCES", {0: ("All Rights Reserved", "")})
    ((kind, detail),) = flickr_of(photo_apis.Flickr()).failed
    assert (kind, detail) == ("api_error", "no licence of Flickr is one of by, by-sa, cc0, pdm")


# Options


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (WikimediaSource, {"licences": ["cc-by"]}, "source.licences must be of cc0, pdm, by, .* fal; got 'cc-by'"),
        (OpenverseSource, {"licences": ["gfdl"]}, "source.licences must be of .*; got 'gfdl'"),
        (FlickrSource, {"licences": ["4"]}, "source.licences must be of .* usgov; got '4'"),
        (WikimediaSource, {"depth": 11}, r"source.depth must lie in 0\.\.10, got 11"),
        (WikimediaSource, {"width": -1}, "source.width must be 0 .* got -1"),
        (WikimediaSource, {"tags": "all"}, "source.tags must be categories or asked, got 'all'"),
        (WikimediaSource, {"group": "page"}, "source.group must be author or none, got 'page'"),
        (OpenverseSource, {"page_size": 501}, r"source.page_size must lie in 1\.\.500"),
        (OpenverseSource, {"min_accuracy": 2.0}, r"source.min_accuracy must lie in 0\.\.1"),
        (OpenverseSource, {"licence_types": ["free"]}, "source.licence_types must be of .* got 'free'"),
        (FlickrSource, {"tag_mode": "some"}, "source.tag_mode must be all or any, got 'some'"),
        (FlickrSource, {"sizes": ["xl"]}, r"source.sizes must be of o, .* got \['xl'\]"),
        (FlickrSource, {"since": "yesterday"}, "source.since must be a day such as 2024-12-31, got 'yesterday'"),
        (FlickrSource, {"since": "2020-02-01", "until": "2020-01-01"}, "source.since must not come after"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(kind, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**options)


def test_flickr_without_a_key_or_a_question_is_refused(monkeypatch):
    monkeypatch.delenv("FLICKR_API_KEY", raising=False)
    with pytest.raises(ArtifactError, match="needs an API key of Flickr in the environment variable FLICKR_API_KEY"):
        Flickr(FlickrSource(search=["cat"]))
    monkeypatch.setenv("FLICKR_API_KEY", "two words")
    with pytest.raises(ArtifactError, match="FLICKR_API_KEY holds no key"):
        Flickr(FlickrSource(search=["cat"]))
    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    with pytest.raises(ArtifactError, match=r"source\.search, source\.tags or source\.user"):
        Flickr(FlickrSource())


def test_the_others_without_a_question_are_refused_too(monkeypatch):
    monkeypatch.delenv("OPENVERSE_TOKEN", raising=False)
    with pytest.raises(ArtifactError, match=r"source\.categories or source\.search"):
        Wikimedia(WikimediaSource())
    with pytest.raises(ArtifactError, match=r"source\.search, source\.tags or source\.creator"):
        Openverse(OpenverseSource())
    with pytest.raises(
        ArtifactError, match=r"source\.page_size=21 needs a token in the environment variable OPENVERSE_TOKEN"
    ):
        Openverse(OpenverseSource(search=["cat"], page_size=21))
    with pytest.raises(ArtifactError, match="the address of the API cannot be asked for"):
        Wikimedia(WikimediaSource(project="commons", categories=["Cats"]))


# Texts


@pytest.mark.parametrize(
    ("written", "code", "name"),
    [
        ("CC BY-SA 4.0", "by-sa", "CC BY-SA 4.0"),
        ("CC BY-SA 3.0 de", "by-sa", "CC BY-SA 3.0"),
        ("cc-by-nc-nd-2.5", "by-nc-nd", "CC BY-NC-ND 2.5"),
        ("CC-BY-ND-NC 1.0", "by-nc-nd", "CC BY-NC-ND 1.0"),
        ("https://creativecommons.org/licenses/by-nc/2.0/", "by-nc", "CC BY-NC 2.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/deed.en", "cc0", "CC0 1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "pdm", "Public domain"),
        ("https://creativecommons.org/licenses/nc-sampling+/1.0/", "", ""),
        ("CC0", "cc0", "CC0"),
        ("CC-Zero", "cc0", "CC0"),
        ("Public domain", "pdm", "Public domain"),
        ("PD-US", "pdm", "Public domain"),
        ("GFDL 1.2", "gfdl", ""),
        ("FAL", "fal", ""),
        ("Fair use", "", ""),
        ("CC BYE 4.0", "", ""),
        ("pdf", "", ""),
        ("", "", ""),
    ],
)
def test_licences_have_one_code_and_one_name(written, code, name):
    assert (licence_code(written), licence_name(written)) == (code, name)


@pytest.mark.parametrize(
    ("html", "plain"),
    [
        ("Ann", "Ann"),
        ("  Ann \n Bob ", "Ann Bob"),
        ('<bdi><a href="x">Ann</a></bdi>', "Ann"),
        ("<div>Ann</div><div>Bob</div>", "Ann Bob"),
        ('Ann<span style="display:  none">Q1</span>, 2010', "Ann, 2010"),
        ("<style>a{}</style><script>x</script>Ann", "Ann"),
        ("A &lt; B &amp; C", "A < B & C"),
        ("1 < 2", "1 < 2"),
        ("<!-- -->", ""),
        ('<?xml version="1.0" encoding="utf-8"?><b>Ann</b>', "Ann"),
        (None, ""),
        ({"en": "Ann"}, ""),
        (7, "7"),
    ],
)
def test_markup_is_read_as_a_reader_sees_it(html, plain):
    assert plain_text(html) == plain


NAMES = [
    "query",
    "pages",
    "imageinfo",
    "extmetadata",
    "continue",
    "categorymembers",
    "search",
    "pageid",
    "type",
    "title",
    "results",
    "tags",
    "name",
    "accuracy",
    "page_count",
    "url",
    "license",
    "stat",
    "photos",
    "photo",
    "total",
    "licenses",
    "id",
    "error",
    "code",
    "value",
    "mime",
    "Artist",
    "categories",
    "description",
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
TOPS = st.sampled_from(["query", "results", "photos", "licenses", "error", "continue", "page_count"])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(TOPS, JSON, max_size=3))
def test_no_answer_of_whatever_shape_breaks_a_reader(content):
    wiki = Wikimedia(WikimediaSource(project=WIKI, categories=["X"], depth=1, search=["y"], licences=[]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLICKR_API_KEY", KEY)
        patch.delenv("OPENVERSE_TOKEN", raising=False)
        flickr = Flickr(FlickrSource(api=FLICKR, search=["x"], licences=[]))
        openverse = Openverse(OpenverseSource(api=OPENVERSE, search=["x"], licences=[]))
    search = flickr.address({"method": "flickr.photos.search", "page": 1, "min_upload_date": 0, "max_upload_date": 9})
    asked = [(wiki, url) for url in [*wiki.queries(), wiki._details(["1", "2"], 0), wiki._details(["1"], 1)]]
    asked += [(openverse, url) for url in openverse.queries()] + [(flickr, url) for url in [*flickr.queries(), search]]
    for finder, url in asked:
        try:
            found = finder.read(Answer(url, API, {}, json.dumps({"stat": "ok", **content}).encode()))
        except Fault:
            continue
        for picture in found.pictures:
            json.loads(picture.about.as_json().encode())  # storable, with no half of a surrogate pair


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()))
def test_numbers_and_texts_of_any_kind_are_read(value):
    assert isinstance(number(value), int)
    assert isinstance(text(value), str)
