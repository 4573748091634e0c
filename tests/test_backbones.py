"""Backbones: the strides of the carried network, the histogram by hand, and what makes a feature space."""

import hashlib
import os
import re
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision

import features.backbones
from configs.artifacts import ArtifactError
from features.backbones import ColorHistogram, build_backbone, carried_resnet50, feature_space, network_for
from features.config import BackboneConfig

CARRIED = BackboneConfig(name="resnet50", architecture="resnet50", weights="carried", width=2048)
V2 = BackboneConfig(name="v2", architecture="resnet50", weights="IMAGENET1K_V2", width=2048)


def gradients():
    """Two pictures that need no file: a gradient and a coloured chessboard."""
    y, x = np.mgrid[0:224, 0:224]
    board = ((x // 16 + y // 16) % 2) * 255 * np.array([1, 0.5, 0.2])[:, None, None]
    return np.stack([np.stack([x, y, (x + y) // 2]), board]).astype(np.uint8)


def test_the_carried_network_strides_in_the_first_convolution_of_a_stage():
    network = carried_resnet50()
    for stage in (network.layer2, network.layer3, network.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((2, 2), (1, 1))


def test_carried_features_are_those_computed_with_the_right_strides():
    with torch.inference_mode():
        one, two = build_backbone(CARRIED)(torch.from_numpy(gradients())).numpy()
    # With torchvision's strides the tensors load as well, and give 0.132, 0.0007, 0.117, 26.2497 and 0.14869.
    assert one[[0, 2, 4]] == pytest.approx([0.0, 0.0288, 0.2702], abs=2e-3)
    assert np.linalg.norm(one) == pytest.approx(37.6392, abs=0.02)
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) == pytest.approx(0.19021, abs=1e-3)


def histogram(*colour):
    pixels = torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 4)
    return ColorHistogram()(pixels)[0].numpy()


def test_a_flat_colour_fills_one_bin_a_channel():
    found = histogram(0, 128, 255)
    assert np.flatnonzero(found[:96]).tolist() == [0, 32 + 16, 64 + 31]
    assert found[[0, 48, 95]].tolist() == [1, 1, 1]
    assert found[96:] == pytest.approx([0, 128 / 255, 1])


def test_a_bin_is_eight_grey_levels_wide():
    assert histogram(7, 8, 15)[[0, 33, 65]].tolist() == [1, 1, 1]


def test_a_histogram_sums_to_one_a_channel():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 9, 7), dtype=np.uint8))
    found = ColorHistogram()(pixels)
    assert found.shape == (2, ColorHistogram.width)
    assert found[:, :96].reshape(2, 3, 32).sum(dim=2).numpy() == pytest.approx(np.ones((2, 3)))


@pytest.mark.parametrize(
    "change", [{"weights": "IMAGENET1K_V2"}, {"resize_px": 232}, {"crop_px": 200}, {"mean": [0.5] * 3}, {"width": 99}]
)
def test_the_feature_space_changes_with_all_that_shapes_a_feature(change):
    assert feature_space(replace(CARRIED, **change), "g") != feature_space(CARRIED, "g")


def test_the_feature_space_changes_with_the_gate_and_the_architecture():
    assert feature_space(CARRIED, "g") != feature_space(CARRIED, "h")
    assert feature_space(replace(V2, architecture="resnet101"), "g") != feature_space(V2, "g")


def test_the_feature_space_does_not_change_with_name_or_licence():
    assert feature_space(replace(CARRIED, name="x", licence="y"), "g") == feature_space(CARRIED, "g")


class Armed:
    def __init__(self, path):
        self.call = (os.mkdir, (str(path),))

    def __reduce__(self):
        return self.call


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Lay a state into torch's cache under the name that its bytes deserve, as the weights of resnet18."""

    def lay(state, prefix=""):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(state, folder / "state")
        prefix = prefix or hashlib.sha256((folder / "state").read_bytes()).hexdigest()[:8]
        path = (folder / "state").rename(folder / f"resnet18-{prefix}.pth")
        monkeypatch.setattr(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value, "url", f"https://x/{path.name}")
        return path

    return lay


R18 = BackboneConfig(name="r18", architecture="resnet18", weights="IMAGENET1K_V1", width=512)


def test_torchvisions_weights_are_those_of_the_cached_file(cached):
    network = torchvision.models.resnet18()
    cached(network.state_dict())
    pixels = torch.from_numpy(gradients())
    loaded = build_backbone(R18)
    with torch.inference_mode():
        found = loaded(pixels)
        network.fc = torch.nn.Identity()
        assert torch.equal(found, network.eval()((pixels.float() - loaded.mean) / loaded.std))


def test_an_armed_file_of_weights_never_fires(cached, tmp_path):
    cached({"fc.weight": Armed(tmp_path / "fired")})
    with pytest.raises(ArtifactError, match=r"resnet18-.*\.pth.*holds more than weights"):
        build_backbone(R18)
    assert not (tmp_path / "fired").exists()


def test_a_cached_file_of_another_hash_is_named_and_not_opened(cached, monkeypatch):
    path = cached({}, prefix="12345678")
    monkeypatch.setattr(torch, "load", None)
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    with pytest.raises(ArtifactError, match=rf"'{path}' .*{found}.* expected 12345678.*[Dd]elete it and run again"):
        build_backbone(R18)


@pytest.mark.parametrize("state", [{"other": torch.zeros(1)}, torch.zeros(1)])
def test_weights_of_another_architecture_are_named(state, cached):
    cached(state)
    with pytest.raises(ArtifactError, match=r"resnet18-.*\.pth.* do not fit .*resnet18"):
        build_backbone(R18)


def test_a_densenet_takes_the_names_of_its_old_files(monkeypatch):
    """`norm.1` was renamed `norm1` after they had been written."""
    given = torchvision.models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): given[name] for name in given}
    assert old.keys() != given.keys()
    monkeypatch.setattr(features.backbones, "_state", lambda *a: old)
    build_backbone(replace(R18, architecture="densenet121", width=1024))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16", "googlenet"])
def test_a_network_is_the_one_that_torchvision_builds_for_the_weights(name, monkeypatch):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: {})
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *a, **k: None)
    with torch.device("meta"):
        expected = torchvision.models.get_model(name, weights=weights)
        found = network_for(name, weights)
    assert repr(found).splitlines() == [line for line in repr(expected).splitlines() if not line.endswith("): None")]
    assert getattr(found, "transform_input", None) == getattr(expected, "transform_input", None)


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), RuntimeError("invalid hash value")])
def test_weights_that_do_not_come_are_named_with_the_folder_for_them(error, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ArtifactError, match=rf"resnet50-11ad3fa6\.pth.*Place that file in '{tmp_path}"):
        build_backbone(V2)


@pytest.mark.parametrize("change", [{"weights": "V9"}, {"weights": ""}, {"architecture": "resnet5000"}])
def test_weights_that_torchvision_does_not_have_are_named(change):
    with pytest.raises(ArtifactError, match="torchvision has no weights"):
        build_backbone(replace(V2, **change))


def test_the_carried_weights_fit_one_architecture():
    with pytest.raises(ArtifactError, match="carried weights are of resnet50, not of 'resnet18'"):
        build_backbone(replace(CARRIED, architecture="resnet18"))
