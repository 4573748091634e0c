"""Listens to what this process and those that it starts ask of the network, by Python's audit events.

A process is heard that gets our `sys.path` as its PYTHONPATH, as the fetching process and the gate's workers do: a
folder in it has a `sitecustomize`, which Python imports at every start.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

# Connections and datagrams, names that the system is asked for, and processes that might do so unheard.
EVENTS = (
    *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"),
    *("socket.gethostbyaddr", "socket.getnameinfo", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork"),
)
_CUSTOMISE = """
import json, os, sys

LOG = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def hear(event, arguments):
    if event in {events!r}:
        told = [each for each in arguments if isinstance(each, (str, int, list, tuple))]
        line = [" ".join(sys.orig_argv[1:3]), event, told]
        os.write(LOG, json.dumps(line, default=repr).encode() + b"\\n")


sys.addaudithook(hear)
"""
_heard: list[list[tuple[str, str, object]]] = []  # of this process, a list for each watch that is on


@dataclass(frozen=True)
class Heard:
    """One thing that a process asked for."""

    process: str  # what it runs, empty for this one
    event: str
    about: object  # address, or name that is looked up


class Watch:
    """Hears while it is entered, and holds what it heard."""

    def __init__(self, folder: Path, patch) -> None:
        self._log = folder / "heard.jsonl"
        (folder / "sitecustomize.py").write_text(_CUSTOMISE.format(log=str(self._log), events=EVENTS))
        self._folder, self._patch = folder, patch
        self._here: list[tuple[str, str, object]] = []

    def __enter__(self) -> Watch:
        _listen()
        self._patch.setattr(sys, "path", [str(self._folder), *sys.path])
        _heard.append(self._here)
        return self

    def __exit__(self, *error: object) -> None:
        _heard.remove(self._here)
        sys.path.remove(str(self._folder))

    @property
    def all(self) -> list[Heard]:
        """Everything that was heard, of other processes first."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        there = [(process, event, told) for process, event, told in map(json.loads, lines)]
        return [Heard(process, event, _subject(event, told)) for process, event, told in [*there, *self._here]]


def _subject(event: str, told: list) -> object:
    """Return what an event is about: the address of a connection, the name of a lookup, the program of a process."""
    return tuple(told[0]) if told and isinstance(told[0], list | tuple) else (told or [""])[0]


def _listen() -> None:
    """Add the hook of this process, which can never be taken away, once."""
    if not getattr(_listen, "is_on", False):
        sys.addaudithook(_hear)
        _listen.is_on = True


def _hear(event: str, arguments: tuple) -> None:
    if _heard and event in EVENTS:
        told = [each for each in arguments if isinstance(each, str | int | list | tuple)]
        for here in _heard:
            here.append(("", event, told))
