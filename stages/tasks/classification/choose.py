"""What `compute.backend: auto` stands for: OpenVINO where it answers as torch does and is worth its start, else eager.

What is installed and the network itself decide, never the clock: OpenVINO has not been slower than torch for any
network measured, but how much faster it is changes with what else the machine does, and a choice that changed with
that would make another audit of the same one. The clock only tells people what they gain.
"""

from __future__ import annotations

import platform
import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stages.errors import UsageError
from stages.tasks.classification.backends import ROUNDING, Backend, has_openvino, off_by
from stages.tasks.classification.models import Classifier
from stages.tasks.contract import Chosen, Compute

PICTURES = 16  # asked of both; a large network takes a second for each
_ROUNDS = 3
# Floating-point operations for a picture, below which a search takes so little time that OpenVINO's start in each stage
# costs more than it saves. The small CNN needs 2 million for a digit of MNIST, ResNet-18 75 million for 32 pixels.
_SMALL = 20e6
# Elsewhere nobody has measured it.
_PROCESSORS = ("x86_64", "AMD64")


def only_eager(compute: Compute, black_box: str | None) -> str:
    """Why there is nothing to choose here, whatever the network is, in words; empty if there is."""
    if black_box is not None:
        return f"a model that runs by itself (prepare.model.{black_box})"
    if compute.device != "cpu":
        return f"on {compute.device}"
    if compute.dtype != "float32":
        return f"in {compute.dtype}, where backends differ in their answers"
    if platform.machine() not in _PROCESSORS:
        return f"not measured on {platform.machine()}"
    if not has_openvino():
        return (
            "OpenVINO is not installed; with it EfficientNet-Lite0 was four times as fast: pip install"
            " 'faded[openvino]'"
        )
    return ""


def choose(model: Classifier, compute: Compute, pixels: Tensor, black_box: str | None = None) -> Chosen:
    """Choose for a network.

    Args:
        model: the network, on the device.
        compute: where it runs; its backend is not looked at.
        pixels: (n, c, h, w) float32 in [0, 1] on the device: pictures of the audit.
        black_box: the kind of model ("onnx", "endpoint"), if it runs by itself.
    """
    if why := only_eager(compute, black_box):
        return Chosen("eager", why)
    with torch.inference_mode():
        if (operations := _operations(model, pixels[:1])) < _SMALL:
            return Chosen("eager", f"{operations / 1e6:.2g} million operations a picture gain nothing by OpenVINO")
        try:
            openvino = Backend(model, replace(compute, backend="openvino"))
        except UsageError as error:
            return Chosen("eager", str(error).removeprefix("compute.backend: ").removesuffix("; use eager"))
        eager, pixels = Backend(model, replace(compute, backend="eager")), pixels[: compute.batch_size]
        if not (far := off_by(openvino(pixels), eager(pixels))) < ROUNDING:
            return Chosen("eager", f"logits of OpenVINO are off by {far:.1e} of the largest on the audit's pictures")
        return Chosen("openvino", f"the network {_times(openvino, eager, pixels):.1f} times as fast, off by {far:.0e}")


def _operations(model: Classifier, picture: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(picture)
    return counter.get_total_flops()


def _times(fast: Backend, slow: Backend, pixels: Tensor) -> float:
    """How many times as fast one is as the other, each at its best in turns with the other."""
    rounds = [(_seconds(fast, pixels), _seconds(slow, pixels)) for _ in range(_ROUNDS)]
    best, of_slow = map(min, zip(*rounds, strict=True))
    return of_slow / best


def _seconds(backend: Backend, pixels: Tensor) -> float:
    with backend.threads():
        start = time.perf_counter()
        backend(pixels)
        return time.perf_counter() - start
