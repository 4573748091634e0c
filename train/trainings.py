"""Trainings as processes of their own, so that one that dies costs itself alone."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path

from configs.artifacts import ArtifactError, Manifest, digest, exclusive, file_sha256, read_manifest
from configs.compose import recipe_config
from features.config import FeatureSpaceConfig
from train.audit import audited
from train.config import TrainConfig
from train.fit import TRAIN_VERSION, relations_file, shaping
from train.runs import open_inputs

log = logging.getLogger(__name__)
TRAIN = "train.fit"
BUSY = "another process is writing"  # what `exclusive` says; then we wait again
LOOK_AGAIN_S = 1.0  # at a run that another process trains
STATUS = "(exit status"
ERROR = re.compile(r"(error: |[\w.]*(Error|Exception|Interrupt)\b)")


class Stopped(Exception):
    """The trainings were told to stop; this one is neither done nor failed."""


class Trainings:
    """Processes that train, with the machine's threads shared out, and stopped together."""

    def __init__(self, jobs: int = 1):
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(available, int(os.environ.get("OMP_NUM_THREADS") or available))
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, threads // jobs))}
        self._running: set[subprocess.Popen[str]] = set()
        self._stop = threading.Event()

    def train(self, run_dir: Path, overrides: list[str]) -> tuple[Manifest | None, str]:
        """Train a run that is not finished yet, waiting where another process is at it.

        Returns:
            Its manifest, or None and what the training printed.
        """
        while True:
            self._await(run_dir)
            if (finished := read_manifest(run_dir)) is not None:
                return finished, ""
            status, printed = self._process(TRAIN, overrides)
            if status == 0:
                return read_manifest(run_dir), printed
            if BUSY not in printed:
                return None, f"{printed}\n{ended(status)}"

    def stop(self) -> None:
        """End all trainings; their runs go on from their last checkpoints another time."""
        self._stop.set()
        for process in list(self._running):
            process.terminate()

    def _await(self, run_dir: Path) -> None:
        if is_held(run_dir):
            log.info("waiting for %s, which another process trains", run_dir)
        while not self._stop.is_set() and is_held(run_dir):
            self._stop.wait(LOOK_AGAIN_S)
        if self._stop.is_set():
            raise Stopped

    def _process(self, module: str, overrides: list[str]) -> tuple[int, str]:
        command = [sys.executable, "-m", module, *overrides]
        with subprocess.Popen(  # noqa: S603 - our own module
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=self.environment
        ) as process:
            self._running.add(process)
            printed, _ = process.communicate()
            self._running.discard(process)
        if self._stop.is_set():
            raise Stopped
        return process.returncode, printed


def recipe_digest(config: TrainConfig) -> str:
    """Return the digest of what shapes a training beside its seed and inputs."""
    kept = {key: value for key, value in shaping(config).items() if key not in ("run", "seed")}
    return digest([TRAIN_VERSION, kept])


class InputDigests:
    """Digests of what trainings read, each worked out once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, config: TrainConfig) -> str:
        """Return the digest of index, audit, tag vectors, features and relations below a config's paths.

        Raises:
            ArtifactError: one is missing there.
        """
        of_features = {each.name for each in fields(FeatureSpaceConfig)}
        key = digest(
            [config.paths.data, {name: value for name, value in recipe_config(config).items() if name in of_features}]
        )
        if key not in self._known:
            inputs, relations = audited(open_inputs(config), config.paths), relations_file(config)
            related = file_sha256(relations) if relations.is_file() else ""
            self._known[key] = digest([inputs.content, inputs.spaces, related])
        return self._known[key]


def is_held(run_dir: Path) -> bool:
    """Tell whether a process is training a run: one that a killed sweep left behind, or another sweep's."""
    if not run_dir.is_dir():
        return False
    try:
        with exclusive(run_dir):
            return False
    except ArtifactError:
        return True


def ended(status: int) -> str:
    """Say by which signal a process ended, if by one."""
    if status >= 0:
        return f"{STATUS} {status})"
    name = signal.Signals(-status).name
    return f"error: killed by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")


def reason(printed: str) -> str:
    """Return the line that says why a training failed: its last error, or its last line."""
    *lines, last = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in [*lines, last] if ERROR.match(line)]
    return (errors or (lines if last.startswith(STATUS) else []) or [last])[-1].removeprefix("error: ")
