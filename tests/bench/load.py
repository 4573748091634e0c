"""A load generator that costs little: raw sockets with keep-alive on one event loop, in a process of its own.

Closed loop: each connection asks again as soon as it is answered, which tells how much a server can do. Open loop:
requests are due at a fixed rate whether or not earlier ones are answered, and wait for a free connection; a latency
counts from when its request was due, so a server that stalls cannot hide it by being asked less.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}).*?\r\ncontent-length: *(\d+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Load:
    """What is asked of a server on this machine."""

    port: int
    paths: tuple[str, ...]  # in turns
    connections: int = 16
    seconds: float = 5.0
    rate: float = 0.0  # requests a second in the open loop; 0 is the closed loop
    requests: int = 0  # where above 0, stop after so many instead of after `seconds`
    digests: bool = False  # tell which bodies came for each path


@dataclass
class Found:
    """What came back."""

    seconds: float
    latencies_ms: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    broken: int = 0  # connections that ended within an answer, or before one that was asked for
    bodies: dict[str, list[str]] = field(default_factory=dict)  # path -> digests of its bodies, where asked for

    @property
    def answers(self) -> int:
        """Return how many answers came, of any status."""
        return len(self.latencies_ms)

    @property
    def failures(self) -> int:
        """Return how many requests had no answer or one other than 200."""
        return self.broken + self.answers - self.statuses.get("200", 0)

    @property
    def rate(self) -> float:
        """Return answers a second."""
        return self.answers / self.seconds

    def quantile_ms(self, share: float) -> float:
        """Return the latency that `share` of the answers did not exceed."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection:
    """One keep-alive connection that has at most one request under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._buffer = bytearray()
        self._length = 0  # of the whole answer, once its head is read
        self.due = 0.0
        self.path = ""
        self.status = ""
        self.open()

    def open(self) -> None:
        """Connect anew."""
        self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer.clear()

    def send(self, asked: tuple[str, bytes], due: float) -> None:
        """Ask; a request is small enough for the socket's buffer."""
        (self.path, request), self.due, self._length = asked, due, 0
        self._buffer.clear()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what has come; True where the answer is whole.

        Raises:
            ConnectionError: the other side closed before that, or what came is no answer.
        """
        received = self.socket.recv(1 << 18)
        if not received:
            raise ConnectionResetError("closed within an answer")
        self._buffer += received
        if not self._length and b"\r\n\r\n" in self._buffer:
            head = _HEAD.match(self._buffer)
            if head is None:
                raise ConnectionError("an answer without a length")
            self.status = head[1].decode()
            self._length = self._buffer.index(b"\r\n\r\n") + 4 + int(head[2])
        return 0 < self._length <= len(self._buffer)

    @property
    def body(self) -> bytes:
        """Return the body of the answer that came last."""
        return bytes(self._buffer[self._buffer.index(b"\r\n\r\n") + 4 : self._length])


def request_for(path: str) -> bytes:
    """Return the bytes of a request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".encode()


def digest_of(body: bytes) -> str:
    """Return what tells a body from others."""
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def run(load: Load) -> Found:
    """Ask as `load` says, in this process."""
    requests = cycle([(path, request_for(path)) for path in load.paths])
    bodies: dict[str, set[str]] = defaultdict(set)
    free = deque(Connection(load.port) for _ in range(load.connections))
    selector = selectors.DefaultSelector()
    for connection in free:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    found, statuses = Found(0.0), Counter[str]()
    start = time.perf_counter()
    end = start + (load.seconds if not load.requests else 3600)
    left = load.requests or sys.maxsize
    due_at = _schedule(start, load.rate)
    due = next(due_at)
    while True:
        now = time.perf_counter()
        asking = now < end and left > 0
        if not asking and len(free) == load.connections:
            break
        while asking and free and due <= now and left > 0:
            free.popleft().send(next(requests), due if load.rate else now)
            left -= 1
            due = next(due_at)
        wait = max(0.0, due - now) if asking and free else 1.0
        for key, _ in selector.select(wait):
            connection = key.data
            try:
                whole = connection.receive()
            except OSError:
                found.broken += 1
                selector.unregister(connection.socket)
                connection.socket.close()
                connection.open()
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                free.append(connection)
                continue
            if whole:
                found.latencies_ms.append((time.perf_counter() - connection.due) * 1e3)
                statuses[connection.status] += 1
                if load.digests:
                    bodies[connection.path].add(digest_of(connection.body))
                free.append(connection)
    found.seconds, found.statuses = time.perf_counter() - start, dict(statuses)
    found.bodies = {path: sorted(digests) for path, digests in bodies.items()}
    for connection in free:
        connection.socket.close()
    return found


def _schedule(start: float, rate: float) -> Iterator[float]:
    """Yield when requests are due: evenly spread, or at once in the closed loop."""
    number = 0
    while True:
        yield start + number / rate if rate else 0.0
        number += 1


def measure(load: Load) -> Found:
    """Ask as `load` says from a process of its own, so that neither side waits for the other's interpreter."""
    command = [sys.executable, "-m", "tests.bench.load"]
    done = subprocess.run(command, input=json.dumps(asdict(load)), capture_output=True, text=True, check=True)
    return Found(**json.loads(done.stdout))


def main() -> None:
    """Read a load from standard input, write what was found to standard output."""
    asked = json.load(sys.stdin)
    gc.disable()  # a pause would be taken for the server's
    json.dump(asdict(run(Load(**{**asked, "paths": tuple(asked["paths"])}))), sys.stdout)


if __name__ == "__main__":
    main()
