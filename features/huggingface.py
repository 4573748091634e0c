"""Vision models of Hugging Face: where their files lie, what they say of preprocessing, and their feature.

Needs the optional extra `huggingface`. The network is used in one place, `model_folder`; all else reads that folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from configs.artifacts import ArtifactError, digest, file_sha256
from features.config import BackboneConfig

FILES = (
    "config.json",
    "*processor_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.*.json",
)
RESAMPLES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# Steps that some image processors take and ours does not: BGR, grey levels about 0, a second division.
FOREIGN_STEPS = ("do_flip_channel_order", "rescale_offset", "include_top")
WHOLE_PX = 384  # from this side on, a processor with `crop_pct` squashes the picture where it would crop a smaller one
# What transformers raises for a folder that holds no such model, or a damaged one.
UNFIT = (OSError, ValueError, RuntimeError, ImportError, SafetensorError, TypeError, AttributeError, KeyError)


@contextmanager
def _optional_extra() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ArtifactError(
            "a Hugging Face backbone needs the package transformers, the optional extra `huggingface` of "
            "pyproject.toml: install it with `uv pip install transformers`"
        ) from error


def _transformers() -> Any:
    with _optional_extra():
        import transformers
    return transformers


def is_huggingface(config: BackboneConfig) -> bool:
    """Tell whether the architecture is a Hugging Face repository or a folder: no name of torchvision has a slash."""
    return "/" in config.architecture


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads in a folder, none where there are only pickles."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))


def model_folder(config: BackboneConfig) -> Path:
    """Return the folder of a model: one of ours, or its snapshot in Hugging Face's cache, downloaded if not there.

    Raises:
        ArtifactError: it cannot be had, or holds no safetensors.
    """
    folder = Path(config.architecture)
    if not folder.is_dir():
        folder = _snapshot(config.architecture, config.weights)
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise ArtifactError(
            f"'{folder}' of the backbone {config.name} has no config.json or no model.safetensors; "
            "weights in another format, which could run code, are not loaded"
        )
    return folder


def _snapshot(repository: str, revision: str) -> Path:
    """Find a revision in the cache; ask the hub only for what is not there, so that a run goes on without network."""
    with _optional_extra():
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import (  # type: ignore[attr-defined] # HTTPError is that of its HTTP library
            HFValidationError,
            HTTPError,
            LocalEntryNotFoundError,
        )
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ArtifactError(f"'{repository}' is no folder here, and no repository is named so: {error}") from error
    revision = revision or constants.DEFAULT_REVISION
    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(FILES)}
    with suppress(LocalEntryNotFoundError):
        found = Path(snapshot_download(repository, local_files_only=True, **options))
        if weight_files(found) and any(found.glob("*processor_config.json")):
            return found
    try:
        return Path(snapshot_download(repository, **options))
    except (OSError, HTTPError) as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(
            f"'{repository}' is no folder here, and the files config.json, preprocessor_config.json and "
            f"model.safetensors of its revision {revision} could not be downloaded ({reason}). "
            f"They are looked for in '{constants.HF_HUB_CACHE}', which HF_HOME moves. To place them by hand, download "
            f"them on another machine from {constants.ENDPOINT}/{repository}/tree/{revision}, copy them into a folder "
            "here, and name it: backbone.architecture=./<folder>"
        ) from error


def weights_digest(folder: Path) -> str:
    """Name a model by the content of its weights and its config, wherever the folder lies."""
    files = [folder / "config.json", *weight_files(folder)]
    return digest([_sha256(path.resolve(), path.stat().st_mtime_ns) for path in files])


@cache
def _sha256(path: Path, _modified_ns: int) -> str:
    return file_sha256(path)


def _read(kind: str, folder: Path, **options: Any) -> Any:
    """Open a folder as transformers' `AutoConfig`, `AutoModel` or `AutoImageProcessor`; code in it is never run."""
    reader = getattr(_transformers(), kind)
    try:
        return reader.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
    except UNFIT as error:
        raise ArtifactError(f"transformers does not open '{folder}' with {kind}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def preprocessing(folder: Path) -> dict[str, Any]:
    """Return what the model's image processor says, as fields of `BackboneConfig`.

    Raises:
        ArtifactError: there is none, or it does what we do not.
    """
    ask = (
        "; give backbone.resize_px, backbone.crop_px, backbone.interpolation, backbone.mean and backbone.std, as the "
        "model card says"
    )
    if not any(folder.glob("*processor_config.json")):
        raise ArtifactError(f"'{folder}' has no preprocessor_config.json{ask}")
    said = _read("AutoImageProcessor", folder)
    if foreign := _foreign_steps(said):
        raise ArtifactError(f"'{folder}' prepares pictures by steps that are not ours ({', '.join(foreign)}){ask}")
    crop = said.crop_size if said.do_center_crop else None
    return {
        **geometry(said.size, crop, getattr(said, "crop_pct", None)),
        "interpolation": RESAMPLES[int(said.resample)],
        "mean": list(said.image_mean) if said.do_normalize else [0.0, 0.0, 0.0],
        "std": list(said.image_std) if said.do_normalize else [1.0, 1.0, 1.0],
    }


def _foreign_steps(said: Any) -> list[str]:
    """Return what an image processor does and we do not, such as grey levels about 0 or Lanczos."""
    steps = [step for step in FOREIGN_STEPS if getattr(said, step, False)]
    if abs(255 * (said.rescale_factor or 0) - 1) > 1e-6:
        steps.append(f"rescale_factor={said.rescale_factor}")
    if said.resample not in RESAMPLES:
        steps.append(f"resample={said.resample}")
    if not said.size or not (said.size.shortest_edge or said.size.height):
        steps.append(f"size={said.size}")
    return steps


def geometry(size: Any, crop: Any, crop_share: float | None) -> dict[str, Any]:
    """Return resize_px, crop_px and squash from what an image processor says.

    Args:
        size: with `shortest_edge`, or `height` and `width`, in pixels.
        crop: with `height`, or None where nothing is cropped.
        crop_share: the crop's share of the side, of processors that crop so below 384 pixels.
    """
    side = size.shortest_edge or size.height
    if crop is not None:
        # Both sides given and a crop, as of DeiT, which was judged by its authors on the shorter side.
        return {"resize_px": side, "crop_px": crop.height, "squash": False}
    if crop_share is not None and side < WHOLE_PX:
        return {"resize_px": int(side / crop_share), "crop_px": side, "squash": False}
    return {"resize_px": side, "crop_px": side, "squash": crop_share is not None or not size.shortest_edge}


class ImageFeature(nn.Module):
    """The feature of a Hugging Face model: projected by a vision-language one, else pooled, else the class token."""

    def __init__(self, model: Any, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (B, 3, H, W) normalised to (B, W); maps without a pooler are averaged."""
        see = getattr(self.model, "get_image_features", self.model)
        outputs = see(pixel_values=pictures)
        feature: Tensor | None = outputs.get("pooler_output") if self.pooled else None
        if feature is None:
            last: Tensor = outputs.last_hidden_state
            feature = last.mean((2, 3)) if last.dim() == 4 else last[:, 0]
        return feature.flatten(1)


def _image_feature(model: Any, folder: Path) -> ImageFeature:
    """Wrap a model, without a pooler whose weights the files do not hold: transformers would draw them at random."""
    if model.main_input_name != "pixel_values" and not hasattr(model, "get_image_features"):
        raise ArtifactError(f"'{folder}' holds no vision model: {type(model).__name__} takes {model.main_input_name}")
    stored: set[str] = set()
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                stored.update(file.keys())
        except UNFIT as error:
            raise ArtifactError(f"'{path}' is cut or damaged ({_reason(error)}); fetch it again") from error
    wanted = any("pooler" in name for name, _ in model.named_parameters())
    return ImageFeature(model, pooled=not wanted or any("pooler" in name for name in stored))


def load_network(folder: Path) -> nn.Module:
    """Build the network of a folder with its weights, in float32 whatever they are stored in.

    Raises:
        ArtifactError: transformers has no such model, or the weights are not all there.
    """
    model, found = _read("AutoModel", folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(name for name in found["missing_keys"] if "pooler" not in name):
        raise ArtifactError(f"the weights in '{folder}' lack {len(missing)} tensors of the network, first {missing[0]}")
    return _image_feature(model, folder)


@cache
def network_width(folder: Path, crop_px: int) -> int:
    """Return how many numbers a feature has, from a pass without values or memory."""
    config = _read("AutoConfig", folder)
    with torch.device("meta"):
        try:
            model = _transformers().AutoModel.from_config(config, trust_remote_code=False)
        except UNFIT as error:
            raise ArtifactError(f"transformers builds no model of '{folder}': {_reason(error)}") from error
        network = _image_feature(model, folder).eval()
        try:
            features: Tensor = network(torch.empty(1, 3, crop_px, crop_px))
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"'{folder}' takes no pictures of {crop_px} x {crop_px} pixels: {error}") from error
    return features.shape[1]


def settings(config: BackboneConfig) -> dict[str, Any]:
    """Return the fields of a config with what it leaves to the model filled in, and the commit of its revision.

    Raises:
        ArtifactError: the model cannot be had or used.
    """
    folder = model_folder(config)
    steps = {name: getattr(config, name) for name in ("resize_px", "crop_px", "interpolation", "mean", "std")}
    if not all(steps.values()):
        steps = {name: getattr(config, name) or said for name, said in preprocessing(folder).items()}
    width = config.width or network_width(folder, steps["crop_px"])
    revision = config.weights if folder == Path(config.architecture) else folder.name
    return {**steps, "width": width, "weights": revision}
