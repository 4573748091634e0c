"""Runtimes: torch and OpenVINO give the same features in full float32."""

import itertools
import os
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import properties

import crawl
from configs.artifacts import ArtifactError
from crawl.config import GateOptions
from crawl.ingest import ingest
from crawl.source_config import WebDatasetSource
from crawl.sources import open_source
from features.backbones import ColorHistogram, build_backbone
from features.neighbours import neighbours_kept
from features.pictures import decode
from features.runtimes import (
    compiled,
    compiled_torch_runtime,
    cores,
    has_bfloat16,
    openvino_model,
    openvino_runtime,
    resolve,
    torch_runtime,
)
from tests.test_backbones import CARRIED

SAMPLE = Path(crawl.__file__).parent / "sample"
NUM_PICTURES, BATCH = 64, (16, 3, 224, 224)


@pytest.fixture(scope="module")
def pictures():
    """64 pictures of the sample collection, spread over its first shard."""
    options = GateOptions()
    source = open_source(WebDatasetSource(path=str(SAMPLE / "00000.tar")), options.max_bytes)
    items = itertools.islice(source, 0, 20 * NUM_PICTURES, 20)
    return np.stack([decode(ingest(item.data, options).jpeg, CARRIED) for item in items])


def by_openvino(network, batch, precision="f32"):
    return openvino_runtime(openvino_model(network, batch), batch, precision)


@pytest.fixture(scope="module")
def features(pictures):
    torch_run, openvino_run = torch_runtime(build_backbone(CARRIED), "cpu"), by_openvino(build_backbone(CARRIED), BATCH)
    batches = [pictures[start : start + 16] for start in range(0, NUM_PICTURES, 16)]
    return tuple(np.concatenate([run(batch)() for batch in batches]) for run in (torch_run, openvino_run))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_torch_and_openvino_agree_to_four_nines(features):
    one, two = features
    assert (unit(one) * unit(two)).sum(axis=1).min() >= 0.9999


def test_torch_and_openvino_have_the_same_neighbours(features):
    assert neighbours_kept(*features) >= 0.99


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


@pytest.mark.parametrize(("precision", "type_"), [("f32", ov.Type.f32), ("bf16", ov.Type.bf16)])
def test_openvino_computes_in_the_precision_asked_for(precision, type_, small):
    if precision == "bf16" and not has_bfloat16("cpu"):
        pytest.skip("this processor has no bfloat16")
    model = compiled(openvino_model(small, (2, 3, 8, 8)), precision)
    assert model.get_property(properties.hint.inference_precision()) == type_


def test_torch_computes_in_bfloat16_where_asked(small):
    full, low = (torch_runtime(small, "cpu", precision)(random_pictures(2))() for precision in ("f32", "bf16"))
    assert full.dtype == low.dtype == np.float32
    assert low == pytest.approx(full, rel=0.05, abs=0.02)
    assert (low != full).any()


def test_torch_compiled_gives_the_same_features_whatever_is_started_in_between(small):
    run, plain = compiled_torch_runtime(small, "cpu", (4, 3, 8, 8)), torch_runtime(small, "cpu")
    pictures = random_pictures(7)
    first, second = run(pictures[:4]), run(pictures[4:])  # the second is short
    assert first() == pytest.approx(plain(pictures[:4])(), abs=1e-5)
    assert second() == pytest.approx(plain(pictures[4:])(), abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_processor(pictures, features):
    run = compiled_torch_runtime(build_backbone(CARRIED), "cuda", BATCH)
    batches = [run(pictures[start : start + 16])() for start in range(0, NUM_PICTURES, 16)]
    assert (unit(np.concatenate(batches)) * unit(features[0])).sum(axis=1).min() >= 0.9999


def test_a_network_of_any_batch_is_traced_for_any_batch(small):
    model = openvino_model(small, (-1, 3, 8, 8))
    model.reshape([3, 3, 8, 8])
    assert openvino_runtime(model, (3, 3, 8, 8))(random_pictures(3))().shape == (3, 5)


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("", os.cpu_count())])
def test_threads_are_as_the_environment_says_or_one_a_core(said, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", said or "0")
    assert cores() == threads


def test_a_short_batch_gives_the_features_of_its_pictures(small):
    run = by_openvino(small, (4, 3, 8, 8))
    pictures = random_pictures(4)
    assert run(pictures[:3])() == pytest.approx(run(pictures)()[:3])
    assert run(pictures[:3])() == pytest.approx(torch_runtime(small, "cpu")(pictures[:3])(), abs=1e-5)


def test_features_of_an_earlier_batch_are_not_overwritten(small):
    run = by_openvino(small, (2, 3, 8, 8))
    pictures = random_pictures(6)
    alone = [run(pictures[start : start + 2])() for start in (0, 2, 4)]
    first, second = run(pictures[:2]), run(pictures[2:4])  # both under way
    kept = first()
    third = run(pictures[4:])
    assert [(one == other).all() for one, other in zip(alone, (kept, second(), third()), strict=True)] == [True] * 3


def test_the_histogram_runs_on_torch():
    assert torch_runtime(ColorHistogram(), "cpu")(random_pictures(2))().shape == (2, 99)


@pytest.mark.parametrize(
    ("asked", "cuda", "expected"),
    [
        (("auto", "auto"), False, ("openvino", "cpu")),
        (("auto", "auto"), True, ("torch", "cuda")),
        (("auto", "cpu"), True, ("openvino", "cpu")),
        (("openvino", "auto"), True, ("openvino", "cpu")),
        (("torch", "auto"), False, ("torch", "cpu")),
        (("auto", "cpu", "f32", False), False, ("torch", "cpu")),
        (("auto", "auto", "bf16"), True, ("torch", "cuda")),
        (("auto", "auto", "int8"), True, ("openvino", "cpu")),
    ],
)
def test_auto_takes_what_the_machine_has(asked, cuda, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert resolve(*asked) == expected


@pytest.mark.parametrize(
    ("asked", "cuda"),
    [
        (("auto", "cuda"), False),
        (("openvino", "cuda"), True),
        (("torch", "cpu", "int8"), False),
        (("openvino", "cpu", "f32", False), False),
    ],
)
def test_what_the_machine_or_the_runtime_has_not_is_refused(asked, cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(ArtifactError, match=r"device=cpu|runtime=torch|precision=bf16"):
        resolve(*asked)
