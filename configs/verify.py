"""Compare every sealed artifact with its manifest: `make verify`."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from configs.artifacts import MANIFEST, PARTIAL, verify
from configs.generations import CURRENT


def artifacts(roots: list[Path]) -> list[Path]:
    """Return all sealed directories below some roots, ascending."""
    found = {path.parent for root in roots for path in root.rglob(MANIFEST)}
    return sorted(path for path in found if not any(part.startswith(PARTIAL) for part in path.parts))


def lost_pointers(roots: list[Path]) -> list[str]:
    """Return one line for each `current` that names no finished generation."""
    pointers = sorted(path for root in roots for path in root.rglob(CURRENT) if path.is_file())
    names = {pointer: pointer.read_bytes().decode(errors="replace").strip() for pointer in pointers}
    return [
        f"{pointer}: names '{name}', which is no finished generation"
        for pointer, name in names.items()
        if not name or "\0" in name or not (pointer.parent / name / MANIFEST).is_file()
    ]


def main(arguments: list[str]) -> int:
    """Verify everything below paths.data and paths.runs; 1 where something is damaged."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := sorted(given.keys() - {"paths.data", "paths.runs"}):
        print(f"error: verify takes paths.data= and paths.runs=, not {', '.join(unknown)}", file=sys.stderr)
        return 2
    if absent := sorted(path for path in given.values() if not Path(path).is_dir()):
        print(f"error: no such folder: {', '.join(absent)}", file=sys.stderr)
        return 2
    roots = [Path(given.get("paths.data", "data")), Path(given.get("paths.runs", "runs"))]
    directories = artifacts(roots)
    problems = [line for directory in tqdm(directories, desc="verify", unit="artifact") for line in verify(directory)]
    problems += lost_pointers(roots)
    for line in problems:
        print(line)
    print(f"{len(directories)} artifacts under {', '.join(map(str, roots))}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
