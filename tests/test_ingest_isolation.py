"""The gate in processes: one bad image costs one verdict, and no process outlives its parent."""

import functools
import io
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from crawl.config import GateOptions
from crawl.ingest import Accepted, IsolatedGate, Reason, Refused, ingest
from crawl.ingest.isolation import LOOK_AHEAD
from crawl.ingest.wire import pack_verdict, receive_frame, send_frame, unpack_verdict

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = GateOptions(timeout_s=1.5, memory_mb=512)
PATIENT = replace(OPTIONS, timeout_s=60.0)


def fault():
    raise RuntimeError("a fault of ours\n")


def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


DEEDS = {
    b"segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    b"killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"exit": lambda: os._exit(3),
    b"hang": lambda: time.sleep(1000),
    b"deaf": deaf,
    b"hog": lambda: bytearray(2**32),
    b"fault": fault,
    b"garbage": lambda: Accepted(b"", "wide", None, "", 0, 0, 0),
    b"secret": lambda: Refused(Reason.CORRUPT, os.environ.get("GATE_TEST_TOKEN", "unset")),
    b"pid": lambda: Refused(Reason.CORRUPT, str(os.getpid())),
}


def misbehave(data, options):
    """A judge that does what the image says; workers find it by its name."""
    return DEEDS[data]() if data in DEEDS else Accepted(data, 1, 1, "jpeg", 1, 1, len(data))


def jpeg(level):
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), (level,) * 3).save(stream, "JPEG")
    return stream.getvalue()


def ended(pids, within_s):
    """Wait for processes to end, zombies included."""
    poll = select.poll()
    waiting = set()
    for pid in pids:
        try:
            waiting.add(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + within_s
    while waiting and time.monotonic() < deadline:
        for descriptor, _ in poll.poll(1000 * (deadline - time.monotonic())):
            poll.unregister(descriptor)
            os.close(descriptor)
            waiting.discard(descriptor)
    for descriptor in waiting:
        os.close(descriptor)
    return not waiting


@pytest.fixture(scope="module")
def bad_gate():
    with IsolatedGate(OPTIONS, workers=2, judge=misbehave) as gate:
        yield gate


def test_verdicts_equal_those_of_the_plain_gate_in_order():
    blobs = [jpeg(level) for level in range(0, 250, 5)] + [b"", b"text", jpeg(9)[:-2]]
    with IsolatedGate(PATIENT, workers=2) as gate:
        assert list(gate.map(blobs)) == [ingest(blob, PATIENT) for blob in blobs]


@pytest.mark.parametrize(
    ("blob", "reason", "words"),
    [
        (b"segfault", Reason.CRASHED, "signal 11"),
        (b"exit", Reason.CRASHED, "exit code 3"),
        (b"killed", Reason.OUT_OF_MEMORY, "signal 9"),
        (b"hog", Reason.OUT_OF_MEMORY, "512 MiB"),
        (b"hang", Reason.TIMEOUT, "1.5 s"),
        (b"deaf", Reason.TIMEOUT, "1.5 s"),
        (b"garbage", Reason.CRASHED, "cannot be read"),
        (b"fault", Reason.CRASHED, r"RuntimeError: a fault of ours\n"),
    ],
)
def test_a_bad_image_costs_its_own_verdict_only(bad_gate, blob, reason, words):
    verdicts = list(bad_gate.map([b"0", b"1", blob, b"3", b"4", b"5"]))
    bad = verdicts.pop(2)
    assert [verdict.jpeg for verdict in verdicts] == [b"0", b"1", b"3", b"4", b"5"]
    assert bad.reason == reason
    assert words in bad.detail


def test_many_deaths_in_a_row_lose_nothing(bad_gate):
    blobs = [b"segfault" if number % 3 else b"%d" % number for number in range(15)]
    verdicts = list(bad_gate.map(blobs))
    assert [isinstance(verdict, Accepted) for verdict in verdicts] == [number % 3 == 0 for number in range(15)]
    assert all(verdict.reason == Reason.CRASHED for verdict in verdicts if isinstance(verdict, Refused))


def test_worker_that_dies_between_images_costs_none():
    with IsolatedGate(PATIENT, workers=1, judge=misbehave) as gate:
        pid = int(gate.ingest(b"pid").detail)
        os.kill(pid, signal.SIGKILL)
        assert ended([pid], within_s=10)
        assert gate.ingest(b"next").jpeg == b"next"


def test_image_beyond_the_memory_limit_is_out_of_memory():
    row = bytes(1 + 4000)
    pack = zlib.compressobj(1)
    packed = b"".join(pack.compress(row * 100) for _ in range(80)) + pack.flush()
    bodies = [(b"IHDR", struct.pack(">IIBBBBB", 8000, 8000, 4, 3, 0, 0, 0)), (b"PLTE", bytes(6)), (b"IDAT", packed)]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*bodies, (b"IEND", b"")]
    ]
    image = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    with IsolatedGate(replace(PATIENT, memory_mb=256), workers=1) as gate:
        assert gate.ingest(image).reason == Reason.OUT_OF_MEMORY
        assert gate.ingest(jpeg(7)) == ingest(jpeg(7), PATIENT)


def test_few_images_are_read_ahead(bad_gate):
    taken = []
    verdicts = bad_gate.map(taken.append(number) or b"%d" % number for number in range(1000))
    next(verdicts)
    verdicts.close()
    assert len(taken) <= LOOK_AHEAD * bad_gate.num_workers


def test_threads_of_a_server_share_the_workers(bad_gate):
    with ThreadPoolExecutor(8) as threads:
        blobs = [b"%d" % number for number in range(200)]
        assert [verdict.jpeg for verdict in threads.map(bad_gate.ingest, blobs)] == blobs


def test_oversized_file_is_refused_without_a_worker():
    gate = IsolatedGate(replace(OPTIONS, max_bytes=3), workers=1)
    assert gate.ingest(b"four").reason == Reason.TOO_MANY_BYTES


def test_worker_sees_no_token_of_the_environment(monkeypatch):
    monkeypatch.setenv("GATE_TEST_TOKEN", "hunter2")
    with IsolatedGate(PATIENT, workers=1, judge=misbehave) as gate:
        assert gate.ingest(b"secret").detail == "unset"


def test_judge_that_no_worker_can_find_is_an_error():
    with IsolatedGate(OPTIONS, workers=1, judge=lambda data, options: None) as gate:
        with pytest.raises(RuntimeError, match="did not start"):
            gate.ingest(b"x")
        with pytest.raises(RuntimeError, match="did not start"):
            gate.ingest(b"x")


def test_closed_gate_says_so():
    with IsolatedGate(OPTIONS, workers=1, judge=misbehave) as gate:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        gate.ingest(b"x")


def test_an_interrupt_ends_busy_and_idle_workers():
    with pytest.raises(KeyboardInterrupt):
        interrupted_while_busy(seen := [])
    busy, *pids = seen
    busy.join(timeout=10)
    assert not busy.is_alive()
    assert ended(pids, within_s=0.1)


def interrupted_while_busy(seen):
    with IsolatedGate(PATIENT, workers=2, judge=misbehave) as gate:
        seen.append(threading.Thread(target=gate.ingest, args=(b"hang",)))
        seen.extend({int(verdict.detail) for verdict in gate.map([b"pid"] * 20)})
        seen[0].start()
        raise KeyboardInterrupt


PARENT = """
import sys, threading
sys.path.insert(0, "tests")
from crawl.config import GateOptions
from crawl.ingest import IsolatedGate
from test_ingest_isolation import misbehave

with IsolatedGate(GateOptions(timeout_s=1.0), workers=2, judge=misbehave) as gate:
    pids = set()
    while len(pids) < 2:
        pids |= {verdict.detail for verdict in gate.map([b"pid"] * 20)}
    print(*pids, flush=True)
    print(*[type(verdict).__name__ for verdict in gate.map([b"deaf"] * 1000)])
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_when_their_parent_is_stopped(stop):
    command = [sys.executable, "-c", PARENT]
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells silence it for background jobs
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=heard
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(stop)
        try:
            assert parent.wait(timeout=20) != 0
        finally:
            parent.kill()
        assert len(pids) == 2
        assert ended(pids, within_s=10)


def test_worker_imports_stay_light():
    heavy = "{'torch', 'torchvision', 'hydra', 'omegaconf', 'flask', 'pyarrow', 'scipy'}"
    command = f"import sys, crawl.ingest.worker; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)


@pytest.mark.parametrize("verdict", [Accepted(b"\xff\xd8", 1, 2, "png", 3, 4, 5), Refused(Reason.CORRUPT, "why")])
def test_verdicts_survive_the_wire(verdict):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_frame(ours, pack_verdict(verdict))
        assert unpack_verdict(receive_frame(theirs)) == verdict


def test_frame_beyond_its_limit_is_not_read():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(struct.pack(">Q", 2**60))
        with pytest.raises(ValueError, match="limit 10"):
            receive_frame(theirs, max_bytes=10)


def test_half_an_answer_ends_at_the_deadline():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(struct.pack(">Q", 100) + b"half")
        with pytest.raises(TimeoutError):
            receive_frame(theirs, deadline=time.monotonic() + 0.05)
