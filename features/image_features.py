"""The store of image features, keyed by image_id.

A part is `<digest of its ids>.npy` (n, W) float16 with `<digest>.ids`; the array is written last and commits the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.artifacts import (
    ArtifactError,
    Manifest,
    atomic_write,
    digest,
    map_array,
    open_artifact,
    require_match,
    save_array,
)
from configs.compose import Paths
from features.backbones import feature_space
from features.config import BackboneConfig


def store_directory(paths: Paths, backbone: BackboneConfig, gate: str) -> Path:
    """Return where the features of a backbone lie: a directory a feature space."""
    return paths.artifact("image_features") / f"{backbone.name}-{feature_space(backbone, gate)[:8]}"


class FeatureStore:
    """Parts of one feature space."""

    def __init__(self, directory: Path, width: int) -> None:
        self.directory = directory
        self.width = width

    def parts(self) -> list[str]:
        """Names of committed parts, ascending."""
        return sorted(path.stem for path in self.directory.glob("*.npy") if not path.name.startswith("."))

    def ids(self, part: str) -> np.ndarray:
        """Return (n,) S16 image_ids of a part.

        Raises:
            ArtifactError: they are gone, or not those that the part is named by.
        """
        path = self.directory / f"{part}.ids"
        content = path.read_bytes() if path.is_file() else b""
        if _part_name(content) != part:
            raise ArtifactError(f"'{path}' is damaged; delete it and '{part}.npy', and run `make image_features`")
        return np.array(content.split(), dtype="S16")

    def stored_ids(self) -> np.ndarray:
        """Return (n,) S16 image_ids that have a feature, ascending."""
        return np.unique(np.concatenate([np.empty(0, "S16"), *(self.ids(part) for part in self.parts())]))

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
        ids = b"".join(image_id + b"\n" for image_id in image_ids.tolist())
        part = _part_name(ids)
        atomic_write(self.directory / f"{part}.ids", ids)
        save_array(self.directory / f"{part}.npy", stored)

    def gather(self, image_ids: np.ndarray) -> np.ndarray:
        """Return (N, width) float16 features in the order of `image_ids`; one sequential copy of the store.

        Raises:
            ArtifactError: images without a feature.
        """
        order = np.argsort(image_ids)
        ascending = image_ids[order]
        rows = np.empty((len(image_ids), self.width), dtype=np.float16)
        found = np.zeros(len(image_ids), dtype=bool)
        for part in self.parts():
            part_ids = self.ids(part)
            array = map_array(self.directory / f"{part}.npy", "<f2", (len(part_ids), self.width))
            at = np.minimum(np.searchsorted(ascending, part_ids), len(ascending) - 1)
            wanted = ascending[at] == part_ids
            rows[order[at[wanted]]] = array[wanted]
            found[order[at[wanted]]] = True
        if not found.all():
            raise ArtifactError(
                f"{int((~found).sum())} of {len(found)} images have no feature in '{self.directory}'. "
                "Run `make image_features`."
            )
        return rows


def _part_name(ids: bytes) -> str:
    return digest(ids.decode("latin-1"))[:16]


def open_store(paths: Paths, backbone: BackboneConfig, gate: str) -> tuple[FeatureStore, Manifest]:
    """Open the store of a feature space without reading features.

    Raises:
        ArtifactError: no store of this feature space.
    """
    directory = store_directory(paths, backbone, gate)
    make = f'make image_features ARGS="backbone={backbone.name}"'
    manifest = open_artifact(directory, "image_features", make=make)
    space = {"feature_space": feature_space(backbone, gate)}  # the folder's name holds its first 8 digits only
    require_match(manifest.must_match, space, f"'{directory}'", f"backbone '{backbone.name}'")
    return FeatureStore(directory, backbone.width), manifest


def open_features(
    paths: Paths, backbone: BackboneConfig, gate: str, image_ids: Sequence[bytes] | np.ndarray
) -> tuple[np.ndarray, Manifest]:
    """Return the (N, width) float16 features of images, and the manifest of their store.

    Raises:
        ArtifactError: no store of this feature space, or images without a feature.
    """
    store, manifest = open_store(paths, backbone, gate)
    return store.gather(np.asarray(image_ids)), manifest
