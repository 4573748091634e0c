"""How a benchmark ends: one JSON object on its last line."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


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
