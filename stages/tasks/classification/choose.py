"""Choice of the backend for `compute.backend: auto`: OpenVINO if it is correct and worth its start-up, else eager.

Only the installed packages and the network decide, never a timing: OpenVINO was not slower than torch for any measured
network, but its speed-up varies with the load of the machine, and a choice that varied with it would change the
results of the same audit. The speed-up is only measured to report it.
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

PICTURES = 16  # number of pictures to compare both on; a large network takes a second for each
_ROUNDS = 3
# Floating-point operations per picture below which a search is so short that OpenVINO's start-up in each stage costs
# more than it saves. The small CNN needs 2 million for an MNIST digit, ResNet-18 75 million for a side of 32 pixels.
_SMALL = 20e6
# OpenVINO was not measured on other processors.
_PROCESSORS = ("x86_64", "AMD64")


def only_eager(compute: Compute, black_box: str | None) -> str:
    """Return why there is no choice here, whatever the network; empty if there is one."""
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
    """Choose the backend for a network.

    Args:
        model: the network, on the device.
        compute: where it runs; its backend is ignored.
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
    """Return the speed-up of one backend over the other, each by its best time in alternating rounds."""
    rounds = [(_seconds(fast, pixels), _seconds(slow, pixels)) for _ in range(_ROUNDS)]
    best, of_slow = map(min, zip(*rounds, strict=True))
    return of_slow / best


def _seconds(backend: Backend, pixels: Tensor) -> float:
    with backend.threads():
        start = time.perf_counter()
        backend(pixels)
        return time.perf_counter() - start
