"""Loaders of black-box classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stages.errors import UsageError
from stages.files import content_hash, local_file
from stages.tasks.classification.black_boxes import EndpointNet, OnnxNet
from stages.tasks.classification.config import Label
from stages.tasks.classification.form import PER_CHANNEL, POSITIVE, Form
from stages.tasks.classification.models import Classifier
from stages.tasks.classification.pictures import Shape
from stages.tasks.classification.pool import Pool
from stages.tasks.classification.sources import Labelled, ModelSource, check_answers, check_channels
from stages.tasks.endpoint import Endpoint, EndpointConfig
from stages.tasks.source import collect

_NO_REPAIR = "which cannot be repaired (no weights). Remove it from repairs:, and the audit ends with its landscape"


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
        return check_answers(Classifier(form, net), "prepare.model.onnx")

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
        return check_answers(Classifier(form, EndpointNet(endpoint, self.classes, shape)), "prepare.model.endpoint")
