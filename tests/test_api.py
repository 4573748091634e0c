"""The REST API: what it answers, what it refuses and how, and that its document tells the truth."""

import base64
import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from configs.artifacts import ArtifactError
from configs.compose import Paths
from serve.api.parameters import choice, several, share, text, whole
from serve.api.request_values import MAX_UPLOAD_BYTES
from serve.api.shapes import schema_of
from serve.app import create_app
from serve.busy import Queue
from serve.query import QueryError
from tests.stub_searcher import HOSTILE, StubSearcher, image_id_of

PICTURE = image_id_of(30)
SAME_SITE = {"Sec-Fetch-Site": "same-origin"}


class Backwards(StubSearcher):
    """A run that ranks from the other end."""

    def __init__(self, run, generation="backwards-0001"):
        super().__init__(run)
        self.generation = generation

    def search(self, question):
        answer = super().search(dataclasses.replace(question, offset=0, limit=1000))
        page = answer.hits[::-1][question.offset : question.offset + question.limit]
        return dataclasses.replace(answer, hits=page, offset=question.offset, timing={"parse": 0.25, "rank": 1.5})


class Encoders:
    """Knows a JPEG by its first bytes, and embeds every one alike."""

    def __init__(self):
        self.queue = Queue(4)
        self.gone = False

    def ingest(self, content):
        if content[:2] == b"\xff\xd8":
            return SimpleNamespace(jpeg=content)
        return SimpleNamespace(reason="not_an_image", detail="")

    def of(self, searcher):
        if self.gone:
            raise ArtifactError("its network is gone")
        return SimpleNamespace(embedding=lambda jpeg: np.eye(8)[0])


@pytest.fixture
def app(tmp_path):
    paths = Paths(str(tmp_path / "data"), str(tmp_path / "runs"))
    app = create_app({"stub": StubSearcher, "backwards": lambda: Backwards("backwards")}, paths)
    app.extensions["encoders"] = Encoders()

    def broken():
        raise RuntimeError("secret of the inside")

    app.add_url_rule("/api/v1/broken", view_func=broken)
    return app


@pytest.fixture
def client(app):
    return app.test_client()


def found(client, address, status=200):
    response = client.get(address)
    assert response.status_code == status, response.text
    return response.get_json()


def cursor_to(generation, offset):
    return base64.urlsafe_b64encode(f"{generation}:{offset}".encode()).decode().rstrip("=")


def test_search_answers_a_page_of_hits_with_run_and_generation(client):
    answer = found(client, "/api/v1/search?q=animal&limit=2")
    assert (answer["run"], answer["generation"], answer["num_matches"]) == ("stub", "stub-0001", 106)
    assert [hit["jpeg"] for hit in answer["hits"]] == [f"/images/{image_id_of(row)}.jpg" for row in (1, 2)]
    assert answer["tags"] == [{"tag": "animal", "num_images": 106}]


def test_pages_by_cursor_are_the_whole_list_and_end(client):
    names, cursor = [], ""
    for _ in range(4):
        answer = found(client, f"/api/v1/search?q=animal&limit=30{cursor}")
        names += [hit["image_id"] for hit in answer["hits"]]
        cursor = f"&cursor={answer['next']}"
    assert answer["next"] is None
    assert names == [hit["image_id"] for hit in found(client, "/api/v1/search?q=animal&limit=200")["hits"]]


def test_a_cursor_of_a_generation_that_is_gone_is_410(client):
    error = found(client, f"/api/v1/search?q=animal&cursor={cursor_to('another', 40)}", 410)["error"]
    assert error["code"] == "gone"
    assert "search again" in error["message"]


def test_a_cursor_of_a_generation_that_this_worker_has_yet_to_open_is_waited_for(tmp_path):
    served = iter(["old", "old", "new"])
    (tmp_path / "served" / "stub").mkdir(parents=True)
    (tmp_path / "served" / "stub" / "current").write_text("new\n")

    def swapping():
        searcher = StubSearcher()
        searcher.generation = next(served, "new")
        return searcher

    client = create_app(swapping, Paths(str(tmp_path), "")).test_client()
    answer = found(client, f"/api/v1/search?q=animal&cursor={cursor_to('new', 2)}")
    assert (answer["generation"], answer["offset"]) == ("new", 2)


@pytest.mark.parametrize("cursor", ["x", "!", "é", "YQ", cursor_to("stub-0001", 99_999_999)])
def test_what_is_no_cursor_is_refused(client, cursor):
    assert "cursor must be" in found(client, f"/api/v1/search?q=animal&cursor={cursor}", 400)["error"]["message"]


ERRORS = [
    ("/api/v1/search", 400, "bad_request"),
    ("/api/v1/search?q=%22%22", 400, "bad_request"),
    ("/api/v1/search?q=dog&limit=0", 400, "bad_request"),
    ("/api/v1/search?q=dog&offset=3", 400, "bad_request"),
    ("/api/v1/search?q=dog&run=nowhere", 404, "not_found"),
    ("/api/v1/suggest?q=" + "x" * 201, 400, "bad_request"),
    ("/api/v1/images/0", 404, "not_found"),
    ("/api/v1/search?like=0000000000000000", 404, "not_found"),
    ("/api/v1/runs/nowhere", 404, "not_found"),
    ("/api/v1/compare?q=dog&runs=stub", 400, "bad_request"),
    ("/api/v1/nowhere", 404, "not_found"),
    ("/api/v1/broken", 500, "internal_server_error"),
]


@pytest.mark.parametrize(("address", "status", "code"), ERRORS)
def test_errors_have_one_shape(client, address, status, code):
    response = client.get(address)
    error = response.get_json()["error"]
    assert response.status_code == status
    assert error == {"status": status, "code": code, "message": error["message"] or "a message", "position": None}
    assert "secret" not in response.text
    assert response.headers["Cache-Control"] == "no-store"


def test_a_query_that_is_none_says_where_and_why(client, monkeypatch):
    def search(self, question):
        raise QueryError("a bracket is not closed", 4)

    monkeypatch.setattr(StubSearcher, "search", search)
    error = found(client, "/api/v1/search?q=dog+(", 400)["error"]
    assert error == {"status": 400, "code": "bad_query", "message": "a bracket is not closed", "position": 4}


def test_a_method_that_is_not_offered_is_refused_with_those_that_are(client):
    response = client.delete("/api/v1/search")
    assert response.status_code == 405
    assert {"GET", "POST"} <= set(response.headers["Allow"].replace(" ", "").split(","))
    assert response.get_json()["error"]["code"] == "method_not_allowed"


def test_an_answer_is_known_by_its_etag_until_the_generation_changes(tmp_path):
    generations = iter(["one", "one", "two"])

    def swapping():
        searcher = StubSearcher()
        searcher.generation = next(generations)
        return searcher

    client = create_app(swapping, Paths(str(tmp_path), str(tmp_path))).test_client()
    first = client.get("/api/v1/search?q=dog")
    known = {"If-None-Match": first.headers["ETag"]}
    again = client.get("/api/v1/search?q=dog", headers=known)
    assert (again.status_code, again.data) == (304, b"")
    assert first.headers["Cache-Control"] == again.headers["Cache-Control"] == "no-cache"
    assert client.get("/api/v1/search?q=dog", headers=known).status_code == 200


@pytest.mark.parametrize(
    "other", ["search?q=animal", "search?q=dog&limit=3", "suggest?q=dog", "search?q=dog&run=backwards"]
)
def test_other_questions_and_runs_have_other_etags(client, other):
    known = {"If-None-Match": client.get("/api/v1/search?q=dog").headers["ETag"]}
    assert client.get(f"/api/v1/{other}", headers=known).status_code == 200


def test_server_timing_tells_the_steps(client):
    response = client.get("/api/v1/search?q=dog&run=backwards")
    steps = r"parse;dur=0\.250, rank;dur=1\.500, total;dur=\d+\.\d{3}"
    assert re.fullmatch(steps, response.headers["Server-Timing"])
    assert re.match(
        "parse;dur=0.250, rank;dur=1.500, total;dur=", client.get("/?q=dog&run=backwards").headers["Server-Timing"]
    )
    assert client.get("/ready").headers["Server-Timing"].startswith("total;dur=")


def test_unknown_words_come_with_what_is_near(client):
    answer = found(client, "/api/v1/search?q=dgo")
    assert answer["unknown"][0]["word"] == "dgo"
    assert answer["unknown"][0]["by_spelling"][0] == {"tag": "dog", "num_images": 60}
    assert answer["num_matches"] == 0


def test_suggestions_carry_count_and_whole_query(client):
    suggestions = found(client, "/api/v1/suggest?q=dog+tr")["suggestions"]
    assert suggestions == [{"tag": "traffic light", "num_images": 40, "query": 'dog "traffic light"'}]


def test_an_image_has_its_record_and_what_the_model_guesses(client):
    image = found(client, f"/api/v1/images/{PICTURE}")
    assert image["record"]["extra"]["camera"] == HOSTILE
    assert image["predicted"][0] == {"tag": "animal", "score": 0.8}
    assert not {"score", "probability", "guess"} & image.keys()


def test_tags_are_browsed_by_prefix_and_cursor(client):
    first = found(client, "/api/v1/tags?sort=name&limit=5")
    rest = found(client, f"/api/v1/tags?sort=name&limit=5&cursor={first['next']}")
    names = [each["tag"] for each in first["tags"] + rest["tags"]]
    assert names == sorted(names)
    assert len(names) == first["num_tags"] == 8
    assert rest["next"] is None
    assert [each["tag"] for each in found(client, "/api/v1/tags?prefix=d")["tags"]] == ["dog"]


def test_runs_are_listed_the_default_first_and_shown_with_their_figures(client, app):
    metrics = app.extensions["paths"].run("stub") / "evaluation" / "test" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"seed": 7}')
    runs = found(client, "/api/v1/runs")["runs"]
    assert [(each["run"], each["default"]) for each in runs] == [("stub", True), ("backwards", False)]
    assert found(client, "/api/v1/runs/stub")["figures"] == {"seed": 7}
    assert found(client, "/api/v1/runs/backwards")["figures"] is None


def test_two_runs_are_compared_by_what_they_share_and_what_moved(client):
    answer = found(client, "/api/v1/compare?q=%22traffic+light%22&limit=21&runs=stub,backwards")
    left, right = ([hit["image_id"] for hit in side["answer"]["hits"]] for side in answer["sides"])
    moves = {move["image_id"]: (move["left"], move["right"]) for move in answer["moves"]}
    # Of 40 pictures 21 are shown from either end, so the two in the middle are shared.
    assert (answer["shared"], answer["overlap"]) == (2, pytest.approx(2 / 21))
    assert moves[left[0]] == (1, None)
    assert moves[right[0]] == (None, 1)
    assert moves[left[20]] == (21, 20)
    assert all(side["latency_ms"] >= 0 for side in answer["sides"])


def test_a_picture_is_searched_by_and_stands_in_the_answer(client, monkeypatch):
    asked, search = [], StubSearcher.search
    monkeypatch.setattr(StubSearcher, "search", lambda self, question: asked.append(question) or search(self, question))
    response = client.post("/api/v1/search?limit=3", data=b"\xff\xd8 a picture", content_type="image/jpeg")
    axis = base64.urlsafe_b64encode(bytes([127, *[0] * 7])).decode().rstrip("=")
    assert response.status_code == 200
    assert asked[0].picture == response.get_json()["picture"] == axis
    assert re.match(r"encode;dur=\d", response.headers["Server-Timing"])
    assert response.headers["Cache-Control"] == "no-store"


def test_a_picture_that_the_gate_refuses_is_told_by_its_reason(client):
    error = client.post("/api/v1/search", data=b"nonsense").get_json()["error"]
    assert (error["status"], error["code"]) == (422, "not_an_image")


def test_only_pictures_may_be_large(client):
    assert client.post("/api/v1/search", data=b"\xff\xd8" + bytes(5000)).status_code == 200
    assert client.post("/api/v1/search", data=bytes(MAX_UPLOAD_BYTES + 1)).status_code == 413
    assert judged(client, run="x" * 2**16).status_code == 413


def test_a_server_without_encoder_says_so(client, app):
    app.extensions["encoders"].gone = True
    assert client.post("/api/v1/search", data=b"\xff\xd8").status_code == 503
    app.extensions["encoders"] = None
    assert client.post("/api/v1/search", data=b"\xff\xd8").status_code == 503


def judged(client, **changes):
    said = {"q": "dog", "image_id": PICTURE, "grade": 1, "rank": 1, **changes}
    return client.post("/api/v1/judgements", json=said, headers=SAME_SITE)


def test_a_thumb_is_kept_under_a_cookie_and_exported(client):
    first = judged(client, q='"traffic light"', rank=3)
    cookie = first.headers["Set-Cookie"]
    assert (first.status_code, first.get_json()) == (201, {"topic": "traffic_light", "grade": 1})
    assert all(part in cookie for part in ("rater=", "HttpOnly", "SameSite=Strict"))
    assert "Set-Cookie" not in judged(client, q='"traffic light"', grade=0, rank=3).headers
    (kept,) = found(client, "/api/v1/judgements")["judgements"]
    assert (kept["topic"], kept["question"], kept["grade"]) == ("traffic_light", '"traffic light"', 0)
    assert kept["judgements"][0]["generation"] == "stub-0001"
    assert client.get("/api/v1/judgements?format=trec").text == f"traffic_light 0 {PICTURE} 0\n"


@pytest.mark.parametrize(
    "change", [{"grade": 4}, {"grade": "1"}, {"grade": True}, {"rank": 0}, {"image_id": "x"}, {"extra": 1}, {"q": ""}]
)
def test_a_judgement_that_does_not_fit_is_refused_by_its_field(client, change):
    response = judged(client, **change)
    assert response.status_code == 400
    assert next(iter(change)) in response.get_json()["error"]["message"]


def test_an_image_that_is_not_there_is_not_judged(client):
    assert judged(client, image_id="f" * 16).status_code == 404


SAID = {
    "judgements": {"q": "dog", "image_id": PICTURE, "grade": 1, "rank": 1},
    "votes": {"q": "dog", "runs": ["stub", "backwards"], "better": "left"},
    "search": {},
}


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://elsewhere.example"},
    ],
)
@pytest.mark.parametrize("address", SAID)
def test_pages_of_other_sites_cannot_write(client, headers, address):
    response = client.post(f"/api/v1/{address}", json=SAID[address], headers=headers)
    assert response.status_code == 403
    assert response.get_json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}, {}]
)
def test_a_page_of_this_site_and_a_program_may_write(client, headers):
    assert client.post("/api/v1/judgements", json=SAID["judgements"], headers=headers).status_code == 201


def test_a_blind_vote_tells_the_sides_only_once_it_is_given(client):
    voted = client.post("/api/v1/votes", json=SAID["votes"], headers=SAME_SITE)
    told = voted.get_json()
    assert voted.status_code == 201
    assert {told["left"], told["right"]} == {"stub", "backwards"}
    assert told["winner"] == told["left"]
    again = client.post("/api/v1/votes", json={**SAID["votes"], "better": "tie"}, headers=SAME_SITE).get_json()
    assert (again["left"], again["winner"]) == (told["left"], "tie")
    (pair,) = found(client, "/api/v1/judgements")["votes"]
    assert (pair["first"], pair["second"], pair["ties"]) == ("backwards", "stub", 1)


def test_health_lives_without_a_searcher_and_readiness_needs_one():
    def none():
        raise OSError("no generation")

    client = create_app(none).test_client()
    assert found(client, "/health") == {"status": "ok"}
    assert found(client, "/ready", 503)["error"]["code"] == "service_unavailable"


def test_readiness_names_what_is_served(client):
    ready = found(client, "/ready")
    served = {"run": "stub", "default": True, "generation": "stub-0001", "num_images": 120, "num_tags": 8}
    assert (ready["status"], ready["runs"][0]) == ("ready", served)


def test_metrics_count_answers_by_endpoint_and_status(client):
    def count():
        counted = client.get("/metrics").text
        line = re.search(r'^tagtower_requests_total\{endpoint="search.search",status="400"\} (\S+)$', counted, re.M)
        return float(line[1]) if line else 0.0

    before = count()
    client.get("/api/v1/search")
    assert count() == before + 1


def test_the_document_is_sent_whole_and_known_by_its_etag(client):
    first = client.get("/api/v1/openapi.json")
    document = first.get_json()
    told = {"/api/v1/search", "/api/v1/judgements", "/ready", "/thumbnails/{width}/{image_id}.jpg"}
    assert document["openapi"].startswith("3.1")
    assert told <= set(document["paths"])
    assert client.get("/api/v1/openapi.json", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304


def test_every_reference_of_the_document_leads_somewhere(client):
    document = found(client, "/api/v1/openapi.json")
    for reference in set(re.findall(r'"\$ref": ?"#/([^"]+)"', json.dumps(document))):
        place = document
        for part in reference.split("/"):
            place = place[part]


def test_the_page_of_the_api_lists_every_operation(client):
    page = client.get("/api/v1/").text
    for path, operations in found(client, "/api/v1/openapi.json")["paths"].items():
        for method in operations.keys() - {"parameters"}:
            assert f"{method.upper()} {path}" in page


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        (whole("n", "", 1, 0, 9), "10"),
        (whole("n", "", 1, 0, 9), "٣"),
        (whole("n", "", 1, 0, 9), ""),
        (share("n", ""), "1.5"),
        (share("n", ""), "nan"),
        (share("n", ""), "0_1"),
        (choice("n", "", ("a", "b")), "c"),
        (text("n", "", 3), "abcd"),
        (text("n", "", 9, "[a-z]+"), "A"),
        (several("n", "", 3), ""),
    ],
)
def test_a_value_that_its_schema_forbids_is_refused(app, parameter, value):
    with app.test_request_context("/", query_string={"n": value}), pytest.raises(Exception, match="n must be"):
        parameter.read()


@pytest.mark.parametrize(("value", "read"), [("0", 0.0), ("1", 1.0), (".5", 0.5), ("1e-05", 1e-5), ("-0.0", 0.0)])
def test_shares_are_read_as_json_writes_them(app, value, read):
    with app.test_request_context("/", query_string={"n": value}):
        assert share("n", "").read() == read


@dataclasses.dataclass
class Shape:
    """Told."""

    names: tuple[str, ...]
    size: int | None


def test_schemas_follow_the_types_of_dataclasses():
    schemas = {}
    assert schema_of(Shape, schemas) == {"$ref": "#/components/schemas/Shape"}
    assert schemas["Shape"]["properties"] == {
        "names": {"type": "array", "items": {"type": "string"}},
        "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    }
    with pytest.raises(TypeError, match="no shape"):
        schema_of(list[int], {})
