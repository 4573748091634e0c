"""EfficientNet-Lite0, which torchvision does not have: EfficientNet-B0 without squeeze-and-excitation, with ReLU6.

M. Tan, Q. Le, EfficientNet, ICML 2019; the Lite form is Google's of 2020, published in tensorflow/tpu.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

# The stages of blocks: expansion, side of the kernel, stride of the first block, number of blocks, channels.
STAGES = ((1, 3, 1, 1, 16), (6, 3, 2, 2, 24), (6, 5, 2, 2, 40), (6, 3, 2, 3, 80), (6, 5, 1, 3, 112), (6, 5, 2, 4, 192))
LAST_STAGE = (6, 3, 1, 1, 320)
STEM_CHANNELS = 32
WIDTH = 1280


def convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Build a convolution with its batch normalisation, padded as TensorFlow's `SAME` pads.

    Where the stride is 2 and the side even, TensorFlow pads one pixel more at the right and bottom; padded evenly,
    as PyTorch would, the weights look half a pixel beside what they were trained on. The side is even at every stride
    if the crop is a multiple of 32.
    """
    before, uneven = divmod(kernel - stride, 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if uneven:
        layers["pad"] = nn.ZeroPad2d((0, 1, 0, 1))
    layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, padding=before, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(outputs, eps=1e-3)
    if relu:
        layers["relu"] = nn.ReLU6()
    return nn.Sequential(layers)


class Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel by itself, narrow; added to its input where the shapes allow.

    M. Sandler et al., MobileNetV2, CVPR 2018.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.expand = convolution(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = convolution(wide, wide, kernel, stride, groups=wide)
        self.project = convolution(wide, outputs, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        found: Tensor = self.project(self.depthwise(self.expand(maps)))
        return maps + found if self.residual else found


def efficientnet_lite0() -> nn.Sequential:
    """Build the network without its classifier: (B, 3, H, W) normalised -> (B, 1280), H and W multiples of 32."""
    blocks: list[nn.Module] = []
    channels = STEM_CHANNELS
    for expansion, kernel, first_stride, num_blocks, outputs in (*STAGES, LAST_STAGE):
        for number in range(num_blocks):
            stride = first_stride if number == 0 else 1
            blocks.append(Block(channels, outputs, expansion, kernel, stride))
            channels = outputs
    layers = {
        "stem": convolution(3, STEM_CHANNELS, kernel=3, stride=2),
        "blocks": nn.Sequential(*blocks),
        "head": convolution(channels, WIDTH),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
    }
    return nn.Sequential(OrderedDict(layers))
