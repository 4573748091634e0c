"""The gate in worker processes: what crashes, hangs or eats memory costs one image.

Own code on `subprocess` where a pool library would do, for three reasons. Every pool on `multiprocessing` imports the
caller's main module into its workers, torch and all, and reads their answers with pickle, so that a decoder taken over
by an image could run code in the parent. And with one socket a worker a death belongs to exactly one image, whereas a
pool with a shared queue can lose the task of a worker that dies right after taking it (pebble 5.2.3: 1 of 600 deaths,
and its caller waits for ever).
POSIX only, because a socket is handed to the child.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from crawl.ingest.gate import ingest
from crawl.ingest.limits import check_bytes
from crawl.ingest.verdict import Accepted, Reason, Refusal, Refused
from crawl.ingest.wire import READY, receive_frame, send_frame, set_deadline, unpack_verdict

if TYPE_CHECKING:
    from crawl.config import GateOptions

LOOK_AHEAD = 4  # images a worker that `map` reads before it needs their results
START_TIMEOUT_S = 120.0  # a cold disk under load; a worker starts in 0.2 s
_DYING_S = 5.0  # from closing its socket to the end of a process, under load
_ROOT = Path(__file__).resolve().parents[2]
# The environment may hold tokens; a process that parses strangers' bytes gets what Python needs, no more.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONHASHSEED")
# For glibc, which would otherwise give the pixels of each picture back to the system and ask for them anew.
_KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}

Judge = Callable[[bytes, "GateOptions"], Accepted | Refused]


class IsolatedGate:
    """Runs `ingest` in processes of its own, restarted when an image brings one down.

    A context manager. `map` and `ingest` may be called from several threads; workers are shared among them. Workers
    end with the block, and by themselves when this process is killed: idle ones at once, busy ones a second after
    `options.timeout_s` at the latest.

    Args:
        options: limits of the gate, those of a worker included.
        workers: number of processes, 0 = one a core.
        judge: module-level function that a worker calls on each image.
    """

    def __init__(self, options: GateOptions, workers: int = 0, judge: Judge = ingest) -> None:
        self.options = options
        self.num_workers = workers or os.cpu_count() or 1
        self._workers = [_Worker(options, f"{judge.__module__}:{judge.__qualname__}") for _ in range(self.num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._open = False
        self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="gate")

    def __enter__(self) -> IsolatedGate:
        try:
            for worker in self._workers:
                worker.start()
                self._idle.put(worker)
        except OSError:
            self.close()
            raise
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; images still with them are refused as crashed."""
        self._open = False
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.reap()

    def map(self, blobs: Iterable[bytes]) -> Iterator[Accepted | Refused]:
        """Yield one verdict an image, in the order of `blobs`, of which few are held at a time."""
        pending: deque[Future[Accepted | Refused]] = deque()
        try:
            for blob in blobs:
                pending.append(self._threads.submit(self.ingest, blob))
                if len(pending) >= LOOK_AHEAD * self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def ingest(self, data: bytes) -> Accepted | Refused:
        """Judge one image in the next free worker.

        Raises:
            RuntimeError: a worker does not start, or the gate is closed.
        """
        try:
            check_bytes(len(data), self.options)
        except Refusal as refusal:
            return refusal.refused
        if not self._open:
            raise RuntimeError("the gate is closed; use it inside `with IsolatedGate(options) as gate:`")
        worker = self._idle.get()
        try:
            return worker.judge(data)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process and the socket to it; used by one thread at a time, closed by any."""

    def __init__(self, options: GateOptions, judge_name: str) -> None:
        self._options = options
        self._arguments = (judge_name, json.dumps(asdict(options)))
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._ready = False

    def start(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - no foreign text in the command
                [sys.executable, "-m", "crawl.ingest.worker", str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno()],
                cwd=_ROOT,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C goes to the parent alone, which then ends the workers
            )
        self._ready = False

    def judge(self, data: bytes) -> Accepted | Refused:
        self._await_start()
        deadline = time.monotonic() + self._options.timeout_s
        try:
            set_deadline(self._connection, deadline)
            send_frame(self._connection, data)
            return unpack_verdict(receive_frame(self._connection, deadline=deadline))
        except TimeoutError:
            self._restart(patience_s=0)
            return Refused(Reason.TIMEOUT, f"not done after {self._options.timeout_s:g} s")
        except (EOFError, OSError):
            return self._cause_of_death(self._restart(patience_s=_DYING_S))
        except (ValueError, TypeError, LookupError, struct.error):
            self._restart(patience_s=0)
            return Refused(Reason.CRASHED, "the decoder's answer cannot be read")

    def kill(self) -> None:
        """End the process and let no other follow; whoever waits for its answer sees the socket close."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def reap(self) -> None:
        """Free what the process held, once no thread uses it any more."""
        if self._process is not None:
            self._end(patience_s=0)

    def _await_start(self) -> None:
        if self._closed:
            raise RuntimeError("the gate is closed")
        if self._ready and self._process is not None and self._process.poll() is not None:
            self._restart(patience_s=0)  # ended while idle, so no image is to blame
        if self._ready:
            return
        try:
            answer = receive_frame(self._connection, max_bytes=len(READY), deadline=time.monotonic() + START_TIMEOUT_S)
        except (EOFError, OSError, ValueError) as error:
            code = self._end(patience_s=_DYING_S)
            raise RuntimeError(f"a gate worker did not start, exit code {code}; its own error is above") from error
        self._ready = answer == READY

    def _restart(self, patience_s: float) -> int:
        """Replace the process and return how the old one ended."""
        code = self._end(patience_s)
        if not self._closed:
            self.start()
        return code

    def _cause_of_death(self, code: int) -> Refused:
        if self._closed:
            return Refused(Reason.CRASHED, "the gate was closed")
        if code == -signal.SIGKILL:
            return Refused(Reason.OUT_OF_MEMORY, "killed by signal 9, as the system does when memory runs out")
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        return Refused(Reason.CRASHED, f"the decoder ended with {how}")

    def _end(self, patience_s: float) -> int:
        """Wait for the process to go by itself, else kill it; return its exit code."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._connection.close()
        return code


def _environment() -> dict[str, str]:
    """Return what a worker may see; its search path is ours, so that it finds the same packages."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed_on | _KEEP_FREED | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, sys.path)])}
