"""Model loaders, each of which makes a `Classifier` from one kind of source. To add one, add it to MODEL_LOADERS."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stages.core.errors import UsageError
from stages.core.files import content_hash, local_file
from stages.core.progress import progress
from stages.tasks.classification.black_boxes import EndpointNet, OnnxNet
from stages.tasks.classification.config import Label
from stages.tasks.classification.families import FAMILIES, PER_CHANNEL, POSITIVE, Form
from stages.tasks.classification.models import (
    Classifier,
    Labelled,
    ModelSource,
    check_channels,
    check_scores,
    fit_weights,
    read_weights,
    seeded,
    weights_file,
)
from stages.tasks.classification.pictures import Pool, Shape, tolerate
from stages.tasks.classification.pretrained import TimmModel, TorchvisionModel, TransformersModel
from stages.tasks.endpoint import Endpoint, EndpointConfig
from stages.tasks.labels import class_names
from stages.tasks.sources import collect, package_file

_NO_REPAIR = "which cannot be repaired (no weights). Remove it from repairs:, and the audit ends with its landscape"


class TrainedHere(ModelSource):
    """{train: small_cnn}: a small network trained on the pool named train, for audits that must run anywhere."""

    train: Literal["small_cnn"]
    epochs: int = Field(4, ge=1, le=10_000)
    batch_size: int = Field(128, ge=2, le=1_000_000)
    learning_rate: float = Field(2e-3, gt=0, lt=1)
    weights: str | None = Field(None, description="file under inputs: what this training gave, instead of repeating it")

    def errors(self, inputs: Path) -> list[str]:
        weights = self.weights
        return [] if weights is None else collect(lambda: weights_file(inputs, weights, "prepare.model.weights"))

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
        if self.weights is not None:
            where, model = "prepare.model.weights", Classifier(form, FAMILIES[form.family](form))
            fit_weights(model.net, read_weights(weights_file(inputs, self.weights, where), where), where)
            return model.eval().to(device)
        with seeded(seed):
            model = Classifier(form, FAMILIES[form.family](form)).to(device)
            self._fit(model, pixels.to(device), targets.to(device), seed)
        return model.eval()

    def _fit(self, model: Classifier, pixels: Tensor, targets: Tensor, seed: int) -> None:
        steps = max(1, len(pixels) // self.batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)
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
        n, shape = len(heads[-1]), pool.pictures.shape(None)
        check_channels(self.mean, self.std, shape)
        form = Form(
            family="timm",
            architecture=self.timm,
            classes=pool.classes or (class_names() if n == 1000 else [str(i) for i in range(n)]),
            shape=shape,
            mean=self.mean,
            std=self.std,
            origin=f"{self.file} of the package {self.package}",
        )
        if len(form.classes) != n:
            raise UsageError(f"prepare.model: the weights have {n} classes, the data {len(form.classes)}")
        model = Classifier(form, FAMILIES["timm"](form))
        if self.match == "order" and len(state) == len(model.net.state_dict()):
            state = dict(zip(model.net.state_dict(), state.values(), strict=True))
        fit_weights(model.net, state, "prepare.model.file")
        return model.eval().to(device)


class OnnxModel(Labelled):
    """{onnx: FILE, outputs: logits}: an ONNX network, run by ONNX Runtime."""

    onnx: str = Field(pattern=r"\.onnx$")
    outputs: Literal["logits", "probabilities"]
    output: str | None = Field(None, description="name of the output with the scores, where there are several")
    layout: Literal["nchw", "nhwc"] = "nchw"
    size: int | None = Field(None, ge=8, le=16_384, description="side of its pictures, where the file does not say")
    mean: PER_CHANNEL = Field(0.0, description="subtracted from pixels in [0, 1]")
    std: POSITIVE = Field(1.0, description="what is left is divided by this")

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: local_file(inputs, self.onnx, "prepare.model.onnx"))

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        return [f"restructure: the model under test is a network in ONNX, {_NO_REPAIR}"]

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        path = local_file(inputs, self.onnx, "prepare.model.onnx")
        net = OnnxNet(path, self.outputs, self.layout, self.output)
        shape = self._shape(net, pool)
        check_channels(self.mean, self.std, shape)
        try:
            n = net.scores(np.zeros((1, *shape), np.float32)).shape[1]
        except UsageError as error:
            raise UsageError(f"prepare.model.onnx: {error}") from None
        settings = {"outputs": self.outputs, "layout": self.layout, "output": net.output}
        form = Form(
            family="onnx",
            architecture=Path(self.onnx).name,
            classes=self.names(n, None, pool),
            shape=shape,
            mean=self.mean,
            std=self.std,
            origin=f"{self.onnx}, content {content_hash([path])}",
            settings=settings,
        )
        return check_scores(Classifier(form, net), "prepare.model.onnx")

    def _shape(self, net: OnnxNet, pool: Pool) -> Shape:
        """Return the input shape: dimensions the file leaves open come from the user, then from the data."""
        channels, height, width = net.shape
        height, width = height or self.size, width or self.size
        own: Shape | None = (channels or 3, height, width) if height and width else None
        shape = pool.pictures.shape(own)
        if any(fixed is not None and fixed != given for fixed, given in zip(net.shape, shape, strict=True)):
            raise UsageError(f"prepare.model.onnx: {self.onnx} takes {net.shape}, the data are asked for as {shape}")
        return shape


class EndpointModel(EndpointConfig, ModelSource):
    """{endpoint: URL, classes: [...], size: 224}: a classifier behind HTTP."""

    classes: list[Label] = Field(min_length=2, description="names of the classes, in the order of the answer")
    size: int | None = Field(
        None, ge=8, le=16_384, description="side of the pictures it is sent, where the data do not say"
    )
    channels: Literal[1, 3] = 3

    def errors(self, inputs: Path) -> list[str]:
        return []

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        return [f"restructure: the model under test is one behind HTTP, {_NO_REPAIR}"]

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        own: Shape | None = (self.channels, self.size, self.size) if self.size else None
        shape = pool.pictures.shape(own)
        endpoint = Endpoint(self)
        form = Form(
            family="endpoint",
            architecture="behind HTTP",
            classes=self.classes,
            shape=shape,
            origin=endpoint.name,
        )
        return check_scores(Classifier(form, EndpointNet(endpoint, self.classes, shape)), "prepare.model.endpoint")


MODEL_LOADERS: Mapping[str, type[ModelSource]] = {
    "train": TrainedHere,
    "package": PackageWeights,
    "timm": TimmModel,
    "torchvision": TorchvisionModel,
    "transformers": TransformersModel,
    "onnx": OnnxModel,
    "endpoint": EndpointModel,
}
