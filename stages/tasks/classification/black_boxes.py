"""Black-box classifiers: an ONNX file, a model behind HTTP. They can be searched and reported, but not repaired."""

import base64
import io
import math
import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stages.core.errors import UsageError, did_you_mean, one_line
from stages.tasks.classification.families import Form

if TYPE_CHECKING:
    from stages.tasks.endpoint import Endpoint

FILE = "model.onnx"
FAINTEST = 1e-12  # lower limit of probabilities: one that a model rounds to 0 is not infinitely unlikely


class BlackBox(nn.Module):
    """A classifier that only returns scores.

    Args:
        probabilities: whether the scores are probabilities, whose logarithm is used.
    """

    def __init__(self, probabilities: bool) -> None:
        super().__init__()
        self.probabilities = probabilities

    @abstractmethod
    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """Query the model: (n, c, h, w) float32 -> (n, classes)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what later stages need to query the same model."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (n, classes) of pictures, normalised if the model needs that, on the same device.

        Raises a UsageError if a score is not a number, or a probability is out of range.
        """
        scores = self.scores(np.ascontiguousarray(pixels.detach().cpu().numpy())).astype(np.float32)
        if not np.isfinite(scores).all():
            raise UsageError("the model under test answers with numbers that are not finite")
        if self.probabilities:
            if scores.min(initial=0) < 0 or scores.max(initial=1) > 1 + 1e-3:
                raise UsageError(
                    f"the model under test gives scores from {scores.min():.3g} to {scores.max():.3g}, expected"
                    " probabilities from 0 to 1"
                )
            scores = np.log(np.maximum(scores, FAINTEST))
        return torch.from_numpy(scores).to(pixels.device)


class OnnxNet(BlackBox):
    """An ONNX network, run by ONNX Runtime on the CPU with as many threads as torch.

    Raises a UsageError if the file cannot be read, or its inputs or outputs are not those of a classifier.

    Args:
        output: name of the output with the scores; None: the only one.
    """

    def __init__(
        self,
        path: Path,
        outputs: Literal["logits", "probabilities"],
        layout: Literal["nchw", "nhwc"] = "nchw",
        output: str | None = None,
    ) -> None:
        super().__init__(outputs == "probabilities")
        self.path, self.layout = path, layout
        self._session: Any = None
        self._threads = 0
        session = self._open()
        inputs, given = session.get_inputs(), {one.name: one for one in session.get_outputs()}
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise UsageError(f"{path}: expected one input of four dimensions, tensor(float), found {found}")
        if output is None and len(given) != 1:
            raise UsageError(f"{path} has the outputs {', '.join(given)}: name the scores, prepare.model.output")
        if output is not None and output not in given:
            raise UsageError(f"{path} has no output {output!r}{did_you_mean(output, given)}; it has {', '.join(given)}")
        self.input = inputs[0].name
        self.output = output or next(iter(given))
        dims = [dim if isinstance(dim, int) and dim > 0 else None for dim in inputs[0].shape]
        self.batch = dims[0]
        order = dims[1:] if layout == "nchw" else [dims[3], *dims[1:3]]
        # Channels, height and width; None if the file leaves it open.
        self.shape: tuple[int | None, int | None, int | None] = (order[0], order[1], order[2])

    def _open(self) -> Any:
        """Return the session; it is recreated if the number of threads has changed."""
        if self._session is None or self._threads != torch.get_num_threads():
            self._threads = torch.get_num_threads()
            self._session = _session(self.path, self._threads)
        return self._session

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        if self.layout == "nhwc":
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        size = self.batch or len(pixels)
        parts = [pixels[start : start + size] for start in range(0, len(pixels), max(size, 1))]
        answers = [self._answer(part, size) for part in parts]
        return np.concatenate(answers) if answers else np.empty((0, 0), np.float32)

    def _answer(self, part: np.ndarray, size: int) -> np.ndarray:
        # A file made for one batch size accepts no other, so the last batch is padded.
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
        try:
            answer: np.ndarray = self._open().run([self.output], {self.input: filled})[0]
        except Exception as error:  # exception classes of ONNX Runtime, which depend on its version
            raise UsageError(f"{self.path}: ONNX Runtime cannot run it: {one_line(error)}") from None
        if answer.ndim != 2 or len(answer) != size:
            raise UsageError(
                f"{self.path}: output {self.output} has shape {answer.shape} for {size} picture(s), expected"
                f" ({size}, classes)"
            )
        return answer[: len(part)]

    def save(self, folder: Path) -> None:
        """See BlackBox: one file that includes weights stored beside the original."""
        import onnx
        from onnx.external_data_helper import uses_external_data

        graph = onnx.load(str(self.path), load_external_data=False)
        if not any(uses_external_data(tensor) for tensor in graph.graph.initializer):
            shutil.copyfile(self.path, folder / FILE)
            return
        try:
            onnx.save_model(onnx.load(str(self.path)), str(folder / FILE))
        except ValueError as error:  # protobuf's limit of 2 GB
            raise UsageError(f"{self.path} cannot be kept as one file: {one_line(error)}") from None


class EndpointNet(BlackBox):
    """A classifier behind HTTP: {"image": PNG in base64} -> {"scores": probabilities}.

    Args:
        classes: names of the classes, in the order of the answer.
    """

    def __init__(self, endpoint: "Endpoint", classes: Sequence[str], shape: tuple[int, int, int]) -> None:
        super().__init__(probabilities=True)
        self.endpoint, self.classes, self.shape = endpoint, list(classes), shape
        self._index = {name: index for index, name in enumerate(classes)}

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        answers = self.endpoint.ask([{"image": _png(picture)} for picture in pixels])
        return np.array([self._read(answer) for answer in answers]).reshape(len(answers), len(self.classes))

    def _read(self, answer: Mapping[str, Any]) -> list[float]:
        scores = answer.get("scores")
        if isinstance(scores, list) and len(scores) == len(self.classes) and all(map(_is_number, scores)):
            return [float(score) for score in scores]
        if not isinstance(scores, dict) or not scores or not all(map(_is_number, scores.values())):
            found = f"{len(scores)} scores" if isinstance(scores, list) else f"the keys {', '.join(answer) or 'none'}"
            raise UsageError(
                f"{self.endpoint.name}: expected scores, a number for each of the {len(self.classes)} classes, by name"
                f" or in their order; found {found}"
            )
        if unknown := [name for name in scores if name not in self._index]:
            raise UsageError(
                f"{self.endpoint.name} scores a class {unknown[0]!r}{did_you_mean(unknown[0], self._index)}, which is"
                f" none of prepare.model.classes: {', '.join(self.classes[:10])}"
            )
        return [float(scores.get(name, 0.0)) for name in self.classes]  # many services only return the best few

    def save(self, folder: Path) -> None:
        """See BlackBox: its answers to two pictures, to recognise it later."""
        from stages.tasks.known_answers import keep_answers

        _, height, width = self.shape
        across, down = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
        ramps = [np.broadcast_to(ramp, self.shape) for ramp in (across, down)]
        keep_answers(self.endpoint, [{"image": _png(ramp)} for ramp in ramps], folder)


def _load_onnx(form: Form, folder: Path, named: Mapping[str, Any]) -> BlackBox:
    if not (folder / FILE).exists():
        raise UsageError(f"{folder / FILE} is missing: the model has no network")
    return OnnxNet(folder / FILE, **(form.settings or {}))


def _load_endpoint(form: Form, folder: Path, named: Mapping[str, Any]) -> BlackBox:
    from stages.tasks.endpoint import Endpoint, EndpointConfig
    from stages.tasks.known_answers import check_answers

    asked = {key: value for key, value in named.items() if key in EndpointConfig.model_fields}
    if "endpoint" not in asked:
        raise UsageError(f"{folder} is a model behind HTTP, and prepare.model does not say how it is asked")
    endpoint = Endpoint(EndpointConfig.model_validate(asked))
    check_answers(endpoint, folder)
    return EndpointNet(endpoint, form.classes, form.shape)


BLACK_BOXES: Mapping[str, Callable[[Form, Path, Mapping[str, Any]], BlackBox]] = {
    "onnx": _load_onnx,
    "endpoint": _load_endpoint,
}


def _session(path: Path, threads: int) -> Any:
    try:
        import onnx  # noqa: F401 - `save` needs it, and would fail too late
        import onnxruntime
    except ImportError:
        raise UsageError("prepare.model.onnx: ONNX Runtime is not installed: pip install 'faded[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # exception classes of ONNX Runtime, which depend on its version
        raise UsageError(f"{path} is not a network that ONNX Runtime can read: {one_line(error)}") from None


def _png(picture: np.ndarray) -> str:
    """Encode (c, h, w) in [0, 1] as PNG in base64, rounded to 256 levels."""
    from PIL import Image

    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
