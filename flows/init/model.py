"""What a person's model is: recognised by its files, without running anything of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flows.init.architectures import Candidates, Shapes, candidates, ends_of, library_of, likely_candidates
from stages.errors import UsageError, did_you_mean
from stages.params import validation_lines

Kind = Literal["image-classification", "summarization", "text-to-image"]
KINDS: tuple[Kind, ...] = ("image-classification", "summarization", "text-to-image")
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
Shape = tuple[int | None, int | None, int | None]  # channels, height, width; None where unknown
_UNKNOWN: Shape = (None, None, None)
_HUB = re.compile(r"(hf-hub:)?[\w.-]+/[\w.-]+")
_SAME = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")  # of ONNX
_GENERATES = ("ForCausalLM", "ForConditionalGeneration", "ForSeq2SeqLM", "LMHeadModel")


def hub_key(kind: Kind, name: str) -> str:
    """Which library reads a model of the hub: the key of `prepare.model`."""
    if kind == "text-to-image":
        return "diffusers"
    return "timm" if kind == "image-classification" and name.startswith(("timm/", "hf-hub:")) else "transformers"


@dataclass(frozen=True)
class Model:
    """A model as it was recognised.

    Args:
        kind: what it does; None where its files do not tell.
        said: what it is, for people.
        block: `prepare.model` of params.yaml, but for its files.
        path: its file or folder, which the audit looks for under its inputs; None for one of a hub or behind a URL.
        beside: files that it names, relative to its folder, and that have to lie there with it.
        key: of `prepare.model`, which names that file or folder.
        classes: names of what a classifier tells apart, where its files say them.
        n_classes: how many these are; None where unknown.
        shape: channels, height, width of its pictures, each None where unknown.
        outputs: of an ONNX network what its scores look like, logits or probabilities: a guess.
        black_box: it shows no weights that a repair could change.
        absent: it is one of a hub, which has to be fetched before anything is known of it.
    """

    kind: Kind | None
    said: str
    block: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    beside: Sequence[str] = ()
    key: str = ""
    classes: Sequence[str] = ()
    n_classes: int | None = None
    shape: Shape = _UNKNOWN
    outputs: str = ""
    black_box: bool = False
    absent: bool = False

    def named(self, name: str | None) -> dict[str, Any]:
        """`prepare.model` of params.yaml, with its file or folder by the name it has under inputs."""
        file = {self.key: name} if name else {}
        return {**self.block, **file} if self.key == "weights" else {**file, **self.block}


Architecture = Callable[[Candidates, Callable[[str], None]], str]
"""Asks for the name of an architecture, given candidates and a check of what was answered."""


def look_at_model(given: str, architecture: Architecture) -> Model:
    """Recognise a model.

    Args:
        given: a file, a folder, ORG/NAME of a hub, or a URL.
        architecture: asks which one weights are of.

    Raises:
        UsageError: when there is nothing of that name, or it is no model Faded reads.
    """
    if re.match(r"https?://", given):
        return _behind(given)
    path = Path(given).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if path.suffix == ".onnx":
            return _onnx(path)
        if path.suffix in WEIGHTS:
            return _weights(path, architecture)
        raise UsageError(
            f"--model {given}: expected a file that ends in .onnx, {', '.join(WEIGHTS)}, a folder, ORG/NAME of the"
            f" Hugging Face hub, or a URL"
        )
    if _HUB.fullmatch(given) and not Path(given.split("/", maxsplit=1)[0]).exists():
        return _of_the_hub(given)
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UsageError(
        f"--model {given}: there is no such file or folder, and it is neither ORG/NAME on the Hugging Face hub nor a"
        f" URL{did_you_mean(path.name, there)}"
    )


def _behind(url: str) -> Model:
    """A model behind HTTP; a URL that holds a secret is refused before it is written anywhere."""
    from stages.tasks.endpoint import EndpointConfig

    try:
        config = EndpointConfig(endpoint=url)
    except ValidationError as error:
        raise UsageError(f"--model: {'; '.join(validation_lines(error, EndpointConfig))}") from None
    return Model(None, config.told, {"endpoint": url}, black_box=True)


def _of_the_hub(name: str) -> Model:
    """A model of the hub, of which more is known if it was fetched before."""
    folder = cached(name)
    if folder is None:
        return Model(None, f"{name} of the Hugging Face hub, not fetched yet", absent=True)
    seen = _folder(folder)
    return replace(seen, said=f"{name} of the Hugging Face hub, {seen.said}", path=None, key="", block={seen.key: name})


def cached(name: str, kind: Literal["model", "dataset"] = "model") -> Path | None:
    """Where the local cache has something of the hub; None where it has not."""
    from stages.tasks.hub import DATASET_FILES, MODEL_FILES, Repository

    wanted = MODEL_FILES if kind == "model" else DATASET_FILES
    try:
        return Repository(name.removeprefix("hf-hub:"), wanted=wanted, kind=kind).cached(Path(), "").folder
    except UsageError:
        return None


def _folder(path: Path) -> Model:
    index, config = _json(path / "model_index.json"), _json(path / "config.json")
    if index is not None:
        name = index.get("_class_name", "pipeline")
        unet = _json(path / "unet" / "config.json") or {}
        side = f", {unet['sample_size']} latent pixels" if isinstance(unet.get("sample_size"), int) else ""
        return Model("text-to-image", f"{name} of diffusers{side}", path=path, key="diffusers")
    if config is None:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise UsageError(
            f"--model {path}: expected a folder with config.json (of transformers or timm) or model_index.json (of"
            f" diffusers), found {found}"
        )
    if "architecture" in config and "num_classes" in config:
        return _timm_folder(path, config)
    names = [str(name) for name in config.get("architectures") or []]
    if any(name.endswith("ForImageClassification") for name in names):
        return _image_classifier(path, names[0], config)
    if config.get("is_encoder_decoder") or any(name.endswith(_GENERATES) for name in names):
        size = _parameters(path)
        return Model(
            "summarization", f"{names[0] if names else 'a model'} of transformers{size}", path=path, key="transformers"
        )
    raise UsageError(
        f"--model {path}: its config.json says {', '.join(names) or 'no architecture'}; expected an image classifier"
        " (...ForImageClassification) or a model that writes text (...ForCausalLM, ...ForConditionalGeneration)"
    )


def _timm_folder(path: Path, config: Mapping[str, Any]) -> Model:
    """A folder as timm saves it for a hub."""
    wanted = (config.get("pretrained_cfg") or {}).get("input_size")
    shape: Shape = (wanted[0], wanted[1], wanted[2]) if isinstance(wanted, list) and len(wanted) == 3 else _UNKNOWN
    n, names = int(config["num_classes"]), tuple(str(name) for name in config.get("label_names") or ())
    said = f"{config['architecture']} of timm, {described(n, shape)}"
    return Model("image-classification", said, path=path, key="timm", classes=names, n_classes=n, shape=shape)


def _image_classifier(path: Path, name: str, config: Mapping[str, Any]) -> Model:
    labels = config.get("id2label") or {}
    classes = tuple(str(labels[key]) for key in sorted(labels, key=int))
    processor = _json(path / "preprocessor_config.json") or {}
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or processor.get("size") or config.get("image_size")
    side = size if isinstance(size, int) else None
    if isinstance(size, Mapping):
        side = size.get("height") or size.get("shortest_edge")
    shape = (int(config.get("num_channels", 3)), side, side)
    said = f"{name} of transformers, {described(len(classes), shape)}"
    return Model(
        "image-classification",
        said,
        path=path,
        key="transformers",
        classes=classes,
        n_classes=len(classes) or None,
        shape=shape,
    )


def _onnx(path: Path) -> Model:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UsageError(f"--model {path}: reading it needs the package onnx: pip install 'faded[onnx]'") from None
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as error:
        raise UsageError(f"--model {path} is no ONNX file that can be read: {error}") from None
    held = {tensor.name for tensor in graph.initializer}
    sizes = [
        tuple(d.dim_value or None for d in value.type.tensor_type.shape.dim)
        for value in (*(i for i in graph.input if i.name not in held), *graph.output[:1])
    ]
    takes, gives = sizes[0], sizes[-1]
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
    return Model(
        "image-classification",
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
    """Whether the first output is one of Softmax, but for what changes no number."""
    made_by = {name: node for node in graph.node for name in node.output}
    node = made_by.get(graph.output[0].name)
    while node is not None and node.op_type in _SAME:
        node = made_by.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def _weights(path: Path, architecture: Architecture) -> Model:
    shapes = weight_shapes(path)
    _refuse_inner(path, shapes)
    found = candidates(path.stem, shapes)
    if not found.exact:
        _refuse_transformers(path, shapes)
    name = architecture(found, _known)
    library, _ = library_of(name)
    stem, head = ends_of(name)
    first, final = shapes.get(f"{stem}.weight", ()), shapes.get(f"{head}.weight", ())
    n = final[0] if final else None
    shape = (first[1] if len(first) == 4 else None, None, None)
    said = f"{name} of {library}, {described(n, shape)}"
    return Model("image-classification", said, {library: name}, path, key="weights", n_classes=n, shape=shape)


def _refuse_inner(path: Path, shapes: Shapes) -> None:
    """Refuse weights of a network inside another one, as training frameworks save them, by their names."""
    first = {name.split(".")[0] for name in shapes}
    if len(first) != 1:
        return
    within = next(iter(first))
    inner = {name.removeprefix(f"{within}."): shape for name, shape in shapes.items()}
    if (guess := likely_candidates(path.stem, inner).guess) is not None:
        raise UsageError(
            f"--model {path}: the names of its tensors begin with {within!r}, and without that are those of {guess}:"
            f" save the network itself, safetensors.torch.save_file(model.{within}.state_dict(), 'model.safetensors')"
        )


def _refuse_transformers(path: Path, shapes: Shapes) -> None:
    """Refuse weights of transformers, whose architecture only their config.json tells, by their names."""
    if kinds := sorted({name.split(".")[0] for name in shapes} & _kinds_of_transformers()):
        raise UsageError(
            f"--model {path}: its tensors are called as transformers calls those of {kinds[0]!r}: give the folder that"
            " save_pretrained() wrote, with its config.json"
        )


def _kinds_of_transformers() -> set[str]:
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return set()
    return set(CONFIG_MAPPING.keys())


def _known(name: str) -> None:
    library_of(name)


def weight_shapes(path: Path) -> Shapes:
    """Shapes of the tensors of a file, by name; of a .safetensors only its head is read.

    Raises:
        UsageError: when it cannot be read as tensors alone.
    """
    from safetensors import SafetensorError, safe_open

    from stages.tasks.classification.sources import read_weights

    if path.suffix != ".safetensors":
        try:
            return {name: tuple(value.shape) for name, value in read_weights(path, "--model").items()}
        except UsageError as error:
            if "weights_only" not in str(error):
                raise
            # What PyTorch says of it is how to run the code of the file.
            raise UsageError(
                f"--model {path} holds more than tensors, a whole pickled network perhaps, which could run code when"
                " read: save its weights alone, safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
            ) from None
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"--model {path} is not a readable safetensors file: {error}") from None


def described(classes: int | None, shape: Sequence[int | None]) -> str:
    """How many classes, and what pictures: "1000 classes, 224x224, 3 channels"."""
    parts = [f"{classes:,} classes"] if classes else []
    if len(shape) == 3 and shape[1] and shape[2]:
        parts.append(f"{shape[2]}x{shape[1]}")
    if shape and shape[0]:
        parts.append(f"{shape[0]} channel{'s' * (shape[0] > 1)}")
    return ", ".join(parts) or "of unknown size"


def _parameters(folder: Path) -> str:
    """How many parameters its safetensors hold, by their heads alone: the end of a sentence."""
    files = sorted(folder.glob("*.safetensors"))
    n = sum(prod(shape) for file in files for shape in weight_shapes(file).values())
    return f", {n / 1e6:,.1f} million parameters" if n else ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {path} is not valid JSON: {error}") from None
    return data if isinstance(data, dict) else None
