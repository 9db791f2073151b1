"""The thousand classes of ImageNet: their names, and the WordNet IDs that name its folders."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence

ALIKE = 0.9  # share of names that must agree; other sources shorten or spell some differently


def class_names() -> list[str]:
    """Return their names in the order of their indices, each the first of its synonyms."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [_first(info.index_to_description(i)) for i in range(info.num_classes())]


def are_of_imagenet(labels: Iterable[str], classes: int) -> bool:
    """Whether a model with this many classes has those of ImageNet, judging by the labels of its items."""
    if importlib.util.find_spec("timm") is None:
        return False
    names = class_names()
    return classes == len(names) and {_first(label).lower() for label in labels} <= {name.lower() for name in names}


def wordnet_ids(classes: Sequence[str]) -> dict[str, int]:
    """Return {"n01440764": 0, ...} if these are the classes of ImageNet in their order, else {}."""
    if importlib.util.find_spec("timm") is None:
        return {}
    from timm.data.imagenet_info import ImageNetInfo

    names = class_names()
    if len(classes) != len(names):
        return {}
    alike = sum(_first(one).lower() == other.lower() for one, other in zip(classes, names, strict=True))
    if alike < ALIKE * len(names):
        return {}
    return {wordnet_id: index for index, wordnet_id in enumerate(ImageNetInfo().label_names())}


def _first(description: str) -> str:
    return description.split(",", maxsplit=1)[0]
