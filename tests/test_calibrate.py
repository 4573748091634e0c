"""The gate before a lower precision: measured on the user's own pictures, frozen, and never mixed with another."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import features.calibrate as gate
import features.extractor
from configs.artifacts import MANIFEST, ArtifactError, read_manifest, verify
from configs.compose import Paths
from features.config import BackboneConfig, FeatureSpaceConfig, ImageFeaturesConfig
from features.extract import extract
from features.extractor import Extractor, PartExtractor, open_network
from features.image_features import open_features
from features.inverted_index import open_index
from features.runtimes import has_bfloat16
from features.spaces import calibration_directory

SMALL = BackboneConfig(
    name="small", architecture="efficientnet_lite0", weights="carried", width=1280, resize_px=32, crop_px=32
)
HAS_BF16 = has_bfloat16("cpu")
PRECISIONS = [
    pytest.param("bf16", marks=pytest.mark.skipif(not HAS_BF16, reason="no bfloat16 in this processor")),
    "int8",
]


@pytest.fixture
def data(tiny_data, tmp_path, monkeypatch):
    """The tiny collection without features, and a gate that is content with so few pictures."""
    monkeypatch.setattr(gate, "QUANTISATION_IMAGES", 6)
    monkeypatch.setattr(gate, "SPARED", (0.0,))
    monkeypatch.setattr(gate, "MIN_JUDGED", 14)
    shutil.copytree(tiny_data, tmp_path / "data", ignore=shutil.ignore_patterns("image_features"))
    return tmp_path / "data"


def config(data, precision, **values):
    paths = Paths(data=str(data))
    return ImageFeaturesConfig(paths, SMALL, precision, device="cpu", batch_size=4, part_size=8, **values)


def kept(monkeypatch, share):
    monkeypatch.setattr(gate, "neighbours_kept", lambda before, after: share)


def calibration_of(cfg):
    return calibration_directory(cfg, open_index(cfg.paths)[1].must_match["gate"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_that_keeps_the_neighbours_is_used_and_says_so(precision, data, monkeypatch, caplog):
    kept(monkeypatch, 0.963)
    cfg = config(data, precision)
    with caplog.at_level("INFO"):
        directory = extract(cfg)
    assert f"precision={precision} keeps 96.3% of the 10 nearest neighbours of" in caplog.text
    assert directory.name.startswith(f"small-{precision}-")
    assert verify(directory) == verify(calibration_of(cfg)) == []
    full = extract(config(data, "f32"))
    assert full != directory
    low, exact = (features_of(cfg) for cfg in (cfg, config(data, "f32")))
    cosines = (low * exact).sum(axis=1) / np.linalg.norm(low, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0.9 < cosines.min() < cosines.max() < 1 - 1e-7


def features_of(cfg):
    index, manifest = open_index(cfg.paths)
    space = FeatureSpaceConfig(cfg.paths, cfg.backbone, cfg.precision)
    return open_features(space, manifest.must_match["gate"], index.image_ids)[0].astype(np.float64)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_that_loses_neighbours_is_refused_with_the_figure_each_time(precision, data, monkeypatch):
    kept(monkeypatch, 0.9321)
    for _ in range(2):
        with pytest.raises(ArtifactError, match=rf"precision={precision} keeps 93\.2% .* at least 95% .*precision=f32"):
            extract(config(data, precision))
        monkeypatch.setattr(gate, "neighbours_kept", None)  # it is not measured again
    assert not (data / "image_features").exists()


def test_int8_spares_more_of_the_first_layers_until_the_neighbours_are_kept(data, monkeypatch, caplog):
    monkeypatch.setattr(gate, "SPARED", (0.0, 0.25, 0.5))
    shares = iter([0.90, 0.94, 0.96])
    monkeypatch.setattr(gate, "neighbours_kept", lambda before, after: next(shares))
    cfg = config(data, "int8")
    with caplog.at_level("INFO"):
        extract(cfg)
    assert "with 0 % of the layers spared keeps 90.0 %" in caplog.text
    assert "with 25 % of the layers spared keeps 94.0 %" in caplog.text
    quantised = (calibration_of(cfg) / "quantised.xml").read_text()
    assert 0 < quantised.count('type="FakeQuantize"') < 60  # 50 convolutions have 2 each where none is spared


def test_neighbours_are_those_of_pictures_that_quantisation_did_not_see(data, monkeypatch):
    seen = []
    monkeypatch.setattr(gate, "neighbours_kept", lambda before, after: seen.append((before, after)) or 1.0)
    cfg = config(data, "int8")
    extract(cfg)
    index, _ = open_index(cfg.paths)
    train = np.flatnonzero(np.asarray(index.splits) == 0)
    assert (calibration_of(cfg) / "judged.txt").read_bytes().split() == index.image_ids[train[6:]].tolist()
    (before, after) = seen[0]
    assert before.shape == after.shape == (len(train) - 6, 1280)
    assert (before != after).any()


def test_too_few_pictures_are_refused(data, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"at least 500 train pictures, and the index has \d\d\. Use precision=f32"):
        extract(config(data, "int8"))


def test_a_calibration_killed_before_its_seal_is_made_again_and_the_same(data, tmp_path, monkeypatch):
    kept(monkeypatch, 0.99)
    cfg = config(data, "int8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(gate, "seal", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        extract(cfg)
    killed = extract(cfg)
    shutil.copytree(data, tmp_path / "again", ignore=shutil.ignore_patterns("image_features", "calibrations"))
    undisturbed = extract(replace(cfg, paths=Paths(data=str(tmp_path / "again"))))
    assert read_manifest(killed).content_id == read_manifest(undisturbed).content_id
    assert killed.name == undisturbed.name


def test_a_calibration_of_another_runtime_is_refused(data, monkeypatch):
    kept(monkeypatch, 0.99)
    extract(config(data, "int8"))
    monkeypatch.setattr(features.extractor, "runtime_name", lambda cfg: "torch on cuda")
    for step in (extract, PartExtractor):  # the stage, and a worker that may run elsewhere
        with pytest.raises(ArtifactError, match=r"judged with openvino on cpu.*, and torch on cuda would .* delete"):
            step(config(data, "int8"))


def test_a_damaged_calibration_is_refused_before_it_mixes_features(data, monkeypatch):
    kept(monkeypatch, 0.99)
    cfg = config(data, "int8")
    extract(cfg)
    path = calibration_of(cfg) / "quantised.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(ArtifactError, match=r"quantised\.bin: bytes differ .*delete"):
        extract(cfg)


def test_another_calibration_is_another_feature_space(data, monkeypatch):
    kept(monkeypatch, 0.99)
    first = extract(config(data, "int8"))
    shutil.rmtree(calibration_of(config(data, "int8")))
    monkeypatch.setattr(gate, "QUANTISATION_IMAGES", 9)
    assert extract(config(data, "int8")) != first


def test_features_without_their_calibration_name_the_command(data, monkeypatch):
    kept(monkeypatch, 0.99)
    cfg = config(data, "int8")
    extract(cfg)
    (calibration_of(cfg) / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r'make image_features ARGS="backbone.*precision=int8"'):
        features_of(cfg)


def test_the_quantised_network_runs_at_any_batch_size(data, monkeypatch):
    kept(monkeypatch, 0.99)
    cfg = config(data, "int8")
    extract(cfg)
    index, _ = open_index(cfg.paths)
    found = []
    for size in (4, 7):
        network = open_network(replace(cfg, batch_size=size), calibration_of(cfg))
        extractor = Extractor(replace(cfg, batch_size=size), index, network)
        found.append(extractor.features(np.arange(10)))
        extractor.close()
    assert found[0] == pytest.approx(found[1], abs=1e-4)
