"""A short queue before work that takes a whole core for a while: a few wait, the rest are told to come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from werkzeug.exceptions import ServiceUnavailable

RETRY_AFTER_S = 5


class Queue:
    """Lets one through at a time while at most `waiting` others wait."""

    def __init__(self, waiting: int) -> None:
        self._places = threading.BoundedSemaphore(1 + waiting)
        self._turn = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the turn for a block.

        Raises:
            ServiceUnavailable: as many wait as may; it carries Retry-After.
        """
        if not self._places.acquire(blocking=False):
            raise busy()
        try:
            with self._turn:
                yield
        finally:
            self._places.release()


def busy() -> ServiceUnavailable:
    """Return the error that tells people and programs when to come back."""
    return ServiceUnavailable(
        "Many pictures are being looked at right now; try again in a few seconds", retry_after=RETRY_AFTER_S
    )
