"""Recognise classifiers of pictures by their files, without running any of them.

The architecture of weights is found by the names and shapes of their tensors, without allocating any.
"""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from stages.core.errors import UsageError, did_you_mean
from stages.tasks.classification.models import read_weights
from stages.tasks.init import Ask, Model, read_config, tensor_shapes

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
Shape = tuple[int | None, int | None, int | None]  # channels, height, width; None if unknown
UNKNOWN: Shape = (None, None, None)
Shapes = Mapping[str, tuple[int, ...]]
_SAME = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")  # of ONNX

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


@dataclass(frozen=True)
class RecognisedClassifier(Model):
    """A classifier of pictures.

    Args:
        classes: names of its classes, if its files contain them.
        n_classes: number of classes; None if unknown.
        shape: channels, height, width of its pictures, each None if unknown.
        outputs: likely kind of an ONNX network's scores: logits or probabilities.
    """

    classes: Sequence[str] = ()
    n_classes: int | None = None
    shape: Shape = UNKNOWN
    outputs: str = ""


def look_at_classifier(path: Path, ask: Ask) -> RecognisedClassifier | None:
    """Recognise a classifier; None for other files or folders."""
    if path.suffix == ".onnx":
        return _onnx(path)
    if path.suffix in WEIGHTS:
        return _weights(path, ask)
    config = read_config(path / "config.json")
    if "architecture" in config and "num_classes" in config:
        return _timm_folder(path, config)
    names = [str(name) for name in config.get("architectures") or []]
    if any(name.endswith("ForImageClassification") for name in names):
        return _image_classifier(path, names[0], config)
    return None


def _timm_folder(path: Path, config: Mapping[str, Any]) -> RecognisedClassifier:
    """Read a folder that timm saved for a hub."""
    wanted = (config.get("pretrained_cfg") or {}).get("input_size")
    shape: Shape = (wanted[0], wanted[1], wanted[2]) if isinstance(wanted, list) and len(wanted) == 3 else UNKNOWN
    n, names = int(config["num_classes"]), tuple(str(name) for name in config.get("label_names") or ())
    said = f"{config['architecture']} of timm, {described(n, shape)}"
    return RecognisedClassifier(said, path=path, key="timm", classes=names, n_classes=n, shape=shape)


def _image_classifier(path: Path, name: str, config: Mapping[str, Any]) -> RecognisedClassifier:
    labels = config.get("id2label") or {}
    classes = tuple(str(labels[key]) for key in sorted(labels, key=int))
    processor = read_config(path / "preprocessor_config.json")
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or processor.get("size") or config.get("image_size")
    side = size if isinstance(size, int) else None
    if isinstance(size, Mapping):
        side = size.get("height") or size.get("shortest_edge")
    shape = (int(config.get("num_channels", 3)), side, side)
    said = f"{name} of transformers, {described(len(classes), shape)}"
    return RecognisedClassifier(
        said,
        path=path,
        key="transformers",
        classes=classes,
        n_classes=len(classes) or None,
        shape=shape,
    )


def _onnx(path: Path) -> RecognisedClassifier | None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise UsageError(f"--model {path} is not a readable ONNX file: {error}") from None
    held = {tensor.name for tensor in graph.initializer}
    sizes = [
        tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)
        for value in (*(i for i in graph.input if i.name not in held), *graph.output[:1])
    ]
    takes, gives = sizes[0], sizes[-1]
    if len(takes) == 2:  # a model of rows
        return None
    if len(takes) != 4 or len(gives) != 2:
        raise UsageError(
            f"--model {path}: expected a classifier of pictures, (n, channels, height, width) to (n, classes); found"
            f" {takes} to {gives}"
        )
    last = takes[3] in (1, 3) and takes[1] not in (1, 3)
    shape = (takes[3], takes[1], takes[2]) if last else takes[1:]
    outputs = "probabilities" if _ends_in_softmax(graph) else "logits"
    apart = {
        entry.value
        for tensor in graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return RecognisedClassifier(
        f"an ONNX network whose scores look like {outputs}, {described(gives[1], shape)}",
        {"layout": "nhwc"} if last else {},
        path,
        beside=sorted(apart),
        key="onnx",
        n_classes=gives[1],
        shape=shape,
        outputs=outputs,
        black_box=True,
    )


def _ends_in_softmax(graph: Any) -> bool:
    """Whether the first output is that of a Softmax, followed only by operations that do not change values."""
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get(graph.output[0].name)
    while node is not None and node.op_type in _SAME:
        node = made_by.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def _weights(path: Path, ask: Ask) -> RecognisedClassifier:
    shapes = weight_shapes(path)
    _refuse_inner(path, shapes)
    fitting = candidates(path.stem, shapes)
    if not fitting:
        _refuse_transformers(path, shapes)
    none = "none of the most common ones fits, nor one in the file's name"
    fits = f"these fit: {', '.join(fitting)}" if fitting else none
    more = f"; {fits}" if len(fitting) != 1 else ""
    question = f"Which architecture are these weights of (timm, torchvision{more})"
    guess = next(iter(fitting), None)
    library, name = library_of(ask.text("architecture", question, guess, library_of))
    stem, head = ends_of(name)
    first, final = shapes.get(f"{stem}.weight", ()), shapes.get(f"{head}.weight", ())
    n = final[0] if final else None
    shape = (first[1] if len(first) == 4 else None, None, None)
    said = f"{name} of {library}, {described(n, shape)}"
    grey = {"channels": 1} if library == "timm" and shape[0] == 1 else {}
    return RecognisedClassifier(said, {library: name, **grey}, path, key="weights", n_classes=n, shape=shape)


def _refuse_inner(path: Path, shapes: Shapes) -> None:
    """Refuse weights of a network nested in another one, as training frameworks save them, judging by names."""
    first = {name.split(".")[0] for name in shapes}
    if len(first) != 1:
        return
    within = next(iter(first))
    inner = {name.removeprefix(f"{within}."): shape for name, shape in shapes.items()}
    if fitting := candidates(path.stem, inner):
        raise UsageError(
            f"--model {path}: the names of its tensors begin with {within!r}, and without that are those of"
            f" {fitting[0]}: save the network itself,"
            f" safetensors.torch.save_file(model.{within}.state_dict(), 'model.safetensors')"
        )


def _refuse_transformers(path: Path, shapes: Shapes) -> None:
    """Refuse weights of transformers, judging by names: only their config.json has the architecture."""
    with contextlib.suppress(ImportError):
        from transformers import CONFIG_MAPPING

        if kinds := sorted({name.split(".")[0] for name in shapes} & set(CONFIG_MAPPING.keys())):
            raise UsageError(
                f"--model {path}: its tensors are called as transformers calls those of {kinds[0]!r}: give the folder"
                " that save_pretrained() wrote, with its config.json"
            )


def weight_shapes(path: Path) -> Shapes:
    """Return the shapes of the tensors of a file by name; only the header of a .safetensors is read.

    Raises a UsageError if it contains anything but tensors.
    """
    if path.suffix != ".safetensors":
        try:
            return {name: tuple(value.shape) for name, value in read_weights(path, "--model").items()}
        except UsageError as error:
            if "weights_only" not in str(error):
                raise
            # PyTorch's own message tells how to run the code of the file.
            raise UsageError(
                f"--model {path} holds more than tensors, a whole pickled network perhaps, which could run code when"
                " read: save its weights alone, safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
            ) from None
    return tensor_shapes(path)


def described(classes: int | None, shape: Shape) -> str:
    """Describe the classes and the pictures: "1000 classes, 224x224, 3 channels"."""
    channels, height, width = shape
    parts = [f"{classes:,} classes"] if classes else []
    parts += [f"{width}x{height}"] if height and width else []
    parts += [f"{channels} channel{'s' * (channels > 1)}"] if channels else []
    return ", ".join(parts) or "of unknown size"


# Architectures of timm and torchvision


def library_of(name: str) -> tuple[str, str]:
    """Return the library of an architecture: ("timm" or "torchvision", its name there).

    Raises a UsageError if neither library has it; with similar names.
    """
    known = architectures()
    for library, names in known.items():
        if name in names:
            return library, name
    if not known:
        raise UsageError("no architectures are known here: pip install 'faded[image]'")
    everything = [each for names in known.values() for each in names]
    without = "" if "timm" in known else "; timm is not installed: pip install 'faded[image]'"
    raise UsageError(f"no architecture {name!r} in {' or '.join(known)}{did_you_mean(name, everything)}{without}")


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
    library, name = library_of(name)
    if library == "timm":
        import timm

        if (cfg := timm.get_pretrained_cfg(name)) is not None and cfg.classifier and cfg.first_conv:
            # Some networks have two heads, with the same number of classes.
            first, head = (names if isinstance(names, str) else names[0] for names in (cfg.first_conv, cfg.classifier))
            return first, head
    with contextlib.suppress(Exception), torch.device("meta"):
        layers = list(_build(library, name).named_modules())
        convolutions = [at for at, layer in layers if isinstance(layer, torch.nn.Conv2d)]
        linear = [at for at, layer in layers if isinstance(layer, torch.nn.Linear)]
        return next(iter(convolutions), None), next(reversed(linear or convolutions), None)
    return None, None


def _fits(name: str, shapes: Shapes, known: Mapping[str, Sequence[str]]) -> bool:
    return any(name in names and _alike(_shapes(library, name), shapes) for library, names in known.items())


def _alike(own: Shapes, shapes: Shapes) -> bool:
    """Whether all names are equal, and all shapes except those of the head and of the first layer's channels."""
    if not own or own.keys() != shapes.keys():
        return False
    differ = [name for name in own if own[name] != shapes[name]]
    pairs = [(own[name], shapes[name]) for name in differ]
    return (
        len(differ) <= 3
        and all(  # weight and bias of the head, and the first layer
            a[1:] == b[1:] or (len(a) == len(b) == 4 and (a[0], *a[2:]) == (b[0], *b[2:])) for a, b in pairs
        )
    )


@cache
def _shapes(library: str, name: str) -> Shapes:
    """Return names and shapes of an architecture's tensors; {} if it cannot be built on the "meta" device."""
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
