"""Runtimes: torch and OpenVINO give the same features in full float32."""

import itertools
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import properties

import crawl
from configs.artifacts import ArtifactError
from crawl.config import GateOptions, WebDatasetSource
from crawl.ingest import ingest
from crawl.sources import open_source
from features.backbones import ColorHistogram, build_backbone
from features.extract import decode
from features.runtimes import openvino_model, openvino_runtime, resolve, torch_runtime
from tests.test_backbones import CARRIED

SAMPLE = Path(crawl.__file__).parent / "sample"
NUM_PICTURES, BATCH = 64, (16, 3, 224, 224)


@pytest.fixture(scope="module")
def pictures():
    """64 pictures of the sample collection, spread over its first shard."""
    options = GateOptions()
    source = open_source(WebDatasetSource(path=str(SAMPLE / "00000.tar")), options.max_bytes)
    items = itertools.islice(source, 0, 20 * NUM_PICTURES, 20)
    return np.stack([decode(ingest(item.data, options).jpeg, 256, 224) for item in items])


@pytest.fixture(scope="module")
def features(pictures):
    torch_run, openvino_run = (
        torch_runtime(build_backbone(CARRIED), "cpu"),
        openvino_runtime(build_backbone(CARRIED), BATCH),
    )
    batches = [pictures[start : start + 16] for start in range(0, NUM_PICTURES, 16)]
    return tuple(np.concatenate([run(batch) for batch in batches]) for run in (torch_run, openvino_run))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def neighbours(rows):
    scores = unit(rows) @ unit(rows).T
    np.fill_diagonal(scores, -1)
    return np.argsort(-scores, axis=1, kind="stable")[:, :10]


def test_torch_and_openvino_agree_to_four_nines(features):
    one, two = features
    assert (unit(one) * unit(two)).sum(axis=1).min() >= 0.9999


def test_torch_and_openvino_have_the_same_neighbours(features):
    one, two = map(neighbours, features)
    same = [len(set(a) & set(b)) for a, b in zip(one.tolist(), two.tolist(), strict=True)]
    assert sum(same) / (10 * NUM_PICTURES) >= 0.99


@pytest.fixture
def small():
    """A network that compiles in no time."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    return torch.nn.Sequential(Floats(), network).eval().requires_grad_(False)


class Floats(torch.nn.Module):
    def forward(self, pictures):
        return pictures.float() / 255


def random_pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


def test_openvino_computes_in_float32(small):
    model = openvino_model(small, (2, 3, 8, 8))
    assert model.get_property(properties.hint.inference_precision()) == ov.Type.f32


def test_a_short_batch_gives_the_features_of_its_pictures(small):
    run = openvino_runtime(small, (4, 3, 8, 8))
    pictures = random_pictures(4)
    assert run(pictures[:3]) == pytest.approx(run(pictures)[:3])
    assert run(pictures[:3]) == pytest.approx(torch_runtime(small, "cpu")(pictures[:3]), abs=1e-5)


def test_features_of_an_earlier_batch_are_not_overwritten(small):
    run = openvino_runtime(small, (2, 3, 8, 8))
    first = run(random_pictures(2))
    kept = first.copy()
    run(random_pictures(2)[::-1].copy())
    assert (first == kept).all()


def test_the_histogram_runs_on_torch():
    assert torch_runtime(ColorHistogram(), "cpu")(random_pictures(2)).shape == (2, 99)


@pytest.mark.parametrize(
    ("asked", "cuda", "expected"),
    [
        (("auto", "auto"), False, ("openvino", "cpu")),
        (("auto", "auto"), True, ("torch", "cuda")),
        (("auto", "cpu"), True, ("openvino", "cpu")),
        (("openvino", "auto"), True, ("openvino", "cpu")),
        (("torch", "auto"), False, ("torch", "cpu")),
        (("auto", "cpu", False), False, ("torch", "cpu")),
    ],
)
def test_auto_takes_what_the_machine_has(asked, cuda, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert resolve(*asked) == expected


@pytest.mark.parametrize(("asked", "cuda"), [(("auto", "cuda"), False), (("openvino", "cuda"), True)])
def test_what_the_machine_or_the_runtime_has_not_is_refused(asked, cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(ArtifactError, match=r"device=cpu|runtime=torch"):
        resolve(*asked)
