"""faded.json, the description of a classifier beside its weights, and the families of networks that it names.

A network is rebuilt from it without its weights; timm and transformers load the same folder by their own config.json.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from stages.core.errors import UsageError, did_you_mean
from stages.params import Strict
from stages.tasks.classification.pictures import Shape, View

FORM = "faded.json"
CONFIG = "config.json"  # the name that timm and transformers look for
PER_CHANNEL = float | list[float]
POSITIVE = PositiveFloat | list[PositiveFloat]

# Networks of torchvision whose published weights need transform_input, and which have auxiliary heads for training.
INCEPTIONS = ("inception_v3", "googlenet")


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

    @property
    def shown(self) -> View:
        """How pictures are resized before their centre is cropped to the input, at least to its size."""
        height, width = self.shape[1:]
        view = self.view or View(resize=max(height, width))
        if isinstance(view.resize, int):
            return view.model_copy(update={"resize": max(view.resize, height, width)})
        return view

    def per_channel(self, value: PER_CHANNEL) -> list[float]:
        """Return one number for each channel of the input."""
        values = value if isinstance(value, list) else [value]
        return values * self.shape[0] if len(values) == 1 else values


class _Pool(nn.MaxPool2d):
    """The same maxima, in the layout for which torch finds them on a CPU at four times the speed."""

    def forward(self, input: Tensor) -> Tensor:
        fast = input.contiguous(memory_format=torch.channels_last)
        found = super().forward(fast)
        return found if fast is input else found.contiguous()

    def _get_name(self) -> str:  # whoever loads the network without Faded takes torch's own
        return "MaxPool2d"


def _small_cnn(form: Form) -> nn.Module:
    """Two convolutions and two linear layers, as in a tutorial, and as brittle."""
    channels, height, width = form.shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), _Pool(2), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), _Pool(2), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 64), nn.ReLU(),
        nn.Linear(64, len(form.classes)),
    )  # fmt: skip


def _timm(form: Form) -> nn.Module:
    import timm

    check_timm(form.architecture)
    arguments = (form.settings or {}).get("args", {})
    return timm.create_model(
        form.architecture, pretrained=False, num_classes=len(form.classes), in_chans=form.shape[0], **arguments
    )


def _torchvision(form: Form) -> nn.Module:
    models = torchvision_models()
    names = models.list_models(module=models)
    if form.architecture not in names:
        raise UsageError(
            f"prepare.model.torchvision: no classifier {form.architecture!r}"
            f"{did_you_mean(form.architecture, names)}; there are {', '.join(names)}"
        )
    arguments = dict((form.settings or {}).get("args", {}))
    if form.architecture in INCEPTIONS:
        arguments["init_weights"] = False  # slow, and all weights are replaced
    net: nn.Module = models.get_model(form.architecture, weights=None, num_classes=len(form.classes), **arguments)
    return net


def _transformers(form: Form) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    told = form.settings or {}
    settings = dict(told.get("config", {}))
    kind = settings.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **settings, num_labels=len(form.classes))
        return Logits(AutoModelForImageClassification.from_config(config), bgr=bool(told.get("bgr")))
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"transformers builds no image classifier of the kind {kind!r}: {error}") from None


class Logits(nn.Module):
    """A transformers model as a network: (n, c, h, w) -> (n, classes).

    Args:
        bgr: whether it expects blue first; pictures here have red first.
    """

    def __init__(self, model: Any, *, bgr: bool = False) -> None:
        super().__init__()
        self.model, self.bgr = model, bgr

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels -> logits."""
        logits: Tensor = self.model(pixel_values=pixels.flip(1) if self.bgr else pixels).logits
        return logits


def stored(net: nn.Module) -> nn.Module:
    """Return the part of a network whose weights are stored, with the names that its library gives them."""
    return net.model if isinstance(net, Logits) else net


FAMILIES: Mapping[str, Callable[[Form], nn.Module]] = {
    "small_cnn": _small_cnn,
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
}


def check_timm(architecture: str) -> None:
    """Check the name of a timm architecture, which may have a tag (resnet50.a1_in1k).

    Raises a UsageError if timm has no architecture of that name.
    """
    import timm

    name = architecture.split(".", maxsplit=1)[0]
    if not timm.is_model(name):
        raise UsageError(f"timm knows no architecture {name!r}{did_you_mean(name, timm.list_models())}")


def torchvision_models() -> Any:
    """Import the classifiers of torchvision. Raises a UsageError if torchvision is not installed."""
    try:
        from torchvision import models
    except ImportError:
        raise UsageError("prepare.model.torchvision: it is not installed: pip install 'faded[image]'") from None
    return models


def library_config(form: Form, net: nn.Module) -> dict[str, Any] | None:
    """Return the config.json of the library that a network is from; None if the library reads none."""
    if form.family == "timm":
        return _of_timm(form, net)
    if form.family == "transformers":
        return _of_transformers(form, net)
    return None


def _of_timm(form: Form, net: Any) -> dict[str, Any]:
    """Return what `timm.create_model("local-dir:FOLDER", pretrained=True)` reads."""
    view = form.shown
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
            "mean": form.per_channel(form.mean),
            "std": form.per_channel(form.std),
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
        "view": form.shown,
        "mean": form.per_channel(form.mean),
        "std": form.per_channel(form.std),
        "bgr": bool((form.settings or {}).get("bgr")),
    }


def _crop_pct(side: int, resized: int) -> float:
    """Return the share of a resized picture that is cropped, such that timm resizes to floor(side / share) pixels."""
    share = side / resized
    return share if math.floor(side / share) == resized else side / (resized + 0.5)
