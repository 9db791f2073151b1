"""faded.json: the description of a classifier, stored beside its weights."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat

from stages.params import Strict
from stages.tasks.classification.pictures import Shape, View

FORM = "faded.json"
PER_CHANNEL = float | list[float]
POSITIVE = PositiveFloat | list[PositiveFloat]


class Form(Strict):
    """faded.json: everything needed to rebuild the network and prepare its inputs."""

    family: str = Field(description="a key of FAMILIES or of BLACK_BOXES")
    architecture: str = Field(description="name within the family")
    classes: list[str] = Field(min_length=2)
    shape: Shape = Field(strict=False, description="channels, height, width of the input")
    mean: PER_CHANNEL = Field(0.0, description="subtracted from pixels in [0, 1]")
    std: POSITIVE = Field(1.0, description="what is left is divided by this")
    origin: str = Field(description="where the weights come from, for people")
    view: View | None = Field(None, description="how pictures are resized for it, where the model says so")
    settings: dict[str, Any] | None = Field(None, description="what the family needs beside these")
