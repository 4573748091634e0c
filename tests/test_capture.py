"""A recorded step: every batch counts once, in its order."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from train.capture import EAGER_STEPS, CapturedStep


@dataclass(frozen=True)
class Inner:
    second: Tensor


@dataclass(frozen=True)
class Numbers:
    epoch: int
    first: Tensor
    inner: Inner


class Recorded:
    """Stands in for a CUDA graph: replayed, it takes the step recorded, with what lies in its batch by then."""

    def __init__(self):
        self.step = None

    def replay(self):
        self.step()


@pytest.fixture
def steps(monkeypatch):
    """Steps taken, with a device that records instead of running."""
    taken, recordings = [], []

    @contextmanager
    def recording(graph):
        recordings.append(graph)
        yield
        recordings.append(None)

    def step(batch):
        if recordings and recordings[-1] is not None:
            recordings[-1].step = lambda: taken.append((batch.epoch, batch.first.tolist(), batch.inner.second.item()))
        else:
            taken.append((batch.epoch, batch.first.tolist(), batch.inner.second.item()))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr("train.capture._beside", lambda call: call())
    return taken, recordings, step


def numbers(at, epoch=0):
    return Numbers(epoch, torch.tensor([at, -at]), Inner(torch.tensor(at * 10)))


def test_every_batch_is_taken_once_and_in_order(steps):
    taken, recordings, step = steps
    captured = CapturedStep(step)
    for at in range(EAGER_STEPS + 4):
        captured(numbers(at))
    assert taken == [(0, [at, -at], at * 10) for at in range(EAGER_STEPS + 4)]
    assert len(recordings) == 2  # begun and ended once


def test_batches_of_another_kind_are_recorded_anew(steps):
    taken, recordings, step = steps
    captured = CapturedStep(step)
    for epoch in (0, 0, 0, 0, 1, 1, 2):  # of epoch 1 one eager step, in which what it needs is compiled
        captured(numbers(epoch, epoch), kind=min(epoch, 1))
    assert [(epoch, first[0]) for epoch, first, _ in taken[3:]] == [(0, 0), (1, 1), (1, 1), (1, 2)]
    assert len(recordings) == 2 * 2


def test_the_batch_given_is_left_as_it_is(steps):
    _, _, step = steps
    captured, first = CapturedStep(step), numbers(1)
    for _ in range(EAGER_STEPS + 1):
        captured(first)
    captured(numbers(2))
    assert first.first.tolist() == [1, -1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_recorded_steps_change_what_eager_ones_would():
    total = torch.zeros(2, device="cuda")

    def step(batch):
        total.add_(batch.first * batch.inner.second)

    captured = CapturedStep(step)
    for at in range(EAGER_STEPS + 4):
        inner = Inner(torch.tensor(10.0 * at, device="cuda"))
        captured(Numbers(0, torch.tensor([at, -at], device="cuda"), inner))
    expected = sum(10.0 * at * at for at in range(EAGER_STEPS + 4))
    assert total.tolist() == [expected, -expected]
