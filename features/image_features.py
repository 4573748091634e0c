"""The store of image features, keyed by image_id.

A part is `<digest of its ids>.npy` (n, W) float16 with `<digest>.ids`; the array is written last and commits the part.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from configs.artifacts import (
    MANIFEST,
    ArtifactError,
    Manifest,
    atomic_write,
    map_array,
    open_artifact,
    read_manifest,
    require_match,
    save_array,
    seal,
)
from configs.compose import resolved
from features.config import ExtractionConfig, FeatureSpaceConfig
from features.inverted_index import InvertedIndex
from features.spaces import feature_space, overrides, store_directory, width_of

_ID_LINE = np.dtype([("image_id", "S16"), ("newline", "S1")])


@dataclass(frozen=True)
class Places:
    """Where the features of N images lie in a store."""

    parts: list[str]
    sizes: list[int]  # images of each part
    part_of: np.ndarray  # (N,) int64, which of the parts
    row_of: np.ndarray  # (N,) int64, at which of its rows


class FeatureStore:
    """Parts of one feature space."""

    def __init__(self, directory: Path, width: int, make: str = "make image_features") -> None:
        self.directory = directory
        self.width = width
        self.make = make  # the command that fills it, for error messages

    def parts(self) -> list[str]:
        """Names of committed parts, ascending."""
        return sorted(path.stem for path in self.directory.glob("*.npy") if not path.name.startswith("."))

    def ids(self, part: str) -> np.ndarray:
        """Return (n,) S16 image_ids of a part.

        Raises:
            ArtifactError: they are gone, or not those that the part is named by.
        """
        path = self.directory / f"{part}.ids"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        if _part_name(content) != part:
            raise ArtifactError(f"'{path}' is damaged; delete it and '{part}.npy', and run `{self.make}`")
        return np.frombuffer(content, _ID_LINE)["image_id"].copy()

    def rows(self, part: str) -> np.ndarray:
        """Return (n, width) float16 features of a part, mapped."""
        return map_array(self.directory / f"{part}.npy", "<f2", (len(self.ids(part)), self.width))

    def stored_ids(self) -> np.ndarray:
        """Return (n,) S16 image_ids that have a feature, ascending."""
        return np.unique(np.concatenate([np.empty(0, "S16"), *(self.ids(part) for part in self.parts())]))

    def missing(self, index: InvertedIndex) -> np.ndarray:
        """Return (n,) S16 image_ids of an index that have no feature, ascending."""
        image_ids = np.asarray(index.image_ids)
        return image_ids[~np.isin(image_ids, self.stored_ids())]

    def holds(self, image_ids: np.ndarray) -> bool:
        """Tell whether just these images are a committed part."""
        return (self.directory / f"{_part_name(_lines(image_ids))}.npy").is_file()

    def add(self, image_ids: np.ndarray, features: np.ndarray) -> None:
        """Commit a part.

        Args:
            image_ids: (n,) S16.
            features: (n, width), finite; stored as float16.
        """
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite and is refused
            stored = features.astype(np.float16)
        if stored.shape != (len(image_ids), self.width) or not np.isfinite(stored).all():
            raise ArtifactError(
                f"features of shape {stored.shape} with {int((~np.isfinite(stored)).sum())} non-finite values; "
                f"expected ({len(image_ids)}, {self.width}), all finite"
            )
        if self.holds(image_ids):
            return  # another process was faster; what is committed is never replaced
        ids = _lines(image_ids)
        part = _part_name(ids)
        atomic_write(self.directory / f"{part}.ids", ids)
        save_array(self.directory / f"{part}.npy", stored)

    def drop(self, image_ids: Iterable[str]) -> int:
        """Remove the features of images: parts that hold one are written anew without it; return how many did.

        A part goes after the one that takes its place is there, and its array, which commits it, goes first.
        """
        gone = np.array(sorted(image_ids), dtype="S16")
        touched = 0
        for part in self.parts() if len(gone) else ():
            ids = self.ids(part)
            kept = ~np.isin(ids, gone)
            if kept.all():
                continue
            if kept.any():
                self.add(ids[kept], np.array(self.rows(part))[kept])
            (self.directory / f"{part}.npy").unlink()
            (self.directory / f"{part}.ids").unlink()
            touched += 1
        for ids_file in self.directory.glob("*.ids"):  # of a part that a killed call removed by half
            alone = not ids_file.with_suffix(".npy").is_file()
            if alone and np.isin(np.array(ids_file.read_bytes().split(), dtype="S16"), gone).any():
                ids_file.unlink()
        return touched

    def gather(self, image_ids: np.ndarray) -> np.ndarray:
        """Return (N, width) float16 features in the order of `image_ids`; one sequential copy of the store.

        Raises:
            ArtifactError: images without a feature.
        """
        keys = _as_numbers(image_ids)
        in_order = bool((keys[1:] > keys[:-1]).all())  # as an index has them
        order = np.arange(len(keys)) if in_order else np.argsort(keys)
        ascending = keys if in_order else keys[order]
        rows = np.empty((len(image_ids), self.width), dtype=np.float16)
        found = np.zeros(len(image_ids), dtype=bool)
        for part in self.parts():
            part_keys = _as_numbers(self.ids(part))
            start = int(np.searchsorted(ascending, part_keys[0]))
            if in_order and np.array_equal(ascending[start : start + len(part_keys)], part_keys):
                self.read_into(rows[start : start + len(part_keys)], part, len(part_keys))
                found[start : start + len(part_keys)] = True
                continue
            at = np.minimum(np.searchsorted(ascending, part_keys), len(ascending) - 1)
            wanted = ascending[at] == part_keys
            rows[order[at[wanted]]] = self.rows(part)[wanted]
            found[order[at[wanted]]] = True
        self._require_all(found)
        return rows

    def locate(self, image_ids: np.ndarray) -> Places:
        """Find images without reading their features.

        Raises:
            ArtifactError: images without a feature.
        """
        keys = _as_numbers(image_ids)
        order = np.argsort(keys)
        ascending = keys[order]
        part_of, row_of = np.full(len(keys), -1, dtype=np.int64), np.zeros(len(keys), dtype=np.int64)
        parts, sizes = self.parts(), []
        for number, part in enumerate(parts):
            part_keys = _as_numbers(self.ids(part))
            at = np.minimum(np.searchsorted(ascending, part_keys), len(ascending) - 1)
            wanted = np.flatnonzero(ascending[at] == part_keys)
            part_of[order[at[wanted]]], row_of[order[at[wanted]]] = number, wanted
            sizes.append(len(part_keys))
        self._require_all(part_of >= 0)
        return Places(parts, sizes, part_of, row_of)

    def read_into(self, target: np.ndarray, part: str, size: int, start: int = 0) -> None:
        """Read rows of a part of `size` images, from `start` on, to where they belong: (n, width) float16.

        One plain read, which spares mapping their pages one by one.
        """
        path = self.directory / f"{part}.npy"
        header = _npy_header((size, self.width))
        with path.open("rb", buffering=0) as stream:
            row_bytes = target.itemsize * self.width
            whole = stream.read(len(header)) == header and path.stat().st_size == len(header) + size * row_bytes
            stream.seek(len(header) + start * row_bytes)
            if not whole or stream.readinto(target.data.cast("B")) != target.nbytes:
                target[:] = self.rows(part)[start : start + len(target)]  # which says what is wrong with it

    def _require_all(self, found: np.ndarray) -> None:
        if not found.all():
            raise ArtifactError(
                f"{int((~found).sum())} of {len(found)} images have no feature in '{self.directory}'. "
                f"Run `{self.make}`."
            )


@cache
def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the bytes before the rows of a part, as numpy writes them."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _as_numbers(image_ids: np.ndarray) -> np.ndarray:
    """Return (n,) uint64 of (n,) S16 image_ids, which are hexadecimal: they sort and compare many times faster."""
    return np.frombuffer(bytes.fromhex(image_ids.tobytes().decode("ascii")), ">u8").astype(np.uint64)


def _lines(image_ids: np.ndarray) -> bytes:
    return b"".join(image_id + b"\n" for image_id in image_ids.tolist())


def _part_name(ids: bytes) -> str:
    return hashlib.sha256(ids).hexdigest()[:16]


def is_sealed(store: FeatureStore) -> bool:
    """Tell whether the manifest lists just the parts that are there."""
    manifest = read_manifest(store.directory)
    return manifest is not None and set(manifest.files) == set(_files_of(store))


def _files_of(store: FeatureStore) -> list[str]:
    return [f"{part}{suffix}" for part in store.parts() for suffix in (".ids", ".npy")]


def seal_store(store: FeatureStore, cfg: ExtractionConfig, space: str, index: Manifest) -> Manifest:
    """Write the manifest over all parts; parts listed before and not written since are not hashed again."""
    return _seal(store, resolved(cfg), {"feature_space": space}, {"index": index.content_id})


def forget_features(directory: Path, image_ids: Iterable[str]) -> None:
    """Drop images from a store of any feature space, and seal it again where it was sealed."""
    manifest = read_manifest(directory)
    arrays = sorted(path for path in directory.glob("*.npy") if not path.name.startswith("."))
    if not arrays:
        return
    width = map_array(arrays[0], "<f2", (None, None)).shape[1]
    store = FeatureStore(directory, width)
    store.drop(image_ids)
    if manifest is not None and not is_sealed(store):
        _seal(store, manifest.config, manifest.must_match, manifest.provenance)


def _seal(
    store: FeatureStore, config: Mapping[str, Any], must_match: Mapping[str, str], provenance: Mapping[str, str]
) -> Manifest:
    earlier, described = read_manifest(store.directory), {}
    if earlier:
        sealed_at = (store.directory / MANIFEST).stat().st_mtime_ns
        described = {
            name: entry
            for name, entry in earlier.files.items()
            if (store.directory / name).is_file() and (store.directory / name).stat().st_mtime_ns <= sealed_at
        }
    return seal(
        store.directory,
        "image_features",
        config=config,
        files=_files_of(store),
        must_match=must_match,
        provenance=provenance,
        facts={"num_images": len(store.stored_ids()), "width": store.width, "num_parts": len(store.parts())},
        described=described,
    )


def open_store(cfg: FeatureSpaceConfig, gate: str) -> tuple[FeatureStore, Manifest]:
    """Open the store of a feature space without reading features.

    Raises:
        ArtifactError: no store of this feature space.
    """
    directory = store_directory(cfg, gate)
    make = f'make {"reduce" if cfg.pca else "image_features"} ARGS="{overrides(cfg)}"'
    manifest = open_artifact(directory, "image_features", make=make)
    space = {"feature_space": feature_space(cfg, gate)}  # the folder's name holds its first 8 digits only
    require_match(manifest.must_match, space, f"'{directory}'", f"backbone '{cfg.backbone.name}'")
    return FeatureStore(directory, width_of(cfg, gate), make), manifest


def open_features(
    cfg: FeatureSpaceConfig, gate: str, image_ids: Sequence[bytes] | np.ndarray
) -> tuple[np.ndarray, Manifest]:
    """Return the (N, W) float16 features of images, and the manifest of their store.

    Raises:
        ArtifactError: no store of this feature space, or images without a feature.
    """
    store, manifest = open_store(cfg, gate)
    return store.gather(np.asarray(image_ids)), manifest
