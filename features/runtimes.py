"""What runs a network: torch on CPU or CUDA, OpenVINO on CPU; in full float32 unless a lower precision was calibrated.

B images of a batch, W width of a feature.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import properties as ov_properties
from torch import Tensor, nn

from configs.artifacts import ArtifactError

Waiting = Callable[[], np.ndarray]  # waits for the (B, W) float32 features of a batch under way
Runtime = Callable[[np.ndarray], Waiting]  # starts a batch, (B, 3, H, W) uint8
IN_FLIGHT = 2  # batches: the next one starts without waiting for Python to store the last
_OPENVINO_TYPES = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}


def resolve(runtime: str, device: str, precision: str = "f32", traceable: bool = True) -> tuple[str, str]:
    """Settle `auto`: torch on CUDA where there is a card, otherwise OpenVINO on CPU.

    Raises:
        ArtifactError: CUDA is asked for and not there, or asked of OpenVINO; int8 is asked of torch, or histograms of
            OpenVINO.
    """
    if device == "auto":
        wanted = runtime != "openvino" and precision != "int8"
        device = "cuda" if torch.cuda.is_available() and wanted else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("device=cuda, but torch sees no CUDA device. Use device=cpu, or check `nvidia-smi`.")
    if runtime == "auto":
        runtime = "openvino" if device == "cpu" and traceable else "torch"
    if runtime == "openvino" and device != "cpu":
        raise ArtifactError("runtime=openvino runs on CPU. Use runtime=torch with device=cuda.")
    if runtime == "openvino" and not traceable:
        raise ArtifactError("OpenVINO computes colour histograms wrongly. Use runtime=torch for them.")
    if precision == "int8" and runtime != "openvino":
        raise ArtifactError("precision=int8 is OpenVINO's, on CPU. Use precision=bf16 with runtime=torch.")
    return runtime, device


def cores() -> int:
    """Return how many threads to keep busy: as OMP_NUM_THREADS says, which Ray sets for its workers, or one a core."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]  # one number a level of nesting
    return (int(said) if said.isdecimal() else 0) or os.cpu_count() or 1


def has_bfloat16(device: str) -> bool:
    """Tell whether a device computes in bfloat16."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def filled(pictures: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """Fill a short batch up with black pictures, so that one compiled shape serves all."""
    if len(pictures) == batch[0]:
        return pictures
    whole = np.zeros(batch, dtype=np.uint8)
    whole[: len(pictures)] = pictures
    return whole


def torch_runtime(network: nn.Module, device: str, precision: str = "f32") -> Runtime:
    """Run a network by torch, channels last. In float32 TF32 stays off, because it would move features."""
    network = network.to(device).to(memory_format=torch.channels_last)

    def run(pictures: np.ndarray) -> Waiting:
        features = _forward(network, torch.from_numpy(pictures).to(device), precision)
        return lambda: np.asarray(features.cpu().numpy())

    return run


def compiled_torch_runtime(network: nn.Module, device: str, batch: tuple[int, ...], precision: str = "f32") -> Runtime:
    """Run a network compiled by torch for one shape of batch, its weights frozen, which folds BatchNorm.

    On CUDA a batch is copied in, computed and copied out while the caller prepares the next one: copies go through
    pinned memory, and an event tells when this batch is out, whatever was started since.
    """
    network = network.to(device).to(memory_format=torch.channels_last)
    forward = torch.compile(network, dynamic=False, options={"freezing": True})
    on_card = device == "cuda"

    def run(pictures: np.ndarray) -> Waiting:
        whole = torch.from_numpy(filled(pictures, batch))
        whole = whole.pin_memory().to(device, non_blocking=True) if on_card else whole
        features = _forward(forward, whole, precision)
        copied = torch.empty(features.shape, pin_memory=on_card).copy_(features, non_blocking=on_card)
        done = torch.cuda.current_stream().record_event() if on_card else None

        def wait() -> np.ndarray:
            if done:
                done.synchronize()
            return np.asarray(copied.numpy()[: len(pictures)])

        return wait

    return run


def _forward(network: Callable[[Tensor], Tensor], pictures: Tensor, precision: str) -> Tensor:
    torch.set_float32_matmul_precision("highest")
    low = torch.autocast(pictures.device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False), low:
        return network(pictures.contiguous(memory_format=torch.channels_last)).float()


def openvino_model(network: nn.Module, batch: tuple[int, ...]) -> Any:
    """Convert a network for one shape of batch, -1 for any; OpenVINO folds BatchNorm and the input's normalisation."""
    example = torch.zeros((max(batch[0], 2), *batch[1:]), dtype=torch.uint8)  # a batch of 1 would be traced as fixed
    return ov.convert_model(network, example_input=example, input=[(batch, ov.Type.u8)])


def compiled(model: Any, precision: str) -> Any:
    """Compile a model with an explicit hint of precision; without it OpenVINO picks bfloat16."""
    hints = {
        ov_properties.hint.inference_precision(): _OPENVINO_TYPES.get(precision, ov.Type.f32),
        ov_properties.inference_num_threads(): cores(),
        ov_properties.hint.enable_cpu_pinning(): False,  # processes side by side would pin themselves to the same core
    }
    return ov.Core().compile_model(model, "CPU", hints)


def openvino_runtime(model: Any, batch: tuple[int, ...], precision: str = "f32") -> Runtime:
    """Run a model on CPU by OpenVINO; a short batch is filled up, so that one shape serves all."""
    compiled_model = compiled(model, precision)
    requests = cycle([compiled_model.create_infer_request() for _ in range(IN_FLIGHT)])

    def run(pictures: np.ndarray) -> Waiting:
        request = next(requests)
        request.start_async([filled(pictures, batch)], share_inputs=True)

        def wait() -> np.ndarray:
            request.wait()
            return np.array(request.get_output_tensor().data[: len(pictures)])

        return wait

    return run


def read_openvino_model(path: Path) -> Any:
    """Read a model that calibration quantised."""
    return ov.Core().read_model(path)


def run_onnx(model: bytes, inputs: np.ndarray) -> np.ndarray:
    """Run an ONNX model of one input and one output on rows (B, ...) in full float32."""
    read = ov.Core().read_model(model=model, weights=b"")
    return np.array(next(iter(compiled(read, "f32")(inputs).values())))


def open_runtime(network: nn.Module, runtime: str, device: str, batch: tuple[int, ...], precision: str) -> Runtime:
    """Open a runtime that `resolve` settled, in f32 or bf16."""
    if runtime == "openvino":
        return openvino_runtime(openvino_model(network, batch), batch, precision)
    if device == "cuda":
        return compiled_torch_runtime(network, device, batch, precision)
    return torch_runtime(network, device, precision)
