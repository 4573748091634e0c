"""The fetching process, seen from the collecting one: what it is told, how it starts, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.artifacts import ArtifactError
from crawl.config import FetchOptions
from crawl.fetch.shares import WHOLE, Share
from crawl.source_config import SOURCES, PartSource, SourceConfig

TOLD = 3  # exit status of a process that has said in one sentence what is wrong
_POLL_S = 0.05
GRACE_S = 4.0  # for answers that are on their way when the process is asked to end
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Order:
    """What a fetching process needs to know."""

    database: str
    collection: str  # whose tombstones are not crossed
    options: FetchOptions
    source: SourceConfig
    dry: bool = False  # ask for rules alone
    share: Share = WHOLE  # of the crawl

    def as_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(told: dict[str, Any]) -> Order:
        """Read it back."""
        kinds = {kind.name: kind for kind in (*SOURCES, PartSource)}
        source = kinds[told["source"]["name"]](**told["source"])
        return Order(
            told["database"],
            told["collection"],
            FetchOptions(**told["options"]),
            source,
            dry=told["dry"],
            share=Share(**told["share"]),
        )


class FetchProcess:
    """A process that fetches until nothing is left to do; it ends when this object is told to, or this process dies."""

    def __init__(self, order: Order) -> None:
        path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crawl.fetch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # Ctrl-C goes to the parent alone, which then ends this one
        )
        assert self._process.stdin is not None
        self._process.stdin.write(order.as_json().encode() + b"\n")
        self._process.stdin.flush()

    @property
    def is_running(self) -> bool:
        """Say whether it still fetches.

        Raises:
            ArtifactError: it ended with an error, which it has printed.
        """
        code = self._process.poll()
        if code == TOLD:
            raise ArtifactError(
                "the fetching process could not go on, as is told above; what was fetched is kept: put that right and "
                "run the same command again"
            )
        if code:
            raise ArtifactError(
                f"the fetching process ended with code {code}; what was fetched is kept, run the same command again"
            )
        return code is None

    def wait(self) -> None:
        """Wait until it has ended by itself.

        Raises:
            ArtifactError: with an error, which it has printed.
        """
        while self.is_running:
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Let answers come in that are on their way, for seconds, and end it."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2 * GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
