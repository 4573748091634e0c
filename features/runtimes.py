"""What runs a backbone: torch on CPU or CUDA, OpenVINO on CPU. All compute in full float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import properties as ov_properties
from torch import nn

from configs.artifacts import ArtifactError

Runtime = Callable[[np.ndarray], np.ndarray]  # (B, 3, H, W) uint8 -> (B, W) float32


def resolve(runtime: str, device: str, traceable: bool = True) -> tuple[str, str]:
    """Settle `auto`: torch on CUDA where there is a card, otherwise OpenVINO on CPU.

    Raises:
        ArtifactError: CUDA is asked for and not there, or asked of OpenVINO.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and runtime != "openvino" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("device=cuda, but torch sees no CUDA device. Use device=cpu, or check `nvidia-smi`.")
    if runtime == "auto":
        runtime = "openvino" if device == "cpu" and traceable else "torch"
    if runtime == "openvino" and device != "cpu":
        raise ArtifactError("runtime=openvino runs on CPU. Use runtime=torch with device=cuda.")
    return runtime, device


def torch_runtime(network: nn.Module, device: str) -> Runtime:
    """Run a network eagerly; channels last, and on CUDA without TF32, which would move features."""
    network = network.to(device).to(memory_format=torch.channels_last)

    def run(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            torch.set_float32_matmul_precision("highest")
            features = network(torch.from_numpy(pictures).to(device).contiguous(memory_format=torch.channels_last))
        return np.asarray(features.float().cpu().numpy())

    return run


def openvino_model(network: nn.Module, batch: tuple[int, ...]) -> Any:
    """Compile a network for one shape of batch with an explicit float32 hint; without it OpenVINO picks bfloat16."""
    model = ov.convert_model(network, example_input=torch.zeros(batch, dtype=torch.uint8), input=[(batch, ov.Type.u8)])
    hints = {ov_properties.hint.inference_precision(): ov.Type.f32}
    return ov.Core().compile_model(model, "CPU", hints)


def openvino_runtime(network: nn.Module, batch: tuple[int, ...]) -> Runtime:
    """Run a network on CPU by OpenVINO; a short batch is filled up, so that one shape serves all."""
    request = openvino_model(network, batch).create_infer_request()

    def run(pictures: np.ndarray) -> np.ndarray:
        padded = np.zeros(batch, dtype=np.uint8)
        padded[: len(pictures)] = pictures
        return np.array(request.infer([padded])[0][: len(pictures)])

    return run


def open_runtime(network: nn.Module, runtime: str, device: str, batch: tuple[int, ...]) -> Runtime:
    """Open a runtime that `resolve` settled."""
    return openvino_runtime(network, batch) if runtime == "openvino" else torch_runtime(network, device)
