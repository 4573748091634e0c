"""Crawl a list of photographs from a server on loopback, beside img2dataset: `make bench B=crawl`.

Both take the same list and write the same WebDataset shards: the aspect kept, the longer side at most 512 px, JPEG of
quality 90 where a picture is made smaller and its own bytes where it is not, the SHA-256 of what came, a row of Parquet
each; neither keeps EXIF. Ours also checks each JPEG to its last bit, asks for robots.txt (the server has none; the gaps
are set to nothing), unites equal pictures, and keeps a state to go on from after a kill, for which every picture goes
through a database. It looks for no near copies, as it does by default, because the peer does not, and because all
pictures here are copies of a few. The peer reads headers that forbid the use, as ours does; it has one process and the
threads at which it takes the least CPU time here.

`photo` are twelve sizes about a megapixel, three quarters of which are no whole multiple of what is stored; `small`
need no scaling. All are laid out of the sample's photographs. A core's rate is pictures by CPU seconds of all processes
of a way, of which the server is none, beyond those of a list with one picture: what a start costs is told beside. The
best of the repeats counts, since whatever else runs on the machine only adds. Memory is the highest sum over a way's
processes, shared pages divided among those that share them. `--many` takes that many tiny pictures through the crawl
and looks at the memory of its processes.
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
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tests.bench.result import finish

PHOTO = [(1024, 768), (1024, 683), (960, 720), (800, 600), (1280, 960), (1200, 800)]
PHOTO += [(768, 1024), (640, 480), (1600, 1200), (1080, 1080), (1000, 667), (1920, 1080)]
SMALL = [(480, 360), (500, 375), (360, 480), (400, 300), (320, 240), (512, 341)]
KINDS = {"photo": PHOTO, "small": SMALL, "tiny": [(64, 48)]}
DISTINCT = 36  # pictures of a kind; each address gets bytes of its own by a comment
SAMPLE = Path(__file__).resolve().parents[2] / "crawl" / "sample"
ROW_PX = 320  # height of a photograph on a picture, a half more than it is stored at
HOST = "127.0.0.1"
PER_HOST = 32  # requests at a time
THREADS = 8  # of the peer

Figures = dict[str, float]
Way = Callable[[Path, Path], list[str]]  # from a list and a folder to a command


def photographs() -> list[Image.Image]:
    """Read the photographs of the sample."""
    found = []
    for path in sorted(SAMPLE.glob("*.tar")):
        with tarfile.open(path) as shard:
            names = sorted(name for name in shard.getnames() if name.startswith("photo") and name.endswith(".webp"))
            opened = [Image.open(io.BytesIO(shard.extractfile(name).read())) for name in names]  # type: ignore[union-attr]
            found += [image.convert("RGB") for image in opened]
    return found


def pictures(kind: str) -> list[bytes]:
    """Lay photographs out in rows until a picture is full, for each of its kind, and encode it."""
    rng, tiles, made = np.random.default_rng(0), photographs(), []
    for number in range(DISTINCT):
        width, height = KINDS[kind][number % len(KINDS[kind])]
        picture, left, top = Image.new("RGB", (width, height)), 0, 0
        while top < height:
            tile = tiles[int(rng.integers(len(tiles)))]
            tile = tile.resize((tile.width * ROW_PX // tile.height, ROW_PX), Image.Resampling.BICUBIC)
            picture.paste(tile, (left, top))
            left, top = (left + tile.width, top) if left + tile.width < width else (0, top + ROW_PX)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
        made.append(stream.getvalue())
    return made


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


def write_list(path: Path, base: str, kind: str, count: int) -> Path:
    """Write the list that both ways take."""
    rows = ({"url": f"{base}/{kind}/{number}.jpg", "tags": "laid,out"} for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ours(listed: Path, output: Path, port: int) -> list[str]:
    """Return our command."""
    fetch = ["fetch.gap_s=0", "fetch.throttle=0", f"fetch.per_host={PER_HOST}", "fetch.contact=bench@localhost"]
    fetch += [f"fetch.allow_hosts=['{HOST}:{port}']"]
    command = [sys.executable, "-m", "crawl.collect", "source=urls", f"source.path={listed}", f"paths.data={output}"]
    return [*command, *fetch, "workers=1", "group_copies=false"]


def theirs(python: Path, listed: Path, output: Path) -> list[str]:
    """Return img2dataset's command for the same."""
    options = {
        **{"url_list": listed, "input_format": "jsonl", "url_col": "url", "caption_col": "tags"},
        **{"output_folder": output, "output_format": "webdataset", "processes_count": 1, "thread_count": THREADS},
        **{"image_size": 512, "resize_mode": "keep_ratio_largest", "resize_only_if_bigger": True},
        **{"encode_quality": 90, "skip_reencode": True, "extract_exif": False, "retries": 0, "enable_wandb": False},
    }
    return [str(python.with_name("img2dataset")), *(f"--{name}={value}" for name, value in options.items())]


def environment(folder: Path) -> dict[str, str]:
    """Return what both ways run in: compiled modules are kept, as they are where people work."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    asked = {"NO_ALBUMENTATIONS_UPDATE": "1"}  # which asks for newer versions of itself
    return kept | asked | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}


def measure(command: list[str], folder: Path) -> Figures:
    """Run a command to its end; return its seconds, those of CPU with all it has started, and its most MiB."""
    before, start, most = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(folder))
    while process.poll() is None:
        most = max(most, sum(memory_of(process.pid).values()))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu_s": cpu, "mib": most}


def memory_of(pid: int) -> Figures:
    """Return MiB of a process and all below it by what they run, a page that several share divided among them."""
    found: Figures = {}
    for each in family(pid):
        try:
            command = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended
            continue
        name = command[2].decode() if len(command) > 2 else "?"
        shares = [int(line.split()[1]) for line in lines if line.startswith("Pss:")]
        found[name] = found.get(name, 0.0) + sum(shares) / 2**10
    return found


def family(pid: int) -> list[int]:
    """Return a process and those that it and its children have started."""
    found = [pid]
    for each in found:
        try:
            tasks = list(Path(f"/proc/{each}/task").iterdir())
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
    return found


def sizes(output: Path) -> list[tuple[int, int]]:
    """Return width and height of what a way wrote, in the order of the list's addresses."""
    tables = sorted({*output.glob("*.parquet"), *output.glob("collection/*.parquet")})
    found = []
    for table in tables:
        for row in pq.read_table(table).to_pylist():
            url = row.get("url") or row.get("source_url")
            found.append((int(url.rsplit("/", 1)[1].removesuffix(".jpg")), row["width"] or 0, row["height"] or 0))
    return [(width, height) for _, width, height in sorted(found)]


def checked(way: str, found: list[tuple[int, int]], expected: Iterable[tuple[int, int]]) -> None:
    """See that a way wrote all pictures in the size that they should have, or a pixel off, as ways of rounding are."""
    wanted = []
    for width, height in expected:
        scale = min(1.0, 512 / max(width, height))
        wanted.append((round(width * scale), round(height * scale)))
    off = [pair for pair in zip(found, wanted, strict=False) if np.abs(np.subtract(*pair)).max() > 1]
    if len(found) != len(wanted) or off:
        raise SystemExit(f"{way} brought {len(found)} of {len(wanted)} pictures, these of another size: {off[:3]}")


def run(way: str, command: list[str], output: Path, kind: str, count: int) -> Figures:
    """Run one way once and look at what it wrote."""
    figures = measure(command, output.parent)
    expected = (KINDS[kind][number % DISTINCT % len(KINDS[kind])] for number in range(count))
    checked(way, sizes(output), expected)
    shutil.rmtree(output)
    return figures


def compared(ways: dict[str, Way], folder: Path, base: str, kind: str, count: int, repeats: int) -> dict[str, Figures]:
    """Return the figures of each way on one kind, the ways taking turns; the first start of each compiles modules."""
    one = write_list(folder / "one.jsonl", base, kind, 1)
    listed = write_list(folder / f"{kind}.jsonl", base, kind, count)
    starts: dict[str, list[Figures]] = {way: [] for way in ways}
    runs: dict[str, list[Figures]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, command in ways.items():
            started = run(way, command(one, folder / way), folder / way, kind, 1)
            if turn:
                starts[way].append(started)
                runs[way].append(run(way, command(listed, folder / way), folder / way, kind, count))
    return {way: rates(starts[way], runs[way], count) for way in ways}


def rates(starts: list[Figures], runs: list[Figures], count: int) -> Figures:
    """Return what the best of the repeats say."""
    start, whole = (min(each["cpu_s"] for each in found) for found in (starts, runs))
    return {
        "images_per_cpu_s": round(count / (whole - start), 1),
        "images_per_cpu_s_with_start": round(count / whole, 1),
        "images_per_s": round(count / min(each["seconds"] for each in runs), 1),
        "start_cpu_s": round(start, 2),
        "mib": round(max(each["mib"] for each in runs), 1),
    }


def num_pictures(database: Path) -> int:
    """Ask the state of a crawl how many pictures it has."""
    found = next(database.glob("urls-*/state.sqlite"), None)
    if found is None:
        return 0
    db = sqlite3.connect(f"file:{found}?mode=ro", uri=True, timeout=10)
    try:
        row = db.execute("SELECT value FROM meta WHERE key = 'num pictures'").fetchone()
    except sqlite3.OperationalError:
        row = None
    finally:
        db.close()
    return int(row[0]) if row else 0


def long_crawl(command: list[str], folder: Path, count: int) -> Figures:
    """Run a long crawl and return MiB of its processes at a tenth of it and at its end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(folder))
    early: Figures = {}
    late: Figures = {}
    start = time.perf_counter()
    while process.poll() is None:
        time.sleep(1)
        sampled = memory_of(process.pid)
        if num_pictures(folder / "many" / "crawls") >= count // 10 and "crawl.fetch" in sampled:  # both are at work
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


def beside_img2dataset(folder: Path, port: int, arguments: argparse.Namespace) -> tuple[Figures, dict[str, object]]:
    """Return ratios and figures of both kinds of pictures."""
    python = arguments.python or img2dataset(folder)
    ways: dict[str, Way] = {"ours": lambda listed, output: ours(listed, output, port)}
    if python:
        ways["img2dataset"] = lambda listed, output: theirs(python, listed, output)
    ratios: Figures = {}
    figures: dict[str, object] = {}
    for kind, count in (("photo", arguments.count), ("small", 2 * arguments.count)):
        rows = compared(ways, folder, f"http://{HOST}:{port}", kind, count, arguments.repeats)
        for way, row in rows.items():
            print(f"{kind:6}{way:12}" + "".join(f"{value:10.1f} {name}" for name, value in row.items()))
        figures |= {f"{kind}_{way}": row for way, row in rows.items()}
        if python:
            ratio = rows["ours"]["images_per_cpu_s"] / rows["img2dataset"]["images_per_cpu_s"]
            ratios["img2dataset" if kind == "photo" else f"img2dataset_{kind}"] = round(ratio, 3)
    return ratios, figures


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=3000, help="photographs, and half of the small pictures")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", type=Path, help="of an environment that has img2dataset; made anew otherwise")
    parser.add_argument("--many", type=int, default=0, help="tiny pictures to look at memory with, such as 100000")
    arguments = parser.parse_args()
    listening = socket.create_server((HOST, 0))
    port = listening.getsockname()[1]
    kinds = {kind: pictures(kind) for kind in KINDS}
    for kind, jpegs in kinds.items():
        print(f"{kind:6}{sum(map(len, jpegs)) / len(jpegs) / 1000:10.1f} kB a picture")
    server = multiprocessing.Process(target=serve, args=(listening, kinds), daemon=True)
    server.start()
    figures: dict[str, object] = {}
    ratios: Figures = {}
    with tempfile.TemporaryDirectory(prefix="tagtower-") as name:
        folder = Path(name)
        if arguments.count:
            ratios, figures = beside_img2dataset(folder, port, arguments)
        if arguments.many:
            listed = write_list(folder / "many.jsonl", f"http://{HOST}:{port}", "tiny", arguments.many)
            found = long_crawl(ours(listed, folder / "many", port), folder, arguments.many)
            print(json.dumps(found, indent=1))
            figures |= found
    server.terminate()
    finish("crawl", ratios, figures)


if __name__ == "__main__":
    main()
