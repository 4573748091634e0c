"""The generation in force: newly published ones take over while searches are answered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from configs.artifacts import ArtifactError, open_artifact
from configs.compose import Paths
from configs.generations import CURRENT, current_generation
from features.config import WordsConfig
from features.tag_vectors import open_words
from features.word_tables import WordTable
from serve.generation import KIND, MAKE, SCHEMA_VERSION
from serve.searchers.local import LocalSearcher

log = logging.getLogger(__name__)


@dataclass
class Words:
    """Opens word tables, each once however many runs and generations share it."""

    paths: Paths
    _opened: list[tuple[dict[str, Any], WordTable | None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, config: dict[str, Any]) -> WordTable | None:
        """Open the word table that tag vectors were made with; without it, meaning offers nothing."""
        with self._lock:
            for known, table in self._opened:
                if known == config:
                    return table
            table = None
            try:
                table = open_words(WordsConfig(**config), self.paths)
            except (ArtifactError, TypeError, ValueError) as error:
                log.warning("unknown words get no neighbours by meaning: %s", error)
            self._opened.append((config, table))
            return table


class CurrentSearcher:
    """Gives the searcher of the generation in force; a newly published one takes over between two requests.

    Whoever holds a searcher goes on with it: its files stay open, even where the generation is pruned.
    """

    def __init__(self, paths: Paths, run: str, words: Words | None = None) -> None:
        self._root = paths.artifact(KIND) / run
        self._collection = paths.artifact("collection")
        self._words = words or Words(paths)
        self._lock = threading.Lock()
        self._seen = self._pointer()  # before opening, so that what is published meanwhile is not missed
        self._searcher = self._open()

    def _pointer(self) -> tuple[int, int] | None:
        """Return what tells the file that names the generation from its next state: it is replaced, never edited."""
        try:
            found = (self._root / CURRENT).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _open(self) -> LocalSearcher:
        directory = current_generation(self._root, MAKE)
        manifest = open_artifact(directory, KIND, MAKE, SCHEMA_VERSION)
        return LocalSearcher(directory, self._collection, self._words.open(manifest.facts["words"]))

    def __call__(self) -> LocalSearcher:
        """Return the searcher for one request."""
        if self._pointer() != self._seen and self._lock.acquire(blocking=False):  # others use the old one till then
            try:
                self._take_over()
            finally:
                self._lock.release()
        return self._searcher

    def _take_over(self) -> None:
        seen = self._pointer()
        if seen is None or seen == self._seen:  # another request was faster
            return
        try:
            name = current_generation(self._root, MAKE).name
            if name != self._searcher.generation:
                self._searcher = self._open()
                log.info("serving generation %s", self._searcher.generation)
        except (ArtifactError, OSError) as error:
            log.error("a new generation cannot be served, %s goes on: %s", self._searcher.generation, error)
        self._seen = seen  # where it did not open, not every request tries


def open_searchers(paths: Paths, runs: Iterable[str]) -> dict[str, CurrentSearcher]:
    """Open the generations in force of several runs by name, the first of which is asked where none is named.

    Raises:
        ArtifactError: one of them cannot be served.
    """
    words = Words(paths)
    return {run: CurrentSearcher(paths, run, words) for run in runs}
