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
    threads: int = 8  # requests answered at once

    def __post_init__(self) -> None:
        for run in self.served:
            check_name("run", run)
        if len(set(self.runs)) < len(self.runs):
            raise ValueError(f"runs must name each run once, got {', '.join(self.runs)}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must lie in 0..65535 (0: any free one), got {self.port}")
        if self.threads < 1:
            raise ValueError(f"threads must be 1 or more, got {self.threads}")

    @property
    def served(self) -> list[str]:
        """Return the runs that are served, the default first."""
        return self.runs or [self.run]
