"""Hugging Face models, tiny and at random in a folder: their feature, preprocessing, failures and what is never run."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.artifacts import ArtifactError
from features.backbones import backbone_space, build_backbone, settle
from features.config import BackboneConfig
from features.huggingface import geometry

transformers = pytest.importorskip("transformers")
SIDE = 32
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
VISION = {**TRANSFORMER, "image_size": SIDE, "patch_size": 8}


def left_to_the_model(architecture, **values):
    empty = {"resize_px": 0, "crop_px": 0, "interpolation": "", "mean": [], "std": []}
    return BackboneConfig(architecture=str(architecture), weights="main", **{**empty, **values})


def models():
    """A tiny model and its image processor of each kind that ends in another way, and the width of its feature."""
    square = {"height": SIDE, "width": SIDE}
    stages = {"hidden_sizes": [4, 4, 4, 12], "depths": [1, 1, 1, 1]}
    clip = transformers.CLIPConfig(
        projection_dim=10, vision_config=VISION, text_config={**TRANSFORMER, "vocab_size": 9}
    )
    vit = transformers.ViTConfig(**VISION)
    return {
        "pooled": (transformers.ViTModel(vit), transformers.ViTImageProcessor(size=square), 16),
        "classifier": (transformers.ViTForImageClassification(vit), transformers.ViTImageProcessor(size=square), 16),
        "maps": (
            transformers.ConvNextModel(transformers.ConvNextConfig(**stages)),
            transformers.ConvNextImageProcessor(size={"shortest_edge": 2 * SIDE}),
            12,
        ),
        "resnet": (
            transformers.ResNetModel(transformers.ResNetConfig(embedding_size=4, **stages)),
            transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}),
            12,
        ),
        "with_text": (
            transformers.CLIPModel(clip),
            transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
            10,
        ),
    }


WIDTHS = {"pooled": 16, "classifier": 16, "maps": 12, "resnet": 12, "with_text": 10}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder a model; read-only."""
    root = tmp_path_factory.mktemp("zoo")
    for name, (model, processor, _) in models().items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return root


@pytest.fixture
def vit(zoo, tmp_path):
    """A copy of the pooled ViT, to be changed."""
    return shutil.copytree(zoo / "pooled", tmp_path / "vit")


def pictures(side=SIDE):
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", WIDTHS)
def test_a_model_loads_and_gives_a_flat_feature_of_the_settled_width(name, zoo):
    config = settle(left_to_the_model(zoo / name))
    assert config.width == WIDTHS[name]
    with torch.inference_mode():
        assert build_backbone(config)(pictures(config.crop_px)).shape == (2, config.width)


def test_the_feature_is_the_trained_pooler_behind_the_models_own_preprocessing(zoo):
    processor = transformers.AutoImageProcessor.from_pretrained(zoo / "pooled")
    model = transformers.ViTModel.from_pretrained(zoo / "pooled").eval()
    with torch.inference_mode():
        expected = model(**processor(list(pictures()), return_tensors="pt")).pooler_output
        found = build_backbone(left_to_the_model(zoo / "pooled"))(pictures())
    torch.testing.assert_close(found, expected)


def test_a_pooler_that_was_never_trained_gives_way_to_the_class_token(zoo):
    """A checkpoint of a classifier has none, and transformers would draw one at random."""
    model = transformers.ViTModel.from_pretrained(zoo / "classifier", add_pooling_layer=False).eval()
    with torch.inference_mode():
        expected = model((pictures() / 255 - 0.5) / 0.5).last_hidden_state[:, 0]
        found = build_backbone(left_to_the_model(zoo / "classifier"))(pictures())
    torch.testing.assert_close(found, expected)


def test_the_feature_of_a_vision_language_model_is_the_projected_one(zoo):
    model = transformers.CLIPModel.from_pretrained(zoo / "with_text").eval()
    config = settle(left_to_the_model(zoo / "with_text"))
    network = build_backbone(config)
    with torch.inference_mode():
        normalised = (pictures().float() - network.mean) / network.std
        vision = model.vision_model(pixel_values=normalised).pooler_output
        torch.testing.assert_close(network(pictures()), model.visual_projection(vision))


def said(**values):
    return SimpleNamespace(**{"shortest_edge": None, "height": None, "width": None, **values})


@pytest.mark.parametrize(
    ("size", "crop", "share", "expected"),
    [
        (said(height=224, width=224), None, None, (224, 224, True)),  # ViT, SigLIP, DINOv3
        (said(shortest_edge=224), said(height=224, width=224), None, (224, 224, False)),  # CLIP
        (said(shortest_edge=256), said(height=224, width=224), None, (256, 224, False)),  # DINOv2
        (said(height=256, width=256), said(height=224, width=224), None, (256, 224, False)),  # DeiT
        (said(shortest_edge=224), None, 0.875, (256, 224, False)),  # ConvNeXt, ResNet
        (said(shortest_edge=384), None, 0.875, (384, 384, True)),  # larger ConvNeXt
        (said(shortest_edge=200), None, None, (200, 200, False)),
    ],
)
def test_the_geometry_is_that_of_the_image_processor(size, crop, share, expected):
    assert geometry(size, crop, share) == dict(zip(("resize_px", "crop_px", "squash"), expected, strict=True))


def test_the_values_of_the_image_processor_are_settled(zoo):
    settled = settle(left_to_the_model(zoo / "with_text"))
    assert (settled.interpolation, settled.squash) == ("bicubic", False)
    assert settled.mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert settled.std == pytest.approx([0.26862954, 0.26130258, 0.27577711])
    assert settle(settled) == settled
    assert backbone_space(settled, "g") == backbone_space(left_to_the_model(zoo / "with_text"), "g")


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "step", [{"do_flip_channel_order": True}, {"rescale_factor": 1 / 127.5}, {"resample": 0}, {"include_top": True}]
)
def test_preprocessing_that_is_not_ours_asks_for_values(step, vit):
    change_json(vit / "preprocessor_config.json", **step)
    with pytest.raises(ArtifactError, match=rf"{next(iter(step))}.*give backbone\.resize_px.* backbone\.std"):
        settle(left_to_the_model(vit))


def test_a_model_without_preprocessing_asks_for_values_and_takes_them(vit):
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"no preprocessor_config\.json; give backbone\.resize_px"):
        settle(left_to_the_model(vit))
    given = {"resize_px": 40, "crop_px": 32, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
    assert settle(left_to_the_model(vit, **given)).width == 16


def test_the_feature_space_follows_the_content_of_a_folder_and_not_its_place(zoo, vit):
    space = backbone_space(left_to_the_model(vit), "g")
    assert backbone_space(left_to_the_model(zoo / "pooled"), "g") == space
    state = load_file(vit / "model.safetensors")
    save_file({**state, "layernorm.bias": state["layernorm.bias"] + 1}, vit / "model.safetensors", {"format": "pt"})
    assert backbone_space(left_to_the_model(vit), "g") != space


def test_weights_that_lack_a_tensor_are_refused(vit):
    state = load_file(vit / "model.safetensors")
    del state["layernorm.bias"]
    save_file(state, vit / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lack 1 tensors of the network, first layernorm\.bias"):
        build_backbone(left_to_the_model(vit))


def test_pickled_weights_are_refused(vit):
    (vit / "model.safetensors").rename(vit / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"no model\.safetensors.* could run code, are not loaded"):
        settle(left_to_the_model(vit))


def test_code_that_a_model_brings_is_never_run(vit):
    change_json(vit / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    (vit / "own.py").write_text(f"open({str(vit / 'fired')!r}, 'w')\n")
    with pytest.raises(ArtifactError, match="transformers does not open"):
        build_backbone(left_to_the_model(vit, width=16))
    assert not (vit / "fired").exists()


def test_a_model_of_text_is_refused(vit):
    transformers.BertModel(transformers.BertConfig(**TRANSFORMER, vocab_size=9)).save_pretrained(vit)
    with pytest.raises(ArtifactError, match="holds no vision model: BertModel takes input_ids"):
        settle(left_to_the_model(vit))


def test_a_picture_of_another_size_than_the_models_is_refused_when_its_width_is_asked(vit):
    with pytest.raises(ArtifactError, match=r"takes no pictures of 64 x 64 pixels"):
        settle(left_to_the_model(vit, resize_px=64, crop_px=64))


COMMIT = "0123456789" * 4


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of Hugging Face, and a hub that cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "models--an-owner--a-model"


def test_a_model_in_the_cache_is_used_without_network_and_its_commit_settled(hub, vit):
    shutil.copytree(vit, hub / "snapshots" / COMMIT)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(COMMIT)
    settled = settle(left_to_the_model("an-owner/a-model"))
    assert (settled.name, settled.weights, settled.width) == ("an-owner-a-model", COMMIT, 16)
    assert settle(settled) == settled
    assert backbone_space(settled, "g") == backbone_space(left_to_the_model(vit), "g")


def test_a_model_that_does_not_come_is_named_with_its_files_and_the_way_to_place_them(hub):
    wanted = (
        r"'an-owner/a-model' .*config\.json, preprocessor_config\.json and model\.safetensors of its revision main .*"
        rf"'{hub.parent}', which HF_HOME moves.* from https://huggingface\.co/an-owner/a-model/tree/main, .*"
        r"backbone\.architecture=\./<folder>"
    )
    with pytest.raises(ArtifactError, match=wanted):
        settle(left_to_the_model("an-owner/a-model"))


@pytest.mark.parametrize("architecture", ["./not-here", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(architecture):
    with pytest.raises(ArtifactError, match=f"'{architecture}' is no folder here, and no repository is named so"):
        settle(left_to_the_model(architecture))


def test_without_the_package_its_name_and_extra_are_said(monkeypatch, zoo):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ArtifactError, match="needs the package transformers, the optional extra `huggingface`"):
        build_backbone(replace(left_to_the_model(zoo / "pooled"), width=16))
