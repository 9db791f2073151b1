"""Model loaders and the one form in which all stages keep a classifier.

The form is a folder with config.json (architecture, classes, input size, normalisation) and model.safetensors. A loader
turns one way to name a model into a `Classifier`. To add one, add its key to MODEL_LOADERS.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.errors import UsageError
from stages.files import read_json, write_json
from stages.params import Strict, validation_lines
from stages.progress import progress
from stages.tasks.classification.data import Pool
from stages.tasks.sources import package_file

PER_CHANNEL = float | list[float]
POSITIVE = PositiveFloat | list[PositiveFloat]


class Form(Strict):
    """config.json: all that is needed to rebuild the network and feed it."""

    family: str = Field(description="a key of FAMILIES")
    architecture: str = Field(description="name within the family")
    classes: list[str] = Field(min_length=2)
    shape: tuple[int, int, int] = Field(description="channels, height, width of the input")
    mean: PER_CHANNEL = Field(0.0, description="subtracted from pixels in [0, 1]")
    std: POSITIVE = Field(1.0, description="what is left is divided by this")
    origin: str = Field(description="where the weights come from, for people")


class Classifier(nn.Module):
    """A network with its normalisation: pixels in [0, 1] -> logits.

    Args:
        form: what it is.
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
    def head(self) -> nn.Linear:
        """The last linear layer, which turns features into logits.

        Raises:
            UsageError: when the network has none.
        """
        linear = [m for m in self.net.modules() if isinstance(m, nn.Linear)]
        if not linear or linear[-1].out_features != len(self.form.classes):
            raise UsageError(
                f"{self.form.architecture} does not end in a linear layer with {len(self.form.classes)} outputs"
            )
        return linear[-1]

    def features(self, pixels: Tensor) -> Tensor:
        """What the last layer sees: (n, d)."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self(pixels)
        finally:
            hook.remove()
        return seen[0].flatten(1)


def _small_cnn(form: Form) -> nn.Module:
    """Two convolutions and two linear layers: what a tutorial trains, with the brittleness of one."""
    channels, height, width = form.shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(),
        nn.Linear(64, len(form.classes)),
    )  # fmt: skip


def _timm(form: Form) -> nn.Module:
    import timm

    if form.architecture not in timm.list_models():
        raise UsageError(f"timm knows no architecture {form.architecture!r}")
    return timm.create_model(form.architecture, pretrained=False, num_classes=len(form.classes), in_chans=form.shape[0])


FAMILIES = {"small_cnn": _small_cnn, "timm": _timm}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the same numbers and sum in the same order inside the block; leave no trace outside."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


def fit_weights(net: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a network of exactly their names and shapes.

    Raises:
        UsageError: naming what is missing, unexpected or of another shape.
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
    """Write config.json and model.safetensors; the same model gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model.form.model_dump(mode="json"))
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.net.state_dict().items()}, folder / "model.safetensors"
    )


def load_model(folder: Path) -> Classifier:
    """Read what `save_model` wrote, ready to answer.

    Raises:
        UsageError: when a file is missing or the weights do not fit the configuration.
    """
    config = read_json(folder / "config.json")
    config.pop("schema", None)
    try:
        form = Form.model_validate(config)
    except ValidationError as error:
        raise UsageError("; ".join(validation_lines(error, Form, str(folder / "config.json")))) from None
    if form.family not in FAMILIES:
        raise UsageError(f"{folder}/config.json: family {form.family!r} is not one of {', '.join(FAMILIES)}")
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UsageError(f"{weights} is missing: the model has no weights")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{weights} is no readable safetensors file: {error}") from None
    model = Classifier(form, FAMILIES[form.family](form))
    fit_weights(model.net, state, str(weights))
    return model.eval()


def clone(model: Classifier) -> Classifier:
    """A copy to be changed."""
    return copy.deepcopy(model)


class ModelSource(Strict):
    """Base of the model loaders."""

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading weights."""

    @abstractmethod
    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        """Make the model for these images."""


class TrainedHere(ModelSource):
    """{train: small_cnn}: a small network trained on the pool named train, for audits that must run anywhere."""

    train: Literal["small_cnn"]
    epochs: int = Field(4, ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(2e-3, gt=0, lt=1)

    def errors(self, inputs: Path) -> list[str]:
        """See ModelSource."""
        return []

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        """See ModelSource."""
        rows = pool.rows("train")
        if len(rows) < 2 or pool.classes is None:
            raise UsageError(
                f"prepare.model.train: the data has no pool named train, found {sorted(set(pool.splits or []))}"
            )
        pixels = torch.from_numpy(pool.images[rows]).float() / 255
        channels, height, width = pixels.shape[1:]
        form = Form(
            family="small_cnn",
            architecture=self.train,
            classes=pool.classes,
            shape=(channels, height, width),
            mean=round(float(pixels.mean()), 4),
            std=round(max(float(pixels.std()), 1e-3), 4),
            origin=f"trained by Faded on {len(rows)} images for {self.epochs} epochs",
        )
        with seeded(seed):
            model = Classifier(form, FAMILIES[form.family](form)).to(device)
            self._fit(model, pixels.to(device), torch.from_numpy(pool.targets[rows]).to(device), seed)
        return model.eval()

    def _fit(self, model: Classifier, pixels: Tensor, targets: Tensor, seed: int) -> None:
        steps = max(1, len(pixels) // self.batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * steps)
        rng = np.random.default_rng([seed, 2])
        order = np.concatenate([rng.permutation(len(pixels))[: steps * self.batch_size] for _ in range(self.epochs)])
        with progress("training the model under test", self.epochs * steps) as tell:
            for step, batch in enumerate(np.array_split(order, self.epochs * steps)):
                rows = torch.from_numpy(batch).to(pixels.device)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(pixels[rows]), targets[rows]).backward()
                optimizer.step()
                schedule.step()
                tell(step + 1, f"epoch {step // steps + 1} of {self.epochs}")


class PackageWeights(ModelSource):
    """{package: NAME, file: PATH, timm: ARCHITECTURE}: weights that ship in an installed package.

    `match: order` is for a port of the same network whose layers bear other names: entries are paired one to one in
    their order, and every shape must agree.
    """

    package: str = Field(pattern=r"^\w+$")
    file: str
    timm: str
    match: Literal["name", "order"] = "name"
    mean: PER_CHANNEL = 0.0
    std: POSITIVE = 1.0

    def errors(self, inputs: Path) -> list[str]:
        """See ModelSource."""
        try:
            package_file(inputs, self.package, self.file, "prepare.model")
        except UsageError as error:
            return [str(error)]
        return []

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        """See ModelSource."""
        state = self._read(package_file(inputs, self.package, self.file, "prepare.model"))
        heads = [v for v in state.values() if v.ndim == 2]
        if not heads:
            raise UsageError(
                f"prepare.model.file: {self.file} has no linear layer, so its number of classes is unknown"
            )
        channels, height, width = pool.images.shape[1:]
        for key, values in (("mean", self.mean), ("std", self.std)):
            if isinstance(values, list) and len(values) != channels:
                raise UsageError(f"prepare.model.{key}: {len(values)} values, the images have {channels} channel(s)")
        form = Form(
            family="timm",
            architecture=self.timm,
            classes=pool.classes or _class_names(len(heads[-1])),
            shape=(channels, height, width),
            mean=self.mean,
            std=self.std,
            origin=f"{self.file} of the package {self.package}",
        )
        if len(form.classes) != len(heads[-1]):
            raise UsageError(f"prepare.model: the weights have {len(heads[-1])} classes, the data {len(form.classes)}")
        model = Classifier(form, _timm(form))
        if self.match == "order" and len(state) == len(model.net.state_dict()):
            state = dict(zip(model.net.state_dict(), state.values(), strict=True))
        fit_weights(model.net, state, "prepare.model.file")
        return model.eval().to(device)

    def _read(self, path: Path) -> dict[str, Tensor]:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            # A .pth is a pickle. weights_only reads it with an unpickler that can build tensors and plain containers
            # and nothing else, so no code of the file runs; it is read this once and kept as safetensors.
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise UsageError(f"prepare.model.file: {path.name} is no readable file of tensors: {error}") from None
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
            raise UsageError(f"prepare.model.file: {path.name} holds no mapping of names to tensors")
        return dict(state)


def _class_names(n: int) -> list[str]:
    if n != 1000:
        return [str(i) for i in range(n)]
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(i).split(",")[0] for i in range(n)]


MODEL_LOADERS: Mapping[str, type[ModelSource]] = {"train": TrainedHere, "package": PackageWeights}
