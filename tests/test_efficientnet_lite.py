"""EfficientNet-Lite0: its padding and shortcuts by hand, and the features of the network it was converted from."""

import numpy as np
import pytest
import torch
from torch import nn

from features.backbones import build_backbone
from features.config import BackboneConfig
from features.efficientnet_lite import Block, convolution, efficientnet_lite0
from tests.test_backbones import gradients

LITE = BackboneConfig(
    name="lite",
    architecture="efficientnet_lite0",
    weights="carried",
    width=1280,
    mean=[127 / 255] * 3,
    std=[128 / 255] * 3,
)


def through_the_middle(kernel, stride):
    """A convolution that copies the pixel under the middle of its kernel, on 0 to 15 in rows of four."""
    layer = convolution(1, 1, kernel, stride, relu=False).eval()
    layer.conv.weight.data.zero_()[0, 0, kernel // 2, kernel // 2] = 1
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    with torch.inference_mode():
        return (layer(maps) * (1 + 1e-3) ** 0.5).flatten().tolist()


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_stride_of_two_begins_at_the_second_pixel_as_in_tensorflow(kernel):
    assert through_the_middle(kernel, stride=2) == pytest.approx([5, 7, 13, 15])


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_stride_of_one_keeps_every_pixel(kernel):
    assert through_the_middle(kernel, stride=1) == pytest.approx(range(16))


@pytest.mark.parametrize(("stride", "outputs", "added"), [(1, 4, True), (2, 4, False), (1, 6, False)])
def test_a_block_adds_its_input_where_the_shapes_allow(stride, outputs, added):
    block = Block(4, outputs, expansion=6, kernel=3, stride=stride).eval()
    block.project = nn.Sequential(block.project, nn.Threshold(torch.inf, 0.0))  # nothing comes through the block
    maps = torch.rand(1, 4, 8, 8)
    with torch.inference_mode():
        found = block(maps)
    assert torch.equal(found, maps if added else torch.zeros_like(found))


def test_the_network_has_as_many_parameters_as_published():
    """4.65 million with the classifier of 1280 x 1000 and its biases."""
    assert sum(each.numel() for each in efficientnet_lite0().parameters()) + 1281 * 1000 == 4_652_008


def test_carried_features_are_those_of_the_network_they_were_converted_from():
    """Computed by the package efficientnet_lite_pytorch 0.1.0 from float32 weights."""
    with torch.inference_mode():
        one, two = build_backbone(LITE)(torch.from_numpy(gradients())).numpy()
    assert one.shape == (LITE.width,)
    # Padded evenly, as PyTorch pads, the tensors load as well, and give 0.1658, 0, 0.4170, 11.504 and 0.3373.
    assert one[[2, 7, 9]] == pytest.approx([0.0, 0.0115, 0.1066], abs=8e-3)
    assert np.linalg.norm(one) == pytest.approx(12.590, abs=0.06)
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) == pytest.approx(0.2746, abs=3e-3)
