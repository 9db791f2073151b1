"""`faded init` for image classification: the pictures a classifier takes, and the meaning of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from stages.tasks.classification.init.formats import notes
from stages.tasks.classification.init.models import WEIGHTS, Classifier, look_at_model
from stages.tasks.classification.init.order import Order
from stages.tasks.classification.init.pictures import Pictures, look_at_pictures
from stages.tasks.classification.init.questions import (
    ask_classes,
    ask_classifier,
    ask_labels,
    ask_view,
    counted,
    shape_shown,
)
from stages.tasks.contract import TaskContext
from stages.tasks.init import Ask, Change, Init, Option, Proposal, Seen, Trial

_CONCEPTS: Mapping[str, list[float]] = {
    "rotation": [0, 10, 20, 30, 40],
    "translation": [0, 0.05, 0.1, 0.15],
    "scale": [1, 0.9, 0.8, 0.7],
    "occlusion": [0, 0.03, 0.06, 0.1],
    "darkening": [0, 0.2, 0.4, 0.6, 0.8],
    "contrast": [1, 0.8, 0.6, 0.4],
    "saturation": [1, 0.75, 0.5, 0.25, 0],
    "blur": [0, 0.5, 1, 1.5],
    "noise": [0, 0.1, 0.2, 0.3],
}
_SIDE = 28.0  # side in pixels of the pictures that the blur above is meant for
_OF_EACH_CLASS = 20  # number of pictures, enough to determine its output if most of them agree
_LEAST, _MOST, _MOST_OF_A_SERVICE = 100, 500, 200  # total pictures of a trial; a service may charge for them
_ROWS = 20  # number of classes in a table


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
    trial_of_service = f"up to {_MOST_OF_A_SERVICE} pictures"

    def model(self, path: Path, ask: Ask) -> Classifier | None:
        return look_at_model(path, ask)

    def hub_model(self, name: str) -> dict[str, Any]:
        """See Init: networks of timm have their own key."""
        return {"timm" if name.startswith(("timm/", "hf-hub:")) else "transformers": name}

    def data(self, path: Path, given: str, ask: Ask) -> Pictures:
        return look_at_pictures(path, given)

    def propose(self, seen: Seen) -> Proposal:
        """See Init: asks for the names of the classes, and how pictures are shown."""
        from stages.concepts.images import CATALOGUE

        ask, model, data = seen.ask, Classifier.of(seen.model), Pictures.of(seen.data)
        if data.labels:
            seen.said.append(f"by class: {counted(data)}")
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
        """See Init: whether the order of the classes is that of the model's outputs."""
        data = Pictures.of(seen.data)
        order = order_of(context, Classifier.of(seen.model).n_classes or len(data.labels), data.searched)
        worst, more = _by_class(order)
        rate = order.named_rate
        told = [f"clean accuracy: {rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%}) of {rate.n:,} pictures"]
        trial = Trial("Unchanged pictures, by class", worst, [*more, *told])
        if not order.likely:
            return trial
        names = order.proposed
        change = Change("Take the classes in that order", order.sure, {"classes": names}, {"classes": ",".join(names)})
        return replace(
            trial,
            doubt=order.statement,
            option="reorder",
            advice=order.advice,
            change=change if order.moved else None,
        )


def _by_class(order: Order) -> tuple[list[Sequence[str]], list[str]]:
    """Return how often unchanged pictures of each class are right, and what they are mistaken for; the worst first."""
    rows: list[Sequence[str]] = [("class", "pictures", "right", "most are mistaken for")]
    n, right = order.counts.sum(axis=1), order.counts.diagonal()
    seen = [int(i) for i in np.argsort(right / np.maximum(n, 1), kind="stable") if n[i]]
    for i in seen[:_ROWS]:
        most = int(order.counts[i].argmax())
        taken = "" if most == i else f"{order.classes[most]} ({order.counts[i, most]:,})"
        rows.append((order.classes[i], f"{n[i]:,}", f"{right[i] / n[i]:.0%}", taken))
    more = len(seen) - _ROWS
    return rows, [f"and {more:,} more classes, of which more is right"] if more > 0 else []


def image_concepts(shape: Sequence[int | None]) -> dict[str, list[float]]:
    """Return image concepts with an effect on pictures of this shape; grey ones have no saturation."""
    channels, height, width = shape
    sides = [side for side in (height, width) if side]
    # With the root of the side: 4.2 pixels at 224, between the severities 4 and 5 of ImageNet-C (4 and 6).
    larger = max(1.0, (min(sides) / _SIDE) ** 0.5) if sides else 1.0
    concepts = {name: levels for name, levels in _CONCEPTS.items() if name != "saturation" or channels != 1}
    return {**concepts, "blur": [round(level * larger, 1) for level in _CONCEPTS["blur"]]}


def order_of(context: TaskContext, classes: int, available: int | None) -> Order:
    """Query a classifier on clean pictures.

    Args:
        context: the audit's, in a temporary workspace.
        classes: approximate number of its classes.
        available: number of pictures available to search; None if unknown.

    Raises:
        FadedError: if the model or the data cannot be prepared.
    """
    import torch

    from stages.tasks.classification import ImageClassification
    from stages.tasks.classification.config import PrepareConfig
    from stages.tasks.classification.data import DATA_LOADERS
    from stages.tasks.classification.loaders import MODEL_LOADERS
    from stages.tasks.classification.pool import choose_items
    from stages.tasks.sources import ItemCounts, parse_source

    torch.set_num_threads(context.compute.threads)
    context = replace(context, compute=replace(context.compute, backend="eager"))  # others start too slowly for this
    config = PrepareConfig.model_validate(dict(context.config))
    most = _MOST_OF_A_SERVICE if "endpoint" in config.model else _MOST
    wanted = min(available or config.items.discover, most, max(_LEAST, _OF_EACH_CLASS * classes))
    pool = parse_source(config.data, DATA_LOADERS, "prepare.data").load(context.inputs)
    source = parse_source(config.model, MODEL_LOADERS, "prepare.model")
    model = source.build(context.inputs, pool, context.seed, context.compute.device)
    form = model.form
    items = choose_items(pool, ItemCounts(discover=wanted), form.classes, context.seed, form.shape, form.view)
    task = ImageClassification(context, items, model, "")
    rows = np.arange(len(items))
    parts = np.array_split(rows, -(-len(rows) // context.compute.batch_size))
    with torch.inference_mode(), task.backend.threads():
        answers = [task.backend(task.clean(part)).argmax(1).numpy() for part in parts]
    counts = np.zeros((len(form.classes), len(form.classes)), dtype=np.int64)
    np.add.at(counts, (items["target"].to_numpy(), np.concatenate(answers)), 1)
    return Order(form.classes, counts)
