"""The common form in which all stages store a classifier.

It is a folder with faded.json (architecture, classes, input size, normalisation) and model.safetensors, and for timm
and transformers with the config.json by which they load it (`library`). A black box has model.onnx instead, or its
answers to a few inputs (`black_boxes`). Models are loaded by `loaders`, whose base classes are here, too.
"""

import contextlib
import copy
import pickle
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.core.arithmetic import compute_alike
from stages.core.errors import FadedError, UsageError, first_problems, one_line
from stages.core.files import local_file, read_json, write_json
from stages.params import checked
from stages.tasks.classification.black_boxes import BLACK_BOXES, BlackBox
from stages.tasks.classification.config import Label
from stages.tasks.classification.families import (
    CONFIG,
    FAMILIES,
    FORM,
    PER_CHANNEL,
    POSITIVE,
    Form,
    library_config,
    stored,
)
from stages.tasks.classification.pictures import Pool, Shape, class_indices
from stages.tasks.labels import class_names
from stages.tasks.sources import Source

GLIMPSE = 12  # side of the small picture that explorers see if a model has no features


class Classifier(nn.Module):
    """A network with its normalisation: pixels in [0, 1] -> logits.

    Args:
        net: the network, (n, c, h, w) normalised -> (n, classes) logits.
    """

    def __init__(self, form: Form, net: nn.Module) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.form = form
        self.net = net
        if any(isinstance(part, nn.LayerNorm) for part in net.modules()):  # a transformer, or alike
            compute_alike()
        self.register_buffer("mean", torch.tensor(form.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(form.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (n, c, h, w) in [0, 1] -> logits (n, classes)."""
        return self.net((pixels - self.mean) / self.std)

    @property
    def black_box(self) -> bool:
        """Whether it has no weights to repair, no gradients and no features."""
        return isinstance(self.net, BlackBox)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer, which maps features to logits.

        Raises a UsageError if the network does not end in one.
        """
        linear = [m for m in self.net.modules() if isinstance(m, nn.Linear)]
        if not linear or linear[-1].out_features != len(self.form.classes):
            raise UsageError(
                f"{self.form.architecture} does not end in a linear layer with {len(self.form.classes)} outputs"
            )
        return linear[-1]

    def features(self, pixels: Tensor) -> Tensor:
        """Return the inputs of the last linear layer: (n, d). Without such a layer: the pictures, downsized."""
        try:
            head = self.head
        except UsageError:
            return nn.functional.adaptive_avg_pool2d(pixels, GLIMPSE).flatten(1)
        seen: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self(pixels)
        finally:
            hook.remove()
        return seen[0].flatten(1)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make random draws and sums reproducible inside the block, and restore the state afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def fit_weights(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a network that has exactly their names and shapes.

    Raises a UsageError with the names that are missing, unexpected or of another shape.
    """
    own = net.state_dict()
    problems = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    problems += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        raise UsageError(f"{where}: the weights do not fit: {first_problems(problems)}")
    net.load_state_dict(dict(state))


def save_model(model: Classifier, folder: Path) -> None:
    """Write faded.json and model.safetensors, or the files of a black box; the same model gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FORM, model.form.model_dump(mode="json", exclude_none=True))
    if isinstance(model.net, BlackBox):
        model.net.save(folder)
        return
    if config := library_config(model.form, model.net):
        write_json(folder / CONFIG, config, schema=False)
    weights = {k: v.detach().cpu().contiguous() for k, v in stored(model.net).state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})  # which transformers asks for


def load_model(folder: Path, named: Mapping[str, Any] | None = None) -> Classifier:
    """Read what `save_model` wrote, ready for inference.

    Raises a UsageError if a file is missing or the weights do not fit the configuration.

    Args:
        named: `prepare.model` of params.yaml, which has the settings for a model behind HTTP.
    """
    about = read_json(folder / FORM)
    about.pop("schema", None)
    form = checked(Form, about, str(folder / FORM))
    if form.family in BLACK_BOXES:
        return Classifier(form, BLACK_BOXES[form.family](form, folder, named or {})).eval()
    if form.family not in FAMILIES:
        known = ", ".join([*FAMILIES, *BLACK_BOXES])
        raise UsageError(f"{folder / FORM}: family {form.family!r} is not one of {known}")
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UsageError(f"{weights} is missing: the model has no weights")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{weights} is not a readable safetensors file: {error}") from None
    model = Classifier(form, FAMILIES[form.family](form))
    fit_weights(stored(model.net), state, str(weights))
    return model.eval()


def clone(model: Classifier) -> Classifier:
    """Return a copy that may be changed."""
    return copy.deepcopy(model)


WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_NESTED = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store the weights
_PREFIXES = ("module.", "_orig_mod.")  # prefixes of names that DataParallel and torch.compile add


class ModelSource(Source):
    """Base of the model loaders. The origin of the model is in the form of the classifier they build."""

    @abstractmethod
    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        """Make the model for these pictures.

        Raises a UsageError if it cannot be read, is not a classifier, or does not fit the pictures.
        """


class Labelled(ModelSource):
    """A model whose class names the user may give."""

    classes: list[Label] | None = Field(None, min_length=2, description="names of the classes, in their order")

    def names(self, n: int, own: Sequence[str] | None, pool: Pool, published: Sequence[str] | None = None) -> list[str]:
        """Return the names of n classes: from the user, the weights, the data if they have as many, or ImageNet.

        Raises a UsageError if the user gives another number of names, or there are no names.

        Args:
            own: names that come with the weights.
            pool: the data; if their classes are those of ImageNet, their order is not used.
            published: names that come with other weights of the architecture; by default ImageNet's.
        """
        if self.classes is not None:
            if len(self.classes) != n:
                raise UsageError(f"prepare.model.classes: {len(self.classes)} names, the model has {n} classes")
            return self.classes
        if own is not None and len(own) == n:
            return list(own)
        usual = list(published or class_names()) if n == 1000 else []
        if pool.classes is not None and len(pool.classes) == n and not set(pool.classes) <= set(class_indices(usual)):
            return pool.classes
        if usual:
            return usual
        found = f"the data have {len(pool.classes)}" if pool.classes is not None else pool.unordered
        raise UsageError(f"prepare.model.classes: missing; the model has {n} classes and nothing names them ({found})")


class Normalised(Labelled):
    """A network whose normalisation is known, unless the user overrides it."""

    mean: PER_CHANNEL | None = Field(None, description="subtracted from pixels in [0, 1]; default: the model's own")
    std: POSITIVE | None = Field(None, description="what is left is divided by this; default: the model's own")

    def _says(self, library: str) -> str:
        """Return where the normalisation comes from, for people."""
        own = [key for key in ("mean", "std") if getattr(self, key) is None]
        return f"{' and '.join(own)} as {library} has them" if own else "mean and std as params.yaml has them"

    def normalisation(self, mean: Sequence[float], std: Sequence[float], shape: Shape) -> dict[str, Any]:
        """Return the fields `mean` and `std` of the form."""
        own = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
        for key, given in (("mean", self.mean), ("std", self.std)):
            if given is None and len(own[key]) not in (1, shape[0]):
                raise UsageError(
                    f"prepare.model.{key}: missing; the model has {shape[0]} channel(s) and its library's {key} is for"
                    f" {len(own[key])}: {own[key]}"
                )
        chosen = {
            "mean": own["mean"] if self.mean is None else self.mean,
            "std": own["std"] if self.std is None else self.std,
        }
        check_channels(chosen["mean"], chosen["std"], shape)
        return chosen


def check_channels(mean: PER_CHANNEL, std: POSITIVE, shape: Shape) -> None:
    """Raise a UsageError unless there is one number for all channels or one for each."""
    for key, values in (("mean", mean), ("std", std)):
        if isinstance(values, list) and len(values) not in (1, shape[0]):
            raise UsageError(f"prepare.model.{key}: {len(values)} values, the images have {shape[0]} channel(s)")


def weights_file(inputs: Path, name: str, where: str) -> Path:
    """Return the file of weights under data/<audit>/inputs.

    Raises a UsageError if it does not exist, or its kind is not supported.
    """
    path = local_file(inputs, name, where)
    if not path.is_file() or path.suffix not in WEIGHTS:
        raise UsageError(f"{where}: {path} is not a weights file; expected one of {', '.join(WEIGHTS)}")
    return path


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """Read the tensors of a file by name; of a training script's checkpoint only the weights.

    Raises a UsageError if it contains anything else.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{where}: {path.name} is not a readable safetensors file: {error}") from None
    try:
        # A .pth is a pickle. With weights_only it is read by an unpickler that can only build tensors and plain
        # containers, so no code of the file runs; it is read only once and stored as safetensors.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UsageError(f"{where}: {path.name} is not a readable file of tensors: {error}") from None
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"{where}: {path.name} holds no mapping of names to tensors")
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def check_scores(model: Classifier, where: str) -> Classifier:
    """Query the model once, to check that it accepts its pictures and scores its classes.

    Raises a UsageError if it does not, and an InfrastructureError if a model behind HTTP does not answer.
    """
    wanted = (2, len(model.form.classes))
    try:
        with torch.inference_mode():
            answer = model.eval()(torch.full((2, *model.form.shape), 0.5))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    except FadedError:  # some are also a RuntimeError
        raise
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise UsageError(
            f"{where}: it does not accept pictures of shape {model.form.shape}: {one_line(error)}"
        ) from None
    if not isinstance(answer, Tensor) or tuple(answer.shape) != wanted:
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UsageError(f"{where}: it answers with {found} to two pictures, expected {wanted}")
    return model
