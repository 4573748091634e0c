"""Time `make demo` step by step in a fresh clone with nothing made before: `make bench B=steps`.

The clone holds what is committed. Set-up takes what the package cache of this machine leaves to do; `--cold` gives it
an empty cache. The last step ends when the page answers its first search.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

from features.__main__ import commands
from tests.bench.result import finish

ROOT = Path(__file__).resolve().parents[2]
PORT = 8765


def sample_commands(clone: Path, environment: dict[str, str]) -> list[list[str]]:
    """Return the commands of `make sample` as make would run them, the feature stages one by one."""
    dry = ["make", "-n", "-o", ".venv/.ready", "sample"]
    printed = subprocess.run(dry, cwd=clone, env=environment, capture_output=True, text=True, check=True).stdout
    found = [shlex.split(line) for line in printed.splitlines() if " -m " in line]
    split: list[list[str]] = []
    for command in found:
        stages = commands(command[3:]) if command[2] == "features" else [command[2:]]
        split += [[*command[:2], *stage] for stage in stages]
    return split


def timed(command: list[str], clone: Path, environment: dict[str, str]) -> float:
    """Run one step to its end and return its seconds; its output is shown where it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return time.perf_counter() - started


def first_answer(clone: Path, environment: dict[str, str]) -> float:
    """Start the page as `make demo` does and return the seconds until it has answered a search."""
    started = time.perf_counter()
    command = [".venv/bin/python", "-m", "serve", "paths.data=data/sample", "paths.runs=runs/sample", f"port={PORT}"]
    server = subprocess.Popen(command, cwd=clone, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/?q=dog", timeout=5) as page:
                    page.read()
                return time.perf_counter() - started
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(f"the page ended with {server.returncode}") from None
                time.sleep(0.1)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def main() -> None:
    """Clone, run every step once, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cold", action="store_true", help="set up with an empty package cache")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tagtower-") as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        ours = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "B")  # what `make bench` would hand down
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        if arguments.cold:
            environment["UV_CACHE_DIR"] = str(Path(folder) / "cache")
        seconds = {"set-up": timed(["make", ".venv/.ready"], clone, environment)}
        for command in sample_commands(clone, environment):
            name = command[2] + (" (histogram)" if "backbone=color_histogram" in command else "")
            seconds[name] = timed(command, clone, environment)
        seconds["page answers"] = first_answer(clone, environment)
    for name, value in seconds.items():
        print(f"{name:32}{value:8.1f} s")
    total = sum(seconds.values())
    print(f"{'total':32}{total:8.1f} s")
    finish("steps", {}, {name: round(value, 1) for name, value in {**seconds, "total": total}.items()})


if __name__ == "__main__":
    main()
