"""The tag tower in numpy against the one of torch."""

import numpy as np
import pytest
import torch

from configs.artifacts import ArtifactError
from train.tag_tower import TagTower
from train.towers import TwoTowers, embed_tags, save_towers

SHAPES = [
    {"depth": 1},
    {"depth": 2},
    {"depth": 4, "activation": "linear"},
    {"depth": 3, "normalisation": "layer"},
    {"depth": 2, "residual_tags": ["dog", "cat"]},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_embeds_as_torch_does(shape, tmp_path):
    torch.manual_seed(0)
    towers = TwoTowers(6, 5, hidden_dim=7, embed_dim=4, **shape).eval()
    towers.tag.scale_by(torch.randn(20, 6) * 3 + 1)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_towers(towers, tmp_path / "towers.safetensors")
    words, vectors = ["cat", "none", "dog"], np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    expected = embed_tags(towers, words, torch.from_numpy(vectors)).numpy()
    found = TagTower(tmp_path / "towers.safetensors").embed(words, vectors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_towers_is_refused(content, tmp_path):
    path = tmp_path / "towers.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="holds no towers"):
        TagTower(path)
