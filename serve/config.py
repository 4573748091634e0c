"""Typed configuration of publish and serve."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.compose import Paths, check_name


@dataclass
class PublishConfig:
    """Embed every image of the index with a run, and presort the posting lists."""

    paths: Paths = field(default_factory=Paths)
    run: str = "baseline"  # name of the run under paths.runs

    def __post_init__(self) -> None:
        check_name("run", self.run)


@dataclass
class JudgementsConfig:
    """Write what people said of results as qrels and JSON."""

    paths: Paths = field(default_factory=Paths)


@dataclass
class ServeConfig:
    """Answer searches; publishes first where the run or the index is newer than what is served."""

    paths: Paths = field(default_factory=Paths)
    run: str = "baseline"  # name of the run under paths.runs
    runs: list[str] = field(
        default_factory=list
    )  # several to serve side by side, in place of `run`; the first is shown
    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 shows the page to the network
    port: int = 8000  # 0 takes any free one
    workers: int = 0  # processes that answer, which share what they map; 0: one a core, at most 4
    threads: int = 4  # requests that a worker answers at once
    connections: int = 512  # that a worker keeps open at once; further ones wait
    publish: bool = True  # first where the run or the index is newer; false serves what is published as it is

    def __post_init__(self) -> None:
        for run in self.served:
            check_name("run", run)
        if len(set(self.runs)) < len(self.runs):
            raise ValueError(f"runs must name each run once, got {', '.join(self.runs)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must lie in 0..65535 (0: any free one), got {self.port}")
        if not 0 <= self.workers <= 64:
            raise ValueError(f"workers must lie in 0..64 (0: one a core, at most 4), got {self.workers}")
        if not 1 <= self.threads <= 64:
            raise ValueError(f"threads must lie in 1..64, got {self.threads}")
        if not 1 <= self.connections <= 65535:
            raise ValueError(f"connections must lie in 1..65535, got {self.connections}")

    @property
    def served(self) -> list[str]:
        """Return the runs that are served, the default first."""
        return self.runs or [self.run]
