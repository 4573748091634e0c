"""The two towers: tag vectors and image features into one space of unit vectors."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from configs.artifacts import ArtifactError, atomic_write


class Tower(nn.Module):
    """Two linear layers with an activation and dropout between, ending in a unit vector.

    `centre` and `spread` scale the input; they are kept with the weights, so that a tower takes raw features.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self, in_dim: int, hidden_dim: int, embed_dim: int, activation: str, in_dropout: float, hidden_dropout: float
    ) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(in_dim))
        self.register_buffer("spread", torch.ones(()))
        self.in_dropout = nn.Dropout(in_dropout)
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.activation: nn.Module = nn.ReLU() if activation == "relu" else nn.Identity()
        self.hidden_dropout = nn.Dropout(hidden_dropout)
        self.out = nn.Linear(hidden_dim, embed_dim)

    def scale_by(self, rows: Tensor) -> None:
        """Centre inputs on the mean of rows (n, in_dim) and divide them by their overall standard deviation."""
        rows = rows.float()
        self.centre.copy_(rows.mean(dim=0))
        self.spread.copy_((rows - self.centre).square().mean().sqrt().clamp(min=1e-6))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, in_dim) to (B, embed_dim) unit vectors."""
        scaled = (inputs.float() - self.centre) / self.spread
        hidden = self.hidden_dropout(self.activation(self.hidden(self.in_dropout(scaled))))
        embeddings: Tensor = F.normalize(self.out(hidden), dim=1)
        return embeddings


class TwoTowers(nn.Module):
    """TagTower and ImageTower; the score of a tag and an image is the cosine of their embeddings."""

    def __init__(
        self,
        tag_dim: int,
        image_dim: int,
        hidden_dim: int = 1024,
        embed_dim: int = 128,
        activation: str = "relu",
        feature_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = {
            "tag_dim": tag_dim,
            "image_dim": image_dim,
            "hidden_dim": hidden_dim,
            "embed_dim": embed_dim,
            "activation": activation,
        }
        self.tag = Tower(tag_dim, hidden_dim, embed_dim, activation, 0.0, hidden_dropout)
        self.image = Tower(image_dim, hidden_dim, embed_dim, activation, feature_dropout, hidden_dropout)

    def forward(self, tag_vectors: Tensor, image_features: Tensor) -> Tensor:
        """Score (B, tag_dim) tags against (C, image_dim) images: (B, C) cosines."""
        scores: Tensor = self.tag(tag_vectors) @ self.image(image_features).T
        return scores


def save_towers(towers: TwoTowers, path: Path) -> None:
    """Write weights and shape as one safetensors file; equal towers are equal bytes."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in towers.state_dict().items()}
    # One entry, because safetensors writes several in an order of chance.
    atomic_write(path, save(state, metadata={"shape": json.dumps(towers.shape, sort_keys=True)}))


def load_towers(path: Path, device: str = "cpu") -> TwoTowers:
    """Read towers in evaluation mode; needs neither Lightning nor the config.

    Raises:
        ArtifactError: the file is missing, damaged, or no towers.
    """
    try:
        with safe_open(path, framework="pt", device=device) as stored:
            shape = json.loads((stored.metadata() or {})["shape"])
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        towers = TwoTowers(**shape)
        towers.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"'{path}' holds no towers: {error}") from error
    return towers.to(device).eval()


@torch.inference_mode()
def embed(tower: Tower, rows: Tensor, chunk: int = 8192) -> Tensor:
    """Embed (n, in_dim) rows by chunks on the tower's device; returns (n, embed_dim) float32 on the CPU."""
    device = tower.hidden.weight.device
    return torch.cat([tower(rows[start : start + chunk].to(device)).cpu() for start in range(0, len(rows), chunk)])
