"""A training step recorded once as a CUDA graph and replayed, so that the host's pace does not count."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

EAGER_STEPS = 3  # before a recording: libraries, the optimizer and the compiler allocate at first


class CapturedStep:
    """Calls a step as it is at first, then records it, and from then on copies batches in and replays it.

    The step must neither wait for the device nor leave its work in memory that it allocates anew: what it changes
    (weights, the optimizer's state, meters) it changes in place. Recording runs nothing, so that no step counts twice.
    """

    def __init__(self, step: Callable[[Any], None]) -> None:
        self._step = step
        self._eager_left = EAGER_STEPS
        self._kind: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Any = None

    def __call__(self, batch: Any, kind: Hashable = None) -> None:
        """Take a step; a recording serves batches of one kind and of the same shapes."""
        if kind != self._kind:  # what is compiled for it must not be compiled while recording
            self._kind, self._graph, self._eager_left = kind, None, max(1, self._eager_left)
        if self._eager_left:
            self._eager_left -= 1
            _beside(lambda: self._step(batch))
            return
        graph = self._graph or self._record(batch)
        for target, source in zip(_tensors(self._batch), _tensors(batch), strict=True):
            target.copy_(source)
        graph.replay()

    def _record(self, batch: Any) -> torch.cuda.CUDAGraph:
        self._batch, self._graph = copy.deepcopy(batch), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step(self._batch)
        return self._graph


def _beside(call: Callable[[], None]) -> None:
    """Call on another stream, as CUDA wants what is to be recorded."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a dataclass and of the dataclasses in it, always in one order."""
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)
