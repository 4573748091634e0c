"""The two towers: tag vectors and image features into one space of unit vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from configs.artifacts import ArtifactError, atomic_write


class Dropout(nn.Dropout):
    """Dropout whose chances on a CPU are 16 bits of a random integer each, a tenth of the time of torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop each value with a chance of `p`, rounded to 1/65536, and scale those that stay."""
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        if not self.training or not dropped or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        integers = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        chances = integers.view(torch.int16)[: input.numel()].view(input.shape)
        last_dropped = dropped - 2**15 - 1
        kept = chances.clamp_(last_dropped, last_dropped + 1).sub_(last_dropped)  # comparing takes four times as long
        return input * kept.to(input.dtype).mul_(2**16 / (2**16 - dropped))


class Tower(nn.Module):
    """Linear layers with an activation and dropout between, ending in a unit vector.

    `centre` and `spread` scale the input; they are kept with the weights, so that a tower takes raw features.
    """

    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        embed_dim: int,
        activation: str,
        in_dropout: float,
        hidden_dropout: float,
        depth: int,
        normalisation: str,
    ) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(in_dim))
        self.register_buffer("spread", torch.ones(()))
        self.in_dropout = Dropout(in_dropout)
        self.hidden = nn.Linear(in_dim, hidden_dim) if depth > 1 else None
        self.deeper = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(depth - 2))
        norms = depth - 1 if normalisation == "layer" else 0
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(norms))
        self.activation: nn.Module = nn.ReLU() if activation == "relu" else nn.Identity()
        self.hidden_dropout = Dropout(hidden_dropout)
        self.out = nn.Linear(hidden_dim if depth > 1 else in_dim, embed_dim)

    def scale_by(self, rows: Tensor) -> None:
        """Centre inputs on the mean of rows (n, in_dim) and divide them by their overall standard deviation."""
        rows = rows.to(torch.float32, copy=True)
        self.centre.copy_(rows.mean(dim=0))
        rows.sub_(self.centre).square_()  # in place, because the sample is large
        self.spread.copy_(rows.mean().sqrt().clamp(min=1e-6))

    @property
    def is_linear(self) -> bool:
        """Tell whether `project` is linear but for a constant."""
        return self.hidden is None or (isinstance(self.activation, nn.Identity) and not self.norms)

    def project(self, inputs: Tensor) -> Tensor:
        """Map (B, in_dim) to (B, embed_dim), not yet of length 1."""
        values = self.in_dropout((inputs.float() - self.centre).div_(self.spread))
        layers = [] if self.hidden is None else [self.hidden, *self.deeper]
        for number, layer in enumerate(layers):
            values = layer(values)
            values = self.norms[number](values) if self.norms else values
            values = self.hidden_dropout(self.activation(values))
        projected: Tensor = self.out(values)
        return projected

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, in_dim) to (B, embed_dim) unit vectors."""
        embeddings: Tensor = F.normalize(self.project(inputs).float(), dim=1)
        return embeddings


class TwoTowers(nn.Module):
    """TagTower and ImageTower; the score of a tag and an image is the cosine of their embeddings.

    Each of `residual_tags` has a learned vector that is added to what the tower makes of its word vector; other tags,
    unseen ones among them, have none.
    """

    def __init__(
        self,
        tag_dim: int,
        image_dim: int,
        hidden_dim: int = 1024,
        embed_dim: int = 128,
        activation: str = "relu",
        feature_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        depth: int = 2,
        normalisation: str = "none",
        residual_tags: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.shape: dict[str, object] = {
            "tag_dim": tag_dim,
            "image_dim": image_dim,
            "hidden_dim": hidden_dim,
            "embed_dim": embed_dim,
            "activation": activation,
        }
        younger = {
            "depth": (depth, 2),
            "normalisation": (normalisation, "none"),
            "residual_tags": ([*residual_tags], []),
        }
        self.shape |= {name: value for name, (value, plain) in younger.items() if value != plain}
        self.tag = Tower(tag_dim, hidden_dim, embed_dim, activation, 0.0, hidden_dropout, depth, normalisation)
        shape = image_dim, hidden_dim, embed_dim, activation, feature_dropout, hidden_dropout, depth, normalisation
        self.image = Tower(*shape)
        self.residual = nn.Parameter(torch.zeros(len(residual_tags), embed_dim)) if residual_tags else None
        self._residual_row = {tag: row for row, tag in enumerate(residual_tags)}

    def forward(self, tag_vectors: Tensor, image_features: Tensor) -> Tensor:
        """Score (B, tag_dim) tags of no name against (C, image_dim) images: (B, C) cosines."""
        scores: Tensor = self.tag(tag_vectors) @ self.image(image_features).T
        return scores

    def residual_rows(self, tags: Sequence[str]) -> Tensor:
        """Return (n,) int64, where each tag's residual lies, -1 for a tag that has none."""
        return torch.tensor([self._residual_row.get(tag, -1) for tag in tags], dtype=torch.int64)

    def tag_embeddings(self, tag_vectors: Tensor, residual_rows: Tensor) -> Tensor:
        """Map word vectors (B, tag_dim) of tags whose residuals lie at (B,) to (B, embed_dim) unit vectors."""
        embeddings: Tensor = self.tag(tag_vectors)
        if self.residual is None:
            return embeddings
        residuals = F.embedding(residual_rows.clamp(min=0), self.residual) * (residual_rows >= 0)[:, None]
        return F.normalize(embeddings + residuals, dim=1)


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
        if shape.get("depth", 2) > len(state):
            raise ValueError(f"{shape['depth']} layers in {len(state)} tensors")
        with torch.device("meta"):  # so that no more is allocated than the file holds, whatever it says
            towers = TwoTowers(**shape)
        towers.load_state_dict(state, assign=True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"'{path}' holds no towers: {error}") from error
    return towers.to(device).eval()


CHUNK = 8192  # rows embedded at once


@torch.inference_mode()
def embed(tower: Tower, rows: Tensor, chunk: int = CHUNK) -> Tensor:
    """Embed (n, in_dim) rows by chunks on the tower's device; returns (n, embed_dim) float32 on the CPU."""
    device = tower.out.weight.device
    return torch.cat([tower(rows[start : start + chunk].to(device)).cpu() for start in range(0, len(rows), chunk)])


@torch.inference_mode()
def embed_tags(towers: TwoTowers, tags: Sequence[str], vectors: Tensor, chunk: int = CHUNK) -> Tensor:
    """Embed n tags by name and word vector (n, tag_dim) by chunks; returns (n, embed_dim) float32 on the CPU.

    A tag that training did not see is embedded by its word vector alone.
    """
    device = towers.tag.out.weight.device
    rows = towers.residual_rows(tags)
    parts = [slice(start, start + chunk) for start in range(0, len(tags), chunk)]
    return torch.cat([towers.tag_embeddings(vectors[part].to(device), rows[part].to(device)).cpu() for part in parts])
