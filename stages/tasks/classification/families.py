"""Families of networks: how to rebuild each from its faded.json, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from stages.errors import UsageError, did_you_mean
from stages.tasks.classification.form import Form

# Networks of torchvision whose published weights need transform_input, and which have auxiliary heads for training.
INCEPTIONS = ("inception_v3", "googlenet")


def _small_cnn(form: Form) -> nn.Module:
    """Two convolutions and two linear layers, as in a tutorial, and as brittle."""
    channels, height, width = form.shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
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
        model: the transformers model.
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

    Raises:
        UsageError: if timm has no architecture of that name.
    """
    import timm

    name = architecture.split(".", maxsplit=1)[0]
    if not timm.is_model(name):
        raise UsageError(f"timm knows no architecture {name!r}{did_you_mean(name, timm.list_models())}")


def torchvision_models() -> Any:
    """Import the classifiers of torchvision.

    Raises:
        UsageError: if torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError:
        raise UsageError("prepare.model.torchvision: it is not installed: pip install 'faded[image]'") from None
    return models
