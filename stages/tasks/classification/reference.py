"""A stronger model that decides which changed pictures are readable at all (`prepare.reference`).

If the model under test fails, the reference sees the same picture. If it is wrong too, although it reads the unchanged
picture, the change has made the picture unreadable, and the probe is not valid. If it is wrong about the unchanged
picture, the label may be wrong or the reference too weak, so its answer says nothing about the change, and the failure
stands. A correct answer is not sufficient: a network gives the same answer for all black pictures, which is correct for
one class. So it also sees a picture of another label under the same change, and must answer differently.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import create_model
from torch import Tensor, nn

from stages.concepts.images import grey
from stages.core.errors import UsageError, did_you_mean
from stages.tasks.classification.backends import Backend
from stages.tasks.classification.families import Form
from stages.tasks.classification.loaders import MODEL_LOADERS, TrainedHere
from stages.tasks.classification.models import Classifier, ModelSource
from stages.tasks.classification.pictures import NAMED, Decoded, Pool, Shape, class_indices
from stages.tasks.contract import Compute, TaskContext

READABLE = "readable"  # column of items.parquet: whether the reference classifies the unchanged picture correctly


class ReferenceSource(ModelSource):
    """Mixin for the model loaders: their messages about prepare.model name prepare.reference here."""

    def errors(self, inputs: Path) -> list[str]:
        return [_renamed(line) for line in super().errors(inputs)]  # type: ignore[safe-super]

    def prefetch(self, inputs: Path) -> list[str]:
        with _of_reference():
            return super().prefetch(inputs)

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        with _of_reference():
            return super().build(inputs, pool, seed, device)  # type: ignore[safe-super]

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        """See Source: a reference is never repaired."""
        return []


def _renamed(line: str) -> str:
    return line.replace("prepare.model", "prepare.reference")


@contextlib.contextmanager
def _of_reference() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(_renamed(str(error))) from None


# Every stage loads the reference from its source, as it does other judges, so one trained here would be trained again
# by each stage. It would be no stronger than the model under test either.
REFERENCE_LOADERS: Mapping[str, type[ModelSource]] = {
    name: create_model(f"Reference{loader.__name__}", __base__=(ReferenceSource, loader))
    for name, loader in MODEL_LOADERS.items()
    if loader is not TrainedHere
}


@dataclass(frozen=True)
class LoaderData:
    """The part of the audit's data that a loader needs, so that later stages load the same reference without the data.

    Args:
        shape: shape of the pictures it takes.
        classes: classes of the data, if they have an order.
        origin: origin of the reference, for people.
    """

    shape: Shape
    classes: list[str] | None
    origin: str

    @classmethod
    def of(cls, items: pd.DataFrame) -> "LoaderData | None":
        """Read what `add_readable` wrote; None if there is no reference."""
        told = items.attrs.get("reference")
        return None if told is None else cls(**told)

    @property
    def pool(self) -> Pool:
        nothing = Decoded(np.empty((0, *self.shape), np.uint8))
        return Pool(nothing, np.array([], dtype=str), [], [], classes=self.classes)


class Reference:
    """Classifies pictures, restricted to the classes of the model under test.

    Raises a UsageError if it has no class for a label of the items.

    Args:
        classes: classes of the model under test.
        labels: labels of the items, for all of which the reference must have a class.
        compute: device, threads and batch size; it always runs in eager torch and float32.
    """

    def __init__(self, model: Classifier, classes: Sequence[str], labels: Sequence[str], compute: Compute) -> None:
        theirs = class_indices(model.form.classes)
        if unknown := [name for name in dict.fromkeys(labels) if name not in theirs]:
            named = "; ".join(f"{name!r}{did_you_mean(name, theirs)}" for name in unknown[:NAMED])
            more = f"; and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
            some = ", ".join(model.form.classes[:NAMED])
            raise UsageError(
                f"prepare.reference: it has no class for {len(unknown)} label(s) of the items: {named}{more}; its"
                f" classes are {some}{', ...' if len(model.form.classes) > NAMED else ''}"
                f" ({len(model.form.classes)} in all). Say what they are called, in their order, by the names of the"
                " model under test: prepare.reference.classes"
            )
        self.form, self._n = model.form, len(classes)
        self._ours = [k for k, name in enumerate(classes) if name in theirs]
        self._theirs = [theirs[classes[k]] for k in self._ours]
        self._backend = Backend(model, replace(compute, backend="eager", dtype="float32"))

    @torch.inference_mode()
    def answers(self, pixels: Tensor) -> np.ndarray:
        """Classify pictures.

        Args:
            pixels: (n, c, h, w) float32 in [0, 1] on the device, n at most the batch size, as the model under test
                sees them; they are resized to the reference's input.

        Returns:
            (n,) class indices of the model under test.
        """
        with self._backend.threads():
            logits = self._backend(_fitted(pixels, self.form.shape))
        scores = torch.full((len(pixels), self._n), -torch.inf)
        scores[:, self._ours] = logits[:, self._theirs]
        said: np.ndarray = scores.argmax(1).numpy()
        return said


def add_readable(items: pd.DataFrame, source: ModelSource, pool: Pool, form: Form, context: TaskContext) -> None:
    """Record for each item whether the reference reads it unchanged, and what later stages need to load the reference.

    Raises a UsageError if the reference cannot be read, or lacks a label of the items.

    Args:
        items: from `choose_items`; gets an additional column, and an entry "reference" in its `attrs`.
        form: description of the model under test.
    """
    compute = context.compute
    model = source.build(context.inputs, pool, context.seed, compute.device)
    reference = Reference(model, form.classes, items["label"], compute)
    pixels = np.frombuffer(b"".join(items["image"]), np.uint8).reshape(-1, *form.shape)
    parts = [slice(start, start + compute.batch_size) for start in range(0, len(items), compute.batch_size)]
    clean = (torch.tensor(pixels[part], device=compute.device).float() / 255 for part in parts)
    items[READABLE] = np.concatenate([reference.answers(shown) for shown in clean]) == items["target"].to_numpy()
    items.attrs["reference"] = asdict(LoaderData(model.form.shape, pool.classes, model.form.origin))


def _fitted(pixels: Tensor, shape: Shape) -> Tensor:
    channels, *size = shape
    if pixels.shape[1] != channels:
        pixels = grey(pixels) if channels == 1 else pixels.expand(-1, channels, -1, -1)
    if list(pixels.shape[2:]) != size:
        pixels = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return pixels.contiguous()
