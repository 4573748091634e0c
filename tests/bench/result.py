"""What benchmarks share: stages run as commands, and one JSON object on the last line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)


def stage(module: str, *overrides: str) -> None:
    """Run one stage to its end."""
    subprocess.run([sys.executable, "-m", module, *overrides], check=True)


def train_and_judge(seed: int, paths: list[str], overrides: list[str]) -> str:
    """Train one run and evaluate it on test; return its name. A finished run is not trained again."""
    run = f"default-{seed}"
    stage("train.fit", f"run={run}", f"seed={seed}", *paths, *overrides)
    stage("train.evaluate", f"run={run}", *paths)
    return run


def device() -> str:
    """Name the processor and how many of its cores we may use."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def resident_mib() -> float:
    """Return the resident memory of this process, by Linux's account."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def finish(bench: str, ratios: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Print the benchmark's last line."""
    print(json.dumps({"bench": bench, "device": device(), "ratios": ratios, "figures": figures}))
