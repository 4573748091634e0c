"""The features of one picture at a time, and at what places of it they arise.

W width of a feature; a map has H rows and V columns of places.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from features.backbones import build_backbone, settle
from features.config import BackboneConfig, FeatureSpaceConfig
from features.pictures import decode
from features.reduce import open_components, project

GREY = 128  # covers a place; between black and white, so that neither is told to the network
_AGREES = 1e-3  # relative, of a map's mean and the feature, above what float32 leaves


@dataclass(frozen=True)
class Box:
    """The part of a picture that a network sees, in pixels of the stored picture."""

    left: int
    top: int
    right: int
    bottom: int


def seen(width: int, height: int, backbone: BackboneConfig) -> Box:
    """Return what is left of a picture of this size after resizing and cropping, as `pictures.decode` does it."""
    backbone = settle(backbone)
    if backbone.squash:
        return Box(0, 0, width, height)
    side = min(width, height) * backbone.crop_px / backbone.resize_px
    left, top = (width - side) / 2, (height - side) / 2
    return Box(max(0, round(left)), max(0, round(top)), min(width, round(left + side)), min(height, round(top + side)))


class SinglePicture:
    """A backbone in full float32 by torch on the CPU, for a picture now and then; one at a time.

    The runtimes agree to cosine 0.9999, so its features stand beside those of an extraction; beside those of a lower
    precision as near as the calibration allowed.
    """

    def __init__(self, cfg: FeatureSpaceConfig, gate: str) -> None:
        self.backbone = settle(cfg.backbone)
        self._network = build_backbone(self.backbone)
        self._components: np.ndarray | None = None  # (k, W) of a PCA
        if cfg.pca:
            self._components = np.array(open_components(cfg, gate, self.backbone.width))
        self._lock = threading.Lock()

    def _reduced(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._components is None else project(rows, self._components)

    def feature(self, jpeg: bytes) -> np.ndarray:
        """Return the feature (W,) float32 of a stored JPEG, reduced where the space is."""
        return np.asarray(self.features(decode(jpeg, self.backbone)[None])[0])

    def features(self, pictures: np.ndarray) -> np.ndarray:
        """Return features (B, W) float32 of decoded pictures (B, 3, crop, crop) uint8."""
        with self._lock, torch.inference_mode():
            return self._reduced(np.asarray(self._network(torch.from_numpy(pictures)).numpy()))

    def feature_map(self, jpeg: bytes) -> np.ndarray | None:
        """Return what a stored JPEG gives at each place, (H, V, W) float32, whose mean over places is the feature.

        None where the feature is no such mean: class tokens, hidden layers behind the pooling, histograms.
        """
        found: list[Tensor] = []
        pools = [each for each in self._network.modules() if isinstance(each, nn.AdaptiveAvgPool2d)]
        if not pools:
            return None
        picture = torch.from_numpy(decode(jpeg, self.backbone)[None])
        with self._lock, torch.inference_mode():
            hook = pools[-1].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
            try:
                feature = self._network(picture)[0]
            finally:
                hook.remove()
        if not found or found[0].dim() != 4 or found[0].shape[1] != len(feature):
            return None
        places = found[0][0].permute(1, 2, 0)  # (H, V, W)
        if (places.mean((0, 1)) - feature).abs().max() > _AGREES * feature.abs().max():
            return None
        return self._reduced(np.asarray(places.contiguous().numpy()))

    def covered(self, jpeg: bytes, places: int) -> np.ndarray:
        """Return features (places, places, W) float32 of a stored JPEG with one square of a grid greyed out in each."""
        picture = decode(jpeg, self.backbone)
        edges = np.linspace(0, picture.shape[1], places + 1).round().astype(int)
        rows = []
        for top, bottom in pairwise(edges):
            batch = np.repeat(picture[None], places, axis=0)
            for column, (left, right) in enumerate(pairwise(edges)):
                batch[column, :, top:bottom, left:right] = GREY
            rows.append(self.features(batch))
        return np.stack(rows)
