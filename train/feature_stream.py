"""Image features that stay on the disk: slices of them in random order, through a buffer that batches are drawn from.

n drawn (pairs, or images), N image rows, M images that are needed, S slices, W width of a feature.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.image_features import FeatureStore

SLICE = 256  # images read at once, 1 MiB of ResNet50's: long enough for a disk, short enough to mix
SLICES_A_WINDOW = 8  # at least; a window of fewer would be no mixture
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container: a number of bytes, or `max`


def memory_bytes() -> int:
    """Return the memory this process may use: that of the machine, not what is free, which would change by the hour."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text(encoding="ascii").strip() if CGROUP_LIMIT.is_file() else "max"
    return min(machine, int(limit)) if limit.isdecimal() else machine


def fits_in_memory(num_bytes: int, device: torch.device, devices: int = 1) -> bool:
    """Tell whether features of so many bytes leave half of the memory of machine and devices to everything else."""
    room = memory_bytes()
    if device.type == "cuda":
        room = min(room, devices * torch.cuda.get_device_properties(device).total_memory)
    return num_bytes <= room // 2


class StreamedFeatures:
    """Features read anew in every epoch; half of the buffer is drawn from while a thread fills the other half.

    Slices are neighbours in a part of the store. They come in random order; as many as fit into half of the buffer are
    a window, and what is drawn of a window comes in random order, too. A buffer that holds all images is one window.
    """

    def __init__(
        self, store: FeatureStore, image_ids: np.ndarray, drawn_images: np.ndarray, buffer: int, device: torch.device
    ) -> None:
        """Find the images without reading any.

        Args:
            store: of their features.
            image_ids: (N,) S16 of all image rows.
            drawn_images: (n,) image rows of what is drawn.
            buffer: images to hold at once.
            device: where batches are made.

        Raises:
            ArtifactError: images without a feature.
        """
        images = np.unique(drawn_images)
        places = store.locate(image_ids[images])
        self._window = len(images) if len(images) <= buffer else max(1, buffer // 2)
        self._slice = min(SLICE, max(1, self._window // SLICES_A_WINDOW))
        self._store, self._places, self._drawn_images, self._device = store, places, drawn_images, device
        lie = np.lexsort((places.row_of, places.part_of))  # the images as they lie on the disk
        self._image_rows, self._part_of, self._row_of = images[lie], places.part_of[lie], places.row_of[lie]
        new = np.diff(self._part_of, prepend=-1) | np.diff(self._row_of // self._slice, prepend=-1)
        self._starts = np.append(np.flatnonzero(new), len(images))  # (S+1,) of the slices
        place_of = np.empty(len(images), dtype=np.int64)
        place_of[lie] = np.arange(len(images))
        drawn_places = place_of[np.searchsorted(images, drawn_images)]
        self._drawn = np.argsort(drawn_places, kind="stable")  # what is drawn, as its images lie
        self._drawn_starts = np.searchsorted(drawn_places[self._drawn], self._starts)
        self._slots = torch.full((len(image_ids),), -1, dtype=torch.int64, device=device)  # of image rows; -1: not held
        self._held = torch.empty(0, store.width, dtype=torch.float16, device=device)
        self._buffers: list[Tensor] = []
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="features")  # one, so that reads never overtake

    def gather(self, image_rows: Tensor) -> Tensor:
        """Return features (C, W) of image rows (C,) of the stretch that was yielded last."""
        return self._held.index_select(0, self._slots[image_rows])

    def stretches(self, num_drawn: int, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Yield what is drawn, once each, by stretches of whole batches.

        What is left of a window because it is too little for a batch joins the next one.
        """
        assert num_drawn == len(self._drawn)
        generator = torch.Generator().manual_seed(seed)
        windows = self._windows(torch.randperm(len(self._starts) - 1, generator=generator).numpy())
        self._allocate(min(2, len(windows)), batch_size)
        left = np.empty(0, dtype=np.int64)
        ahead = self._reader.submit(self._read, windows[0], self._buffers[0][batch_size:])
        for number, window in enumerate(windows):
            buffer, image_rows = self._buffers[number % 2], ahead.result()
            left_rows = torch.from_numpy(np.unique(self._drawn_images[left])).to(self._device)
            buffer[: len(left_rows)] = self.gather(left_rows).cpu()
            if number + 1 < len(windows):
                free = self._buffers[(number + 1) % 2][batch_size:]
                ahead = self._reader.submit(self._read, windows[number + 1], free)
            self._hold(buffer, left_rows, torch.from_numpy(image_rows).to(self._device), batch_size)
            drawn = np.concatenate([left, *(self._drawn_of(each) for each in window)])
            drawn = drawn[torch.randperm(len(drawn), generator=generator).numpy()]
            whole = len(drawn) - len(drawn) % batch_size
            left = drawn[whole:]
            yield torch.from_numpy(drawn[:whole])

    def _windows(self, slices: np.ndarray) -> list[np.ndarray]:
        """Cut slices, in their order, into windows of as many images as half of the buffer holds."""
        cuts, held = [], 0
        for at, count in enumerate(np.diff(self._starts)[slices].tolist()):
            held += count
            if held > self._window:
                cuts.append(at)
                held = count
        return np.split(slices, cuts)

    def _drawn_of(self, number: int) -> np.ndarray:
        return self._drawn[self._drawn_starts[number] : self._drawn_starts[number + 1]]

    def _allocate(self, halves: int, batch_size: int) -> None:
        """Make room for windows, each behind what is left of the one before: less than a batch."""
        shape, pinned = (batch_size + self._window, self._store.width), self._device.type == "cuda"
        while len(self._buffers) < halves:
            self._buffers.append(torch.empty(shape, dtype=torch.float16, pin_memory=pinned))

    def _read(self, window: np.ndarray, target: Tensor) -> np.ndarray:
        """Read a window's slices one behind the other; return their image rows (m,)."""
        rows, at = target.numpy(), 0
        for number in window.tolist():
            start, end = self._starts[number : number + 2].tolist()
            self._read_slice(rows[at : at + end - start], start, end)
            at += end - start
        return np.concatenate([self._image_rows[self._starts[each] : self._starts[each + 1]] for each in window])

    def _read_slice(self, target: np.ndarray, start: int, end: int) -> None:
        """Read the images from `start` to `end`, as they lie, and leave out what of their neighbours is not needed."""
        part, wanted = int(self._part_of[start]), self._row_of[start:end]
        name, size, first = self._places.parts[part], self._places.sizes[part], int(wanted[0])
        span = int(wanted[-1]) - first + 1
        if span == len(wanted):
            self._store.read_into(target, name, size, first)
            return
        neighbours = np.empty((span, self._store.width), dtype=np.float16)
        self._store.read_into(neighbours, name, size, first)
        np.take(neighbours, wanted - first, axis=0, out=target, mode="clip")  # clipping spares a copy; none is outside

    def _hold(self, buffer: Tensor, left_rows: Tensor, image_rows: Tensor, batch_size: int) -> None:
        """Make a buffer the one that is gathered from."""
        self._slots.fill_(-1)
        self._slots[left_rows] = torch.arange(len(left_rows), device=self._device)
        self._slots[image_rows] = batch_size + torch.arange(len(image_rows), device=self._device)
        self._held = buffer.to(self._device)
