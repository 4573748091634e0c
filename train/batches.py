"""Pairs of a tag and an image that carries it, drawn, gathered and masked where the features lie.

B pairs a batch, C images a batch (B, or 2B with fixed wrong pictures), P training pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.artifacts import ArtifactError
from crawl.records import TRAIN
from features.inverted_index import InvertedIndex

WRONG_STEP = 3  # the original project's wrong picture of pair i is that of pair i + 3


@dataclass(frozen=True)
class Batch:
    """Rows of a batch, and which of its images carry which of its tags."""

    tag_rows: Tensor  # (B,) int64
    image_rows: Tensor  # (C,) int64
    relevant: Tensor  # (B, C) bool


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


class PairBatches:
    """All training pairs once an epoch, in an order that depends on seed and epoch alone.

    Nothing of an earlier epoch is needed to draw a later one, so a resumed run draws what an unbroken one would.
    """

    def __init__(
        self,
        index: InvertedIndex,
        pairs: tuple[np.ndarray, np.ndarray],
        batch_size: int,
        seed: int,
        device: torch.device,
        epoch: Callable[[], int],
        fixed_wrong: bool = False,
    ) -> None:
        self._tag_rows, self._image_rows = (torch.from_numpy(rows).to(device) for rows in pairs)
        offsets, tag_rows = index.by_image
        self._image_offsets = torch.from_numpy(offsets).to(device)
        self._image_tags = torch.from_numpy(tag_rows.astype(np.int64)).to(device)
        self._slot = torch.full((index.num_tags,), -1, dtype=torch.int64, device=device)  # scratch, -1 between calls
        self._batch_size = min(batch_size, len(pairs[0]))
        self._seed = seed
        self._epoch = epoch
        self._fixed_wrong = fixed_wrong

    def __len__(self) -> int:
        """Return the steps of an epoch; a last batch that is not full is left out."""
        return len(self._tag_rows) // self._batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that `epoch` tells."""
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self._epoch(), "order"))
        order = torch.randperm(len(self._tag_rows), generator=generator).to(self._tag_rows.device)
        for step in range(len(self)):
            yield self.batch(order[step * self._batch_size : (step + 1) * self._batch_size])

    def batch(self, pairs: Tensor) -> Batch:
        """Build a batch of the pairs (B,) int64."""
        tag_rows, image_rows = self._tag_rows[pairs], self._image_rows[pairs]
        if self._fixed_wrong:
            wrong = self._image_rows[(pairs + WRONG_STEP) % len(self._image_rows)]
            image_rows = torch.cat([image_rows, wrong])
        return Batch(tag_rows, image_rows, self.relevance(tag_rows, image_rows))

    def relevance(self, tag_rows: Tensor, image_rows: Tensor) -> Tensor:
        """Return (B, C) bool, True where the image carries the tag, from the images' own tag lists."""
        starts, ends = self._image_offsets[image_rows], self._image_offsets[image_rows + 1]
        counts = ends - starts
        columns = torch.repeat_interleave(torch.arange(len(image_rows), device=tag_rows.device), counts)
        first = torch.cumsum(counts, 0) - counts
        within = torch.arange(len(columns), device=tag_rows.device) - first[columns]
        carried = self._image_tags[starts[columns] + within]
        distinct, row_of = torch.unique(tag_rows, return_inverse=True)
        self._slot[distinct] = torch.arange(len(distinct), device=tag_rows.device)
        slots = self._slot[carried]
        self._slot[distinct] = -1
        table = torch.zeros(len(distinct), len(image_rows), dtype=torch.bool, device=tag_rows.device)
        table[slots[slots >= 0], columns[slots >= 0]] = True
        return table[row_of]
