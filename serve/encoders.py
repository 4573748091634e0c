"""From a picture to its embedding in a run's space: the gate for strangers' bytes, the backbone, the image tower.

Opened when first needed, because most servers are never asked, and networks take a second and some memory.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from configs.artifacts import open_artifact
from configs.compose import Paths
from crawl.config import GateOptions
from crawl.ingest import Accepted, IsolatedGate, Refused
from serve.busy import Queue
from serve.searchers.base import Searcher

if TYPE_CHECKING:
    from features.single_picture import SinglePicture
    from serve.run_encoder import RunEncoder

MAX_UPLOAD_BYTES = 16 * 2**20
WAITING = 4  # pictures that wait while one is looked at; half a second each
UPLOAD_TIMEOUT_S = 5.0  # of the gate, for one picture of a person who waits


class Encoders:
    """The encoders of all runs behind one queue; safe from several threads."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._opened: dict[str, tuple[str, RunEncoder]] = {}  # of each run its latest generation
        self._networks: dict[str, SinglePicture] = {}
        self._gate: IsolatedGate | None = None
        self._lock = threading.Lock()
        self._closing = ExitStack()
        self.queue = Queue(WAITING)

    def of(self, searcher: Searcher) -> RunEncoder:
        """Return the encoder of what a searcher serves.

        Raises:
            ArtifactError: the run, its backbone or its towers cannot be opened.
        """
        from serve.run_encoder import open_encoder  # torch takes seconds to import, and most servers never need it

        with self._lock:
            generation, encoder = self._opened.get(searcher.run, ("", None))
            if encoder is None or generation != searcher.generation:
                encoder = open_encoder(self._paths, searcher.run, searcher.generation, self._networks)
                self._opened[searcher.run] = searcher.generation, encoder
            return encoder

    def ingest(self, content: bytes) -> Accepted | Refused:
        """Judge a stranger's bytes in a process of their own, by the gate that the collection passed.

        Raises:
            ArtifactError: there is no collection to tell its gate.
        """
        return self._open_gate().ingest(content)

    def _open_gate(self) -> IsolatedGate:
        with self._lock:
            if self._gate is None:
                config = open_artifact(self._paths.artifact("collection"), "collection", make="make crawl").config
                options = replace(GateOptions(**config["gate"]), max_bytes=MAX_UPLOAD_BYTES, timeout_s=UPLOAD_TIMEOUT_S)
                self._gate = self._closing.enter_context(IsolatedGate(options, workers=1))
            return self._gate

    def close(self) -> None:
        """End the gate's process."""
        with self._lock:
            self._closing.close()
            self._gate = None
