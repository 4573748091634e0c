"""Pairs of a tag and an image that carries it, drawn, gathered and masked where the features lie.

B pairs a batch, C images a batch (B, or 2B with fixed wrong pictures), P training pairs, T tags, V tags trained on.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from configs.artifacts import ArtifactError
from crawl.records import TRAIN
from features.inverted_index import InvertedIndex
from train.config import TrainConfig
from train.distributed import ALONE, Rank, gather_rows, share
from train.masks import ByImage, Mask, TagLists

WRONG_STEP = 3  # the original project's wrong picture of pair i is that of pair i + 3


@dataclass(frozen=True)
class Batch:
    """Tags and images of a batch, with all that an objective may ask about them.

    Of pairs, image i carries tag i; of images, the tags are all V that are trained on. Of several processes each has
    the rows and features of its own pairs, and weights and masks of those of all, one process after the other.
    """

    epoch: int
    tag_rows: Tensor  # (B,) int64; V where images are drawn
    image_rows: Tensor  # (C,) int64
    features: Tensor  # (C, W) of the images, as stored
    weights: Tensor | None  # (B,) of the tags; None where all count alike
    false_negatives: Tensor  # scalar, share of the negatives that would be wrong without the mask
    relevant: Mask  # (B, C), where the image carries the tag
    blocked: Mask  # (B, C), where it carries the tag or a related one, and so is no negative


def is_withheld(tag: str, share: float) -> bool:
    """Tell by the tag's hash whether it is kept out of training, the same in every run with that share."""
    return int.from_bytes(hashlib.sha256(f"withhold:{tag}".encode()).digest()[:8], "big") < share * 2**64


def epoch_seed(seed: int, epoch: int, stream: str) -> int:
    """Return 32 bits for one use of an epoch; torch's generator on the CPU looks at no more of its seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}:{stream}".encode()).digest()[:4], "big")


def training_pairs(index: InvertedIndex, known: np.ndarray, withhold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the tag rows and image rows (P,) of all train pairs whose tag has a vector and is not withheld."""
    usable = known & ~np.array([is_withheld(tag, withhold) for tag in index.tags], dtype=bool)
    tag_rows = np.repeat(np.arange(index.num_tags), index.document_frequency)
    keep = usable[tag_rows] & (index.splits[index.postings] == TRAIN)
    if keep.sum() < 2:
        raise ArtifactError(
            f"{int(keep.sum())} pairs to train on: {index.num_tags} tags, {int(usable.sum())} of them with a vector, "
            f"{int((index.splits == TRAIN).sum())} train images. A collection needs tagged images in the train split."
        )
    return tag_rows[keep], index.postings[keep].astype(np.int64)


def spared_tags(index: InvertedIndex, relations: Mapping[str, Mapping[str, set[str]]]) -> ByImage:
    """Return by image the tags it is no wrong picture of: what it carries, with aliases, broader and narrower tags.

    The rule is that of `related_tags`, which says it for one tag.
    """
    related = [
        (tag_row, other_row)
        for named in relations.values()
        for tag, others in named.items()
        for other in others
        if (tag_row := index.tag_row(tag)) is not None and (other_row := index.tag_row(other)) is not None
    ]
    if not related:
        return index.by_image
    offsets, tag_rows = index.by_image
    cells = [np.repeat(np.arange(index.num_images), np.diff(offsets)) * index.num_tags + tag_rows]
    for one, another in related:
        cells.append(index.posting_list(one).astype(np.int64) * index.num_tags + another)
        cells.append(index.posting_list(another).astype(np.int64) * index.num_tags + one)
    images, spared = np.divmod(np.unique(np.concatenate(cells)), index.num_tags)
    return np.searchsorted(images, np.arange(index.num_images + 1)), spared


@dataclass(frozen=True)
class TrainingSet:
    """What batches are drawn from."""

    pairs: tuple[np.ndarray, np.ndarray]  # tag rows and image rows (P,)
    num_tags: int  # T
    carried: ByImage
    spared: ByImage  # `carried` itself where no tag is related to another
    frequency_weighting: float

    @property
    def vocabulary(self) -> np.ndarray:
        """Return the rows (V,) of the tags that are trained on, ascending."""
        return np.unique(self.pairs[0])

    @property
    def images(self) -> np.ndarray:
        """Return the rows of the images that are trained on, ascending."""
        return np.unique(self.pairs[1])

    def drawn_images(self, draws: str) -> np.ndarray:
        """Return the image rows (n,) of all that an epoch of an objective draws: `images`, or pairs."""
        return self.images if draws == "images" else self.pairs[1]

    @property
    def prior(self) -> np.ndarray:
        """Return (V,) the share of these images that carry each of these tags."""
        counts = np.bincount(self.pairs[0], minlength=self.num_tags)[self.vocabulary]
        return np.asarray(counts / len(self.images))

    @property
    def weights(self) -> np.ndarray | None:
        """Return (T,) float32, how much each tag counts, with mean 1 over the pairs; None where all count alike."""
        if not self.frequency_weighting:
            return None
        frequency = np.maximum(np.bincount(self.pairs[0], minlength=self.num_tags), 1)
        weights = frequency**-self.frequency_weighting
        return np.asarray(weights / weights[self.pairs[0]].mean(), dtype=np.float32)


class FeatureSource(Protocol):
    """Where batches get the features of their images from, and with that the order in which they can be drawn."""

    def stretches(self, num_drawn: int, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Yield what is drawn (num_drawn), once each, by stretches of whole batches; what is left at the end is not.

        Features can be gathered until the next stretch is asked for.
        """

    def gather(self, image_rows: Tensor) -> Tensor:
        """Return features (C, W) of image rows (C,), as stored, on the device of the rows."""


class ResidentFeatures:
    """Features that lie where batches are made: (N, W) of all images, or (m, W) of the ascending `image_rows` (m,)."""

    def __init__(self, features: Tensor, device: torch.device, image_rows: Tensor | None = None) -> None:
        self._features = features.to(device)
        self._image_rows = None if image_rows is None else image_rows.to(device)

    def stretches(self, num_drawn: int, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Yield whole batches of all that is drawn at once, since all features are at hand."""
        device = self._features.device
        generator = torch.Generator(device).manual_seed(seed)
        order = torch.randperm(num_drawn, generator=generator, device=device)
        yield order[: num_drawn - num_drawn % batch_size]

    def gather(self, image_rows: Tensor) -> Tensor:
        """Return features (C, W) of image rows (C,)."""
        places = image_rows if self._image_rows is None else torch.searchsorted(self._image_rows, image_rows)
        return self._features.index_select(0, places)


class Batches(ABC):
    """All that is drawn from once an epoch, in an order that depends on seed and epoch alone.

    Nothing of an earlier epoch is needed to draw a later one, so a resumed run draws what an unbroken one would.
    """

    def __init__(
        self,
        training: TrainingSet,
        features: FeatureSource,
        batch_size: int,
        seed: int,
        device: torch.device,
        epoch: Callable[[], int],
        rank: Rank,
        least: int,
    ) -> None:
        """Prepare to draw; `least` is how much the one of all processes has that has the least."""
        self._features = features
        self._carried = TagLists(training.carried, training.num_tags, device)
        self._spared = self._carried
        if training.spared is not training.carried:
            self._spared = TagLists(training.spared, training.num_tags, device)
        self._weights = None if training.weights is None else torch.from_numpy(training.weights).to(device)
        self._device = device
        self._batch_size = min(batch_size // rank.of, least)
        self._least = least
        self._seed = seed
        self._epoch = epoch
        self._rank = rank

    @property
    @abstractmethod
    def num_drawn(self) -> int:
        """Return how many this process draws an epoch."""

    @abstractmethod
    def batch(self, drawn: Tensor) -> Batch:
        """Build a batch of what was drawn, (batch_size,) int64."""

    @abstractmethod
    def false_negatives(self, blocked: Mask) -> Tensor:
        """Return which share of a batch's negatives would be wrong without the mask: a scalar."""

    def __len__(self) -> int:
        """Return the steps of an epoch; a last batch that is not full is left out."""
        return self._least // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that `epoch` tells."""
        return islice(self._all(), len(self))  # of several processes one may have more

    def _all(self) -> Iterator[Batch]:
        seed = epoch_seed(self._seed, self._epoch(), self._rank.stream("order"))
        for stretch in self._features.stretches(self.num_drawn, self._batch_size, seed):
            order = stretch.to(self._device)
            for start in range(0, len(order), self._batch_size):
                yield self.batch(order[start : start + self._batch_size])

    def _masked(self, tag_rows: Tensor, image_rows: Tensor, all_tags: Tensor, all_images: Tensor) -> Batch:
        """Build a batch of some tags and images, masked for a loss over those of all processes."""
        relevant = self._carried.mask(all_tags, all_images)
        blocked = relevant if self._spared is self._carried else self._spared.mask(all_tags, all_images)
        return Batch(
            self._epoch(),
            tag_rows,
            image_rows,
            self._features.gather(image_rows),
            None if self._weights is None else self._weights[all_tags],
            self.false_negatives(blocked),
            relevant,
            blocked,
        )


class PairBatches(Batches):
    """Batches of pairs; with `fixed_wrong`, B more images: that of pair i + 3 as the wrong one of pair i."""

    def __init__(
        self,
        training: TrainingSet,
        features: FeatureSource,
        batch_size: int,
        seed: int,
        device: torch.device,
        epoch: Callable[[], int],
        fixed_wrong: bool = False,
        rank: Rank = ALONE,
    ) -> None:
        own, least = share(training.pairs[1], rank)
        self._tag_rows, self._image_rows = (torch.from_numpy(rows[own]).to(device) for rows in training.pairs)
        self._fixed_wrong = fixed_wrong
        super().__init__(training, features, batch_size, seed, device, epoch, rank, least)

    @property
    def num_drawn(self) -> int:
        """Return how many pairs this process draws an epoch."""
        return len(self._tag_rows)

    def batch(self, drawn: Tensor) -> Batch:
        """Build a batch of the pairs (B,) int64."""
        tag_rows, image_rows = self._tag_rows[drawn], self._image_rows[drawn]
        if self._fixed_wrong:
            wrong = self._image_rows[(drawn + WRONG_STEP) % self.num_drawn]
            image_rows = torch.cat([image_rows, wrong])
        return self._masked(
            tag_rows, image_rows, gather_rows(tag_rows, self._rank), gather_rows(image_rows, self._rank)
        )

    def false_negatives(self, blocked: Mask) -> Tensor:
        """Return the share of all pictures but a pair's own, or of the fixed wrong ones, that are none."""
        size = blocked.size
        if self._fixed_wrong:
            return (blocked.lists[size:] == blocked.places[:, None]).any(dim=1).float().mean()
        return (blocked.counts().sum() - size) / (size * (size - 1))


class ImageBatches(Batches):
    """Batches of images, each beside all tags that are trained on."""

    def __init__(
        self,
        training: TrainingSet,
        features: FeatureSource,
        batch_size: int,
        seed: int,
        device: torch.device,
        epoch: Callable[[], int],
        rank: Rank = ALONE,
    ) -> None:
        own, least = share(training.images, rank)
        self._image_rows = torch.from_numpy(training.images[own]).to(device)
        self._vocabulary = torch.from_numpy(training.vocabulary).to(device)
        super().__init__(training, features, batch_size, seed, device, epoch, rank, least)

    @property
    def num_drawn(self) -> int:
        """Return how many images this process draws an epoch."""
        return len(self._image_rows)

    def batch(self, drawn: Tensor) -> Batch:
        """Build a batch of the images at (C,) int64 places among those trained on."""
        tag_rows, image_rows = self._vocabulary, self._image_rows[drawn]
        return self._masked(tag_rows, image_rows, tag_rows, image_rows)

    def false_negatives(self, blocked: Mask) -> Tensor:
        """Return the share of all tags but one an image that are none."""
        num_images = len(blocked.lists)
        return (blocked.counts().sum() - num_images) / max(1, num_images * (blocked.size - 1))


def open_batches(
    training: TrainingSet,
    features: FeatureSource,
    draws: str,
    cfg: TrainConfig,
    device: torch.device,
    epoch: Callable[[], int],
    rank: Rank = ALONE,
) -> Batches:
    """Return the batches that an objective learns from: `pairs`, pairs with a `fixed_wrong` picture, or `images`."""
    if draws == "images":
        return ImageBatches(training, features, cfg.batch_size, cfg.seed, device, epoch, rank)
    fixed_wrong = draws == "fixed_wrong"
    return PairBatches(training, features, cfg.batch_size, cfg.seed, device, epoch, fixed_wrong, rank)
