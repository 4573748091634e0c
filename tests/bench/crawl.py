"""Crawl a list of pictures from a server on loopback, beside img2dataset: `make bench B=crawl`.

Both take the same list, keep the aspect, bound the longer side to 512 px at quality 90, write WebDataset shards. Ours
keeps to robots.txt (the server has none) with the gaps set to nothing. A core's rate is images by CPU seconds of all
processes of a way, of which the server is none. `--many` takes that many small pictures through the crawl and looks at
the memory of its processes.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from configs.artifacts import read_manifest
from tests.bench.result import finish

KINDS = {"photo": (1024, 768), "small": (480, 360), "tiny": (64, 48)}
DISTINCT = 32  # drawings of a kind; each address gets bytes of its own by a comment
PORT_HOST = "127.0.0.1"
THREADS = 32


def drawings(kind: str) -> list[bytes]:
    """Draw JPEGs with some detail in them."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DISTINCT):
        layers = [rng.integers(0, 86, (side, side, 3), dtype=np.uint8) for side in (4, 16, 64)]
        smooth = [np.asarray(Image.fromarray(layer).resize(KINDS[kind], Image.Resampling.BICUBIC)) for layer in layers]
        stream = io.BytesIO()
        Image.fromarray(np.sum(smooth, axis=0).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def serve(listening: socket.socket, kinds: dict[str, list[bytes]]) -> None:
    """Answer GET /<kind>/<number>.jpg for ever, on one core."""
    import asyncio

    class Server(asyncio.Protocol):
        def connection_made(self, transport):  # type: ignore[no-untyped-def]
            self.transport, self.buffer = transport, b""

        def data_received(self, data):  # type: ignore[no-untyped-def]
            self.buffer += data
            while b"\r\n\r\n" in self.buffer:
                head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
                self.transport.write(answer(head.split(b" ", 2)[1].decode()))

    def answer(path: str) -> bytes:
        _, kind, name = path.split("/") if path.count("/") == 2 else ("", "", "")
        if kind not in kinds:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        number = int(name.removesuffix(".jpg"))
        jpeg = kinds[kind][number % DISTINCT]
        body = jpeg[:2] + b"\xff\xfe\x00\x0a" + b"%08d" % number + jpeg[2:]
        return b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, sock=listening)
        await server.serve_forever()

    asyncio.run(run())


def write_list(path: Path, base: str, kind: str, count: int) -> None:
    """Write the list that both ways take."""
    rows = ({"url": f"{base}/{kind}/{number}.jpg", "tags": "drawn,noise"} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ours(listed: Path, output: Path, port: int) -> list[str]:
    """Return our command."""
    fetch = ["fetch.gap_s=0", "fetch.throttle=0", f"fetch.per_host={THREADS}", "fetch.contact=bench@localhost"]
    fetch += [f"fetch.allow_hosts=['{PORT_HOST}:{port}']"]
    command = [sys.executable, "-m", "crawl.collect", "source=urls", f"source.path={listed}", f"paths.data={output}"]
    return [*command, *fetch, "workers=1"]


def theirs(python: Path, listed: Path, output: Path) -> list[str]:
    """Return img2dataset's command for the same."""
    options = {
        **{"url_list": listed, "input_format": "jsonl", "url_col": "url", "caption_col": "tags"},
        **{"output_folder": output, "output_format": "webdataset", "processes_count": 1, "thread_count": THREADS},
        **{"image_size": 512, "resize_mode": "keep_ratio_largest", "resize_only_if_bigger": True},
        **{"encode_quality": 90, "retries": 0, "enable_wandb": False},
    }
    return [str(python.with_name("img2dataset")), *(f"--{name}={value}" for name, value in options.items())]


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the CPU seconds of it and its children."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    quiet = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # which asks for newer versions of itself
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def num_images(output: Path) -> int:
    """Count what a way wrote."""
    if (output / "collection").is_dir():
        manifest = read_manifest(output / "collection")
        return int(manifest.facts["num_images"]) if manifest else 0
    return sum(json.loads(path.read_text())["successes"] for path in output.glob("*_stats.json"))


def measure(way: str, command: list[str], output: Path, expected: int) -> dict[str, float]:
    """Run one way once and return its rates; a start costs what it costs."""
    seconds, cpu = timed(command)
    found = num_images(output)
    shutil.rmtree(output)
    if found != expected:
        raise SystemExit(f"{way} brought {found} of {expected} images")
    return {"images_per_s": found / seconds, "images_per_cpu_s": found / cpu}


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}


def resident_of(pid: int) -> dict[str, float]:
    """Return MiB of a process and its children, by what they run."""
    found: dict[str, float] = {}
    for each in [pid, *children_of(pid)]:
        try:
            command = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
            pages = int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        name = command[2].decode() if len(command) > 2 else "?"
        found[name] = found.get(name, 0) + pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return found


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def memory(command: list[str], database: Path, count: int) -> dict[str, float]:
    """Run a long crawl and return MiB of its processes at a tenth of it and at its end."""
    import sqlite3

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    early: dict[str, float] = {}
    late: dict[str, float] = {}
    start = time.perf_counter()
    while process.poll() is None:
        time.sleep(1)
        found = next(database.glob("urls-*/state.sqlite"), None)
        if found is None:
            continue
        db = sqlite3.connect(f"file:{found}?mode=ro", uri=True, timeout=10)
        try:
            row = db.execute("SELECT value FROM meta WHERE key = 'num pictures'").fetchone()
        except sqlite3.OperationalError:
            row = None
        finally:
            db.close()
        done = row[0] if row else 0
        sampled = resident_of(process.pid)
        if done >= count // 10 and "crawl.fetch" in sampled:  # while both processes are at work
            early, late = early or sampled, sampled
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the long crawl ended with {process.returncode}")
    figures = {"images_per_s_of_many": round(count / seconds, 1)}
    figures |= {f"mib_{name}_at_a_tenth": round(value, 1) for name, value in early.items()}
    return figures | {f"mib_{name}_at_the_end": round(value, 1) for name, value in late.items()}


def img2dataset(folder: Path) -> Path | None:
    """Install img2dataset into an environment of its own; None where that cannot be."""
    uv = Path(sys.executable).with_name("uv")
    environment = folder / "environment"
    try:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True, timeout=120)
        install = [uv, "pip", "install", "-q", "--python", environment / "bin" / "python"]
        subprocess.run([*install, "img2dataset", "setuptools<81"], check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"img2dataset is skipped: it cannot be installed ({error})")
        return None
    return environment / "bin" / "python"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=2000, help="pictures of each kind")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", type=Path, help="of an environment that has img2dataset; made anew otherwise")
    parser.add_argument("--many", type=int, default=0, help="small pictures to look at memory with, such as 100000")
    arguments = parser.parse_args()
    listening = socket.create_server((PORT_HOST, 0))
    port = listening.getsockname()[1]
    server = multiprocessing.Process(
        target=serve, args=(listening, {kind: drawings(kind) for kind in KINDS}), daemon=True
    )
    server.start()
    figures: dict[str, object] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tagtower-") as name:
        folder = Path(name)
        python = (arguments.python or img2dataset(folder)) if arguments.count else None
        for kind in ("photo", "small") if arguments.count else ():
            listed = folder / f"{kind}.jsonl"
            write_list(listed, f"http://{PORT_HOST}:{port}", kind, arguments.count)
            ways = {"ours": lambda output, listed=listed: ours(listed, output, port)}
            if python:
                ways["img2dataset"] = lambda output, listed=listed: theirs(python, listed, output)
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(arguments.repeats):
                for way, command in ways.items():
                    runs[way].append(measure(way, command(folder / way), folder / way, arguments.count))
            rows = {way: medians(each) for way, each in runs.items()}
            for way, row in rows.items():
                print(f"{kind:8}{way:14}{row['images_per_s']:9.1f} images/s{row['images_per_cpu_s']:9.1f} images/CPU s")
            figures |= {f"{kind}_{way}": row for way, row in rows.items()}
            if python:
                pair = rows["ours"]["images_per_cpu_s"] / rows["img2dataset"]["images_per_cpu_s"]
                ratios["img2dataset" if kind == "photo" else f"img2dataset_{kind}"] = round(pair, 3)
        if arguments.many:
            write_list(folder / "many.jsonl", f"http://{PORT_HOST}:{port}", "tiny", arguments.many)
            command = ours(folder / "many.jsonl", folder / "many", port)
            figures |= (found := memory(command, folder / "many" / "crawls", arguments.many))
            print(json.dumps(found, indent=1))
    server.terminate()
    finish("crawl", ratios, figures)


if __name__ == "__main__":
    main()
