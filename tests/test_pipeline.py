"""The whole line on a few pictures: every stage, twice, and a search at its end."""

import json
import logging

import numpy as np
import pytest
import simplejpeg

from configs.artifacts import read_manifest
from configs.compose import Paths
from configs.generations import current_generation
from crawl.collect import collect
from features.build_index import build
from features.config import IndexConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.extract import extract
from serve.app import create_app
from serve.config import PublishConfig
from serve.publish import publish
from serve.searchers.current import CurrentSearcher
from tests.tiny import HISTOGRAM, crawl_config, histogram_config
from train.config import EvaluateConfig, TrainConfig
from train.evaluate import evaluate
from train.fit import fit

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = {
    "warm/red": (200, 40, 40),
    "warm/yellow": (210, 200, 40),
    "cold/blue": (40, 60, 200),
    "cold/green": (30, 170, 60),
}
NUM_PICTURES = 120


def draw(number, colour):
    rng = np.random.default_rng(number)
    pixels = np.array(colour) + rng.normal(0, 40, (40, 48, 3)) + rng.normal(0, 25, 3)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8)), 90, "RGB", "420")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    for number in range(NUM_PICTURES):
        folder, colour = list(COLOURS.items())[number % len(COLOURS)]
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{number}.jpg").write_bytes(draw(number, colour))
    return root


def run_stages(data, tree):
    """Run every stage; return the content_id of what each made."""
    paths = Paths(data=str(data), runs=str(data / "runs"))
    train_cfg = TrainConfig(paths=paths, run="colours", backbone=HISTOGRAM, device="cpu", batch_size=32, max_epochs=4)
    made = {
        "crawl": collect(crawl_config(data, tree)),
        "index": build(IndexConfig(paths=paths)),
        "tag_vectors": embed(TagVectorsConfig(paths=paths, words=WordsConfig(name="carried"))),
        "image_features": extract(histogram_config(data)),
        "train": fit(train_cfg),
        "evaluate on val": evaluate(EvaluateConfig(paths=paths, run="colours", split="val", histogram=HISTOGRAM)),
        "evaluate on test": evaluate(EvaluateConfig(paths=paths, run="colours", histogram=HISTOGRAM)),
        "publish": publish(PublishConfig(paths, "colours")),
    }
    return {stage: read_manifest(directory).content_id for stage, directory in made.items()}


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    data = tmp_path_factory.mktemp("whole") / "data"
    return data, run_stages(data, tree)


@pytest.fixture(scope="module")
def client(whole):
    data, _ = whole
    paths = Paths(data=str(data), runs=str(data / "runs"))
    return create_app({"colours": CurrentSearcher(paths, "colours")}).test_client()


def test_every_stage_says_done_the_second_time_and_leaves_what_it_made(whole, tree, caplog):
    data, first = whole
    with caplog.at_level(logging.INFO):
        assert run_stages(data, tree) == first
    assert len([record for record in caplog.records if record.getMessage().startswith("already ")]) == len(first)


def test_the_same_pictures_and_seed_give_the_same_content_elsewhere(whole, tree, tmp_path):
    assert run_stages(tmp_path / "data", tree) == whole[1]


def test_train_and_evaluate_agree_on_the_same_towers(whole):
    run = whole[0] / "runs" / "colours"
    judged = json.loads((run / "evaluation" / "val" / "metrics.json").read_text())
    found = judged["questions"]["gallery"]["systems"]["trained"]["map"]["mean"]
    assert found == pytest.approx(read_manifest(run).facts["val_map"], abs=1e-6)


def test_what_was_trained_beats_chance_on_test(whole):
    judged = json.loads((whole[0] / "runs" / "colours" / "evaluation" / "test" / "metrics.json").read_text())
    systems = judged["questions"]["gallery"]["systems"]
    assert systems["trained"]["map"]["mean"] > 1.5 * systems["random"]["map"]["mean"]


def test_a_search_shows_the_pictures_of_the_tag_best_first(client):
    found = client.get("/api/v1/search?q=warm&limit=200").get_json()
    hits = [hit for hit in found["hits"] if not hit["guess"]]
    scores = [hit["score"] for hit in hits]
    assert found["num_matches"] == len(scores) == NUM_PICTURES // 2
    assert scores == sorted(scores, reverse=True)
    assert all("warm" in hit["tags"] for hit in hits)


def test_two_tags_search_for_pictures_that_carry_both(client):
    assert client.get("/api/v1/search?q=warm, red").get_json()["num_matches"] == NUM_PICTURES // 4
    assert client.get("/api/v1/search?q=warm blue").get_json()["num_matches"] == 0


def test_the_page_of_a_search_shows_pictures_that_load(client, whole):
    page = client.get("/?q=blue")
    image_id = client.get("/api/v1/search?q=blue").get_json()["hits"][0]["image_id"]
    picture = client.get(f"/images/{image_id}.jpg")
    assert image_id in page.text
    assert picture.data[:2] == b"\xff\xd8"
    assert client.get(f"/image/{image_id}").status_code == 200


def test_an_unknown_tag_is_answered_with_its_neighbours(client):
    answer = client.get("/api/v1/search?q=yelow")
    assert answer.status_code == 200
    assert answer.get_json()["num_matches"] == 0
    assert answer.get_json()["unknown"][0]["by_spelling"][0]["tag"] == "yellow"


def test_the_generation_in_force_answers(client, whole):
    in_force = current_generation(whole[0] / "served" / "colours", make="").name
    assert client.get("/api/v1/search?q=red").get_json()["generation"] == in_force
