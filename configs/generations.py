"""Generations: artifacts that are made anew beside the old ones, and the pointer to the one in force."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from configs.artifacts import (
    MANIFEST,
    PARTIAL,
    ArtifactError,
    Manifest,
    atomic_write,
    read_manifest,
    remove_partials,
    sync_directory,
)

CURRENT = "current"


def add_generation(
    root: Path,
    kind: str,
    recipe: str,
    build: Callable[[Path], Manifest],
    keep: int = 2,
) -> tuple[Path, bool]:
    """Return the generation made by a recipe, building it where it is not there, and make it current.

    A generation is built under a partial name, sealed, renamed to the head of its content_id, and only
    then named by `current`; readers hold whole generations, so the last `keep` stay.

    Returns:
        The directory, and whether it was built now.
    """
    root.mkdir(parents=True, exist_ok=True)
    for generation in generations(root):
        manifest = read_manifest(generation)
        if manifest is not None and manifest.kind == kind and manifest.recipe == recipe:
            _point_to(root, generation.name)
            return generation, False
    partial = root / f"{PARTIAL}{os.getpid()}"
    remove_partials(root)
    partial.mkdir()
    manifest = build(partial)
    target = _free_name(root, manifest.content_id[:12])
    partial.rename(target)
    sync_directory(root)
    _point_to(root, target.name)
    _prune(root, keep)
    return target, True


def _free_name(root: Path, name: str) -> Path:
    """Return where a generation goes; one of the same content by another recipe may be in force and stays."""
    taken, number = root / name, 1
    while taken.exists():
        number += 1
        taken = root / f"{name}-{number}"
    return taken


def generations(root: Path) -> list[Path]:
    """Sealed generations under a directory, by name."""
    return sorted(path.parent for path in root.glob(f"*/{MANIFEST}") if not path.parent.name.startswith(PARTIAL))


def current_generation(root: Path, make: str) -> Path:
    """Return the generation in force."""
    pointer = root / CURRENT
    if not pointer.is_file():
        raise ArtifactError(f"'{root}' has no generation in force: '{pointer.name}' is missing. Run `{make}`.")
    return root / pointer.read_text(encoding="utf-8").strip()


def _point_to(root: Path, name: str) -> None:
    pointer = root / CURRENT
    if not pointer.is_file() or pointer.read_text(encoding="utf-8").strip() != name:
        atomic_write(pointer, name + "\n")


def drop_others(root: Path) -> None:
    """Remove all generations but the one in force, and what a killed process left of others."""
    remove_partials(root)
    _prune(root, keep=1)


def drop_all(root: Path) -> None:
    """Remove all generations; without a pointer first, so that none is named that is gone."""
    (root / CURRENT).unlink(missing_ok=True)
    remove_partials(root)
    for path in generations(root):
        _drop(root, path)


def _drop(root: Path, generation: Path) -> None:
    """Remove a generation under a partial name, because a half-deleted directory is no artifact."""
    shutil.rmtree(generation.rename(root / f"{PARTIAL}{os.getpid()}-{generation.name}"))


def _prune(root: Path, keep: int) -> None:
    in_force = (root / CURRENT).read_text(encoding="utf-8").strip()
    oldest_first = sorted(generations(root), key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name))
    spare = [path for path in oldest_first if path.name != in_force]
    for path in spare[: max(0, len(spare) - (keep - 1))]:
        _drop(root, path)
