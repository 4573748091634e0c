"""Training in several processes, each with its part of the images; every step sees the batches of all as one.

n rows of this process, R processes, D width of an embedding.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from configs.artifacts import ArtifactError

PATIENCE = timedelta(days=7)  # of a process that waits for the others; those that die end all
GRACE_S = 3.0  # in which the process that caused another's end may say so itself


@dataclass(frozen=True)
class Rank:
    """Which of the processes of a training this is."""

    number: int = 0
    of: int = 1

    @property
    def leads(self) -> bool:
        """Tell whether this one judges, writes and speaks for all."""
        return self.number == 0

    def stream(self, name: str) -> str:
        """Name a use of random numbers that is to differ from process to process."""
        return name if self.leads else f"{name} of process {self.number}"


ALONE = Rank()


def share(image_rows: np.ndarray, rank: Rank) -> tuple[np.ndarray, int]:
    """Divide what is drawn by its images: each process has those of a range of rows, with about equally much to draw.

    Args:
        image_rows: (n,) of all that is drawn.
        rank: of the process that asks.

    Returns:
        The places (m,) among what is drawn that are this process's, and how many the process with the fewest has.

    Raises:
        ArtifactError: a process has nothing.
    """
    if rank.of == 1:
        return np.arange(len(image_rows)), len(image_rows)
    places = len(image_rows) * np.arange(1, rank.of) // rank.of
    owners = np.searchsorted(np.partition(image_rows, places)[places], image_rows, side="right")
    least = int(np.bincount(owners, minlength=rank.of).min())
    if not least:
        raise ArtifactError(f"devices={rank.of} are too many for {len(np.unique(image_rows))} images to train on")
    return np.flatnonzero(owners == rank.number), least


def gather_rows(rows: Tensor, rank: Rank) -> Tensor:
    """Return rows (R n, ...) of all processes, one process after the other; without a gradient."""
    if rank.of == 1:
        return rows
    everybody = rows.new_empty(rank.of * len(rows), *rows.shape[1:])
    distributed.all_gather_into_tensor(everybody, rows.detach().contiguous())
    return everybody


class _Gathered(torch.autograd.Function):
    """Embeddings of all processes; since each computes the whole loss, its own rows are all it needs a gradient of."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, rank: Rank) -> Tensor:
        ctx.rank, ctx.size = rank, len(embeddings)
        return gather_rows(embeddings, rank)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        start = ctx.rank.number * ctx.size
        return outer[0][start : start + ctx.size] * ctx.rank.of, None  # `average_gradients` divides by it


def gather_embeddings(embeddings: Tensor, rank: Rank) -> Tensor:
    """Return embeddings (R n, D) of all processes, for a loss that each computes as a whole."""
    if rank.of == 1:
        return embeddings
    everybody: Tensor = _Gathered.apply(embeddings, rank)
    return everybody


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], rank: Rank) -> None:
    """Give all processes the mean of their gradients, in one message."""
    if rank.of == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    message = torch.cat([each.reshape(-1) for each in gradients])
    distributed.all_reduce(message)
    message /= rank.of
    means = torch.split(message, [each.numel() for each in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def mean_over(values: Tensor, rank: Rank) -> Tensor:
    """Return the mean of values over all processes."""
    total = values.clone()
    if rank.of > 1:
        distributed.all_reduce(total)
    return total / rank.of


def told_by_leader(value: Tensor, rank: Rank) -> Tensor:
    """Return what the process that leads has here; the others wait for it."""
    if rank.of > 1:
        distributed.broadcast(value, src=0)
    return value


@contextmanager
def same_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Draw the same random numbers in all processes, and leave those that each draws for itself as they are."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def launch(target: Callable[..., None], processes: int, kind: str, *arguments: object) -> None:
    """Run `target(rank, *arguments)` in new processes of this machine and return when all have ended well.

    Args:
        target: a function of a module, since the processes import it.
        processes: how many.
        kind: of device, `cpu` or `cuda`, one a process.
        arguments: what can be pickled.

    Raises:
        ArtifactError: what the first of them to fail said, or that one died; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    level, threads = logging.getLogger().getEffectiveLevel(), max(1, torch.get_num_threads() // processes)
    started: dict[Connection, BaseProcess] = {}
    with tempfile.TemporaryDirectory(prefix="tagtower-") as folder:
        try:
            for number in range(processes):
                ours, theirs = context.Pipe(duplex=False)
                rank, own_level = Rank(number, processes), level if number == 0 else logging.ERROR
                told = (rank, kind, Path(folder) / "meeting", theirs, own_level, threads, target, arguments)
                started[ours] = context.Process(target=_enter, args=told, name=f"process {number}", daemon=True)
                started[ours].start()
                theirs.close()
            _listen(dict(started))
        finally:
            for process in started.values():
                process.kill()
                process.join()


def _listen(pipes: dict[Connection, BaseProcess]) -> None:
    """Pass on what processes log until all have ended well."""
    processes, deadline = len(pipes), float("inf")
    dead: list[BaseProcess] = []
    while pipes and time.monotonic() < deadline:
        for pipe in wait(list(pipes), timeout=None if not dead else GRACE_S):
            assert isinstance(pipe, Connection)
            try:
                said = pipe.recv()
            except EOFError:
                process = pipes.pop(pipe)
                process.join()
                if process.exitcode:
                    dead.append(process)
                    deadline = min(deadline, time.monotonic() + GRACE_S)
                continue
            if isinstance(said, BaseException):
                raise said
            logging.getLogger(said.name).handle(said)
    if dead:
        first = min(dead, key=lambda process: process.exitcode or 0)  # a signal's is negative: the others died of that
        raise ArtifactError(
            f"{first.name} of {processes} ended with exit code {first.exitcode}, and the others with it. "
            "Run the same command again: it goes on from the last checkpoint."
        )


class _ToParent(QueueHandler):
    """Hands log records to the process that started this one."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self.queue.send(record)  # type: ignore[attr-defined]


def _enter(
    rank: Rank,
    kind: str,
    meeting: Path,
    parent: Connection,
    level: int,
    threads: int,
    target: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    """Run a target in a process of its own, connected to the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends all
    starter = multiprocessing.parent_process()
    assert starter is not None
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    handler = _ToParent(parent)  # type: ignore[arg-type]
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
    torch.set_num_threads(threads)
    _connect(rank, kind, meeting)
    try:
        target(rank, *arguments)
        distributed.destroy_process_group()
    except (ArtifactError, OSError) as error:
        parent.send(error)
        starter.join()  # an end of this process would be an error of all others


def _connect(rank: Rank, kind: str, meeting: Path) -> None:
    """Meet the others at a file, and talk to them over the loopback interface alone."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    if kind == "cuda":
        torch.cuda.set_device(rank.number)
    distributed.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank.number,
        world_size=rank.of,
        timeout=PATIENCE,
    )


def _end_with(starter: BaseProcess) -> None:
    starter.join()
    os._exit(1)
