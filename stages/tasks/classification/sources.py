"""Base classes of model loaders: labels, normalisation, weights in files."""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.core.errors import FadedError, UsageError
from stages.core.files import local_file
from stages.tasks.classification.config import Label
from stages.tasks.classification.families import PER_CHANNEL, POSITIVE
from stages.tasks.classification.imagenet import class_names
from stages.tasks.classification.models import Classifier
from stages.tasks.classification.pictures import Shape
from stages.tasks.classification.pool import Pool, class_indices
from stages.tasks.source import Source

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_NESTED = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store the weights
_PREFIXES = ("module.", "_orig_mod.")  # prefixes of names that DataParallel and torch.compile add


class ModelSource(Source):
    """Base of the model loaders. The origin of the model is in the form of the classifier they build."""

    @abstractmethod
    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        """Make the model for these pictures.

        Raises:
            UsageError: if it cannot be read, is not a classifier, or does not fit the pictures.
        """


class Labelled(ModelSource):
    """A model whose class names the user may give."""

    classes: list[Label] | None = Field(None, min_length=2, description="names of the classes, in their order")

    def names(self, n: int, own: Sequence[str] | None, pool: Pool, published: Sequence[str] | None = None) -> list[str]:
        """Return the names of n classes: from the user, the weights, the data if they have as many, or ImageNet.

        Args:
            n: number of classes.
            own: names that come with the weights.
            pool: the data; if their classes are those of ImageNet, their order is not used.
            published: names that come with other weights of the architecture; by default ImageNet's.

        Raises:
            UsageError: if the user gives another number of names, or there are no names.
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
    """Check that there is one number for all channels or one for each.

    Raises:
        UsageError: if there is not.
    """
    for key, values in (("mean", mean), ("std", std)):
        if isinstance(values, list) and len(values) not in (1, shape[0]):
            raise UsageError(f"prepare.model.{key}: {len(values)} values, the images have {shape[0]} channel(s)")


def weights_file(inputs: Path, name: str, where: str) -> Path:
    """Return the file of weights under data/<audit>/inputs.

    Raises:
        UsageError: if it does not exist, or its kind is not supported.
    """
    path = local_file(inputs, name, where)
    if not path.is_file() or path.suffix not in WEIGHTS:
        raise UsageError(f"{where}: {path} is not a weights file; expected one of {', '.join(WEIGHTS)}")
    return path


def read_weights(path: Path, where: str) -> dict[str, Tensor]:
    """Read the tensors of a file by name; of a training script's checkpoint only the weights.

    Raises:
        UsageError: if it contains anything else.
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

    Raises:
        UsageError: if it does not.
        InfrastructureError: if a model behind HTTP does not answer.
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
            f"{where}: it does not accept pictures of shape {model.form.shape}: {' '.join(str(error).split())[:300]}"
        ) from None
    if not isinstance(answer, Tensor) or tuple(answer.shape) != wanted:
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UsageError(f"{where}: it answers with {found} to two pictures, expected {wanted}")
    return model
