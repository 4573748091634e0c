"""Networks that turn pictures into features, each with its weights and preprocessing.

B images of a batch, W width of a feature.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from configs.artifacts import ArtifactError, digest, file_sha256
from features.config import BackboneConfig

CARRIED_WEIGHTS = Path(__file__).parent / "carried" / "resnet50_msra_fp16.safetensors"
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


def carried_resnet50(path: Path = CARRIED_WEIGHTS) -> nn.Module:
    """Build the ResNet50 of He et al. 2015 with the carried weights.

    The original network strides in the first 1x1 convolution of a stage, torchvision's in the 3x3 one. The tensors
    load either way; with the strides left as they are the features are quietly wrong.
    """
    network: Any = torchvision.models.resnet50()
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride = (2, 2)
        stage[0].conv2.stride = (1, 1)
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    carried: nn.Module = network
    return carried


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
            f"the weights {path.name} of {backbone} could not be downloaded ({error}). "
            f"Place that file in '{path.parent}' by hand and run again."
        ) from error


def _torchvision_weights(config: BackboneConfig) -> torchvision.models.WeightsEnum:
    try:
        return torchvision.models.get_model_weights(config.architecture)[config.weights]
    except (ValueError, KeyError) as error:
        raise ArtifactError(f"torchvision has no weights '{config.weights}' of '{config.architecture}'") from error


def _without_head(network: nn.Module) -> nn.Module:
    """Replace the classifier by the identity, so that the network ends in its pooled feature."""
    head = "fc" if hasattr(network, "fc") else "classifier" if hasattr(network, "classifier") else "heads"
    setattr(network, head, nn.Identity())
    return network


def build_backbone(config: BackboneConfig) -> nn.Module:
    """Build the network of a config in evaluation mode: (B, 3, crop, crop) uint8 RGB -> (B, width) float32."""
    if config.architecture == "color_histogram":
        return ColorHistogram().eval()
    if config.weights == "carried" and config.architecture != "resnet50":
        raise ArtifactError(f"the carried weights are of resnet50, not of '{config.architecture}'")
    network = carried_resnet50() if config.weights == "carried" else _torchvision_network(config)
    return Normalised(_without_head(network), config.mean, config.std).eval().requires_grad_(False)


def weights_digest(config: BackboneConfig) -> str:
    """Name the weights by content without loading them; torchvision's file names carry a hash."""
    if config.weights == "carried":
        return file_sha256(CARRIED_WEIGHTS)
    if not config.weights:
        return ""
    return hashlib.sha256(_file_name(_torchvision_weights(config).url).encode()).hexdigest()


def feature_space(config: BackboneConfig, gate: str) -> str:
    """Fingerprint of all that shapes a feature: gate, weights, preprocessing, precision.

    The runtimes agree to cosine 0.9999, so they are not part of it.
    """
    preprocessing = [config.resize_px, config.crop_px, list(config.mean), list(config.std)]
    network = [config.architecture, weights_digest(config), config.width]
    return digest([EXTRACTOR_VERSION, gate, network, preprocessing, "float32, stored as float16"])
