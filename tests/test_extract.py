"""Stage `image_features`: each image once, kills that cost at most a part, damage named."""

import os
import shutil

import numpy as np
import pytest

import features.extract as stage
from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import Paths
from crawl.collect import collect
from crawl.shards import JpegReader
from features.build_index import build
from features.config import ImageFeaturesConfig, IndexConfig
from features.extract import decode, extract
from features.image_features import open_features
from features.inverted_index import open_index
from tests.tiny import FOLDERS, HISTOGRAM, NUM_PICTURES, crawl_config, histogram_config, picture, write_tree


@pytest.fixture
def data(tiny_data, tmp_path):
    """The tiny collection and its index, without features."""
    shutil.copytree(tiny_data, tmp_path / "data", ignore=shutil.ignore_patterns("image_features"))
    return tmp_path / "data"


class Watched:
    """A runtime that counts its pictures, and dies or lies when told to."""

    def __init__(self, monkeypatch, die_at=None, value=None):
        self.pictures, self.batches = 0, 0
        self.die_at, self.value = die_at, value
        real = stage.open_runtime
        monkeypatch.setattr(stage, "open_runtime", lambda *a: self.around(real(*a)))

    def around(self, run):
        def runtime(batch):
            if self.batches == self.die_at:
                raise KeyboardInterrupt
            self.batches += 1
            self.pictures += len(batch)
            features = run(batch)
            if self.value is not None:
                features[0, 0] = self.value
            return features

        return runtime


def config(data, **values):
    return histogram_config(data, **({"batch_size": 4, "part_size": 8} | values))


def test_every_image_is_computed_once(data, monkeypatch):
    watched = Watched(monkeypatch)
    extract(config(data))
    assert watched.pictures == NUM_PICTURES


def test_a_second_run_computes_nothing(data, monkeypatch, caplog):
    directory = extract(config(data))
    before = (directory / "manifest.json").read_bytes()
    monkeypatch.setattr(stage, "build_backbone", None)
    with caplog.at_level("INFO"):
        extract(config(data))
    assert "already done" in caplog.text
    assert (directory / "manifest.json").read_bytes() == before


def test_ten_new_pictures_cost_ten(tmp_path, monkeypatch, quick_gate):
    tree = write_tree(tmp_path / "tree", count=12)
    data = tmp_path / "data"
    for count in (12, 22):
        collect(crawl_config(data, write_tree(tree, count)))
        build(IndexConfig(paths=Paths(data=str(data))))
        watched = Watched(monkeypatch)
        directory = extract(config(data))
    assert watched.pictures == 10
    assert read_manifest(directory).facts["num_images"] == 22


def test_features_are_those_of_the_pictures_they_are_named_by(data):
    extract(config(data))
    index, manifest = open_index(Paths(data=str(data)))
    rows, _ = open_features(Paths(data=str(data)), HISTOGRAM, manifest.must_match["gate"], index.image_ids)
    reader = JpegReader(data / "collection")
    for row in (0, 17, 39):
        pixels = decode(reader.read(index.locations[row], index.image_id(row)), 32, 32)
        assert rows[row, 96:] == pytest.approx(pixels.mean(axis=(1, 2)) / 255, abs=2e-3)
    reader.close()


@pytest.mark.parametrize("die_at", [0, 1, 3, 9])
def test_a_killed_run_ends_the_same_and_loses_at_most_a_part(die_at, data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "undisturbed")
    undisturbed = extract(config(tmp_path / "undisturbed"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Watched(patch, die_at=die_at)
        extract(config(data))
    watched = Watched(monkeypatch)
    directory = extract(config(data))
    assert watched.pictures == NUM_PICTURES - die_at // 2 * 8
    assert read_manifest(directory).content_id == read_manifest(undisturbed).content_id
    for name in read_manifest(undisturbed).files:
        assert (directory / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_kill_before_the_seal_of_new_pictures_is_made_good(tmp_path, monkeypatch, quick_gate):
    data, tree = tmp_path / "data", tmp_path / "tree"
    for count in (6, 9):
        collect(crawl_config(data, write_tree(tree, count)))
        build(IndexConfig(paths=Paths(data=str(data))))
        if count == 6:
            extract(config(data))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "seal_store", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        extract(config(data))
    directory = extract(config(data))
    assert read_manifest(directory).facts["num_images"] == 9
    assert len(read_manifest(directory).files) == 4
    assert verify(directory) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_no_number_stops_the_stage_and_is_not_stored(value, data, monkeypatch):
    Watched(monkeypatch, value=value)
    with pytest.raises(ArtifactError, match="non-finite"):
        extract(config(data))
    assert not list((data / "image_features").rglob("*.npy"))


def test_a_damaged_jpeg_in_a_shard_is_named(data):
    index, _ = open_index(Paths(data=str(data)))
    place = index.locations[5]
    with (data / "collection" / "00000.tar").open("r+b") as stream:
        stream.seek(int(place["offset"]))
        stream.write(b"\0" * 200)
    with pytest.raises(ArtifactError, match=rf"image {index.image_id(5)} .*make verify"):
        extract(config(data))


def test_an_index_of_another_collection_stops_the_stage(data):
    shutil.rmtree(data / "collection")
    tree = write_tree(data / "tree", NUM_PICTURES + 1)
    (tree / FOLDERS[0] / "000.jpg").write_bytes(picture(77, (64, 48)))
    collect(crawl_config(data, tree))
    with pytest.raises(ArtifactError, match="the index is of another collection"):
        extract(config(data))


@pytest.mark.parametrize(("asked", "used"), [(0, os.cpu_count()), (3, 3)])
def test_pictures_are_decoded_on_as_many_threads_as_asked_for_or_one_a_core(asked, used, data, monkeypatch):
    seen = []
    real = stage.PictureReader
    monkeypatch.setattr(stage, "PictureReader", lambda *a: seen.append(a[-1]) or real(*a))
    extract(config(data, decode_threads=asked))
    assert seen == [used]


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(ValueError, match=r"decode_threads must be 0 .*got -1"):
        ImageFeaturesConfig(decode_threads=-1)


def test_a_store_verifies_and_names_its_space(data):
    directory = extract(config(data))
    assert verify(directory) == []
    assert read_manifest(directory).must_match["feature_space"][:8] == directory.name.rpartition("-")[2]


def test_leftovers_of_a_killed_write_are_removed(data):
    directory = extract(config(data))
    (directory / ".partial-999999999-x.npy").write_bytes(b"half")
    extract(config(data))
    assert not list(directory.glob(".partial-*"))


def test_a_picture_is_scaled_by_its_shorter_side_and_cropped_in_the_middle():
    pixels = decode(picture(0, (64, 32)), 32, 16)
    assert pixels.shape == (3, 16, 16)
    assert (pixels == decode(picture(0, (64, 32)), 32, 32)[:, 8:24, 8:24]).all()
