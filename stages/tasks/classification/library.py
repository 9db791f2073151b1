"""How timm, transformers and torchvision load the folder of a classifier and prepare its pictures, without Faded."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from stages.tasks.classification.families import stored
from stages.tasks.classification.form import Form
from stages.tasks.classification.pictures import View

CONFIG = "config.json"  # the name that timm and transformers look for


def library_config(form: Form, net: nn.Module) -> dict[str, Any] | None:
    """Return the config.json of the library that a network is from; None if the library reads none.

    Args:
        form: the description of the classifier.
        net: its network.
    """
    if form.family == "timm":
        return _of_timm(form, net)
    if form.family == "transformers":
        return _of_transformers(form, net)
    return None


def _of_timm(form: Form, net: Any) -> dict[str, Any]:
    """Return what `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""
    view = view_of(form)
    sides = (form.shape[1], view.resize[0]) if isinstance(view.resize, tuple) else (min(form.shape[1:]), view.resize)
    parts = ("first_conv", "classifier", "fixed_input_size")
    return {
        "architecture": form.architecture,
        "num_classes": len(form.classes),
        "label_names": form.classes,
        "model_args": (form.settings or {}).get("args", {}),
        "pretrained_cfg": {
            "input_size": list(form.shape),
            "crop_pct": _crop_pct(*sides),
            "crop_mode": "squash" if isinstance(view.resize, tuple) else "center",
            "interpolation": view.interpolation,
            "mean": per_channel(form, form.mean),
            "std": per_channel(form, form.std),
            **{part: net.pretrained_cfg[part] for part in parts if part in net.pretrained_cfg},
        },
    }


def _of_transformers(form: Form, net: nn.Module) -> dict[str, Any]:
    """Return what `AutoModelForImageClassification.from_pretrained(FOLDER)` reads."""
    model: Any = stored(net)
    return {
        **(form.settings or {}).get("config", {}),
        "architectures": [type(model).__name__],
        "id2label": {str(number): name for number, name in enumerate(form.classes)},
        "label2id": {name: number for number, name in enumerate(form.classes)},
    }


def loading(form: Form, net: nn.Module) -> dict[str, Any]:
    """Return the values for templates/load.py.j2, which loads a model's folder and prepares its pictures."""
    return {
        "form": form,
        "layers": list(net.children()) if form.family == "small_cnn" else [],
        "view": view_of(form),
        "mean": per_channel(form, form.mean),
        "std": per_channel(form, form.std),
        "bgr": bool((form.settings or {}).get("bgr")),
    }


def view_of(form: Form) -> View:
    """Return how pictures are resized before their centre is cropped to the input, at least to its size."""
    height, width = form.shape[1:]
    view = form.view or View(resize=max(height, width))
    if isinstance(view.resize, int):
        return view.model_copy(update={"resize": max(view.resize, height, width)})
    return view


def per_channel(form: Form, value: float | list[float]) -> list[float]:
    """Return one number for each channel of the input."""
    values = value if isinstance(value, list) else [value]
    return values * form.shape[0] if len(values) == 1 else values


def _crop_pct(side: int, resized: int) -> float:
    """Return the share of a resized picture that is cropped, such that timm resizes to floor(side / share) pixels."""
    share = side / resized
    return share if math.floor(side / share) == resized else side / (resized + 0.5)
