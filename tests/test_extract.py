"""Stage `image_features`: each image once, kills that cost at most a part, damage named."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import features.extract as stage
import features.extractor
import features.pictures
from configs.artifacts import ArtifactError, read_manifest, verify
from configs.compose import CONFIG_DIR, Paths
from configs.executors import ExecutorConfig
from crawl.collect import collect
from crawl.shards import JpegReader
from features.build_index import build
from features.config import FeatureSpaceConfig, ImageFeaturesConfig, IndexConfig
from features.extract import extract
from features.image_features import open_features
from features.inverted_index import open_index
from features.pictures import decode
from features.runtimes import cores
from tests.tiny import FOLDERS, HISTOGRAM, NUM_PICTURES, crawl_config, histogram_config, picture, write_tree

ROOT = CONFIG_DIR.parent


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
        real = features.extractor.open_runtime
        monkeypatch.setattr(features.extractor, "open_runtime", lambda *a: self.around(real(*a)))

    def around(self, run):
        def runtime(batch):
            if self.batches == self.die_at:
                raise KeyboardInterrupt
            self.batches += 1
            self.pictures += len(batch)
            found = run(batch)()
            if self.value is not None:
                found[0, 0] = self.value
            return lambda: found

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
    monkeypatch.setattr(stage, "fill", None)
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
    space = FeatureSpaceConfig(Paths(data=str(data)), HISTOGRAM)
    rows, _ = open_features(space, manifest.must_match["gate"], index.image_ids)
    reader = JpegReader(data / "collection")
    for row in (0, 17, 39):
        pixels = decode(reader.read(index.locations[row], index.image_id(row)), HISTOGRAM)
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


@pytest.mark.parametrize(("asked", "used"), [(0, cores()), (3, 3)])
def test_pictures_are_decoded_on_as_many_threads_as_asked_for_or_one_a_core(asked, used, data, monkeypatch):
    seen = []
    real = features.extractor.PictureReader
    monkeypatch.setattr(features.extractor, "PictureReader", lambda *a: seen.append(a[-1]) or real(*a))
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
    pixels = decode(picture(0, (64, 32)), replace(HISTOGRAM, resize_px=64, crop_px=32))
    assert pixels.shape == (3, 32, 32)
    assert (pixels == decode(picture(0, (64, 32)), replace(HISTOGRAM, resize_px=64, crop_px=64))[:, 16:48, 16:48]).all()


def test_renamed_pictures_cost_nothing(tmp_path, monkeypatch, quick_gate):
    data, tree = tmp_path / "data", write_tree(tmp_path / "tree", count=12)
    collect(crawl_config(data, tree))
    build(IndexConfig(paths=Paths(data=str(data))))
    extract(config(data))
    shutil.rmtree(data / "collection")
    for path in sorted(tree.rglob("*.jpg")):
        path.rename(path.with_name(f"renamed {path.name}"))
    collect(crawl_config(data, tree))
    build(IndexConfig(paths=Paths(data=str(data))))
    watched = Watched(monkeypatch)
    extract(config(data))
    assert watched.pictures == 0


def test_another_size_computes_all_in_a_directory_of_its_own(data, monkeypatch):
    first = extract(config(data))
    watched = Watched(monkeypatch)
    larger = replace(HISTOGRAM, resize_px=40)
    assert extract(replace(config(data), backbone=larger)) != first
    assert watched.pictures == NUM_PICTURES


def test_two_processes_at_once_end_with_one_whole_store(data):
    command = [
        sys.executable,
        "-c",
        "import sys, pathlib; from tests.test_extract import *; extract(config(pathlib.Path(sys.argv[1])))",
    ]
    both = [subprocess.Popen([*command, str(data)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    directory = extract(config(data))
    assert verify(directory) == []
    assert read_manifest(directory).facts["num_images"] == NUM_PICTURES


def test_a_flipped_byte_is_found_wherever_it_is(data):
    directory = extract(config(data))
    for path in sorted(directory.glob("*.*")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        assert len(verify(directory)) == 1, path.name
        path.write_bytes(whole)
    assert verify(directory) == []


def test_a_part_that_another_process_committed_meanwhile_is_not_computed_again(data, monkeypatch):
    extract(config(data))
    watched = Watched(monkeypatch)
    worker = features.extractor.PartExtractor(config(data))
    index, _ = open_index(Paths(data=str(data)))
    assert worker(np.asarray(index.image_ids[:8])) == 8
    worker.close()
    assert watched.pictures == 0


def test_ray_writes_the_same_bytes(data, tmp_path, cluster):
    shutil.copytree(data, tmp_path / "local")
    local = extract(config(tmp_path / "local"))
    executor = ExecutorConfig(**cluster)
    assert read_manifest(extract(config(data, executor=executor))).content_id == read_manifest(local).content_id


def test_images_disk_and_time_are_told_before_a_long_extraction(data, monkeypatch, caplog):
    monkeypatch.setattr(stage, "PROBED_BATCHES", 1)
    with caplog.at_level("INFO"):
        extract(config(data, batch_size=2))
    assert f"{NUM_PICTURES} images to extract, 0.0 MiB of disk in" in caplog.text
    assert re.search(r"\d+ images a second on this machine: about 00:0\d", caplog.text)


def test_too_little_disk_is_refused_before_work(data, monkeypatch):
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ArtifactError, match=r"40 features need 0 MiB in .*, where 0 MiB are free.*paths\.data"):
        extract(config(data))
