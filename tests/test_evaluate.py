"""An evaluation says the same in every file it writes, and judges only what fits together."""

import csv
import json
from dataclasses import replace

import ir_measures
import numpy as np
import pytest

from configs.artifacts import ArtifactError, read_manifest, verify
from crawl.records import TEST
from crawl.shards import Collection
from features.config import BackboneConfig, TagVectorsConfig, WordsConfig
from features.embed_tags import embed
from features.inverted_index import open_index
from tests.synthetic import (
    GATE,
    HISTOGRAM,
    TAGS,
    WIDTH,
    copy_line,
    evaluate_config,
    records,
    store_features,
    train_config,
    write_synthetic_collection,
)
from tests.tiny import bury
from train.batches import is_withheld
from train.evaluate import evaluate, histogram_features
from train.fit import fit
from train.galleries import judgements, train_lists

pytestmark = pytest.mark.usefixtures("one_thread")

FLOORS = {"class_mean", "ridge", "class_mean_histogram", "random"}


@pytest.fixture(scope="module")
def directory(trained):
    return trained.run("small") / "evaluation" / "test"


@pytest.fixture(scope="module")
def metrics(directory):
    return json.loads((directory / "metrics.json").read_text())


@pytest.fixture
def own(trained, tmp_path):
    return copy_line(trained, tmp_path)


def test_both_questions_are_asked_of_the_run_and_every_floor(metrics):
    questions = metrics["questions"]
    assert list(questions) == ["gallery", "gallery_drawing", "gallery_photo", "within_tag", "labels"]
    assert all(set(summary["systems"]) == FLOORS | {"trained"} for summary in questions.values())
    assert all(set(summary["trained_minus"]) == FLOORS for summary in questions.values())


def test_means_are_those_of_the_values_a_tag(directory, metrics):
    values = {}
    with (directory / "per_tag.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            values.setdefault((row["question"], row["system"]), []).append((float(row["map"]), float(row["auc"])))
    for (question, system), found in values.items():
        summary = metrics["questions"][question]
        means = [summary["systems"][system][metric]["mean"] for metric in ("map", "auc")]
        assert np.mean(found, axis=0) == pytest.approx(means, abs=1e-6)
        assert len(found) == summary["num_queries"]


def test_the_table_shows_the_means(directory, metrics):
    text = (directory / "table.txt").read_text()
    for summary in metrics["questions"].values():
        found = summary["systems"]["trained"]["map"]
        assert f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})" in text


def test_differences_are_paired_by_tag(metrics):
    summary = metrics["questions"]["gallery"]
    means = {system: values["map"]["mean"] for system, values in summary["systems"].items()}
    for floor in FLOORS:
        assert summary["trained_minus"][floor]["map"]["mean"] == pytest.approx(means["trained"] - means[floor])


@pytest.mark.parametrize("question", ["gallery", "within_tag", "gallery_photo", "labels"])
@pytest.mark.parametrize("system", ["trained", "class_mean"])
def test_run_files_read_by_another_tool_give_the_same_metrics(directory, metrics, question, system):
    qrels = list(ir_measures.read_trec_qrels(str(directory / f"{question}.qrels")))
    run = list(ir_measures.read_trec_run(str(directory / f"{question}.{system}.run")))
    measures = {"map@10": "AP@10", "precision@5": "P@5", "ndcg@10": "nDCG@10", "mrr": "RR", "recall@50": "R@50"}
    theirs = ir_measures.calc_aggregate([ir_measures.parse_measure(name) for name in measures.values()], qrels, run)
    ours = metrics["questions"][question]["systems"][system]
    for name, theirs_name in measures.items():
        assert ours[name]["mean"] == pytest.approx(theirs[ir_measures.parse_measure(theirs_name)], abs=1e-6)


def test_run_files_hold_strictly_falling_scores(directory):
    last = {}
    for text in (directory / "gallery.trained.run").read_text(encoding="utf-8").splitlines():
        query, _, _, rank, score, _ = text.split()
        assert int(rank) == 1 or np.float32(score) < last[query]
        last[query] = np.float32(score)


def test_the_map_of_training_is_that_of_the_evaluation_on_val(trained):
    judged = json.loads((trained.run("small") / "evaluation" / "val" / "metrics.json").read_text())
    at_training = read_manifest(trained.run("small")).facts["val_map"]
    assert judged["questions"]["gallery"]["systems"]["trained"]["map"]["mean"] == pytest.approx(at_training, abs=1e-6)


def test_what_was_trained_and_every_floor_beat_chance(metrics):
    for question in ("gallery", "within_tag"):
        systems = metrics["questions"][question]["systems"]
        assert min(systems[name]["auc"]["low"] for name in ("trained", "class_mean", "ridge")) > 0.5


def test_every_file_is_sealed(directory):
    assert verify(directory) == []
    assert {path.name for path in directory.iterdir()} == {*read_manifest(directory).files, "manifest.json", ".lock"}


def test_towers_with_residuals_are_judged_alike_by_training_and_evaluation(own):
    run_dir = fit(train_config(own, run="residual", tag_residual=1.0))
    directory = evaluate(evaluate_config(own, run="residual", split="val"))
    judged = json.loads((directory / "metrics.json").read_text())["questions"]["gallery"]["systems"]["trained"]
    assert judged["map"]["mean"] == pytest.approx(read_manifest(run_dir).facts["val_map"], abs=1e-6)


def test_a_second_evaluation_says_done_with_the_table(trained, directory, caplog):
    before = (directory / "manifest.json").stat().st_mtime_ns
    with caplog.at_level("INFO", "train.evaluate"):
        evaluate(evaluate_config(trained))
    assert "already done" in caplog.text
    assert "within_tag" in caplog.text
    assert (directory / "manifest.json").stat().st_mtime_ns == before


def test_other_options_judge_anew_and_leave_no_file_behind(own):
    directory = evaluate(evaluate_config(own))
    (directory / "gallery.old.run").write_text("of an earlier evaluation")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["gallery.old.run"] = {}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    evaluate(evaluate_config(own, cutoffs=[1, 2]))
    assert {path.name for path in directory.iterdir()} == {*read_manifest(directory).files, "manifest.json", ".lock"}


LATER = BackboneConfig(name="later", architecture="synthetic", width=WIDTH, resize_px=96, crop_px=96)


def test_without_colour_histograms_it_warns_and_goes_on(own, caplog):
    with caplog.at_level("WARNING"):
        directory = evaluate(evaluate_config(own, histogram=LATER))
    assert "without the floor of colour histograms" in caplog.text
    assert "class_mean_histogram" not in (directory / "table.txt").read_text()


def test_a_floor_that_was_missing_is_judged_once_its_features_are_there(own):
    directory = evaluate(evaluate_config(own, histogram=LATER))
    store_features(own, LATER, noise=3.0)
    evaluate(evaluate_config(own, histogram=LATER))
    assert "class_mean_histogram" in (directory / "table.txt").read_text()


def test_a_run_that_is_not_there_is_named_with_the_command_that_makes_it(trained):
    with pytest.raises(ArtifactError, match=r'no finished run artifact.*make train ARGS="run=none"'):
        evaluate(evaluate_config(trained, run="none"))


def test_vectors_of_another_word_space_are_refused_with_both_named(own, tmp_path):
    table = "".join(f"{tag} " + " ".join(["0.1"] * 200) + "\n" for tag in TAGS)
    (tmp_path / "words.txt").write_text(f"{len(TAGS)} 200\n{table}")
    run = read_manifest(own.run("small")).must_match["word_space"]
    embed(TagVectorsConfig(paths=own, words=WordsConfig(name="word2vec", path=str(tmp_path / "words.txt"))))
    with pytest.raises(ArtifactError, match=rf"word space (?!{run[:12]})\w+, run 'small' has {run[:12]}"):
        evaluate(evaluate_config(own))


def test_a_run_of_another_feature_space_is_refused_with_both_named(own):
    path = own.run("small") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["must_match"]["feature_space"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"feature space \w{12}, run 'small' has 000000000000"):
        evaluate(evaluate_config(own))


@pytest.fixture(scope="module")
def withheld(trained, tmp_path_factory):
    own = copy_line(trained, tmp_path_factory.mktemp("withheld"))
    fit(train_config(own, run="withheld", withhold_tags=0.4))
    return own, evaluate(evaluate_config(own, run="withheld"))


def test_unseen_tags_are_asked_of_the_run_and_of_floors_that_may(withheld):
    own, directory = withheld
    questions = json.loads((directory / "metrics.json").read_text())["questions"]
    assert set(questions["unseen_tags"]["systems"]) == {"trained", "conse", "random"}
    unseen = {tag for tag in open_index(own)[0].tags if is_withheld(tag, 0.4)}
    assert queries_of(directory / "unseen_tags.qrels") <= unseen
    for qrels in set(directory.glob("*.qrels")) - {directory / "unseen_tags.qrels"}:
        assert not queries_of(qrels) & unseen


def test_the_floor_of_unseen_tags_knows_no_image_that_carries_one(withheld, monkeypatch):
    own, _ = withheld
    learnt = []

    def watched(index, tag_rows):
        learnt.extend(index.tags[row] for row in tag_rows)
        return train_lists(index, tag_rows)

    monkeypatch.setattr("train.evaluate.train_lists", watched)
    monkeypatch.setattr("train.evaluate.choose_ridge", lambda *_: 1.0)
    monkeypatch.setattr("train.evaluate.EVALUATE_VERSION", -1)
    evaluate(evaluate_config(own, run="withheld"))
    assert learnt
    assert not [tag for tag in learnt if is_withheld(tag, 0.4)]


def queries_of(qrels):
    return {text.split()[0].replace("_", " ") for text in qrels.read_text(encoding="utf-8").splitlines()}


@pytest.mark.parametrize("kind", ["a/b", "../../x", "unseen_tags"])
def test_a_kind_of_any_name_stays_inside_the_evaluation(own, kind):
    named = [replace(record, kind=kind) if record.kind == "photo" else record for record in records()]
    write_synthetic_collection(own.artifact("collection"), shards=[named])
    directory = evaluate(evaluate_config(own))
    assert len(list(directory.glob("gallery_*.qrels"))) == 2
    assert verify(directory) == []


def test_an_image_taken_down_since_the_index_has_neither_kind_nor_labels(own):
    index = open_index(own)[0]
    gallery = np.flatnonzero(index.splits == TEST)
    gone = index.image_id(gallery[0])
    bury(own.artifact("collection"), gone)
    kinds, labels = judgements(Collection(own.artifact("collection")), index, gallery)
    by_id = {record.image_id: record for record in records()}
    assert kinds.tolist() == ["", *(by_id[index.image_id(row)].kind for row in gallery[1:])]
    assert labels[int(gallery[0])] == set()
    assert [labels[int(row)] for row in gallery[1:]] == [set(by_id[index.image_id(row)].labels) for row in gallery[1:]]


def test_the_floor_of_histograms_is_standardised_on_train_images(trained):
    index = open_index(trained)[0]
    train_rows = np.flatnonzero(index.splits == 0)
    features, standard = histogram_features(evaluate_config(trained), index, GATE, train_rows)
    np.testing.assert_allclose(standard.mean, features[train_rows].astype(np.float64).mean(axis=0), rtol=1e-5)
    assert HISTOGRAM.width == features.shape[1]
