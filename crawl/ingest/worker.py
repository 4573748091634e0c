"""The process that decodes for `IsolatedGate`, started as `python -m crawl.ingest.worker`.

It imports neither Hydra nor torch (0.2 s instead of 0.6 s to start anew after a crash), hence the plain namespace
in place of `GateOptions`.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from crawl.ingest.verdict import Accepted, Reason, Refused, printable
from crawl.ingest.wire import READY, pack_verdict, receive_frame, send_frame

if TYPE_CHECKING:
    from crawl.config import GateOptions

_GRACE_S = 1.0  # the parent ends a slow worker first; this alarm is for a parent that died


def main() -> None:
    """Answer every frame with a verdict until the other end closes."""
    descriptor, judge_name, options_json = sys.argv[1:]
    options = cast("GateOptions", SimpleNamespace(**json.loads(options_json)))
    judge = pkgutil.resolve_name(judge_name)
    connection = socket.socket(fileno=int(descriptor))
    _limit_memory(options.memory_mb * 2**20)
    try:
        send_frame(connection, READY)
        _silence_decoders()
        while True:
            _answer(connection, judge, options)
    except (EOFError, ConnectionError):
        return  # the parent closed its end or died


def _answer(
    connection: socket.socket, judge: Callable[[bytes, GateOptions], Accepted | Refused], options: GateOptions
) -> None:
    blob = receive_frame(connection, max_bytes=options.max_bytes)
    signal.setitimer(signal.ITIMER_REAL, options.timeout_s + _GRACE_S)  # SIGALRM ends the process, also inside C code
    try:
        verdict = judge(blob, options)
    except MemoryError:
        verdict = Refused(Reason.OUT_OF_MEMORY, f"needs more than {options.memory_mb} MiB")
    except Exception as error:  # a fault of ours; the run goes on and the report counts it
        verdict = Refused(Reason.CRASHED, printable(f"{type(error).__name__}: {error}"))
    signal.setitimer(signal.ITIMER_REAL, 0)
    send_frame(connection, pack_verdict(verdict))


def _limit_memory(num_bytes: int) -> None:
    """Let the process add at most `num_bytes` of address space to what it holds now, and write no core files."""
    if sys.platform != "linux":
        return
    import resource  # does not exist everywhere

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _silence_decoders() -> None:
    """Send what C libraries print about each odd file nowhere; errors of the start were still shown."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


if __name__ == "__main__":
    main()
