"""Fetching processes forked from one that has imported everything, where a start of their own only costs time.

Each is a process like any other: it has its own memory and its own connections, and can be killed at any moment.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["crawl.fetch.__main__", "crawl.sources.structured", "crawl.sources.web"])


LARGEST_FILE = "TESTED_LARGEST_FILE"  # bytes, of all that the process writes


class Forked:
    """Stands in for `subprocess.Popen` of the fetching process, with as much of it as `FetchProcess` and tests use."""

    def __init__(self, command, *, stdin, stdout, env, process_group):
        assert command[1:] == ["-m", "crawl.fetch"]
        reading, writing = _FORKS.Pipe(duplex=False)
        self._child = _FORKS.Process(target=_fetch, args=(reading, env))
        self._child.start()
        reading.close()
        self.stdin = os.fdopen(os.dup(writing.fileno()), "wb")
        writing.close()
        self.pid = self._child.pid

    def poll(self):
        return self._child.exitcode

    def wait(self, timeout=None):
        self._child.join(timeout)
        if self._child.exitcode is None:
            raise subprocess.TimeoutExpired("crawl.fetch", timeout)
        return self._child.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._child.kill()


def _fetch(reading, env):
    os.environ.clear()
    os.environ.update(env)
    os.dup2(reading.fileno(), 0)
    reading.close()
    if LARGEST_FILE in env:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # to write more is an error then, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(env[LARGEST_FILE]),) * 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as a process of its own finds it
    from crawl.fetch.__main__ import main

    main()


class QuickProcesses:
    """Stands in for the module `subprocess` in `crawl.fetch.process`."""

    Popen = Forked
    PIPE, DEVNULL, TimeoutExpired = subprocess.PIPE, subprocess.DEVNULL, subprocess.TimeoutExpired
