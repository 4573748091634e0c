"""Which images of a batch carry which of its tags, kept as lists, because a table of a large batch would not fit.

R tags a batch, C images, L entries of the longest list, T tags, N images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ByImage = tuple[np.ndarray, np.ndarray]  # offsets (N+1,) int64 and tag rows (n,) of the images in turn


@dataclass(frozen=True)
class Mask:
    """Lists of images, in places of tags; the same tag at several places is known by one of them."""

    places: Tensor  # (R,) int64, by which place each tag is known
    lists: Tensor  # (C, L) int64, places of the tags each image's list has; `size` where the batch has not the tag
    size: int  # tags of the whole batch, of which these may be a part

    def part(self, rows: slice, columns: slice) -> Mask:
        """Return the mask of some tags and some images."""
        return Mask(self.places[rows], self.lists[columns], self.size)

    def table(self) -> Tensor:
        """Return (R, C) bool, True where the image's list has the tag."""
        return self.filled(False, True, torch.bool)

    def filled(self, outside: float, inside: float, dtype: torch.dtype) -> Tensor:
        """Return (R, C), `inside` where the image's list has the tag, `outside` elsewhere."""
        rows, columns, device = len(self.places), len(self.lists), self.places.device
        row_of = torch.full((self.size + 1,), rows, dtype=torch.int64, device=device)
        row_of[self.places] = torch.arange(rows, device=device)  # of several places of a tag any will do
        table = torch.full((rows + 1, columns), outside, dtype=dtype, device=device)
        carried = row_of[self.lists] * columns + torch.arange(columns, device=device)[:, None]
        table.view(-1).index_fill_(0, carried.flatten(), inside)
        return table.index_select(0, row_of[self.places])

    def counts(self) -> Tensor:
        """Return (R,) int64, how many of the images carry each tag."""
        carried = self.lists.flatten()
        times = torch.zeros(self.size + 1, dtype=torch.int64, device=carried.device)
        return times.index_add_(0, carried, torch.ones_like(carried))[self.places]


class TagLists:
    """The tags of every image, where the batches are made."""

    def __init__(self, by_image: ByImage, num_tags: int, device: torch.device) -> None:
        offsets, tag_rows = by_image
        self._offsets = torch.from_numpy(offsets).to(device)
        self._tag_rows = torch.from_numpy(tag_rows.astype(np.int64)).to(device)
        self._place = torch.full((num_tags,), -1, dtype=torch.int64, device=device)  # scratch, -1 between calls
        # On CUDA one length serves all batches: to ask for a batch's own would wait for the device, and captured steps
        # want shapes that stay.
        self._longest = int(np.diff(offsets).max(initial=0)) if device.type == "cuda" else None

    def mask(self, tag_rows: Tensor, image_rows: Tensor) -> Mask:
        """Return the mask of tags (R,), which may repeat, and images (C,)."""
        size, device = len(tag_rows), tag_rows.device
        starts = self._offsets[image_rows]
        lengths = self._offsets[image_rows + 1] - starts
        longest = int(lengths.max()) if self._longest is None else self._longest
        within = torch.arange(longest, device=device)
        at = (starts[:, None] + within).clamp(max=len(self._tag_rows) - 1)
        self._place[tag_rows] = torch.arange(size, device=device)
        found, places = self._place[self._tag_rows[at]], self._place[tag_rows]
        self._place[tag_rows] = -1
        lists = torch.where((within < lengths[:, None]) & (found >= 0), found, size)
        return Mask(places, lists, size)
