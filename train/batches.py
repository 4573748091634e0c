"""Pairs of a tag and an image that carries it, drawn, gathered and masked where the features lie.

B pairs a batch, C images a batch (B, or 2B with fixed wrong pictures), P training pairs, T tags, V tags trained on.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.artifacts import ArtifactError
from crawl.records import TRAIN
from features.inverted_index import InvertedIndex
from train.config import TrainConfig

WRONG_STEP = 3  # the original project's wrong picture of pair i is that of pair i + 3
ByImage = tuple[np.ndarray, np.ndarray]  # offsets (N+1,) int64 and tag rows (n,) of the images in turn


@dataclass(frozen=True)
class Batch:
    """Rows of a batch, and what every objective may ask about them."""

    epoch: int
    tag_rows: Tensor  # (B,) int64
    image_rows: Tensor  # (C,) int64
    weights: Tensor | None  # (B,) of the tags; None where all count alike
    false_negatives: Tensor  # scalar, share of the negatives that would be wrong without the mask


@dataclass(frozen=True)
class PairBatch(Batch):
    """Pairs: image i carries tag i, and all other images are looked at for it too."""

    relevant: Tensor  # (B, C) bool, True where the image carries the tag
    blocked: Tensor  # (B, C) bool, True where it carries the tag or a related one, and so is no negative


@dataclass(frozen=True)
class ImageBatch(Batch):
    """Images beside all V tags that are trained on; places are few, where a (V, C) table would be large."""

    relevant_at: Tensor  # (n, 2) int64, tag and image where the image carries the tag
    blocked_at: Tensor  # (n, 2) int64, where it carries the tag or a related one


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


class TagLists:
    """The tags of every image, where the batches are made."""

    def __init__(self, by_image: ByImage, num_tags: int, device: torch.device) -> None:
        offsets, tag_rows = by_image
        self._offsets = torch.from_numpy(offsets).to(device)
        self._tag_rows = torch.from_numpy(tag_rows.astype(np.int64)).to(device)
        self._slot = torch.full((num_tags,), -1, dtype=torch.int64, device=device)  # scratch, -1 between calls

    def of(self, image_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tag rows (n,) of some images, one image after the other, and at which of the images each is."""
        starts, ends = self._offsets[image_rows], self._offsets[image_rows + 1]
        counts = ends - starts
        columns = torch.repeat_interleave(torch.arange(len(image_rows), device=image_rows.device), counts)
        first = torch.cumsum(counts, 0) - counts
        within = torch.arange(len(columns), device=image_rows.device) - first[columns]
        return self._tag_rows[starts[columns] + within], columns

    def places(self, distinct: Tensor, image_rows: Tensor) -> Tensor:
        """Return (n, 2) int64, where in `distinct` tag rows and `image_rows` the image's list has the tag."""
        carried, columns = self.of(image_rows)
        self._slot[distinct] = torch.arange(len(distinct), device=distinct.device)
        slots = self._slot[carried]
        self._slot[distinct] = -1
        return torch.stack([slots, columns], dim=1)[slots >= 0]

    def table(self, tag_rows: Tensor, image_rows: Tensor) -> Tensor:
        """Return (B, C) bool, True where the image's list has the tag; tags may repeat."""
        distinct, row_of = torch.unique(tag_rows, return_inverse=True)
        table = torch.zeros(len(distinct), len(image_rows), dtype=torch.bool, device=tag_rows.device)
        table[tuple(self.places(distinct, image_rows).T)] = True
        return table[row_of]


class Batches(ABC):
    """All that is drawn from once an epoch, in an order that depends on seed and epoch alone.

    Nothing of an earlier epoch is needed to draw a later one, so a resumed run draws what an unbroken one would.
    """

    def __init__(
        self, training: TrainingSet, batch_size: int, seed: int, device: torch.device, epoch: Callable[[], int]
    ) -> None:
        self._carried = TagLists(training.carried, training.num_tags, device)
        self._spared = self._carried
        if training.spared is not training.carried:
            self._spared = TagLists(training.spared, training.num_tags, device)
        self._weights = None if training.weights is None else torch.from_numpy(training.weights).to(device)
        self._device = device
        self._batch_size = min(batch_size, self.num_drawn)
        self._seed = seed
        self._epoch = epoch

    @property
    @abstractmethod
    def num_drawn(self) -> int:
        """Return how many are drawn an epoch."""

    @abstractmethod
    def batch(self, drawn: Tensor) -> Batch:
        """Build a batch of what was drawn, (batch_size,) int64."""

    def __len__(self) -> int:
        """Return the steps of an epoch; a last batch that is not full is left out."""
        return self.num_drawn // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that `epoch` tells."""
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self._epoch(), "order"))
        order = torch.randperm(self.num_drawn, generator=generator).to(self._device)
        for step in range(len(self)):
            yield self.batch(order[step * self._batch_size : (step + 1) * self._batch_size])

    def _weights_of(self, tag_rows: Tensor) -> Tensor | None:
        return None if self._weights is None else self._weights[tag_rows]


class PairBatches(Batches):
    """Batches of pairs; with `fixed_wrong`, B more images: that of pair i + 3 as the wrong one of pair i."""

    def __init__(
        self,
        training: TrainingSet,
        batch_size: int,
        seed: int,
        device: torch.device,
        epoch: Callable[[], int],
        fixed_wrong: bool = False,
    ) -> None:
        self._tag_rows, self._image_rows = (torch.from_numpy(rows).to(device) for rows in training.pairs)
        self._fixed_wrong = fixed_wrong
        super().__init__(training, batch_size, seed, device, epoch)

    @property
    def num_drawn(self) -> int:
        """Return P."""
        return len(self._tag_rows)

    def batch(self, drawn: Tensor) -> PairBatch:
        """Build a batch of the pairs (B,) int64."""
        tag_rows, image_rows = self._tag_rows[drawn], self._image_rows[drawn]
        if self._fixed_wrong:
            wrong = self._image_rows[(drawn + WRONG_STEP) % self.num_drawn]
            image_rows = torch.cat([image_rows, wrong])
        relevant = self._carried.table(tag_rows, image_rows)
        blocked = relevant if self._spared is self._carried else self._spared.table(tag_rows, image_rows)
        return PairBatch(
            self._epoch(),
            tag_rows,
            image_rows,
            self._weights_of(tag_rows),
            self._false_negatives(blocked),
            relevant,
            blocked,
        )

    def _false_negatives(self, blocked: Tensor) -> Tensor:
        size = len(blocked)
        if self._fixed_wrong:
            return blocked[:, size:].diagonal().float().mean()
        return (blocked.sum() - size) / (size * (size - 1))


class ImageBatches(Batches):
    """Batches of images, each beside all tags that are trained on."""

    def __init__(
        self, training: TrainingSet, batch_size: int, seed: int, device: torch.device, epoch: Callable[[], int]
    ) -> None:
        self._image_rows = torch.from_numpy(training.images).to(device)
        self._vocabulary = torch.from_numpy(training.vocabulary).to(device)
        super().__init__(training, batch_size, seed, device, epoch)

    @property
    def num_drawn(self) -> int:
        """Return how many images are trained on."""
        return len(self._image_rows)

    def batch(self, drawn: Tensor) -> ImageBatch:
        """Build a batch of the images at (C,) int64 places among those trained on."""
        tag_rows, image_rows = self._vocabulary, self._image_rows[drawn]
        relevant_at = self._carried.places(tag_rows, image_rows)
        blocked_at = relevant_at if self._spared is self._carried else self._spared.places(tag_rows, image_rows)
        wrong_otherwise = max(1, len(image_rows) * (len(tag_rows) - 1))  # all but the one tag of a pair
        false_negatives = torch.tensor((len(blocked_at) - len(image_rows)) / wrong_otherwise, device=self._device)
        return ImageBatch(
            self._epoch(),
            tag_rows,
            image_rows,
            self._weights_of(tag_rows),
            false_negatives,
            relevant_at,
            blocked_at,
        )


def open_batches(
    training: TrainingSet, draws: str, cfg: TrainConfig, device: torch.device, epoch: Callable[[], int]
) -> Batches:
    """Return the batches that an objective learns from: `pairs`, pairs with a `fixed_wrong` picture, or `images`."""
    if draws == "images":
        return ImageBatches(training, cfg.batch_size, cfg.seed, device, epoch)
    return PairBatches(training, cfg.batch_size, cfg.seed, device, epoch, fixed_wrong=draws == "fixed_wrong")
