"""What is refused after the gate: pictures of a blocklist of perceptual hashes, and adult ones by a classifier.

A blocklist holds one hash of 16 hex digits a line; what follows a `#` is a comment. Lines of pictures are printed by
`python -m crawl.screen <picture>...`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from configs.artifacts import ArtifactError, digest, file_sha256
from crawl.config import GateOptions, ScreenOptions
from crawl.ingest import Accepted, Reason, Refused, ingest
from crawl.ingest.drawn import grey_thumbnail, rgb_picture
from crawl.near_copies import PROBES, THUMBNAIL_PX, HashTable, hashes, is_flat

UNFIT = (OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError, KeyError)  # of transformers
Entry = TypeVar("Entry")
Outcome = Accepted | Refused | None


def perceptual_hashes(jpegs: Sequence[bytes], probe: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) uint64 hashes of stored JPEGs, and (n,) bool, True where a picture is too flat to have one."""
    shape = (0, THUMBNAIL_PX, THUMBNAIL_PX)
    thumbnails = np.array([grey_thumbnail(jpeg, THUMBNAIL_PX) for jpeg in jpegs], np.uint8).reshape(-1, *shape[1:])
    return hashes(thumbnails, probe), is_flat(thumbnails)


def read_blocklist(path: str) -> np.ndarray:
    """Return (n,) uint64 hashes of a blocklist.

    Raises:
        ArtifactError: there is no such file, or a line is no hash.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"screen.blocklist='{path}' is no file; give one with a hash of 16 hex digits a line")
    lines = [line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    try:
        return np.array([_hash(line) for line in lines if line], dtype=np.uint64)
    except ValueError as error:
        raise ArtifactError(f"screen.blocklist='{path}' has {error}, expected 16 hex digits a line") from None


def _hash(text: str) -> int:
    if len(text) != 16:
        raise ValueError(f"the line '{text[:40]}'")
    return int(text, 16)


class Blocklist:
    """Recognises pictures by hashes a few bits off, mirrored ones too."""

    def __init__(self, values: np.ndarray, bits: int) -> None:
        self._values = values
        self._bits = bits
        self._table = HashTable(values)

    def is_blocked(self, jpegs: Sequence[bytes]) -> list[bool]:
        """Tell of each picture whether it is on the list."""
        blocked = np.zeros(len(jpegs), dtype=bool)
        for probe in (0, PROBES // 2):
            found, flat = perceptual_hashes(jpegs, probe)
            near = self._table.near(found)
            off = np.bitwise_count(found[near[:, 0]] ^ self._values[near[:, 1]])
            blocked[near[off <= self._bits, 0]] = True
            blocked &= ~flat
        return [bool(each) for each in blocked]


class AdultClassifier:
    """An image classifier of Hugging Face in a folder here; no code of it is run, and nothing is fetched."""

    def __init__(self, options: ScreenOptions) -> None:
        folder = Path(options.adult_model)
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ArtifactError(
                f"screen.adult_model='{folder}' is no folder with config.json and model.safetensors; download a "
                "classifier from the hub on a machine with network, and name its folder"
            )
        try:
            import torch
            from transformers import AutoImageProcessor, AutoModelForImageClassification  # the extra `huggingface`
        except ImportError as error:
            raise ArtifactError(
                "screen.adult_model needs the package transformers, the optional extra `huggingface` of "
                "pyproject.toml: install it with `uv pip install transformers`"
            ) from error
        local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, **local)  # type: ignore[no-untyped-call]
            model: Any = AutoModelForImageClassification.from_pretrained(folder, use_safetensors=True, **local)
        except UNFIT as error:
            raise ArtifactError(f"transformers does not open screen.adult_model='{folder}': {error}") from error
        names = {str(name).lower(): row for row, name in model.config.id2label.items()}
        if absent := sorted(set(map(str.lower, options.adult_labels)) - names.keys()):
            raise ArtifactError(
                f"'{folder}' knows no label {', '.join(absent)}, it has {', '.join(names)}: screen.adult_labels=[...]"
            )
        self._rows = [int(names[label.lower()]) for label in options.adult_labels]
        self._model, self._torch = model.eval(), torch

    def scores(self, jpegs: Sequence[bytes]) -> list[float]:
        """Return for each picture how probable it is that one of the labels fits."""
        with self._torch.inference_mode():
            given = self._processor(images=[rgb_picture(jpeg) for jpeg in jpegs], return_tensors="pt")
            shares = self._model(**given).logits.softmax(dim=-1)
            return [float(each) for each in shares[:, self._rows].sum(dim=-1)]


class Screen:
    """All that is asked after the gate; nothing where nothing is configured."""

    def __init__(self, options: ScreenOptions) -> None:
        self.options = options
        self._blocklist = Blocklist(read_blocklist(options.blocklist), options.bits) if options.blocklist else None
        self._adult = AdultClassifier(options) if options.adult_model else None

    def fingerprint(self) -> list[str]:
        """Digest of what decides, empty where nothing does."""
        if not (self._blocklist or self._adult):
            return []
        files = [Path(self.options.blocklist)] if self._blocklist else []
        files += sorted(Path(self.options.adult_model).glob("*.safetensors")) if self._adult else []
        knobs = {key: value for key, value in asdict(self.options).items() if key not in ("blocklist", "adult_model")}
        return [digest([[file_sha256(path) for path in files], knobs])]

    def judge(self, images: Sequence[Accepted]) -> list[Accepted | Refused]:
        """Refuse those of some pictures that are not wanted."""
        jpegs = [image.jpeg for image in images]
        blocked = self._blocklist.is_blocked(jpegs) if self._blocklist else [False] * len(jpegs)
        scores = self._adult.scores(jpegs) if self._adult else [0.0] * len(jpegs)
        judged: list[Accepted | Refused] = []
        for image, is_blocked, score in zip(images, blocked, scores, strict=True):
            if is_blocked:
                judged.append(Refused(Reason.BLOCKED, "its perceptual hash is on the blocklist"))
            elif self._adult and score >= self.options.adult_threshold:
                judged.append(Refused(Reason.ADULT, f"score {score:.3f}, limit {self.options.adult_threshold:g}"))
            else:
                judged.append(image)
        return judged

    def screened(self, turns: Iterator[tuple[Entry, Outcome]]) -> Iterator[tuple[Entry, Outcome]]:
        """Pass items on in their order, judged in batches."""
        if not (self._blocklist or self._adult):
            yield from turns
            return
        waiting: list[tuple[Entry, Outcome]] = []
        for turn in turns:
            waiting.append(turn)
            if len(waiting) == self.options.batch_size:
                yield from self._judged(waiting)
                waiting = []
        yield from self._judged(waiting)

    def _judged(self, waiting: list[tuple[Entry, Outcome]]) -> Iterator[tuple[Entry, Outcome]]:
        images = [outcome for _, outcome in waiting if isinstance(outcome, Accepted)]
        judged = iter(self.judge(images) if images else [])
        for entry, outcome in waiting:
            yield entry, next(judged) if isinstance(outcome, Accepted) else outcome


def main(paths: list[str], show: Callable[[str], object] = print) -> int:
    """Print the hashes of pictures as lines of a blocklist; 1 where one is refused by the gate or has none."""
    problems = 0
    for path in paths:
        outcome = ingest(Path(path).read_bytes(), GateOptions())
        if isinstance(outcome, Refused):
            print(f"error: {path} is refused: {outcome.reason} ({outcome.detail})", file=sys.stderr)
            problems += 1
            continue
        values, flat = perceptual_hashes([outcome.jpeg])
        if flat[0]:
            print(f"error: {path} has too little detail for a hash", file=sys.stderr)
            problems += 1
        else:
            show(f"{int(values[0]):016x}  # {path}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
