"""Every image against all tags at once, a sigmoid each.

One-versus-all as in Joulin et al., Learning Visual Features from Large Weakly Supervised Data, ECCV 2016, here over
cosines.

C images, V tags trained on, D width of an embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from train.batches import Batch
from train.config import TrainConfig
from train.objectives.base import Objective, Way
from train.objectives.sigmoid import sigmoid_losses


class FullVocabulary(Objective):
    """A sigmoid a tag and image; the tags that an image does not carry are its negatives.

    A scale of all scores and a bias a tag are learned. Biases start from how frequent tags are, so that rare tags need
    not first learn that they are rare.
    """

    draws = "images"
    both_ways = False

    def __init__(self, cfg: TrainConfig, prior: np.ndarray) -> None:
        """Start from `prior` (V,), the share of images that carry each tag."""
        super().__init__()
        share = torch.from_numpy(prior).float().clamp(1e-6, 1 - 1e-6)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(cfg.temperature)))
        self.bias = nn.Parameter(torch.logit(share))

    def forward(self, tags: Tensor, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of tags (V, D) and images (C, D): mean over images of the sum over tags."""
        if batch.weights is not None:
            batch = replace(batch, weights=batch.weights / batch.weights.mean())
        return self.summed(tags * self.log_scale.exp(), images, self.bias, batch) / len(images)

    def losses(self, way: Way) -> Tensor:
        """Return what each tag costs, (n,); its scores come scaled, and its bias as its own."""
        return sigmoid_losses(way.scores + way.own[:, None], way.relevant, way.barrier).sum(dim=1)
