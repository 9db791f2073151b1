"""Questions only for classifiers: names of the classes, and how pictures are shown to the model."""

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.core.errors import UsageError, did_you_mean, first_of
from stages.tasks.classification.init.models import RecognisedClassifier, Shape
from stages.tasks.classification.init.pictures import LabelledPictures
from stages.tasks.classification.pictures import class_indices
from stages.tasks.init import Ask, Check
from stages.tasks.labels import class_names

IMAGENET = 1000  # number of classes that need no names
_NAMED = 20  # number of classes with their counts that a message lists
_FEW = 10  # number of labels or classes that a message lists
_PHOTO = 96  # side in pixels from which pictures count as photos rather than icons
_OUTPUTS = ("logits", "probabilities")
_NORMALISED: Mapping[str, Mapping[str, Any]] = {
    "imagenet": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "half": {"mean": 0.5, "std": 0.5},
    "none": {"mean": 0, "std": 1},
}


def ask_classes(ask: Ask, model: RecognisedClassifier, data: LabelledPictures) -> list[str]:
    """Get the names of the classes in order, if the model has none; empty if none are needed.

    Raises a UsageError if nobody can be asked; with the classes of the data, and what to type.
    """
    url = "endpoint" in model.block
    n = model.n_classes
    unnamed = not url and not model.classes and n not in (None, IMAGENET, len(data.classes))
    if not url and not unnamed and ask.said("classes") is None:
        return []
    folders = sorted([*data.labels, *data.empty])
    guess = ",".join(data.classes) if url and data.classes else None
    asked = f"Names of {f'its {n} classes' if n else 'its classes'}, in their order, separated by commas"
    if unnamed and n and ask.said("classes") is None:
        found = f"the model has {n:,} outputs, and the data {class_counts(data)}"
        if not ask.asked("classes"):
            raise UsageError(f"{found}. {_to_type(n, folders, data)}")
        asked = f"{found}. {asked}"
        guess = ",".join(folders) if len(folders) == n else None
    answer = ask.text("classes", asked, guess, _count(n))
    return [name.strip() for name in answer.split(",")]


def class_counts(data: LabelledPictures) -> str:
    """Describe the classes of the data with the number of pictures of each: "2 classes: cat (20), dog (3)"."""
    named = [f"{label} ({count:,})" for label, count in sorted(data.labels.items())]
    told = f"{len(named):,} classes: {first_of(named, _NAMED)}"
    return f"{told}; without a picture: {first_of(data.empty, _NAMED)}" if data.empty else told


def _to_type(n: int, folders: Sequence[str], data: LabelledPictures) -> str:
    """Return the option that names the model's n outputs, in the order in which it learnt them."""
    if len(folders) == n:
        why = "with the empty ones " if data.empty else ""
        return (
            f"If it learnt them {why}in that order, say {_option(folders)}; else name them in the order it learnt them"
        )
    lacking = n - len(folders)
    if lacking > 0:
        names = [*folders, *(f"NAME{i + 1}" for i in range(lacking))]
        return (
            f"{lacking} more {'is' if lacking == 1 else 'are'} of the model alone: name all {n:,} in the order it"
            f" learnt them, such as {_option(names)}"
        )
    smallest = sorted(data.labels, key=lambda label: data.labels[label])[:-lacking]
    others = [label for label in folders if label in data.labels and label not in smallest][:n]
    return (
        f"{-lacking} of these cannot be told by it: name its {n:,} in the order it learnt them, such as"
        f" {_option(others)}, and move pictures of others out of the data, or say which class they are:"
        f" --label {shlex.quote(f'{smallest[0]}=CLASS')}"
    )


def _option(names: Sequence[str]) -> str:
    return f"--classes {shlex.quote(','.join(names))}"


def ask_classifier(ask: Ask, model: RecognisedClassifier, data: LabelledPictures) -> dict[str, Any]:
    """Get what only a person knows about a classifier besides its classes: size and normalisation of its pictures."""
    told: dict[str, Any] = {}
    url = "endpoint" in model.block
    if url or (model.black_box and not model.shape[1]):
        side = str(min(side for side in data.shape[1:] if side)) if data.shape[1] else None
        told["size"] = int(ask.text("size", "Side of the square pictures it is shown, in pixels", side, _number))
    if model.key == "onnx":
        told["outputs"] = ask.choice("outputs", "What are its scores", _OUTPUTS, model.outputs)
    elif ask.said("outputs") is not None:
        raise UsageError(f"--outputs is of an ONNX network; found {model.said}")
    unknown = model.key == "onnx" or "channels" in model.block  # the library knows it for three channels alone
    if unknown or ask.said("normalise") is not None:
        photos = model.shape[0] == 3 and (model.shape[1] or _PHOTO) >= _PHOTO
        guess = "imagenet" if photos else "none"
        told |= _NORMALISED[ask.choice("normalise", "How are pixels normalised", list(_NORMALISED), guess)]
    return told


def ask_view(ask: Ask, model: RecognisedClassifier, data: LabelledPictures) -> dict[str, Any]:
    """Get the size in which to show pictures, if those of the data are far smaller than usual for the network."""
    if model.key != "weights":
        return {}
    (usual, fixed), sides = usual_side(model), [side for side in data.shape[1:] if side]
    if ask.said("size") is None and (not sides or not usual or 2 * min(sides) > usual):
        return {}
    guess = str(usual if fixed or not sides else min(sides))
    asked = f"Side of the pictures it was trained on ({usual or 'no'} is usual for it), in pixels"
    return {"size": int(ask.text("size", asked, guess, _number))}


def usual_side(model: RecognisedClassifier) -> tuple[int | None, bool]:
    """Return the side of the pictures that an architecture was made for, and whether it accepts no others."""
    if "timm" in model.block:
        import timm

        cfg = timm.get_pretrained_cfg(str(model.block["timm"]))
        return (cfg.input_size[1], bool(cfg.fixed_input_size)) if cfg is not None else (None, False)
    return 224, "vit" in str(model.block.get("torchvision"))


def _count(n: int | None) -> Check:
    def check(answer: str) -> None:
        names = [name.strip() for name in answer.split(",")]
        if len(names) < 2 or "" in names or n not in (None, len(names)):
            raise UsageError(f"--classes: expected {n or 'two or more'} names, found {len(names)}: {answer}")

    return check


def _number(answer: str) -> None:
    if not answer.isdigit() or int(answer) < 8:
        raise UsageError(f"--size {answer}: expected a number of pixels, 8 or more")


def ask_labels(
    ask: Ask, model: RecognisedClassifier, named: Sequence[str], data: LabelledPictures, said: list[str]
) -> dict[str, str]:
    """Get the model's class for each label of the data that differs; empty if all are the same.

    Raises a UsageError if a label is similar to no class, and nobody assigns it.

    Args:
        model: the model, with the names of its classes if it has any.
        named: classes as named by a person, if any.
        said: lines for people; one is added.
    """
    classes = list(named or model.classes)
    if not classes and model.n_classes == IMAGENET:
        classes = class_names()
    told = read_labels(ask.many("label"), data.labels, classes)
    if not classes and data.classes:
        said.append(
            f"classes: {first_of(data.classes, _FEW)}: the data's, in their order, for nothing names the model's; see"
            " --classes"
        )
    if not classes or not data.labels:
        return told
    known = class_indices(classes)
    others = [label for label in data.labels if label not in known and label not in told]
    matched = match_labels(others, classes)
    keys = {label: f"label {label}=" for label in others if label not in matched}
    has = f"it has {first_of(classes, _FEW)}"
    if unsaid := [label for label, key in keys.items() if not ask.asked(key)]:
        named = ", ".join(f"{label!r}{did_you_mean(label, classes)}" for label in unsaid[:_FEW])
        more = f" and {len(unsaid) - _FEW:,} more" if len(unsaid) > _FEW else ""
        raise UsageError(
            f"{len(unsaid):,} labels of the data match no class of the model: {named}{more}; {has}."
            f" They are never guessed: for each, use --label {shlex.quote(f'{unsaid[0]}=CLASS')}"
        )

    def check(answer: str) -> None:
        if answer not in classes:
            raise UsageError(f"the model has no class {answer!r}{did_you_mean(answer, classes)}; {has}")

    for label, key in keys.items():
        told[label] = ask.text(key, f"Which class is the label {label!r}", None, check)
    pairs = {**matched, **told}
    seen = {pairs.get(label) or classes[known[label]] for label in data.labels}
    if len(seen) < len(classes) != IMAGENET:
        missing = first_of([name for name in classes if name not in seen], _FEW)
        said.append(f"classes: the model has {len(classes):,}, of which the data have no picture of {missing}")
    if pairs:
        said.append(
            f"labels: {len(pairs)} are written otherwise than the model's classes: "
            + ", ".join(f"{label} is {name}" for label, name in pairs.items())
        )
    return pairs


def shape_shown(model: RecognisedClassifier, data: LabelledPictures, asked: Mapping[str, Any]) -> Shape:
    """Return channels, height, width of the pictures shown to a model: its own if known, else those of the data."""
    side = asked.get("size")
    if side is None and model.key == "weights":
        side, _ = usual_side(model)
    height, width = (side, side) if side else model.shape[1:] if model.shape[1] else data.shape[1:]
    # Grey pictures stay grey for a network for colour: there is no colour to remove.
    channels = 1 if 1 in (model.shape[0], data.shape[0]) else model.shape[0] or data.shape[0]
    return channels, height, width


# Labels of the data as classes of the model


def match_labels(labels: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Map labels to classes that differ only in case, spaces or punctuation, or have several names.

    Args:
        labels: labels of the data, none of which is a class.

    >>> match_labels(["Dog", "hrse"], ["cat", "dog, hound", "horse"])
    {'Dog': 'dog, hound'}
    """
    spelled: dict[str, set[str]] = defaultdict(set)
    for name in classes:
        for spelling in (name, *name.split(",")):  # ImageNet's classes have several names each
            spelled[_plain(spelling)].add(name)
    return {label: next(iter(names)) for label in labels if len(names := spelled.get(_plain(label), set())) == 1}


def read_labels(given: Sequence[str], labels: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Parse the pairs LABEL=CLASS of a command line.

    Raises a UsageError if one is not such a pair, or its label or class does not exist.
    """
    known, pairs = list(labels), {}
    for one in given:
        label, equals, name = one.partition("=")
        if not equals:
            raise UsageError(f"--label {one}: expected LABEL=CLASS, a label of the data and a class of the model")
        if label not in known:
            raise UsageError(f"--label {one}: the data have no label {label!r}{did_you_mean(label, known)}")
        if classes and name not in classes:
            raise UsageError(f"--label {one}: the model has no class {name!r}{did_you_mean(name, classes)}")
        pairs[label] = name
    return pairs


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
