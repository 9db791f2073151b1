"""`faded init` for image classification: the pictures a classifier takes, and the meaning of its outputs.

Also what `faded propose` and `faded usage` have to know about pictures.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from PIL import Image

from stages.concepts.images import CATALOGUE
from stages.core.errors import UsageError
from stages.tasks.choosing import Vocabulary
from stages.tasks.classification.init.models import WEIGHTS, RecognisedClassifier, look_at_classifier
from stages.tasks.classification.init.pictures import LabelledPictures, look_at_pictures, notes
from stages.tasks.classification.init.questions import (
    ask_classes,
    ask_classifier,
    ask_labels,
    ask_view,
    class_counts,
    shape_shown,
)
from stages.tasks.classification.init.trial import MOST_OF_A_SERVICE, try_classifier
from stages.tasks.classification.pictures import SUFFIXES, Encoded, UnreadablePicture
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.contract import TaskContext
from stages.tasks.init import Ask, Init, Option, Proposal, Seen, Trial
from stages.usage import measures
from stages.usage.measures import BATCH, Reader, sample

_CONCEPTS: Mapping[str, list[float]] = {
    "rotation": [-40, -20, 0, 20, 40],
    "translation": [-0.15, -0.08, 0, 0.08, 0.15],
    "scale": [1, 0.9, 0.8, 0.7],
    "occlusion": [0, 0.03, 0.06, 0.1],
    "darkening": [0, 0.2, 0.4, 0.6, 0.8],
    "contrast": [1, 0.8, 0.6, 0.4],
    "saturation": [1, 0.75, 0.5, 0.25, 0],
    "blur": [0, 0.5, 1, 1.5],
    "noise": [0, 0.1, 0.2, 0.3],
}
_SIDE = 28.0  # side in pixels of the pictures that the blur above is meant for


class PicturesInit(Init):
    """Pictures with labels, and a classifier of them."""

    options: ClassVar[Mapping[str, Option]] = {
        "architecture": Option("Name of timm or torchvision for a weights file; guessed from the weights."),
        "label": Option(
            "Map a label of the data to a class of the model; repeatable, never guessed.", "LABEL=CLASS", many=True
        ),
        "classes": Option("Class names in order, if the model's files do not name them.", "NAME,NAME"),
        "reorder": Option("Whether to reorder the classes to match the model's answers, if they differ.", switch=True),
        "size": Option("Side length of the images, if the model's files do not say."),
        "normalise": Option(
            "How pixels in [0, 1] are normalised: imagenet, half or none. By default as in the model's library, which"
            " says nothing of grey images: none."
        ),
        "outputs": Option("Whether an ONNX network returns logits or probabilities; guessed."),
    }
    wants = "Pictures with labels: a folder of each class, a .jsonl or .parquet file"
    suffixes = (".onnx", *WEIGHTS)
    folders = "config.json of timm or of an image classifier of transformers (...ForImageClassification)"
    discrepancy: ClassVar[Mapping[str, Any]] = {"threshold": 0}
    meaning = """\
How wrong an answer is, from -1 to 1. At a threshold of 0 whatever is misclassified is a failure, below 0 near
misses are, too."""
    method = "all-layers"
    trying = "unchanged pictures"
    trial_of_service = f"up to {MOST_OF_A_SERVICE} pictures"

    def model(self, path: Path, ask: Ask) -> RecognisedClassifier | None:
        return look_at_classifier(path, ask)

    def hub_model(self, name: str) -> dict[str, Any]:
        return {"timm" if name.startswith(("timm/", "hf-hub:")) else "transformers": name}

    def data(self, path: Path, given: str, ask: Ask) -> LabelledPictures:
        return look_at_pictures(path, given)

    def propose(self, seen: Seen) -> Proposal:
        ask, model, data = seen.ask, RecognisedClassifier.of(seen.model), LabelledPictures.of(seen.data)
        if data.labels:
            seen.said.append(f"by class: {class_counts(data)}")
        classes = ask_classes(ask, model, data)
        labels = ask_labels(ask, model, classes, data, seen.said)
        source = {"classes": classes} if classes else {}
        source |= ask_classifier(ask, model, data)
        view = ask_view(ask, model, data)
        shape = shape_shown(model, data, source | view)
        if data.traits:
            shown = max(filter(None, shape[1:]), default=None)
            seen.said.extend(notes(data.traits, data.sides, model.shape[0], shown))
        concepts = image_concepts(shape)
        units = {"°": ", in degrees"}
        side = max((n for n in shape[1:] if n), default=224)
        return Proposal(
            concepts,
            {name: CATALOGUE[name].doc + units.get(CATALOGUE[name].unit, "") for name in concepts},
            source,
            view | ({"labels": labels} if labels else {}),
            batch_size=16 if "endpoint" in model.block else 128 if side <= 64 else 32,
        )

    def trial(self, context: TaskContext, seen: Seen) -> Trial:
        return try_classifier(context, seen)


def image_concepts(shape: Sequence[int | None]) -> dict[str, list[float]]:
    """Return image concepts with an effect on pictures of this shape; grey ones have no saturation."""
    channels, height, width = shape
    sides = [side for side in (height, width) if side]
    # With the root of the side: 4.2 pixels at 224, between the severities 4 and 5 of ImageNet-C (4 and 6).
    larger = max(1.0, (min(sides) / _SIDE) ** 0.5) if sides else 1.0
    concepts = {name: levels for name, levels in _CONCEPTS.items() if name != "saturation" or channels != 1}
    return {**concepts, "blur": [round(level * larger, 1) for level in _CONCEPTS["blur"]]}


class PictureVocabulary(Vocabulary):
    """The catalogue; a model that proposes may see pictures."""

    def pictures(self, task: ClassifierProbes, item_ids: Sequence[str]) -> list[bytes]:
        encoded = []
        for pixels in (task.clean(task.rows(item_ids)).permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy():
            file = io.BytesIO()
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
            encoded.append(file.getvalue())
        return encoded


class PictureReader(Reader):
    """A folder of pictures, for classifiers."""

    shown = measures.PICTURES
    task: ClassifierProbes

    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        return measures.of_pictures(self.task.inputs(ids, cells))

    def measured_by(self) -> Mapping[str, Sequence[str]]:
        """Grey pictures have no colour."""
        found = super().measured_by()
        return {name: by for name, by in found.items() if by != ("colour",) or self.task.model.form.shape[0] == 3}

    def production(self, path: Path, rng: np.random.Generator) -> pd.DataFrame:
        if not path.is_dir():
            raise UsageError(f"{path} is not a folder, expected a folder of pictures")
        files = sample(sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES), rng)
        form, data = self.task.model.form, self.task.source(self.task.context, "data")
        pictures, parts = Encoded(files, getattr(data, "resize", None)), []
        for start in range(0, len(files), BATCH):
            pixels = []
            for row in range(start, min(start + BATCH, len(files))):
                try:
                    pixels.append(pictures.read(row, form.shape, form.view))
                except UnreadablePicture as error:
                    self.left_out.append(str(error))
            if pixels:
                parts.append(measures.of_pictures(torch.from_numpy(np.stack(pixels)).float() / 255))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
