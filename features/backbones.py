"""Networks that turn pictures into features, each with its weights and preprocessing.

B images of a batch, W width of a feature.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from configs.artifacts import ArtifactError, digest, file_sha256
from configs.compose import CONFIG_DIR
from features import huggingface
from features.config import BackboneConfig
from features.efficientnet_lite import efficientnet_lite0

HISTOGRAM = "color_histogram"
THUMBNAIL = BackboneConfig(
    name="thumbnail", architecture="thumbnail", width=256, resize_px=32, crop_px=32, squash=True
)  # what copies are found by
UNTRACED = (HISTOGRAM, THUMBNAIL.architecture)  # arithmetic of ours, not for OpenVINO
TORCHVISION_LICENCE = "BSD-3-Clause"
EXTRACTOR_VERSION = 1  # of decoding, resizing and cropping; raised when the same picture would give another feature
HISTOGRAM_BINS = 32
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of Inception networks for their training alone
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # names of layers, later spelt without the dot


class Normalised(nn.Module):
    """A network behind the normalisation of its uint8 input."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (B, 3, H, W) uint8 RGB to (B, W) float32."""
        features: Tensor = self.network((pictures.float() - self.mean) / self.std)
        return features


class ColorHistogram(nn.Module):
    """Histograms of R, G and B with 32 bins each, as shares of the pixels, and the three means in [0, 1].

    The floor of the reverse-search literature: Swain and Ballard, Color Indexing, IJCV 1991.
    """

    width = 3 * HISTOGRAM_BINS + 3

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (B, 3, H, W) uint8 RGB to (B, 99) float32."""
        pixels = pictures.flatten(2).long()  # (B, 3, H*W)
        bins = torch.div(pixels * HISTOGRAM_BINS, 256, rounding_mode="floor")
        counts = torch.zeros(*bins.shape[:2], HISTOGRAM_BINS, dtype=torch.float32, device=pictures.device)
        counts.scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.float32))
        means = pixels.float().mean(dim=2) / 255
        return torch.cat([counts.flatten(1) / bins.shape[2], means], dim=1)


class Thumbnail(nn.Module):
    """Pictures as 16 by 16 grey levels."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (B, 3, 32, 32) uint8 RGB to (B, 256) float32 in [0, 255]."""
        luma = torch.tensor([0.299, 0.587, 0.114], device=pictures.device).view(1, 3, 1, 1)
        grey = (pictures * luma).sum(dim=1, keepdim=True)
        return nn.functional.avg_pool2d(grey, 2).flatten(1)


def msra_resnet50() -> nn.Module:
    """Build the ResNet50 of He et al. 2015 without its classifier.

    The original network strides in the first 1x1 convolution of a stage, torchvision's in the 3x3 one. The tensors
    load either way; with the strides left as they are the features are quietly wrong.
    """
    network: Any = torchvision.models.resnet50()
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride = (2, 2)
        stage[0].conv2.stride = (1, 1)
    network.fc = nn.Identity()
    built: nn.Module = network
    return built


# The networks whose weights lie in the repository: their file and what builds them.
CARRIED: dict[str, tuple[Path, Callable[[], nn.Module]]] = {
    "resnet50": (Path(__file__).parent / "carried" / "resnet50_msra_fp16.safetensors", msra_resnet50),
    "efficientnet_lite0": (
        Path(__file__).parent / "carried" / "efficientnet_lite0_fp16.safetensors",
        efficientnet_lite0,
    ),
}


def _carried(config: BackboneConfig) -> tuple[Path, Callable[[], nn.Module]]:
    if config.architecture not in CARRIED:
        raise ArtifactError(f"the carried weights are of {' and '.join(CARRIED)}, not of '{config.architecture}'")
    return CARRIED[config.architecture]


def _carried_network(config: BackboneConfig) -> nn.Module:
    """Build a network with its carried weights, which may hold a classifier that the network has no more."""
    path, build = _carried(config)
    network = build()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items() if name[:3] != "fc."})
    return network


def _torchvision_network(config: BackboneConfig) -> nn.Module:
    """Build a torchvision classifier with its weights, which are downloaded into torch's cache."""
    weights = _torchvision_weights(config)
    network = network_for(config.architecture, weights)
    state = _state(weights.url, config.name)
    try:
        wanted = {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}
        network.load_state_dict({_OLD_DENSENET.sub(r"\1\2", key): value for key, value in wanted.items()})
    except (RuntimeError, AttributeError) as error:
        raise ArtifactError(
            f"the weights {_file_name(weights.url)} do not fit the network that torchvision builds as "
            f"{config.architecture} ({str(error).splitlines()[0]}). Choose another backbone."
        ) from error
    _drop_last_layer(network)
    return network


def network_for(architecture: str, weights: Any) -> nn.Module:
    """Build the network that weights were trained in, without loading them.

    torchvision's own `get_model(weights=...)` would unpickle whatever the file holds, so what it derives from the
    weights beside their number of classes is said here: the size of pictures, and Inception's scaling of its input.
    """
    options: dict[str, Any] = {}
    if architecture.startswith("vit_"):
        options = {"image_size": weights.meta["min_size"][0]}
    elif architecture in ("googlenet", "inception_v3"):
        options = {"transform_input": True, "aux_logits": False, "init_weights": False}
    network: nn.Module = torchvision.models.get_model(architecture, **options)
    return network


def _file_name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _state(url: str, backbone: str) -> dict[str, Tensor]:
    """Load a state from torch's cache, downloaded if it is not there; its name holds the head of its SHA-256."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(url)
    expected = path.stem.rpartition("-")[2]
    if path.is_file() and not (found := file_sha256(path)).startswith(expected):
        raise ArtifactError(
            f"'{path}' has SHA-256 {found[: len(expected)]}, expected {expected} as in its name: it is cut, damaged or "
            "another file. Delete it and run again."
        )
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except UnpicklingError as error:
        raise ArtifactError(f"'{path}' holds more than weights and was not loaded: {error}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: what came has another hash
        raise ArtifactError(
            f"the weights {path.name} of {backbone} could not be downloaded ({error}). They are looked for in "
            f"'{path.parent}', which TORCH_HOME moves. To place them by hand, download {url} on another machine, "
            "copy that file there under this name, and run again."
        ) from error


def _torchvision_weights(config: BackboneConfig) -> Any:
    known = torchvision.models.list_models(module=torchvision.models)  # classifiers alone
    if config.architecture not in known:
        close = ", ".join(get_close_matches(config.architecture, known, n=4, cutoff=0.4)) or "nothing"
        raise ArtifactError(f"torchvision has no classifier '{config.architecture}'; close to it: {close}")
    weights = torchvision.models.get_model_weights(config.architecture)
    if config.weights not in weights.__members__:
        raise ArtifactError(
            f"torchvision has no weights '{config.weights}' of '{config.architecture}'; it has "
            f"{', '.join(weights.__members__)}"
        )
    return weights[config.weights]


def _drop_last_layer(network: nn.Module) -> int:
    """Replace a classifier's last layer by the identity, and return how many numbers it took: the feature's width.

    What comes before it stays, as hidden layers (VGG, MobileNetV3) and the norm of ConvNeXt do, and so does what comes
    after, as the pooling of SqueezeNet, whose last layer is a convolution.
    """
    layers = [(name, each) for name, each in network.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    name, last = layers[-1]
    network.set_submodule(name, nn.Identity())
    return last.in_features if isinstance(last, nn.Linear) else last.in_channels


class Unallocated(TorchFunctionMode):
    """Builds layers without memory for their weights, of which then only the shapes can be asked.

    `torch.device("meta")` would do the same to the small tensors that some networks read while they are built.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **where})


@cache
def _torchvision_width(architecture: str, weights: Any) -> int:
    with Unallocated():
        return _drop_last_layer(network_for(architecture, weights))


def _torchvision_settings(config: BackboneConfig) -> dict[str, Any]:
    weights = _torchvision_weights(config)
    steps = weights.transforms()  # antialiased, all of them
    return {
        "weights": weights.name,
        "width": config.width or _torchvision_width(config.architecture, weights),
        "resize_px": config.resize_px or steps.resize_size[0],
        "crop_px": config.crop_px or steps.crop_size[0],
        "interpolation": config.interpolation or steps.interpolation.value,
        "mean": config.mean or list(steps.mean),
        "std": config.std or list(steps.std),
        "licence": config.licence or weights.meta.get("license", TORCHVISION_LICENCE),
    }


def settle(config: BackboneConfig) -> BackboneConfig:
    """Fill in what a config leaves to its weights, and name these exactly; a settled config comes back as it is.

    Raises:
        ArtifactError: no such architecture or weights, or values that do not go together.
    """
    if huggingface.is_huggingface(config):
        found = huggingface.settings(config)
    elif config.weights in ("", "carried"):
        return config
    else:
        found = _torchvision_settings(config)
    try:
        return replace(config, **found)
    except ValueError as error:  # a given side that does not fit to the one found
        raise ArtifactError(str(error)) from error


def overrides(config: BackboneConfig) -> list[str]:
    """Return the overrides by which the command line chooses just this backbone, for the command in an error."""
    group = "huggingface" if huggingface.is_huggingface(config) else "torchvision"
    named, general = (_group(name) for name in (config.name, group))
    if (named.get("architecture"), named.get("weights", "")) == (config.architecture, config.weights):
        chosen, base = [f"backbone={config.name}"], BackboneConfig(**named)
    else:
        chosen = [f"backbone={group}", f"backbone.architecture={config.architecture}"]
        base = BackboneConfig(**{**general, "architecture": config.architecture})
    differing = [each.name for each in fields(config) if getattr(config, each.name) != getattr(base, each.name)]
    return [*chosen, *(f"backbone.{name}={_written(getattr(config, name))}" for name in differing)]


def _group(name: str) -> dict[str, Any]:
    """Return what the file of a backbone says, or nothing where there is none."""
    path = CONFIG_DIR / "backbone" / f"{name}.yaml"
    found = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _written(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def build_backbone(config: BackboneConfig) -> nn.Module:
    """Build the network of a config in evaluation mode: (B, 3, crop, crop) uint8 RGB -> (B, width) float32."""
    config = settle(config)
    if config.architecture == HISTOGRAM:
        return ColorHistogram().eval()
    if config.architecture == THUMBNAIL.architecture:
        return Thumbnail().eval()
    if huggingface.is_huggingface(config):
        network = huggingface.load_network(huggingface.model_folder(config))
    elif config.weights == "carried":
        network = _carried_network(config)
    else:
        network = _torchvision_network(config)
    return Normalised(network, config.mean, config.std).eval().requires_grad_(False)


def weights_digest(config: BackboneConfig) -> str:
    """Name the weights by content without loading them; torchvision's file names carry a hash."""
    if huggingface.is_huggingface(config):
        return huggingface.weights_digest(huggingface.model_folder(config))
    if config.weights == "carried":
        return _carried_sha256(_carried(config)[0])
    if not config.weights:
        return ""
    return hashlib.sha256(_file_name(_torchvision_weights(config).url).encode()).hexdigest()


@cache
def _carried_sha256(path: Path) -> str:
    """Hash weights once a process: 51 MB take a tenth of a second, and every reader of features asks."""
    return file_sha256(path)


def backbone_space(config: BackboneConfig, gate: str) -> str:
    """Fingerprint of all that shapes a feature: gate, weights, preprocessing, precision.

    The runtimes agree to cosine 0.9999, so they are not part of it. A Hugging Face model is known by its content alone,
    since its folder may lie anywhere.
    """
    config = settle(config)
    geometry = [config.resize_px, config.crop_px, config.interpolation, config.squash]
    preprocessing = [*geometry, list(config.mean), list(config.std)]
    architecture = "huggingface" if huggingface.is_huggingface(config) else config.architecture
    network = [architecture, weights_digest(config), config.width]
    return digest([EXTRACTOR_VERSION, gate, network, preprocessing, "float32, stored as float16"])
