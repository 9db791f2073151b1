"""Backends of a classifier: eager torch, compiled torch, or OpenVINO. In float32 all give the same logits.

Where answers could depend on the rest of the batch or on its size, every batch is padded to one size: compiled code is
made for one shape, and in bfloat16 the order of summation matters, which float32 hides.

For `compute.backend: auto`, `choose` takes OpenVINO if it is correct and worth its start-up, else eager. Only the
installed packages and the network decide, never a timing: OpenVINO was not slower than torch for any measured network,
but its speed-up varies with the load of the machine, and a choice that varied with it would change the results of the
same audit. The speed-up is only measured to report it.
"""

import contextlib
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stages.core.environment import WORK, torch_threads
from stages.core.errors import UsageError, one_line
from stages.tasks.classification.models import Classifier
from stages.tasks.contract import Chosen, Compute

BACKENDS = ("eager", "compile", "openvino")
_Run = Callable[[Tensor], Tensor]  # (n, c, h, w) float32 on the device -> (n, classes) float32 on the CPU

# Largest difference from torch in float32, as a share of the largest logit, that counts as rounding. Measured
# differences are at most 3e-6; a wrongly converted network differs by about 1.
ROUNDING = 1e-3
_NO_OPENVINO = (
    "compute.backend: openvino is not installed here, and all stages of an audit use the same backend: pip install"
    " 'faded[openvino]', or set backend: eager"
)
PICTURES = 16  # number of pictures to compare both on; a large network takes a second for each
_ROUNDS = 3
# Floating-point operations per picture below which a search is so short that OpenVINO's start-up in each stage costs
# more than it saves. The small CNN needs 2 million for an MNIST digit, ResNet-18 75 million for a side of 32 pixels.
_SMALL = 20e6
# OpenVINO was not measured on other processors.
_PROCESSORS = ("x86_64", "AMD64")


def has_openvino() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("openvino") is not None


def off_by(logits: Tensor, wanted: Tensor) -> float:
    """Return the largest difference from torch's logits, as a share of the largest logit of torch."""
    return float((logits - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


def compute_errors(compute: Compute, black_box: str | None = None) -> list[str]:
    """Return what cannot run here, without running it; a black box ("onnx", "endpoint") runs by itself."""
    backend, dtype, gpu = compute.backend, compute.dtype, compute.device != "cpu"
    errors = []
    if black_box is not None:
        for name, value, expected in (("backend", backend, "eager"), ("dtype", dtype, "float32")):
            if value not in ("auto", expected):
                errors.append(
                    f"compute.{name}: {value} is not for a model that runs by itself (prepare.model.{black_box});"
                    f" expected {expected}"
                )
        return errors
    if backend == "openvino" and gpu:
        errors.append(
            f"compute.backend: openvino computes on the CPU, found compute.device {compute.device}; expected device"
            " cpu, or backend eager or compile"
        )
    elif backend == "openvino" and not has_openvino():
        errors.append(_NO_OPENVINO)
    if backend == "compile":
        errors += _compiler_errors(gpu)
    here = gpu and torch.cuda.is_available()  # otherwise another machine's GPU is meant
    if dtype == "bfloat16" and here and not torch.cuda.is_bf16_supported(including_emulation=False):
        errors.append(f"compute.dtype: {compute.device} does not compute in bfloat16; expected float32")
    return errors


class Backend:
    """Runs one classifier.

    Raises a UsageError if the backend is not available, or cannot run this network.

    Args:
        model: the classifier; a further trained one needs a new backend.
        compute: backend, dtype, device, threads and batch size.
    """

    def __init__(self, model: Classifier, compute: Compute) -> None:
        if errors := compute_errors(compute):  # `check` may have run on another machine
            raise UsageError("\n".join(errors))
        self.model, self.compute = model, compute
        # OpenVINO has its own threads; torch's threads busy-wait, which takes cores from them.
        self.torch_threads = 1 if compute.backend == "openvino" else compute.threads
        self._fill = compute.backend == "compile" or compute.dtype == "bfloat16"
        with torch.inference_mode():
            self._run = {"eager": _eager, "compile": _compiled, "openvino": _openvino}[compute.backend](model, compute)
            if compute.backend != "eager":
                self._check()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Compute the logits of pictures.

        Args:
            pixels: (n, c, h, w) float32 in [0, 1] on the device, n at most the batch size.

        Returns:
            Logits, (n, classes) float32 on the CPU.
        """
        n, size = len(pixels), self.compute.batch_size
        if self._fill and 0 < n < size:
            pixels = torch.cat([pixels, pixels[-1:].expand(size - n, -1, -1, -1)])
        return self._run(pixels)[:n]

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Limit torch inside the block to the number of threads that suits this backend."""
        with torch_threads(self.torch_threads):
            yield

    def _check(self) -> None:
        """Compare it with eager torch, so that a wrongly converted network is not reported as a failing model."""
        n = min(3, self.compute.batch_size)
        draw = torch.Generator().manual_seed(0)
        pixels = torch.rand(n, *self.model.form.shape, generator=draw).to(self.compute.device)
        with self.threads():
            own, wanted = self(pixels), self.model(pixels).float().cpu()
        far = off_by(own, wanted)
        if self.compute.dtype == "float32" and not far < ROUNDING:
            raise UsageError(
                f"compute.backend: {self.compute.backend} does not run {self.model.form.architecture} as torch does:"
                f" its logits are off by {far:.1e} of the largest, expected less than {ROUNDING}; use eager"
            )


def _eager(model: Classifier, compute: Compute) -> _Run:
    kind, half = compute.device.partition(":")[0], compute.dtype == "bfloat16"

    def run(pixels: Tensor) -> Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            return model(pixels).float().cpu()

    return run


def _compiled(model: Classifier, compute: Compute) -> _Run:
    # By default compiled code is stored where other users of this machine could have placed it before.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((WORK / "compiled").resolve()))
    kind, half = compute.device.partition(":")[0], compute.dtype == "bfloat16"
    network = torch.compile(model, dynamic=False)

    def run(pixels: Tensor) -> Tensor:
        try:
            with torch.autocast(kind, torch.bfloat16, enabled=half):
                return network(pixels).float().cpu()
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UsageError(
                f"compute.backend: torch.compile cannot compile {model.form.architecture} here: {one_line(error)}"
            ) from None

    return run


def _openvino(model: Classifier, compute: Compute) -> _Run:
    # The converter sends telemetry on every use, unless its telemetry package cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    from openvino import properties
    from openvino.properties import hint

    wanted = openvino.Type.bf16 if compute.dtype == "bfloat16" else openvino.Type.f32
    settings = {
        hint.inference_precision: wanted,
        properties.inference_num_threads: compute.threads,
        properties.num_streams: 1,
        hint.enable_cpu_pinning: False,  # stages that run in parallel would be pinned to the same cores
    }
    try:
        # Use two pictures, because some networks lose their variable batch size if they are traced with one.
        example = torch.zeros(2, *model.form.shape)
        converted = openvino.convert_model(model, example_input=example, input=[-1, *model.form.shape])
        compiled = openvino.Core().compile_model(converted, "CPU", settings)
    except Exception as error:  # tracing may raise anything, depending on the network
        raise UsageError(
            f"compute.backend: openvino cannot run {model.form.architecture}: {one_line(error)}; use eager"
        ) from None
    if (found := compiled.get_property(hint.inference_precision)) != wanted:
        raise UsageError(f"compute.dtype: OpenVINO computes in {found} on this CPU, expected {wanted}; use float32")
    request = compiled.create_infer_request()

    def run(pixels: Tensor) -> Tensor:
        answer = request.infer(pixels.contiguous().numpy(), share_inputs=True, share_outputs=False)[0]
        return torch.from_numpy(answer).float()

    return run


def _compiler_errors(gpu: bool) -> list[str]:
    """Return what `torch.compile` lacks: it generates C++ or Triton code and compiles it."""
    if gpu:
        found = importlib.util.find_spec("triton") is not None
        return [] if found else ["compute.backend: compile needs the package triton on a GPU, found none; use eager"]
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler) is not None:
        return []
    return [
        f"compute.backend: compile needs a C++ compiler, and there is no {compiler}; install one (Debian: apt install"
        " g++), name it in CXX, or use eager"
    ]


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


def choose_backend(model: Classifier, compute: Compute, pixels: Tensor, black_box: str | None = None) -> Chosen:
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
        with FlopCounterMode(display=False) as counter:
            model(pixels[:1])
        if (operations := counter.get_total_flops()) < _SMALL:
            return Chosen("eager", f"{operations / 1e6:.2g} million operations a picture gain nothing by OpenVINO")
        try:
            openvino = Backend(model, replace(compute, backend="openvino"))
        except UsageError as error:
            return Chosen("eager", str(error).removeprefix("compute.backend: ").removesuffix("; use eager"))
        eager, pixels = Backend(model, replace(compute, backend="eager")), pixels[: compute.batch_size]
        if not (far := off_by(openvino(pixels), eager(pixels))) < ROUNDING:
            return Chosen("eager", f"logits of OpenVINO are off by {far:.1e} of the largest on the audit's pictures")
        return Chosen("openvino", f"the network {_times(openvino, eager, pixels):.1f} times as fast, off by {far:.0e}")


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
