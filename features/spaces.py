"""Feature spaces: which features may stand beside each other, and in which directory they lie.

A feature space is a digest of all that shapes a feature: gate, weights and preprocessing; in a lower precision the
calibration that allowed it; after PCA its basis. Calibration and basis are made once and then frozen, so that an image
that comes later gets a feature that fits the earlier ones.
"""

from __future__ import annotations

from pathlib import Path

from configs.artifacts import Manifest, digest, open_artifact
from features import backbones
from features.backbones import THUMBNAIL, backbone_space, settle
from features.config import ExtractionConfig, FeatureSpaceConfig

QUANTISED = "quantised.xml"  # the int8 network in the directory of its calibration


def overrides(cfg: ExtractionConfig) -> str:
    """Return the overrides that name the features of a config, for the command in an error."""
    named = backbones.overrides(cfg.backbone)
    named += [f"precision={cfg.precision}"] if cfg.precision != "f32" else []
    named += [f"pca={cfg.pca:g}"] if isinstance(cfg, FeatureSpaceConfig) and cfg.pca else []
    return " ".join(named)


def calibration_directory(cfg: ExtractionConfig, gate: str) -> Path:
    """Return where the calibration of a lower precision lies, by the space of the full one."""
    full = backbone_space(cfg.backbone, gate)
    return cfg.paths.artifact("calibrations") / f"{cfg.backbone.name}-{full[:8]}-{cfg.precision}"


def open_calibration(cfg: ExtractionConfig, gate: str) -> Manifest:
    """Open the calibration of a lower precision.

    Raises:
        ArtifactError: it was not made yet.
    """
    make = f'make image_features ARGS="{overrides(cfg)}"'
    return open_artifact(calibration_directory(cfg, gate), "calibration", make=make)


def extracted_space(cfg: ExtractionConfig, gate: str) -> str:
    """Fingerprint of features as a network gives them."""
    full = backbone_space(cfg.backbone, gate)
    return full if cfg.precision == "f32" else digest([full, open_calibration(cfg, gate).content_id])


def extracted_directory(cfg: ExtractionConfig, gate: str) -> Path:
    """Return the store of features as a network gives them."""
    return _store(cfg, "", extracted_space(cfg, gate))


def basis_directory(cfg: FeatureSpaceConfig, gate: str) -> Path:
    """Return where the basis of a PCA lies, by the store it was fitted on."""
    return cfg.paths.artifact("bases") / f"{extracted_directory(cfg, gate).name}-pca{cfg.pca:g}"


def open_basis(cfg: FeatureSpaceConfig, gate: str) -> Manifest:
    """Open the basis of a PCA.

    Raises:
        ArtifactError: it was not fitted yet.
    """
    return open_artifact(basis_directory(cfg, gate), "basis", make=f'make reduce ARGS="{overrides(cfg)}"')


def feature_space(cfg: FeatureSpaceConfig, gate: str) -> str:
    """Fingerprint of the features that a config names."""
    extracted = extracted_space(cfg, gate)
    return digest([extracted, open_basis(cfg, gate).content_id]) if cfg.pca else extracted


def store_directory(cfg: FeatureSpaceConfig, gate: str) -> Path:
    """Return the store of the features that a config names."""
    return _store(cfg, f"-pca{cfg.pca:g}" if cfg.pca else "", feature_space(cfg, gate))


def width_of(cfg: FeatureSpaceConfig, gate: str) -> int:
    """Return how many numbers a feature has."""
    return int(open_basis(cfg, gate).facts["width"]) if cfg.pca else settle(cfg.backbone).width


def _store(cfg: ExtractionConfig, suffix: str, space: str) -> Path:
    precision = "" if cfg.precision == "f32" else f"-{cfg.precision}"
    kind = "thumbnails" if cfg.backbone.architecture == THUMBNAIL.architecture else "image_features"
    return cfg.paths.artifact(kind) / f"{cfg.backbone.name}{precision}{suffix}-{space[:8]}"
