"""Where the parts of a job run: in a loop here, or by actors of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from configs.artifacts import ArtifactError

log = logging.getLogger(__name__)
EXECUTORS = ("local", "ray")
CONNECT_TIMEOUT_S = 10.0

Part = TypeVar("Part", contravariant=True)
Result = TypeVar("Result", covariant=True)


@dataclass
class ExecutorConfig:
    """One loop on this machine, or actors on a Ray cluster."""

    name: str = "local"  # local, ray
    address: str = ""  # of the cluster's head, `host:6379` or `auto`; empty starts Ray on this machine
    workers: int = 0  # actors; 0 = as many as the cluster has room for
    cpus: float = 1.0  # of a worker; a share of one lets more workers onto a machine
    gpus: float = 0.0  # of a worker; 1 gives each a card of its own
    retries: int = 3  # of a part whose worker died

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise ValueError(f"executor.name must be one of {', '.join(EXECUTORS)}, got '{self.name}'")
        if self.workers < 0 or self.retries < 0 or self.cpus <= 0 or self.gpus < 0:
            raise ValueError(
                "executor needs workers, retries and gpus of 0 or more and cpus above 0, "
                f"got {self.workers}, {self.retries}, {self.gpus} and {self.cpus}"
            )


class Worker(Protocol[Part, Result]):
    """Does parts of a job, with what it opened for them once."""

    def __call__(self, part: Part) -> Result:
        """Do one part and leave it on disk, so that a part done twice costs time alone."""
        ...

    def close(self) -> None:
        """Let go of what it opened."""
        ...


def map_parts(
    open_worker: Callable[[], Worker[Part, Result]], parts: Sequence[Part], cfg: ExecutorConfig
) -> Iterator[Result]:
    """Yield the result of every part, in the order in which they are done.

    Args:
        open_worker: picklable; called once a worker, where the worker runs.
        parts: picklable; each should take seconds.
        cfg: where to run.

    Raises:
        ArtifactError: a part fails, or its worker died more than `retries` times.
    """
    run = _on_ray if cfg.name == "ray" else _here
    yield from run(open_worker, parts, cfg)


def _here(
    open_worker: Callable[[], Worker[Part, Result]], parts: Sequence[Part], _: ExecutorConfig
) -> Iterator[Result]:
    worker = open_worker()
    try:
        for part in parts:
            yield worker(part)
    finally:
        worker.close()


class _Actor:
    """A worker inside a process of Ray, opened with its first part, so that an error in opening comes back as such."""

    def __init__(self, open_worker: Callable[[], Worker[Any, Any]]) -> None:
        self._open_worker = open_worker
        self._worker: Worker[Any, Any] | None = None

    def run(self, part: Any) -> Any:
        self._worker = self._worker or self._open_worker()
        return self._worker(part)


def _on_ray(
    open_worker: Callable[[], Worker[Part, Result]], parts: Sequence[Part], cfg: ExecutorConfig
) -> Iterator[Result]:
    ray = _connected(cfg)
    try:
        room = min(_room(ray, cfg), cfg.workers or len(parts), len(parts))
        log.info("%d workers on %s", room, cfg.address or "this machine's own Ray")
        actor = ray.remote(_Actor).options(num_cpus=cfg.cpus, num_gpus=cfg.gpus)
        yield from _shared_out(ray, lambda: actor.remote(open_worker), room, parts, cfg.retries)
    finally:
        ray.shutdown()


def _connected(cfg: ExecutorConfig) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    if not cfg.address:
        # This machine alone and out of reach of others, as Ray has it on macOS; the variable means every system.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would let every other process go first
    try:
        import ray  # an extra that only clusters need, and slow to import
    except ImportError as error:
        raise ArtifactError("executor=ray needs the package ray: `pip install ray`, or use executor=local") from error
    own: dict[str, Any] = {} if cfg.address else {"include_dashboard": False}
    _refuse_silence(cfg.address)
    checkout = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}}
    try:
        ray.init(cfg.address or "local", log_to_driver=False, configure_logging=False, runtime_env=checkout, **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise _no_cluster(cfg.address, error) from error
    return ray


def _refuse_silence(address: str) -> None:
    """Knock at `host:port`, where Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"no Ray cluster answers at '{address}' ({error}). Start one with `ray start --head`, or leave "
        "executor.address empty to start Ray on this machine."
    )


def _room(ray: Any, cfg: ExecutorConfig) -> int:
    """Return how many workers the machines of the cluster hold at once; one worker fits on one machine or nowhere."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room_on(machine, cfg) for machine in machines)
    if not room:
        largest = ", ".join(f"{each.get('CPU', 0):g} CPUs and {each.get('GPU', 0):g} GPUs" for each in machines)
        raise ArtifactError(
            f"no worker with {cfg.cpus:g} CPUs and {cfg.gpus:g} GPUs fits on a machine of the cluster ({largest}); "
            "lower executor.cpus or executor.gpus"
        )
    return room


def _room_on(machine: dict[str, float], cfg: ExecutorConfig) -> int:
    by_cpus = int(machine.get("CPU", 0) / cfg.cpus)
    return min(by_cpus, int(machine.get("GPU", 0) / cfg.gpus)) if cfg.gpus else by_cpus


def _shared_out(ray: Any, start: Callable[[], Any], room: int, parts: Sequence[Any], retries: int) -> Iterator[Any]:
    """Give every idle actor the next part; where one dies, another takes its place and its part."""
    idle = [start() for _ in range(room)]
    waiting = [(part, 0) for part in reversed(parts)]
    running: dict[Any, tuple[Any, Any, int]] = {}
    while waiting or running:
        while idle and waiting:
            actor, (part, deaths) = idle.pop(), waiting.pop()
            running[actor.run.remote(part)] = (actor, part, deaths)
        done = ray.wait(list(running))[0][0]
        actor, part, deaths = running.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            if deaths == retries:
                raise ArtifactError(
                    f"the workers of one part died {deaths + 1} times, last: {error}. What is done is kept; run the "
                    "same command again, with fewer executor.workers if memory ran out."
                ) from error
            log.warning("a worker died (%s); its part is done again", type(error).__name__)
            waiting.append((part, deaths + 1))
            idle.append(start())
            continue
        idle.append(actor)
        yield result
