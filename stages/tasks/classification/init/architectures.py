"""Find the timm or torchvision architecture of weights by the names and shapes of tensors, without allocating any."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from stages.core.errors import UsageError, did_you_mean

Shapes = Mapping[str, tuple[int, ...]]

# The most common architectures; any that the file's name contains is tried too. Building one on "meta" takes 50 ms.
_COMMON = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "tf_efficientnet_b0"),
    *("tf_efficientnet_lite0", "tf_efficientnetv2_s", "efficientnet_v2_s", "mobilenetv2_100", "mobilenet_v2"),
    *("mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenet_v3_large", "mobilenet_v3_small"),
    *("densenet121", "convnext_tiny", "convnext_small", "convnext_base", "regnety_016", "vgg16", "vgg11", "alexnet"),
    *("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_b_16", "deit_small_patch16_224"),
    *("swin_tiny_patch4_window7_224", "swin_t", "squeezenet1_0", "shufflenet_v2_x1_0"),
)


def library_of(name: str) -> tuple[str, str]:
    """Return the library of an architecture: ("timm" or "torchvision", its name there).

    Raises:
        UsageError: if neither library has it; with similar names.
    """
    known = architectures()
    for library, names in known.items():
        if name in names:
            return library, name
    if not known:
        raise UsageError("no architectures are known here: pip install 'faded[image]'")
    everything = [each for names in known.values() for each in names]
    raise UsageError(f"no architecture {name!r} in {' or '.join(known)}{did_you_mean(name, everything)}")


def architectures() -> dict[str, list[str]]:
    """Return names of architectures by library, for the installed libraries."""
    known: dict[str, list[str]] = {}
    with contextlib.suppress(ImportError):
        import timm

        known["timm"] = list(timm.list_models())
    with contextlib.suppress(ImportError):
        from torchvision import models

        known["torchvision"] = list(models.list_models(module=models))
    return known


def candidates(stem: str, shapes: Shapes) -> list[str]:
    """Return the architectures whose tensors have these names and shapes, the likeliest first.

    Only common ones, and those in the file's name, are tried: building all that are known would take minutes.

    Args:
        stem: stem of the file's name, which often contains the architecture.
        shapes: shapes of the weights; the number of classes does not matter.
    """
    known = architectures()
    plain = stem.lower().replace("-", "_")
    named = sorted((name for names in known.values() for name in names if name in plain), key=len, reverse=True)
    likely = list(dict.fromkeys([*named, *_COMMON]))
    first = next((name for name in likely if _fits(name, shapes, known)), None)
    if first is None:
        return []
    # Ports of one network have the same tensors but other paddings, such as tf_efficientnet_b0.
    ports = (name for name in likely if name != first and (first in name or name in first))
    return [first, *(name for name in ports if _fits(name, shapes, known))]


def ends_of(name: str) -> tuple[str | None, str | None]:
    """Return the names of an architecture's first convolution and of its classification layer; None if unknown.

    The order of tensors in a file does not tell: .safetensors are sorted by name.
    """
    import torch

    library, name = library_of(name)
    if library == "timm":
        import timm

        if (cfg := timm.get_pretrained_cfg(name)) is not None and cfg.classifier and cfg.first_conv:
            return _one(cfg.first_conv), _one(cfg.classifier)
    with contextlib.suppress(Exception), torch.device("meta"):
        layers = list(_build(library, name).named_modules())
        convolutions = [at for at, layer in layers if isinstance(layer, torch.nn.Conv2d)]
        linear = [at for at, layer in layers if isinstance(layer, torch.nn.Linear)]
        return next(iter(convolutions), None), next(reversed(linear or convolutions), None)
    return None, None


def _one(names: str | tuple[str, ...]) -> str:
    """Return one name: some networks have two heads, with the same number of classes."""
    return names if isinstance(names, str) else names[0]


def _fits(name: str, shapes: Shapes, known: Mapping[str, Sequence[str]]) -> bool:
    return any(name in names and _alike(_shapes(library, name), shapes) for library, names in known.items())


def _alike(own: Shapes, shapes: Shapes) -> bool:
    """Whether all names are equal, and all shapes except those of the head and of the first layer's channels."""
    if not own or own.keys() != shapes.keys():
        return False
    differ = [name for name in own if own[name] != shapes[name]]
    return all(own[name][1:] == shapes[name][1:] or _channels_apart(own[name], shapes[name]) for name in differ) and (
        len(differ) <= 3  # weight and bias of the head, and the first layer
    )


def _channels_apart(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) == 4 and (one[0], *one[2:]) == (other[0], *other[2:])


@cache
def _shapes(library: str, name: str) -> Shapes:
    """Return names and shapes of an architecture's tensors; {} if it cannot be built on the "meta" device."""
    import torch

    with warnings.catch_warnings(), contextlib.suppress(Exception), torch.device("meta"):  # building may raise anything
        warnings.simplefilter("ignore")
        return {key: tuple(value.shape) for key, value in _build(library, name).state_dict().items()}
    return {}


def _build(library: str, name: str) -> Any:
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    from torchvision import models

    return models.get_model(name, weights=None)
