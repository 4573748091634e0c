"""Backbones: each group loads and gives its width, what is left to the weights, and what makes a feature space."""

import hashlib
import os
import re
import urllib.error
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torchvision
from hydra import compose, initialize_config_dir
from torch import nn

import features.backbones
import features.extract
from configs.artifacts import ArtifactError
from configs.compose import CONFIG_DIR, typed
from features.backbones import (
    ColorHistogram,
    Unallocated,
    backbone_space,
    build_backbone,
    msra_resnet50,
    network_for,
    overrides,
    settle,
)
from features.config import BackboneConfig, ImageFeaturesConfig

CARRIED = BackboneConfig(name="resnet50", architecture="resnet50", weights="carried", width=2048)
V2 = BackboneConfig(name="v2", architecture="resnet50", weights="IMAGENET1K_V2", width=2048)
EMPTY = {"width": 0, "resize_px": 0, "crop_px": 0, "interpolation": "", "mean": [], "std": [], "licence": ""}
CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
NAMED = [
    path.stem for path in (CONFIG_DIR / "backbone").glob("*.yaml") if path.stem not in ("torchvision", "huggingface")
]
DOWNLOADED = ["efficientnet_v2_s", "mobilenet_v2", "resnet18", "resnet50_v1", "resnet50_v2", "vit_b_16"]


@cache
def composed(*chosen):
    """The backbone that the command line makes of overrides."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("image_features", list(chosen)), ImageFeaturesConfig).backbone


def left_to_the_weights(architecture, weights="DEFAULT"):
    return BackboneConfig(architecture=architecture, weights=weights, **EMPTY)


def gradients():
    """Two pictures that need no file: a gradient and a coloured chessboard."""
    y, x = np.mgrid[0:224, 0:224]
    board = ((x // 16 + y // 16) % 2) * 255 * np.array([1, 0.5, 0.2])[:, None, None]
    return np.stack([np.stack([x, y, (x + y) // 2]), board]).astype(np.uint8)


def test_the_carried_network_strides_in_the_first_convolution_of_a_stage():
    network = msra_resnet50()
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
    "change",
    [
        {"weights": "IMAGENET1K_V2"},
        {"resize_px": 232},
        {"crop_px": 200},
        {"interpolation": "bicubic"},
        {"squash": True},
        {"mean": [0.5] * 3},
        {"width": 99},
    ],
)
def test_the_feature_space_changes_with_all_that_shapes_a_feature(change):
    assert backbone_space(replace(CARRIED, **change), "g") != backbone_space(CARRIED, "g")


def test_the_feature_space_changes_with_the_gate_and_the_architecture():
    assert backbone_space(CARRIED, "g") != backbone_space(CARRIED, "h")
    assert backbone_space(replace(V2, architecture="resnet101"), "g") != backbone_space(V2, "g")


def test_the_feature_space_does_not_change_with_name_or_licence():
    assert backbone_space(replace(CARRIED, name="x", licence="y"), "g") == backbone_space(CARRIED, "g")


class Armed:
    def __init__(self, path):
        self.call = (os.mkdir, (str(path),))

    def __reduce__(self):
        return self.call


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Lay a state into torch's cache under the name that its bytes deserve, as some weights of torchvision."""

    def lay(state, prefix="", weights=torchvision.models.ResNet18_Weights.IMAGENET1K_V1):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(state, folder / "state")
        prefix = prefix or hashlib.sha256((folder / "state").read_bytes()).hexdigest()[:8]
        path = (folder / "state").rename(folder / f"resnet18-{prefix}.pth")
        monkeypatch.setattr(weights.value, "url", f"https://x/{path.name}")
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
def test_weights_that_do_not_come_are_named_with_the_way_to_place_them(error, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    url = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    wanted = rf"resnet50-11ad3fa6\.pth of v2 .*'{tmp_path}/hub/checkpoints', which TORCH_HOME moves.* download {url} "
    with pytest.raises(ArtifactError, match=wanted):
        build_backbone(V2)


@pytest.mark.parametrize("weights", ["V9", ""])
def test_weights_that_torchvision_does_not_have_are_named_with_those_it_has(weights):
    with pytest.raises(
        ArtifactError, match=rf"no weights '{weights}' of 'resnet50'; it has IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        build_backbone(replace(V2, weights=weights))


@pytest.mark.parametrize("name", ["resnet5000", "fcn_resnet50", "efficientnet_lite1"])
def test_an_architecture_that_is_no_classifier_of_torchvision_is_named_with_close_ones(name):
    with pytest.raises(ArtifactError, match=rf"no classifier '{name}'; close to it: (resnet50|efficientnet_b1)"):
        backbone_space(replace(V2, architecture=name), "g")


def test_the_carried_weights_fit_two_architectures():
    with pytest.raises(
        ArtifactError, match="carried weights are of resnet50 and efficientnet_lite0, not of 'resnet18'"
    ):
        build_backbone(replace(CARRIED, architecture="resnet18"))


@pytest.mark.parametrize("option", DOWNLOADED)
def test_a_downloaded_group_loads_and_gives_its_width(option, cached):
    config = composed(f"backbone={option}")
    weights = torchvision.models.get_model_weights(config.architecture)[config.weights]
    with Unallocated():
        shapes = network_for(config.architecture, weights).state_dict()
    cached({name: torch.zeros(()).expand(tensor.shape) for name, tensor in shapes.items()}, weights=weights)
    side = config.crop_px if option == "vit_b_16" else 64  # the others take any
    with torch.inference_mode():
        features = build_backbone(config)(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    assert features.shape == (1, config.width)


@pytest.mark.parametrize("option", ["resnet50", "efficientnet_lite0", "color_histogram"])
def test_a_carried_group_loads_and_gives_its_width(option):
    config = composed(f"backbone={option}")
    with torch.inference_mode():
        features = build_backbone(config)(torch.from_numpy(gradients())[:, :, :64, :64])
    assert features.shape == (2, config.width)
    assert not torch.equal(features[0], features[1])


def test_every_named_group_is_downloaded_or_carried():
    assert sorted(NAMED) == sorted([*DOWNLOADED, "resnet50", "efficientnet_lite0", "color_histogram"])


@pytest.mark.parametrize("option", DOWNLOADED)
def test_a_downloaded_group_says_what_torchvision_says_of_its_weights(option):
    config = composed(f"backbone={option}")
    assert settle(replace(config, **EMPTY)) == config
    meta = torchvision.models.get_model_weights(config.architecture)[config.weights].meta
    header = (CONFIG_DIR / "backbone" / f"{option}.yaml").read_text(encoding="utf-8")
    assert f"top-1 {meta['_metrics']['ImageNet-1K']['acc@1']:.1f} %" in header


@pytest.mark.parametrize("option", NAMED)
def test_a_named_group_leaves_nothing_open(option):
    config = composed(f"backbone={option}")
    assert settle(config) == config
    assert all((config.width, config.resize_px, config.crop_px, config.interpolation, config.mean, config.std))
    assert config.licence or option == "color_histogram"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_of_torchvision_ends_in_a_flat_feature(name):
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with Unallocated():
        network = network_for(name, weights)
    width = features.backbones._drop_last_layer(network)
    (side,) = weights.transforms().crop_size
    assert network.to("meta").eval()(torch.empty(1, 3, side, side, device="meta")).shape == (1, width)


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v3_small", "densenet121", "regnet_y_400mf", "maxvit_t"])
def test_a_feature_is_what_the_last_layer_sees(name):
    network = torchvision.models.get_model(name).eval()
    last = [each for each in network.modules() if isinstance(each, nn.Linear)][-1]
    side = 224 if name == "maxvit_t" else 64
    pictures = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(pictures)
        assert features.backbones._drop_last_layer(network) == last.in_features
        torch.testing.assert_close(last(network(pictures)), expected)


def test_weights_by_default_are_named_exactly():
    assert settle(left_to_the_weights("resnet50")).weights == "IMAGENET1K_V2"


def test_weights_of_a_larger_picture_are_settled_with_its_size_and_licence():
    settled = settle(left_to_the_weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"))
    assert (settled.width, settled.resize_px, settled.crop_px, settled.interpolation) == (768, 384, 384, "bicubic")
    assert "SWAG" in settled.licence


def test_what_is_given_wins_over_what_the_weights_say():
    given = replace(left_to_the_weights("convnext_tiny"), resize_px=300, mean=[0.5] * 3, interpolation="bicubic")
    settled = settle(given)
    assert (settled.resize_px, settled.mean, settled.interpolation) == (300, [0.5] * 3, "bicubic")
    assert (settled.crop_px, settled.std, settled.width) == (224, [0.229, 0.224, 0.225], 768)


def test_a_side_that_does_not_fit_to_the_one_of_the_weights_is_refused():
    with pytest.raises(ArtifactError, match=r"crop_px must lie in 32\.\.resize_px=236, got 300"):
        settle(replace(left_to_the_weights("convnext_tiny"), crop_px=300))


def test_a_settled_config_has_the_feature_space_of_the_open_one():
    config = left_to_the_weights("convnext_tiny")
    assert backbone_space(settle(config), "g") == backbone_space(config, "g")


def test_any_classifier_is_chosen_by_its_name_and_stored_under_it():
    config = settle(composed("backbone=torchvision", "backbone.architecture=convnext_tiny"))
    assert (config.name, config.weights, config.width) == ("convnext_tiny", "IMAGENET1K_V1", 768)
    assert (config.resize_px, config.crop_px, config.licence) == (236, 224, "BSD-3-Clause")


@pytest.mark.parametrize(
    "chosen",
    [
        ["backbone=vit_b_16"],
        ["backbone=torchvision", "backbone.architecture=swin_t"],
        ["backbone=huggingface", "backbone.architecture=facebook/dinov2-small"],
        ["backbone=torchvision", "backbone.architecture=resnet50"],
        ["backbone=resnet50", "backbone.resize_px=300"],
        ["backbone=huggingface", "backbone.architecture=a/b", "backbone.weights=v2"],
    ],
)
def test_the_overrides_of_a_backbone_are_those_it_was_chosen_by(chosen):
    assert overrides(composed(*chosen)) == chosen


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("facebook/dinov2-small", "facebook-dinov2-small"), ("./my model", "my-model"), ("/a/b.c", "a-b.c")],
)
def test_the_name_of_a_hugging_face_model_is_safe_for_a_folder(architecture, name):
    assert composed("backbone=huggingface", f"backbone.architecture='{architecture}'").name == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../x"}, r"backbone\.name must be a name"),
        ({"width": -1}, "width must be at least 1, or 0 .* got -1"),
        ({"crop_px": 16}, r"crop_px must lie in 32\.\.resize_px=256, got 16"),
        ({"resize_px": -1}, "got 224"),
        ({"interpolation": "nearest"}, "bilinear or bicubic, got nearest"),
    ],
)
def test_values_out_of_range_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(CARRIED, **change)
