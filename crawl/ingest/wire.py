"""Frames between the gate and its workers: lengths, a JSON header, bytes. No pickle: a worker may be taken over."""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import asdict

from crawl.ingest.verdict import Accepted, Reason, Refused, printable

READY = b"ready"
_LENGTH = struct.Struct(">Q")
_CHUNK = 1 << 20
_NUMBERS = ("width", "height", "original_width", "original_height", "original_bytes")
_ACCEPTED_FIELDS: dict[str, type] = dict.fromkeys(_NUMBERS, int) | {"original_format": str}
_MAX_REPLY = 256 * 2**20  # bytes; the largest JPEG a worker may answer with


def send_frame(connection: socket.socket, body: bytes) -> None:
    """Send one frame, within the time-out set on the connection."""
    connection.sendall(_LENGTH.pack(len(body)))
    connection.sendall(body)


def receive_frame(connection: socket.socket, max_bytes: int = _MAX_REPLY, deadline: float | None = None) -> bytes:
    """Receive one frame.

    Args:
        connection: a stream socket.
        max_bytes: a longer frame is refused.
        deadline: of `time.monotonic`, None = wait for ever.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the deadline passed.
        ValueError: the frame is too long.
    """
    length = int.from_bytes(_receive(connection, _LENGTH.size, deadline), "big")
    if length > max_bytes:
        raise ValueError(f"a frame of {length} bytes, limit {max_bytes}")
    return _receive(connection, length, deadline)


def _receive(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    received = bytearray()
    while len(received) < length:
        set_deadline(connection, deadline)
        chunk = connection.recv(min(_CHUNK, length - len(received)))
        if not chunk:
            raise EOFError
        received += chunk
    return bytes(received)


def set_deadline(connection: socket.socket, deadline: float | None) -> None:
    """Let the next operation end at `deadline` with a TimeoutError."""
    connection.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))


def pack_verdict(verdict: Accepted | Refused) -> bytes:
    """Write a verdict as header length, JSON header and JPEG bytes."""
    facts = asdict(verdict)
    jpeg: bytes = facts.pop("jpeg", b"")
    header = json.dumps(facts).encode()
    return _LENGTH.pack(len(header)) + header + jpeg


def unpack_verdict(body: bytes) -> Accepted | Refused:
    """Read what `pack_verdict` wrote.

    Raises:
        ValueError, TypeError, LookupError, struct.error: the bytes are no verdict.
    """
    (length,) = _LENGTH.unpack_from(body)
    facts = json.loads(body[_LENGTH.size : _LENGTH.size + length])
    if "reason" in facts:
        return Refused(Reason(facts["reason"]), printable(str(facts["detail"])))
    if {name: type(value) for name, value in facts.items()} != _ACCEPTED_FIELDS:
        raise ValueError(f"no fields of an accepted image: {sorted(facts)}")
    return Accepted(body[_LENGTH.size + length :], **facts)
