"""Reverse search by class as a stage: what it reads, writes and refuses."""

import csv
import json

import numpy as np
import pytest

from configs.artifacts import ArtifactError, read_manifest, verify
from crawl.records import TEST
from crawl.shards import Collection
from features.config import BackboneConfig
from features.inverted_index import open_index
from tests.synthetic import WIDTH, copy_line, records, store_features
from train.classes import classes_of
from train.config import ReverseConfig
from train.reverse import reverse

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_TEST = 60


def config(paths, **values):
    return ReverseConfig(paths=paths, **{"cutoffs": [1, 5], "depth": 20, "resamples": 200, **values})


@pytest.fixture(scope="module")
def own(trained, tmp_path_factory):
    return copy_line(trained, tmp_path_factory.mktemp("reverse"))


@pytest.fixture(scope="module")
def directory(own):
    return reverse(config(own, run="small", classes="labels"))


@pytest.fixture(scope="module")
def metrics(directory):
    return json.loads((directory / "metrics.json").read_text())


def test_the_run_all_features_and_chance_are_asked(metrics):
    assert list(metrics["systems"]) == ["trained", "histogram", "synthetic", "random"]
    assert metrics["classes"] == "labels"


def test_it_lies_with_the_run_or_where_none_is_named_with_the_data(own, directory):
    assert directory == own.run("small") / "evaluation" / "reverse-labels-test"
    assert reverse(config(own, classes="kind", split="all")) == own.artifact("reverse") / "kind-all"


def test_every_file_is_sealed(directory):
    assert verify(directory) == []
    assert {path.name for path in directory.iterdir()} == {*read_manifest(directory).files, "manifest.json", ".lock"}


def test_curves_queries_and_summary_say_the_same(directory, metrics):
    curves = {
        (row["system"], int(row["k"])): row
        for row in csv.DictReader((directory / "curves.csv").read_text().splitlines())
    }
    assert len(curves) == 4 * 20
    rows = list(csv.DictReader((directory / "per_query.csv").read_text().splitlines()))
    for system, found in metrics["systems"].items():
        own = [row for row in rows if row["system"] == system]
        assert len(own) == metrics["num_queries"]
        for name, k in (("map", 1), ("map_capped", 5), ("recall", 5)):
            mean = found[f"{name}@{k}"]["mean"]
            assert float(curves[system, k][name]) == pytest.approx(mean, abs=1e-6)
            assert np.mean([float(row[f"{name}@{k}"]) for row in own]) == pytest.approx(mean, abs=1e-6)


def test_features_that_show_the_tags_beat_chance(metrics):
    found = {system: values["map"] for system, values in metrics["systems"].items()}
    assert min(found["trained"]["low"], found["synthetic"]["low"]) > found["random"]["high"]


def test_a_second_call_says_done_however_the_classes_are_named(own, directory, caplog):
    before = (directory / "manifest.json").stat().st_mtime_ns
    with caplog.at_level("INFO", "train.reverse"):
        reverse(config(own, run="small", classes="auto"))
    assert "already done" in caplog.text
    assert (directory / "manifest.json").stat().st_mtime_ns == before


def test_features_that_come_later_are_judged_too_and_others_are_left_out(trained, tmp_path):
    paths = copy_line(trained, tmp_path)
    reverse(config(paths, classes="kind"))
    later = BackboneConfig(name="color_histogram", architecture="synthetic", width=WIDTH, resize_px=96, crop_px=96)
    store_features(paths, later, noise=3.0)
    foreign = paths.artifact("image_features") / "other-00000000"
    (paths.artifact("image_features") / "unfinished-00000000").mkdir()
    foreign.mkdir()
    source = next(paths.artifact("image_features").glob("synthetic-*"))
    (foreign / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    found = json.loads((reverse(config(paths, classes="kind")) / "metrics.json").read_text())
    assert list(found["systems"]) == ["color_histogram", "histogram", "synthetic", "random"]
    above = found["minus_histogram"]["synthetic"]["map"]["mean"]
    means = {system: values["map"]["mean"] for system, values in found["systems"].items()}
    assert above == pytest.approx(means["synthetic"] - means["color_histogram"])


def test_features_of_one_name_are_told_apart_and_those_of_too_few_images_left_out(trained, tmp_path, caplog):
    paths = copy_line(trained, tmp_path)
    twin = BackboneConfig(name="synthetic", architecture="synthetic", width=WIDTH, resize_px=96, crop_px=96)
    store_features(paths, twin, noise=3.0)
    part = next(next(paths.artifact("image_features").glob("histogram-*")).glob("*.npy"))
    part.unlink()
    found = json.loads((reverse(config(paths, classes="kind")) / "metrics.json").read_text())
    names = sorted(path.name for path in paths.artifact("image_features").glob("synthetic-*"))
    assert list(found["systems"]) == [*names, "random"]
    assert "280 images have no feature there; run `make image_features ARGS=" in caplog.text


def test_cutoffs_beyond_the_gallery_are_left_out(own):
    found = json.loads(
        (reverse(config(own, classes="kind", split="val", depth=500, cutoffs=[400])) / "metrics.json").read_text()
    )
    assert list(found["systems"]["random"]) == ["map"]


def test_only_the_features_asked_for_are_judged(own):
    found = json.loads((reverse(config(own, features=["histogram"], classes="tags")) / "metrics.json").read_text())
    assert list(found["systems"]) == ["histogram", "random"]


def test_features_that_are_not_there_are_named_with_those_that_are(own):
    with pytest.raises(ArtifactError, match=r"no features 'vgg'.*has histogram, synthetic.*backbone=vgg"):
        reverse(config(own, features=["vgg"]))


def test_a_run_is_not_judged_on_what_it_was_trained_on(own):
    with pytest.raises(ValueError, match="split=all holds the images that run=small was trained on"):
        config(own, run="small", split="all")


@pytest.mark.parametrize(
    ("choice", "name"), [("auto", "labels"), ("labels", "labels"), ("tags", "tags"), ("kind", "kind")]
)
def test_classes_are_those_of_the_records(line, choice, name):
    index = open_index(line)[0]
    gallery = np.flatnonzero(index.splits == TEST)
    found = classes_of(choice, index, gallery, Collection(line.artifact("collection")))
    by_id = {record.image_id: record for record in records()}
    expected = {
        "labels": lambda record: set(record.labels),
        "tags": lambda record: set(record.tags),
        "kind": lambda record: {record.kind},
    }[name]
    assert found.name == name
    assert found.of == [expected(by_id[index.image_id(row)]) for row in found.gallery]
    assert len(found.gallery) == sum(bool(expected(by_id[index.image_id(row)])) for row in gallery)


def test_without_labels_tags_are_the_classes(trained, tmp_path, monkeypatch):
    nothing = lambda collection, index, gallery: (np.full(len(gallery), ""), {int(row): set() for row in gallery})  # noqa: E731
    monkeypatch.setattr("train.classes.judgements", nothing)
    index = open_index(trained)[0]
    assert classes_of("auto", index, np.arange(9), Collection(trained.artifact("collection"))).name == "tags"


def test_a_collection_without_such_classes_is_told_of_the_others(own, monkeypatch):
    monkeypatch.setattr("train.classes.judgements", lambda collection, index, gallery: (np.full(len(gallery), ""), {}))
    with pytest.raises(ArtifactError, match=rf"classes=kind has 0 classes on 0 of {NUM_TEST} images"):
        reverse(config(own, classes="kind", seed=5))
