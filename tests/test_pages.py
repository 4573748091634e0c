"""What pages answer beside search results: pictures, uploads, thumbs, tags, comparisons, quality."""

import io
import threading

import pytest
from PIL import Image
from werkzeug.exceptions import ServiceUnavailable

from configs.compose import Paths
from serve.app import create_app
from serve.busy import Queue
from serve.judgements import Judgements
from serve.pages.tags import steps_of
from serve.searchers.base import Answer, TagCount
from serve.side_by_side import place
from tests.browsing import PICTURE, stub_app, write_runs
from tests.stub_searcher import StubSearcher, image_id_of, jpeg_of, size_of
from tests.test_serve import Tags, page_of


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def client(paths):
    return stub_app(paths).test_client()


def upload(client, content, **headers):
    form = {"picture": (io.BytesIO(content), "mine.jpg")}
    return client.post("/by-picture", data=form, headers=headers)


def test_thumbnail_is_kept_a_month_and_known_by_its_etag(client):
    first = client.get(f"/thumbnails/160/{PICTURE}.jpg")
    again = client.get(f"/thumbnails/160/{PICTURE}.jpg", headers={"If-None-Match": first.headers["ETag"]})
    assert Image.open(io.BytesIO(first.data)).width == min(160, size_of(30)[0])
    assert first.headers["Cache-Control"] == "public, max-age=2592000"
    assert not first.headers["ETag"].startswith("W/")
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize("address", [f"/thumbnails/161/{PICTURE}.jpg", "/thumbnails/160/0.jpg"])
def test_other_widths_and_unknown_pictures_have_no_thumbnail(client, address):
    assert client.get(address).status_code == 404


def test_uploaded_picture_becomes_an_address_that_holds_its_embedding(client):
    response = upload(client, jpeg_of(2))
    assert response.status_code == 303
    page = page_of(client, response.headers["Location"])
    assert "Pictures like yours" in page.text
    assert len(page.all("li", class_="tile r100")) > 0


@pytest.mark.parametrize(
    ("content", "sentence", "reason"),
    [
        (b"", "That file is empty.", "empty"),
        (b"hello, no picture", "That file is no picture.", "not_an_image"),
        (jpeg_of(2)[:300], "The picture ends before its pixels do", "truncated"),
    ],
)
def test_refused_picture_is_told_with_the_reason_of_the_gate(client, content, sentence, reason):
    response = upload(client, content)
    text = Tags(response.text).text
    assert response.status_code == 422
    assert sentence in text
    assert f"{reason}:" in text


def test_form_without_a_picture_asks_for_one(client):
    response = client.post("/by-picture", data={})
    assert response.status_code == 422
    assert "Choose a picture first." in Tags(response.text).text


def test_picture_that_is_too_large_is_refused_unread(client):
    kind = "multipart/form-data; boundary=b"
    response = client.post("/by-picture", data=bytes(17 * 2**20), content_type=kind)
    assert response.status_code == 413


@pytest.mark.parametrize("headers", [{"Origin": "https://other.example"}, {"Sec-Fetch-Site": "cross-site"}])
@pytest.mark.parametrize("address", ["/by-picture", "/judge?q=dog", "/compare?q=dog"])
def test_forms_of_other_sites_are_refused(client, address, headers):
    assert client.post(address, data={}, headers=headers).status_code == 403


def test_queue_lets_few_wait_and_tells_the_rest_when_to_come_back():
    queue, inside, leave = Queue(waiting=1), threading.Event(), threading.Event()

    def hold():
        with queue.turn():
            inside.set()
            leave.wait(60)

    threads = [threading.Thread(target=hold) for _ in range(2)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    while queue._places._value:  # until the second waits
        pass
    with pytest.raises(ServiceUnavailable) as refused, queue.turn():
        pass
    leave.set()
    for thread in threads:
        thread.join(60)
    assert refused.value.retry_after == 5
    with queue.turn():
        pass


def test_busy_server_answers_503_with_retry_after(client):
    encoders = client.application.extensions["encoders"]
    for _ in range(2):
        encoders.queue._places.acquire()
    response = upload(client, jpeg_of(2))
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


def test_overlay_is_a_png_of_the_size_of_its_picture(client):
    response = client.get(f"/why/{PICTURE}.png?q=dog")
    picture = Image.open(io.BytesIO(response.data))
    assert response.content_type == "image/png"
    assert (picture.mode, picture.size) == ("RGBA", size_of(30))
    assert client.get("/why/0.png?q=dog").status_code == 404


def test_explained_picture_names_score_range_and_way(client):
    page = page_of(client, f"/image/{PICTURE}?q=dog&why=1")
    assert "Approximate" in page.text
    assert page.all("img", class_=f"overlay r{round(100 * size_of(30)[0] / size_of(30)[1])}")


def test_thumb_is_kept_for_its_question_and_taken_back(client, paths):
    said = client.post("/judge?q=traffic+light&page=2", data={"said": f"1:{PICTURE}:41"})
    assert said.headers["Location"].endswith(f"/?q=traffic+light&page=2#{PICTURE}")
    kept = next(each for each in Judgements(paths).graded() if each["image_id"] == PICTURE)
    assert (kept["topic"], kept["grade"], kept["judgements"][0]["rank"]) == ("traffic_light", 1, 41)
    client.post("/judge?q=traffic+light", data={"said": f":{PICTURE}:41"})
    assert PICTURE not in [each["image_id"] for each in Judgements(paths).graded()]


@pytest.mark.parametrize("said", ["", "2:0:1", f"1:{PICTURE}", f"1:{PICTURE}:x"])
def test_thumb_that_names_no_picture_is_refused(client, said):
    assert client.post("/judge?q=dog", data={"said": said}).status_code == 400


def test_thumb_for_an_unknown_picture_is_refused(client):
    assert client.post("/judge?q=dog", data={"said": f"1:{'0' * 16}:1"}).status_code == 404


def test_sizes_of_tags_follow_the_logarithm_of_their_frequency():
    tags = tuple(TagCount(str(count), count) for count in (1, 10, 100, 10_000))
    assert [step for _, step in steps_of(tags)] == [1, 2, 3, 5]
    assert steps_of(()) == []


def test_tags_are_offered_by_prefix_and_a_page_too_far_is_refused(client):
    assert [a["href"] for a in page_of(client, "/tags?prefix=Traffic").all("a")][-1] == "/?q=%22traffic+light%22"
    assert "No tag begins with" in page_of(client, "/tags?prefix=zz").text
    page_of(client, "/tags?page=2", 404)
    page_of(client, "/tags?sort=length", 400)


def answer_of(*rows):
    return Answer("dog", hits=tuple(StubSearcher().hit(row, 0.5) for row in rows))


def test_moves_are_told_from_the_other_sides_ranks():
    left, right, overlap = place(answer_of(1, 2, 3, 4), answer_of(1, 3, 5, 2))
    assert [(each.rank, each.move) for each in left] == [(1, "same"), (2, "same"), (3, "same"), (4, "dropped")]
    told = [(each.rank, each.move, each.steps) for each in right]
    assert told == [(1, "same", 0), (2, "up", 1), (3, "new", 0), (4, "down", 2)]
    assert (overlap.shared, overlap.shown, overlap.share) == (3, 4, 0.75)


def test_nothing_on_both_sides_is_full_agreement():
    assert place(answer_of(), answer_of())[2].share == 1.0


@pytest.mark.parametrize("runs", ["stub", "stub,stub", "stub,none", "stub,other,stub"])
def test_comparison_needs_two_different_runs_that_are_served(client, runs):
    page_of(client, f"/compare?q=dog&runs={runs}", 400)


def test_single_run_cannot_be_compared():
    assert "Only one run is served" in page_of(create_app(StubSearcher).test_client(), "/compare?q=dog", 404).text


def test_blind_page_names_no_run_and_the_vote_counts_for_the_side(client, paths):
    page = client.get("/compare?q=beach&blind=1").text.partition("<main")[2]
    assert "run=" not in page.replace("runs=", "")
    client.post("/compare?q=beach", data={"winner": "left"})
    told = page_of(client, "/compare/voted?q=beach&winner=left").text
    chosen = told.partition("You chose ")[2].split()[0]
    (votes,) = Judgements(paths).votes()
    assert (votes["first"], votes["first_wins"], votes["second_wins"]) == ("other", chosen == "other", chosen == "stub")


def test_quality_page_shows_the_evaluations_figures(client):
    text = page_of(client, "/runs/stub").text
    for expected in ("0.500 (0.400-0.600)", "AP 0.95, 9 test pictures", "48 %", "objective hinge"):
        assert expected in text


def test_run_without_an_evaluation_says_what_to_do(tmp_path):
    app = create_app({"new": lambda: StubSearcher("new")}, Paths(str(tmp_path), str(tmp_path)))
    assert "make evaluate" in page_of(app.test_client(), "/runs/new").text


@pytest.mark.parametrize("value", ["-0.1", "1.1", "x", "nan", "1e-1", "0_1"])
def test_cutoff_that_is_no_share_is_refused(client, value):
    assert "cutoff must be a share in 0..1" in page_of(client, f"/?q=dog&cutoff={value}", 400).text


def test_links_keep_sort_cutoff_and_filters(client):
    page = page_of(client, "/?q=animal&sort=newest&cutoff=0.5&kind=drawing")
    (following,) = page.all("a", rel="next")
    assert following["href"] == "/?q=animal&sort=newest&cutoff=0.5&kind=drawing&page=2"
    view = page.all("a", class_="view")[0]["href"]
    assert view.endswith("?q=animal&sort=newest&cutoff=0.5&kind=drawing")


def test_picture_that_is_gone_and_broken_addresses_are_told(client):
    page_of(client, "/?like=0000000000000000", 404)
    assert image_id_of(1) in client.get(f"/?like={image_id_of(30)}").text
