"""Time the server on a synthetic collection of 1.7 million images and 20,000 tags: `make bench B=serve`.

The server runs as `make serve` starts it, and is asked from a process of its own over keep-alive connections: closed
loop on 1 and on 16 connections (each asks again once it is answered), and open loop on 16 (requests are due at
`--rate` a second, and a latency counts from when its request was due). Every kind of question has many different ones
in turns. Beside it, without HTTP and so flattered: the original project's way (a JSON index, and the network run on
every candidate's feature at query time, here all candidates in one product) and a plain numpy scan of all embeddings.
Then 20,000 requests while the published generation is swapped ten times; every body must be one of the two that the
generations give alone. The last line is one JSON object; `head_*` are of the open loop, requests/s of the closed one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np

from configs.artifacts import atomic_write
from configs.compose import Paths
from configs.generations import CURRENT, current_generation, generations
from features.inverted_index import InvertedIndex
from serve.generation import EMBEDDINGS, KIND, TAG_EMBEDDINGS
from tests.bench.load import Found, Load, digest_of, measure
from tests.bench.result import finish
from tests.bench.synthetic_served import IMAGES, RUN, TAGS, write_served

FEATURE_WIDTH = 2048  # of the original project's network
POOL = 8192  # features that stand for those of all candidates
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as the Makefile has it
SWAPS, SWAP_REQUESTS = 10, 20_000


def questions(directory: Path, count: int) -> dict[str, tuple[str, ...]]:
    """Return the paths of each kind of question, `count` different ones where there are as many."""
    index, rng = InvertedIndex(directory), np.random.default_rng(0)
    head = [index.tags[row] for row in np.argsort(-index.document_frequency)[:count]]
    pairs = [rng.choice(len(head), 2, replace=False) for _ in range(count)]
    words = Path("features/carried/words_200d.txt").read_text(encoding="utf-8").splitlines()
    unknown = [word for word in rng.permutation(words) if word.isalpha() and index.tag_row(word) is None][:count]
    asked = {
        "head": [f"/api/v1/search?q={quote(tag)}" for tag in head],
        "and": [f"/api/v1/search?q={quote(f'{head[a]} {head[b]}')}" for a, b in pairs],
        "not": [f"/api/v1/search?q={quote(f'{head[a]} -{head[b]}')}" for a, b in pairs],
        "unknown": [f"/api/v1/search?q={quote(word)}" for word in unknown],
        "suggest": [f"/api/v1/suggest?q={quote(tag[:length])}" for tag in head for length in (1, 2, 3)],
        "page": [f"/?q={quote(tag)}" for tag in head],
    }
    return {kind: tuple(rng.permutation(paths)) for kind, paths in asked.items()}


@contextmanager
def server(paths: Paths, *overrides: str) -> Iterator[tuple[int, int, float]]:
    """Start the server; give its process, its port, and the seconds until it answered a search."""
    command = [sys.executable, "-m", "serve", f"paths.data={paths.data}", f"paths.runs={paths.runs}", f"run={RUN}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "publish=false", "port=0", *overrides], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port = next(int(found[1]) for line in process.stdout if (found := re.search(r"http://localhost:(\d+)", line)))
        fetch(port, "/api/v1/tags?limit=1")
        yield process.pid, port, time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def fetch(port: int, path: str) -> bytes:
    """Return the body of an answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        body: bytes = response.read()
        return body


def memory_mib(pid: int) -> dict[str, float]:
    """Return resident memory of a process and its workers: `rss_sum` counts shared pages each time, `pss` once."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    found = {"rss_sum": 0.0, "pss": 0.0, "rss_largest": 0.0}
    for each in [str(pid), *children]:
        told = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii")
        rss, pss = (int(re.search(rf"^{name}: +(\d+)", told, re.MULTILINE)[1]) / 1024 for name in ("Rss", "Pss"))  # type: ignore[index]
        found["rss_sum"] += rss
        found["pss"] += pss
        found["rss_largest"] = max(found["rss_largest"], rss)
    return found


def asked(port: int, paths: tuple[str, ...], seconds: float, rate: float) -> dict[str, Found]:
    """Ask one kind of question in all three ways, after each question was asked once."""
    measure(Load(port, paths, connections=4, requests=len(paths)))
    return {
        "closed, 1": measure(Load(port, paths, connections=1, seconds=seconds)),
        "closed, 16": measure(Load(port, paths, connections=16, seconds=seconds)),
        f"{rate:.0f}/s, 16": measure(Load(port, paths, connections=16, seconds=seconds, rate=rate)),
    }


def originals_way(directory: Path, seconds: float) -> float:
    """Return the median milliseconds of a head tag where every candidate goes through the network at query time."""
    index, rng = InvertedIndex(directory), np.random.default_rng(0)
    head = [int(row) for row in np.argsort(-index.document_frequency)[:20]]
    listed = {index.tags[row]: index.posting_list(row).tolist() for row in head}
    tag2picid: dict[str, list[int]] = json.loads(json.dumps(listed))
    features = rng.standard_normal((POOL, FEATURE_WIDTH), dtype=np.float32)
    layer = rng.standard_normal((FEATURE_WIDTH, 128), dtype=np.float32)
    wanted = rng.standard_normal(128, dtype=np.float32)

    def ask(tag: str) -> str:
        candidates = tag2picid[tag]
        scores = []
        for start in range(0, len(candidates), POOL):
            projected = features[: len(candidates[start : start + POOL])] @ layer
            scores += (projected @ wanted / np.linalg.norm(projected, axis=1)).tolist()
        best = sorted(range(len(candidates)), key=lambda at: -scores[at])[:40]
        return json.dumps([{"image": candidates[at], "score": scores[at]} for at in best])

    return median_ms([lambda tag=tag: ask(tag) for tag in tag2picid], seconds)  # type: ignore[misc]


def numpy_scan(directory: Path, seconds: float) -> float:
    """Return the median milliseconds of ranking all images for a tag with one product."""
    index = InvertedIndex(directory)
    embeddings = np.load(directory / EMBEDDINGS, mmap_mode="r").astype(np.float32)
    tags = np.load(directory / TAG_EMBEDDINGS)
    head = [int(row) for row in np.argsort(-index.document_frequency)[:20]]

    def ask(row: int) -> np.ndarray:
        scores = np.full(index.num_images, -2.0, np.float32)
        carrying = index.posting_list(row)
        scores[carrying] = (embeddings @ tags[row])[carrying]
        best = np.argpartition(-scores, 40)[:40]
        return best[np.argsort(-scores[best], kind="stable")]

    return median_ms([lambda row=row: ask(row) for row in head], seconds)  # type: ignore[misc]


def median_ms(asks: list[Callable[[], object]], seconds: float) -> float:
    """Return the median milliseconds of some calls, made in turns for some seconds, each three times at most."""
    took, end = [], time.perf_counter() + seconds
    for ask in asks * 3:
        start = time.perf_counter()
        ask()
        took.append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return statistics.median(took) * 1e3


def point_to(root: Path, directory: Path) -> None:
    """Put a generation in force, as publishing does."""
    atomic_write(root / CURRENT, directory.name + "\n")


def swapped(paths: Paths, port: int, questions: tuple[str, ...], requests: int, swaps: int) -> dict[str, int]:
    """Ask while generations are swapped; count failures and answers that no single generation gives."""
    root = paths.artifact(KIND) / RUN
    first = current_generation(root, "")
    pair = [first, next(each for each in generations(root) if each != first)]
    alone: dict[str, set[str]] = {path: set() for path in questions}
    for directory in (*pair[::-1], first):
        point_to(root, directory)
        time.sleep(1.0)
        while any(json.loads(fetch(port, questions[0]))["generation"] != directory.name for _ in range(20)):
            time.sleep(0.1)
        for path in questions:
            alone[path].add(digest_of(fetch(port, path)))
    found: list[Found] = []
    done = threading.Event()

    def ask() -> None:
        while not found or not done.is_set():  # however fast they are answered, they go on until the last swap
            found.append(measure(Load(port, questions, 16, requests=requests, digests=True)))

    load = threading.Thread(target=ask)
    load.start()
    for swap in range(1, swaps + 1):
        time.sleep(0.5)
        point_to(root, pair[swap % 2])
    time.sleep(0.5)
    done.set()
    load.join()
    point_to(root, first)
    seen: dict[str, set[str]] = {path: set() for path in questions}
    for each in found:
        for path, digests in each.bodies.items():
            seen[path] |= set(digests)
    return {
        "requests": sum(each.answers for each in found),
        "failures": sum(each.failures for each in found),
        "mixed": sum(len(digests - alone[path]) for path, digests in seen.items()),
        "seen_in_both": sum(len(digests) == 2 for digests in seen.values()),
    }


def report(answers: dict[str, dict[str, Found]]) -> None:
    """Print the table."""
    print(f"{'question':<10}{'loop, connections':<18}{'answers/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'failures':>10}")
    for kind, ways in answers.items():
        for way, found in ways.items():
            p50, p99 = found.quantile_ms(0.5), found.quantile_ms(0.99)
            print(f"{kind:<10}{way:<18}{found.rate:>11,.0f}{p50:>9.2f}{p99:>9.2f}{found.failures:>10}", flush=True)


def main() -> None:
    """Publish, serve, ask, swap and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--tags", type=int, default=TAGS)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each kind of question and way of asking")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second of the open loop")
    parser.add_argument("--questions", type=int, default=200, help="different ones of each kind")
    parser.add_argument("--folder", type=Path, help="where the collection stays, to be used again")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tagtower-serve-") as temporary:
        root = options.folder or Path(temporary)
        paths = write_served(root, options.images, options.tags)
        served = current_generation(paths.artifact(KIND) / RUN, "")
        print(f"{options.images:,} images, {options.tags:,} tags; the load generator runs on the same cores")
        with server(paths, f"workers={options.workers}") as (pid, port, start_s):
            asking = questions(served, options.questions)
            answers = {kind: asked(port, each, options.seconds, options.rate) for kind, each in asking.items()}
            memory = memory_mib(pid)
            report(answers)
        original_ms, scan_ms = originals_way(served, 20.0), numpy_scan(served, 20.0)
        write_served(root, options.images // 8, options.tags // 8, seed=1)
        point_to(paths.artifact(KIND) / RUN, served)
        with server(paths, f"workers={options.workers}") as (_, port, _):
            common = [path for path in asking["head"] if json.loads(fetch(port, path))["num_matches"]]
            swaps = swapped(paths, port, tuple(common[:50]), SWAP_REQUESTS, SWAPS)
    head = answers["head"]
    alone, closed, opened = head.values()
    print(f"start {start_s:.2f} s, memory {memory}, original's way {original_ms:.0f} ms, numpy scan {scan_ms:.0f} ms")
    print(f"{swaps['requests']:,} requests over {SWAPS} swaps: {swaps}")
    figures = {
        "head_p50_ms": round(opened.quantile_ms(0.5), 2),
        "head_p99_ms": round(opened.quantile_ms(0.99), 2),
        "offered_per_s": options.rate,
        "requests_per_s": round(closed.rate),
        "closed_p50_ms": round(closed.quantile_ms(0.5), 2),
        "closed_p99_ms": round(closed.quantile_ms(0.99), 2),
        "alone_p50_ms": round(alone.quantile_ms(0.5), 2),
        "start_s": round(start_s, 2),
        "rss_mib": round(memory["pss"]),
        "rss_sum_mib": round(memory["rss_sum"]),
        "original_ms": round(original_ms, 1),
        "scan_ms": round(scan_ms, 1),
        "swaps": swaps,
        "all": {
            kind: {
                way: [round(f.rate), round(f.quantile_ms(0.5), 2), round(f.quantile_ms(0.99), 2)]
                for way, f in ways.items()
            }
            for kind, ways in answers.items()
        },
    }
    ratios = {
        "original": round(original_ms / alone.quantile_ms(0.5), 1),
        "numpy_scan": round(scan_ms / alone.quantile_ms(0.5), 1),
    }
    finish("serve", ratios, figures)


if __name__ == "__main__":
    main()
