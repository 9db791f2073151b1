"""The common form in which all stages store a classifier.

It is a folder with faded.json (architecture, classes, input size, normalisation) and model.safetensors, and for timm
and transformers with the config.json by which they load it (`library`). A black box has model.onnx instead, or its
answers to a few inputs (`black_boxes`). Models are loaded by `loaders`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.core.errors import UsageError
from stages.core.files import read_json, write_json
from stages.params import checked
from stages.tasks.classification.black_boxes import BLACK_BOXES, BlackBox
from stages.tasks.classification.families import CONFIG, FAMILIES, FORM, Form, library_config, stored

GLIMPSE = 12  # side of the small picture that explorers see if a model has no features


class Classifier(nn.Module):
    """A network with its normalisation: pixels in [0, 1] -> logits.

    Args:
        form: its description.
        net: the network, (n, c, h, w) normalised -> (n, classes) logits.
    """

    def __init__(self, form: Form, net: nn.Module) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.form = form
        self.net = net
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

        Raises:
            UsageError: if the network does not end in one.
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

    Raises:
        UsageError: with the names that are missing, unexpected or of another shape.
    """
    own = net.state_dict()
    problems = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    problems += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UsageError(f"{where}: the weights do not fit: {'; '.join(problems[:4])}{more}")
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

    Args:
        folder: the model folder.
        named: `prepare.model` of params.yaml, which has the settings for a model behind HTTP.

    Raises:
        UsageError: if a file is missing or the weights do not fit the configuration.
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
