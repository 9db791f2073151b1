"""Model loaders, each of which makes a `Classifier` from one kind of source. To add one, add it to MODEL_LOADERS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stages.errors import UsageError
from stages.progress import progress
from stages.tasks.classification.black_box_loaders import EndpointModel, OnnxModel
from stages.tasks.classification.families import FAMILIES
from stages.tasks.classification.form import PER_CHANNEL, POSITIVE, Form
from stages.tasks.classification.imagenet import class_names
from stages.tasks.classification.models import Classifier, fit_weights, seeded
from stages.tasks.classification.pool import Pool, tolerate
from stages.tasks.classification.pretrained import TorchvisionModel, TransformersModel
from stages.tasks.classification.sources import ModelSource, check_channels, read_weights
from stages.tasks.classification.timm_models import TimmModel
from stages.tasks.source import collect
from stages.tasks.sources import package_file


class TrainedHere(ModelSource):
    """{train: small_cnn}: a small network trained on the pool named train, for audits that must run anywhere."""

    train: Literal["small_cnn"]
    epochs: int = Field(4, ge=1, le=10_000)
    batch_size: int = Field(128, ge=2, le=1_000_000)
    learning_rate: float = Field(2e-3, gt=0, lt=1)

    def errors(self, inputs: Path) -> list[str]:
        return []

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        rows = pool.rows("train")
        if len(rows) < 2:
            raise UsageError(
                f"prepare.model.train: the data has no pool named train, found {sorted(set(pool.splits or []))}"
            )
        classes = pool.classes or sorted(set(map(str, pool.labels)))  # the network is trained in this order
        shape = pool.pictures.shape(None)
        unreadable: list[dict[str, str]] = []
        read = list(pool.read(rows, shape, None, unreadable))
        tolerate(unreadable, len(rows), pool.max_corrupt)
        pixels = torch.from_numpy(np.stack([picture for _, picture in read])).float() / 255
        targets = torch.from_numpy(pool.targets(classes)[[row for row, _ in read]])
        form = Form(
            family="small_cnn",
            architecture=self.train,
            classes=classes,
            shape=shape,
            mean=round(float(pixels.mean()), 4),
            std=round(max(float(pixels.std()), 1e-3), 4),
            origin=f"trained by Faded on {len(read)} images for {self.epochs} epochs",
        )
        with seeded(seed):
            model = Classifier(form, FAMILIES[form.family](form)).to(device)
            self._fit(model, pixels.to(device), targets.to(device), seed)
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
    """{package: NAME, file: PATH, timm: ARCHITECTURE}: weights included in an installed package.

    `match: order` is for a port of the same network with other names of layers: entries are paired one to one in order,
    and every shape must agree.
    """

    package: str = Field(pattern=r"^\w+$")
    file: str
    timm: str
    match: Literal["name", "order"] = "name"
    mean: PER_CHANNEL = 0.0
    std: POSITIVE = 1.0

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: package_file(inputs, self.package, self.file, "prepare.model"))

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        state = read_weights(package_file(inputs, self.package, self.file, "prepare.model"), "prepare.model.file")
        heads = [v for v in state.values() if v.ndim == 2]
        if not heads:
            raise UsageError(
                f"prepare.model.file: {self.file} has no linear layer, so its number of classes is unknown"
            )
        shape = pool.pictures.shape(None)
        check_channels(self.mean, self.std, shape)
        form = Form(
            family="timm",
            architecture=self.timm,
            classes=pool.classes or _class_names(len(heads[-1])),
            shape=shape,
            mean=self.mean,
            std=self.std,
            origin=f"{self.file} of the package {self.package}",
        )
        if len(form.classes) != len(heads[-1]):
            raise UsageError(f"prepare.model: the weights have {len(heads[-1])} classes, the data {len(form.classes)}")
        model = Classifier(form, FAMILIES["timm"](form))
        if self.match == "order" and len(state) == len(model.net.state_dict()):
            state = dict(zip(model.net.state_dict(), state.values(), strict=True))
        fit_weights(model.net, state, "prepare.model.file")
        return model.eval().to(device)


def _class_names(n: int) -> list[str]:
    return class_names() if n == 1000 else [str(i) for i in range(n)]


MODEL_LOADERS: Mapping[str, type[ModelSource]] = {
    "train": TrainedHere,
    "package": PackageWeights,
    "timm": TimmModel,
    "torchvision": TorchvisionModel,
    "transformers": TransformersModel,
    "onnx": OnnxModel,
    "endpoint": EndpointModel,
}
