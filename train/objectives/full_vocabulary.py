"""Every image against all tags at once, a sigmoid each.

One-versus-all as in Joulin et al., Learning Visual Features from Large Weakly Supervised Data, ECCV 2016, here over
cosines.

C images, V tags trained on, D width of an embedding.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.batches import Batch, ImageBatch
from train.config import TrainConfig
from train.objectives.base import Objective
from train.objectives.sigmoid import sigmoid_losses

CHUNK_ENTRIES = 2**22  # scores held at once: 16 MiB in float32, a few times over


class FullVocabulary(Objective):
    """A sigmoid a tag and image; the tags that an image does not carry are its negatives.

    A scale of all scores and a bias a tag are learned. Biases start from how frequent tags are, so that rare tags need
    not first learn that they are rare.
    """

    draws = "images"

    def __init__(self, cfg: TrainConfig, prior: np.ndarray) -> None:
        """Start from `prior` (V,), the share of images that carry each tag."""
        super().__init__()
        share = torch.from_numpy(prior).float().clamp(1e-6, 1 - 1e-6)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(cfg.temperature)))
        self.bias = nn.Parameter(torch.logit(share))

    def forward(self, tags: Tensor, images: Tensor, batch: Batch) -> Tensor:
        """Return the loss of tags (V, D) and images (C, D): mean over images of the sum over tags.

        No more than CHUNK_ENTRIES scores are held: of several chunks each is computed a second time for its gradient.
        """
        assert isinstance(batch, ImageBatch)
        weights = torch.ones_like(self.bias) if batch.weights is None else batch.weights / batch.weights.mean()
        size = max(1, CHUNK_ENTRIES // len(images))
        total = tags.new_zeros(())
        for start in range(0, len(tags), size):
            chunk = slice(start, start + size)
            rows = tags[chunk], images, self.log_scale, self.bias[chunk], weights[chunk]
            masks = inside(batch.relevant_at, chunk), inside(batch.blocked_at, chunk)
            if size >= len(tags):
                return chunk_loss(*rows, *masks) / len(images)
            total = total + checkpoint(chunk_loss, *rows, *masks, use_reentrant=False, preserve_rng_state=False)
        return total / len(images)


def inside(places: Tensor, chunk: slice) -> Tensor:
    """Return those of places (n, 2) whose tag is in a chunk, counted from its start."""
    found = places[(places[:, 0] >= chunk.start) & (places[:, 0] < chunk.stop)]
    return found - torch.tensor([chunk.start, 0], device=found.device)


def chunk_loss(
    tags: Tensor,
    images: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    weights: Tensor,
    relevant_at: Tensor,
    blocked_at: Tensor,
) -> Tensor:
    """Sum the loss of a chunk of K tags.

    Args:
        tags: (K, D) embeddings.
        images: (C, D) embeddings.
        log_scale: scalar.
        bias: (K,).
        weights: (K,) of the tags.
        relevant_at: (n, 2) places in (K, C) where the image carries the tag.
        blocked_at: (m, 2) places where the image is no negative of the tag.

    Returns:
        Scalar.
    """
    logits = tags @ images.T * log_scale.exp() + bias[:, None]
    relevant, blocked = (table(places, logits) for places in (relevant_at, blocked_at))
    return (sigmoid_losses(logits, relevant, blocked).sum(dim=1) * weights).sum()


def table(places: Tensor, like: Tensor) -> Tensor:
    """Return a bool table of the shape of `like`, True at places (n, 2)."""
    found = torch.zeros_like(like, dtype=torch.bool)
    found[tuple(places.T)] = True
    return found
