"""Artifacts on disk: written to a partial name, sealed by a manifest, checked when opened.

A manifest is written last, by rename. A directory without one is unfinished.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
LOCK = ".lock"
# Versions that can change a value in an artifact; recorded, never a reason to recompute.
LIBRARIES = ("numpy", "torch", "torchvision", "openvino", "gensim", "pytorch-lightning", "pillow", "pyarrow")

# What numpy raises on bytes that are no array header.
ARRAY_ERRORS = (ValueError, TypeError, OSError, EOFError, SyntaxError, OverflowError, tokenize.TokenError)


class ArtifactError(RuntimeError):
    """An input is missing, unfinished, damaged, or does not fit; the message names the way out."""


@dataclass(frozen=True)
class Manifest:
    """What seals a directory.

    `must_match` holds fingerprints of spaces (feature, word, tag rules) that readers compare; `provenance`
    the content_ids of inputs, shown as stale when they differ but never a reason to recompute.
    """

    kind: str
    schema_version: int
    content_id: str
    recipe: str  # digest of config and inputs: the same recipe need not run again
    must_match: dict[str, str]
    provenance: dict[str, str]
    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    created_at: str = ""
    seal: str = ""  # digest of all the above, so that `make verify` sees damage to the manifest too

    def sealed(self) -> Manifest:
        """Return the manifest with the digest of its other fields."""
        return replace(self, seal=digest(vars(replace(self, seal=""))))

    def text(self) -> str:
        """Return the manifest as its file holds it."""
        return json.dumps(vars(self), indent=1, ensure_ascii=False) + "\n"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_directory(directory: Path) -> None:
    """Make renames inside a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when it is whole and on the disk."""
    partial = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a whole file, or leave what was there."""
    with atomic_open(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as little-endian `.npy` without pickle."""
    with atomic_open(path) as stream:
        np.save(stream, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")), allow_pickle=False)


def map_array(path: Path, dtype: str | np.dtype, shape: tuple[int | None, ...]) -> np.ndarray:
    """Map an array read-only after checking type and shape (None: any length) and that no bytes are missing or over.

    Raises:
        ArtifactError: naming what was expected and what was found.
    """
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # unlike `np.load`, arrays only
    except FileNotFoundError:
        raise ArtifactError(f"'{path}' is missing; `make verify` lists what is damaged") from None
    except ARRAY_ERRORS as error:
        raise ArtifactError(f"'{path}' is no readable array ({error}); `make verify` lists what is damaged") from error
    fits = len(array.shape) == len(shape) and all(w is None or w == h for w, h in zip(shape, array.shape, strict=True))
    if array.dtype != np.dtype(dtype) or not fits:
        raise ArtifactError(f"'{path}' should hold {dtype} {shape}, found {array.dtype} {array.shape}")
    offset = getattr(array, "offset", 0)
    if path.stat().st_size != offset + array.nbytes:
        raise ArtifactError(f"'{path}' has {path.stat().st_size} bytes, its header says {offset + array.nbytes}")
    return array


def _array_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return {"dtype": str(dtype), "shape": list(shape)}


def describe_file(path: Path) -> dict[str, Any]:
    """Hash and size of a file, with type and shape of an array."""
    header = _array_header(path) if path.suffix == ".npy" else {}
    return {"sha256": file_sha256(path), "size": path.stat().st_size, **header}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that shape artifacts."""
    found = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit_id() -> str:
    """Return the commit of the code that ran, empty outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def seal(
    directory: Path,
    kind: str,
    *,
    config: Mapping[str, Any],
    files: Iterable[str],
    content: Mapping[str, Any] | None = None,
    must_match: Mapping[str, str] | None = None,
    provenance: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    recipe: str = "",
    schema_version: int = 1,
    described: Mapping[str, dict[str, Any]] | None = None,
) -> Manifest:
    """Write the manifest that makes a directory an artifact.

    Args:
        directory: holds all `files`.
        kind: what it is, such as `index`.
        config: the resolved config of the stage.
        files: names relative to `directory`; their hashes are recorded for `make verify`.
        content: what the content_id is computed from, where that is not every file's hash.
        must_match: fingerprints that readers compare.
        provenance: content_ids of the inputs.
        facts: counts worth showing.
        recipe: digest of config and inputs.
        schema_version: of the format, raised when it changes.
        described: file descriptions already known, so that large old files are not hashed again.
    """
    known = described or {}
    listing = {name: known.get(name) or describe_file(directory / name) for name in sorted(files)}
    body = content if content is not None else {name: entry["sha256"] for name, entry in listing.items()}
    manifest = Manifest(
        kind=kind,
        schema_version=schema_version,
        content_id=digest({"kind": kind, "schema_version": schema_version, "content": body, "space": must_match or {}}),
        recipe=recipe,
        must_match=dict(must_match or {}),
        provenance=dict(provenance or {}),
        config=dict(config),
        files=listing,
        facts=dict(facts or {}),
        versions=library_versions(),
        commit=commit_id(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    ).sealed()
    atomic_write(directory / MANIFEST, manifest.text())
    return manifest


def read_manifest(directory: Path) -> Manifest | None:
    """Read a manifest, or None where the directory is not sealed.

    Raises:
        ArtifactError: where the file is there but is no manifest.
    """
    path = directory / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is no manifest ({error}); delete '{directory}' and make it again") from error


def open_artifact(directory: Path, kind: str, make: str, schema_version: int = 1) -> Manifest:
    """Check that a directory is a finished artifact of a kind.

    Args:
        directory: where it should lie.
        kind: what it should be.
        make: the command that makes it, for the error message.
        schema_version: the newest format this code reads.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise ArtifactError(
            f"no finished {kind} artifact in '{directory}': {MANIFEST} is missing. "
            f"Run `{make}`, or set paths.data and paths.runs to directories that have one."
        )
    if manifest.kind != kind:
        raise ArtifactError(f"'{directory}' holds a {manifest.kind} artifact, expected {kind}")
    if manifest.schema_version != schema_version:
        raise ArtifactError(
            f"'{directory}' has format {manifest.schema_version} of {kind}, this version reads {schema_version}. "
            f"Delete it and run `{make}`."
        )
    return manifest


def require_match(found: Mapping[str, str], expected: Mapping[str, str], what: str, against: str) -> None:
    """Stop where two artifacts do not share a space.

    Raises:
        ArtifactError: a sentence that names both fingerprints of each space that differs.
    """
    for space in sorted(found.keys() & expected.keys()):
        if found[space] != expected[space]:
            raise ArtifactError(
                f"{what} has {space.replace('_', ' ')} {found[space][:12]}, {against} has {expected[space][:12]}: "
                f"they cannot be mixed. Use artifacts of one {space.replace('_', ' ')}, or make the older one again."
            )


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a directory alone while it is written; the lock ends with the process, however that ends.

    Raises:
        ArtifactError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ArtifactError(f"another process is writing '{directory}'; wait until it ends, or stop it") from None
    finally:
        os.close(descriptor)


def remove_partials(root: Path) -> None:
    """Remove what processes that no longer run left behind."""
    for leftover in root.glob(f"{PARTIAL}*"):
        pid = leftover.name.removeprefix(PARTIAL).split("-")[0]
        if not pid.isdecimal() or _is_running(int(pid)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a leftover of an earlier process that had our number
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def verify(directory: Path) -> list[str]:
    """Compare every file of an artifact with its manifest; return one line per problem."""
    try:
        manifest = read_manifest(directory)
    except ArtifactError as error:
        return [str(error)]
    if manifest is None:
        return [f"{directory}: not sealed ({MANIFEST} is missing)"]
    if manifest.sealed().text().encode() != (directory / MANIFEST).read_bytes():
        return [f"{directory / MANIFEST}: bytes differ from those sealed"]
    problems = (_problem(directory / name, entry) for name, entry in manifest.files.items())
    return [problem for problem in problems if problem]


def _problem(path: Path, entry: Mapping[str, Any]) -> str:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{path}: {size} bytes, sealed with {entry['size']}"
        return "" if file_sha256(path) == entry["sha256"] else f"{path}: bytes differ from those sealed"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
