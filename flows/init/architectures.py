"""Which architecture of timm or torchvision weights belong to: by names and shapes, on no memory for the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from stages.errors import UsageError, did_you_mean

Shapes = Mapping[str, tuple[int, ...]]

# Those most weights belong to; whatever else a file is named after is tried too. Built on no memory, one takes 50 ms.
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
    """Which library has an architecture: ("timm" or "torchvision", its name there).

    Raises:
        UsageError: when neither has; with names that look like it.
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
    """Names of architectures by library, of those that are installed."""
    known: dict[str, list[str]] = {}
    with contextlib.suppress(ImportError):
        import timm

        known["timm"] = list(timm.list_models())
    with contextlib.suppress(ImportError):
        from torchvision import models

        known["torchvision"] = list(models.list_models(module=models))
    return known


def guess_architecture(stem: str, shapes: Shapes) -> str | None:
    """The architecture whose tensors have these names and shapes, but for the last layer's classes; None if none has.

    Args:
        stem: of the file's name, which often holds it.
        shapes: of the weights.
    """
    known = architectures()
    everything = [name for names in known.values() for name in names]
    plain = stem.lower().replace("-", "_")
    named = sorted((name for name in everything if name in plain), key=len, reverse=True)
    for name in dict.fromkeys([*named, *_COMMON]):
        for library, names in known.items():
            if name in names and _fits(library, name, shapes):
                return name
    return None


def ends_of(name: str) -> tuple[str | None, str | None]:
    """Names of an architecture's first convolution and of the layer that tells classes apart; None where not known.

    A file's order says nothing of it: .safetensors are sorted by name.
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
    """Some networks have two heads, with as many classes each."""
    return names if isinstance(names, str) else names[0]


def _fits(library: str, name: str, shapes: Shapes) -> bool:
    return any(_alike(own, shapes) for own in _shapes(library, name))


def _alike(own: Shapes, shapes: Shapes) -> bool:
    """Whether all names are the same, and all shapes but those of the head and of the first layer's channels."""
    if own.keys() != shapes.keys():
        return False
    differ = [name for name in own if own[name] != shapes[name]]
    return all(own[name][1:] == shapes[name][1:] or _channels_apart(own[name], shapes[name]) for name in differ) and (
        len(differ) <= 3  # weight and bias of the head, and the first layer
    )


def _channels_apart(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) == 4 and (one[0], *one[2:]) == (other[0], *other[2:])


def _shapes(library: str, name: str) -> Iterator[Shapes]:
    import torch

    with contextlib.suppress(Exception), torch.device("meta"):  # whatever it raises, it is not that one
        yield {key: tuple(value.shape) for key, value in _build(library, name).state_dict().items()}


def _build(library: str, name: str) -> Any:
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    from torchvision import models

    return models.get_model(name, weights=None)
