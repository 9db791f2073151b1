"""What only a classifier needs to be asked: names of its classes, and how pictures are shown to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.init.data import Data
from flows.init.model import Model
from flows.init.questions import Check, Questions
from stages.errors import UsageError

IMAGENET = 1000  # classes that need no names
_PHOTO = 96  # pixels from which pictures are photos rather than icons
_OUTPUTS = ("logits", "probabilities")
_NORMALISED: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "half": {"mean": 0.5, "std": 0.5},
    "none": {"mean": 0, "std": 1},
}


def ask_classes(questions: Questions, model: Model, data: Data) -> list[str]:
    """Names of the classes in their order, where the model does not have them; none where nobody need say."""
    url = "endpoint" in model.block
    n = model.n_classes
    unnamed = n not in (None, IMAGENET, len(data.classes)) and not model.classes
    if not url and not unnamed and questions.said("classes") is None:
        return []
    guess = ",".join(data.classes) if url and data.classes else None
    count = f"its {n} classes" if n else "its classes"
    asked = questions.text("classes", f"Names of {count}, in their order, separated by commas", guess, _count(n))
    return [name.strip() for name in asked.split(",")]


def ask_classifier(questions: Questions, model: Model, data: Data) -> dict[str, Any]:
    """What nothing but a person says of a classifier beside its classes: size and normalisation of its pictures."""
    told: dict[str, Any] = {}
    url = "endpoint" in model.block
    if url or (model.black_box and not model.shape[1]):
        side = str(min(side for side in data.shape[1:] if side)) if data.shape[1] else None
        told["size"] = int(questions.text("size", "Side of the square pictures it is shown, in pixels", side, _number))
    if model.key == "onnx":
        told["outputs"] = questions.choice("outputs", "What are its scores", _OUTPUTS, model.outputs)
    elif questions.said("outputs") is not None:
        raise UsageError(f"--outputs is of an ONNX network; found {model.said}")
    if model.key == "onnx" or questions.said("normalise") is not None:
        photos = model.shape[0] == 3 and (model.shape[1] or _PHOTO) >= _PHOTO
        guess = "imagenet" if photos else "none"
        told |= _NORMALISED[questions.choice("normalise", "How are pixels normalised", list(_NORMALISED), guess)]
    return told


def ask_view(questions: Questions, model: Model, data: Data) -> dict[str, Any]:
    """The size pictures are shown in, where those of the data are far smaller than the network's usual ones."""
    if model.key != "weights":
        return {}
    usual, sides = usual_pictures(model), [side for side in data.shape[1:] if side]
    if questions.said("size") is None and (not sides or not usual.side or 2 * min(sides) > usual.side):
        return {}
    guess = str(usual.side if usual.fixed or not sides else min(sides))
    asked = f"Side of the pictures it was trained on ({usual.side or 'no'} is usual for it), in pixels"
    return {"size": int(questions.text("size", asked, guess, _number))}


@dataclass(frozen=True)
class Usual:
    """The pictures an architecture of timm was made for: their side, and whether it takes no others."""

    side: int | None = None
    fixed: bool = False


def usual_pictures(model: Model) -> Usual:
    """The pictures that weights of this architecture are usually shown."""
    if "timm" in model.block:
        import timm

        cfg = timm.get_pretrained_cfg(str(model.block["timm"]))
        return Usual(cfg.input_size[1], bool(cfg.fixed_input_size)) if cfg is not None else Usual()
    return Usual(224, "vit" in str(model.block.get("torchvision")))


def _count(n: int | None) -> Check:
    def check(answer: str) -> None:
        names = [name.strip() for name in answer.split(",")]
        if len(names) < 2 or "" in names or n not in (None, len(names)):
            raise UsageError(f"--classes: expected {n or 'two or more'} names, found {len(names)}: {answer}")

    return check


def _number(answer: str) -> None:
    if not answer.isdigit() or int(answer) < 8:
        raise UsageError(f"--size {answer}: expected a number of pixels, 8 or more")
