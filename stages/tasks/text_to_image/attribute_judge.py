"""A small network that names attributes of pictures, and abstains from any that it is unsure of.

It is stored as a folder with config.json (attributes, network, thresholds, known errors) and model.safetensors, with
weights stored in half precision and computed in single precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import UsageError
from stages.files import read_json, write_json
from stages.params import Strict, checked
from stages.tasks.text_to_image.judges import Reading, Values, told

# A batch is always this large, filled up with black: the last bits of sums depend on shapes, and what is read of a
# picture must not depend on the number of others.
BATCH = 32


class Form(Strict):
    """config.json: everything needed to rebuild the network, use it and trust it."""

    attributes: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        min_length=1, description="the values of each attribute"
    )
    size: int = Field(32, ge=8, multiple_of=8, description="pixels a side; pictures are resized to it")
    widths: tuple[int, int, int] = Field(
        (16, 32, 64), strict=False, description="channels of the three stages of convolutions"
    )
    features: int = Field(128, description="width of the last but one layer")
    temperatures: dict[str, float] = Field(description="logits are divided by this (Guo et al. 2017, section 4.2)")
    thresholds: dict[str, float] = Field(description="the judge abstains where its best value is less probable")
    note: dict[str, Any] = Field({}, description="held-out errors, for people")

    @model_validator(mode="after")
    def _complete(self) -> Form:
        for name, values in self.attributes.items():
            if len(set(values)) < 2 or len(set(values)) < len(values):
                raise ValueError(f"attributes.{name}: expected two different values or more, found {list(values)}")
        for field, numbers in (("temperatures", self.temperatures), ("thresholds", self.thresholds)):
            if set(numbers) != set(self.attributes):
                raise ValueError(f"{field}: expected the keys {list(self.attributes)}, found {list(numbers)}")
        if min(self.temperatures.values()) <= 0:
            raise ValueError(f"temperatures: expected numbers above 0, found {self.temperatures}")
        return self


class AttributeNet(nn.Module):
    """Five convolutions, one hidden layer, one linear head per attribute.

    Args:
        attributes: the number of values by attribute.
        size: pixels per side.
        widths: channels of the three stages.
        features: width of the hidden layer.
    """

    def __init__(self, attributes: Mapping[str, int], size: int, widths: Sequence[int], features: int) -> None:
        super().__init__()
        one, two, three = widths
        self.body = nn.Sequential(
            *_convolution(3, one), nn.MaxPool2d(2),
            *_convolution(one, two), *_convolution(two, two), nn.MaxPool2d(2),
            *_convolution(two, three), *_convolution(three, three), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(three * (size // 8) ** 2, features), nn.ReLU(),
        )  # fmt: skip
        # Names of attributes can contain dots, which names of modules cannot.
        self.heads = nn.ModuleList([nn.Linear(features, values) for values in attributes.values()])
        self.names = tuple(attributes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels (n, 3, size, size) in [-1, 1] -> features (n, d), logits (n, values) by attribute."""
        features = self.body(pixels)
        return features, {name: head(features) for name, head in zip(self.names, self.heads, strict=True)}


def _convolution(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def make_net(form: Form) -> AttributeNet:
    """Make the network of a form, with random weights."""
    return AttributeNet({n: len(v) for n, v in form.attributes.items()}, form.size, form.widths, form.features)


class AttributeJudge:
    """See `judges.Judge`: a network with its form."""

    reads_prompts = False

    def __init__(self, form: Form, net: AttributeNet, device: str = "cpu") -> None:
        self.form = form
        self.attributes: Values = form.attributes
        self.note: Mapping[str, Any] = form.note
        self._net = net.to(device).eval()
        self._device = device

    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """See Judge; features are those of the penultimate layer."""
        features: list[Tensor] = [torch.zeros(0, self.form.features)]
        logits: dict[str, list[Tensor]] = {n: [torch.zeros(0, len(v))] for n, v in self.attributes.items()}
        for seen, heads in self._look(pixels):
            features.append(seen)
            for name, head in heads.items():
                logits[name].append(head)
        probabilities = {
            name: (torch.cat(parts) / self.form.temperatures[name]).softmax(1).numpy() for name, parts in logits.items()
        }
        abstained = {n: p.max(1) < self.form.thresholds[n] for n, p in probabilities.items()}
        return Reading(probabilities, abstained, torch.cat(features).numpy())

    @torch.inference_mode()
    def _look(self, pixels: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for start in range(0, len(pixels), BATCH):
            part = [resized(picture, self.form.size) for picture in pixels[start : start + BATCH]]
            batch = torch.zeros(BATCH, 3, self.form.size, self.form.size)
            batch[: len(part)] = torch.stack(part)
            features, heads = self._net(batch.to(self._device))
            yield features[: len(part)].cpu(), {name: head[: len(part)].cpu() for name, head in heads.items()}

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """See Judge: 1 if everything expected is read, else 0; what the judge cannot tell is not shown.

        It is yes or no, so that the mean over pictures is a share people can count, and a threshold is between counts.
        What is not expected does not count. Prompts are not used.
        """
        read = {attribute: told(self, reading, attribute) for attribute in self.attributes}
        shown = [all(read[name][n] == value for name, value in wanted.items()) for n, wanted in enumerate(expected)]
        return np.array(shown, dtype=np.float32)


def resized(picture: np.ndarray, size: int) -> Tensor:
    """Convert a picture (h, w, 3) uint8 to the network's input: (3, size, size) in [-1, 1], averaged if it shrinks."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)
    if pixels.shape[1:] != (size, size):
        pixels = functional.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0]
    return pixels / 127.5 - 1


def save_judge(form: Form, net: AttributeNet, folder: Path) -> None:
    """Write config.json and model.safetensors; the same judge gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", form.model_dump(mode="json"))
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")


def load_form(folder: Path) -> Form:
    """Read config.json.

    Raises:
        UsageError: when it is missing or wrong, one line per error.
    """
    config = read_json(folder / "config.json")
    config.pop("schema", None)
    return checked(Form, config, str(folder / "config.json"))


def load_attribute_judge(folder: Path, device: str) -> AttributeJudge:
    """Read what `save_judge` wrote.

    Raises:
        UsageError: when a file is missing or damaged, or the weights do not fit config.json.
    """
    form = load_form(folder)
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from None
    net = make_net(form)
    try:
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit {folder / 'config.json'}: {' '.join(str(error).split())}") from None
    return AttributeJudge(form, net, device)
