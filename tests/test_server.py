"""The server as people start it: workers that share a socket, stop without dropping an answer, and swap generations."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.artifacts import ArtifactError
from configs.generations import current_generation
from serve.server import listen
from tests.bench.load import Connection, request_for
from tests.bench.serve import RUN, point_to, questions, server, swapped
from tests.bench.synthetic_served import write_served

ROOT = Path(__file__).resolve().parent.parent
SLEEPY = """
import os, sys, time
from serve.config import ServeConfig
from serve.server import Server, listen

def app(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("200 OK", [("Content-Length", "5"), ("X-Worker", str(os.getpid()))])
    return Parts()

class Parts(list):
    def __init__(self): super().__init__([b"who", b"le"])
    def close(self): pass

listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
Server(app, listener, ServeConfig(workers=2, threads=2)).run()
"""


@contextmanager
def sleepy():
    process = subprocess.Popen([sys.executable, "-c", SLEEPY], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill() if process.poll() is None else None
        process.wait(30)
        process.stdout.close()


def asked(connection, query=""):
    connection.send(("/", request_for(f"/?{query}")), 0.0)
    return connection


def answered(connection):
    while not connection.receive():
        pass
    return connection.body


def test_every_request_under_way_is_answered_when_the_server_is_told_to_stop():
    with sleepy() as (process, port):
        connections = [Connection(port) for _ in range(4)]
        assert [answered(asked(each)) for each in connections] == [b"whole"] * 4
        for each in connections:
            asked(each, "0.7")
        time.sleep(0.3)  # they are in the app now
        process.send_signal(signal.SIGTERM)
        assert [answered(each) for each in connections] == [b"whole"] * 4
        assert process.wait(20) == 0
        with pytest.raises(OSError, match="refused"):
            Connection(port)
        for each in connections:
            each.socket.close()


def test_a_worker_that_dies_is_replaced_while_the_other_answers():
    with sleepy() as (process, port):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        end = time.monotonic() + 20
        while len(children.read_text().split()) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        dead, *_ = children.read_text().split()
        os.kill(int(dead), signal.SIGKILL)
        while time.monotonic() < end:
            alive = set(children.read_text().split()) - {dead}
            if len(alive) == 2:
                break
            time.sleep(0.1)
        assert len(alive) == 2
        connection = Connection(port)
        assert answered(asked(connection)) == b"whole"
        connection.socket.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_an_address_in_use_is_told_with_the_way_out():
    first = listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(ArtifactError, match=rf"cannot listen on 127.0.0.1:{port} .*PORT="):
        listen("127.0.0.1", port)
    first.close()


def test_an_address_of_another_machine_is_told():
    with pytest.raises(ArtifactError, match="cannot listen on"):
        listen("203.0.113.1", 0)


def test_generations_swapped_under_load_fail_no_request_and_mix_in_no_answer(tmp_path):
    paths = write_served(tmp_path, num_images=400, num_tags=30)
    root = paths.artifact("served") / RUN
    first = current_generation(root, "")
    write_served(tmp_path, num_images=300, num_tags=30, seed=1)
    point_to(root, first)
    with server(paths, "workers=2") as (_, port, _):
        swaps = swapped(paths, port, questions(first, 8)["head"], requests=600, swaps=3)
    assert swaps["requests"] >= 600
    assert swaps["failures"] == swaps["mixed"] == 0
    assert swaps["seen_in_both"] > 0


def test_the_server_starts_without_the_libraries_of_training():
    heavy = "torch gensim torchvision openvino scipy.stats ir_measures matplotlib pytorch_lightning"
    loads = "import serve.app, serve.searchers.current, serve.server, sys"
    code = f"{loads}; print([each for each in '{heavy}'.split() if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
