"""A user's own pictures and small classifiers, as under data/<audit>/inputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stages.core.errors import UsageError
from stages.tasks.classification import ImageClassification
from stages.tasks.contract import Compute, TaskContext
from tests.images import CLASSES, draw

FOLDER = {"imagefolder": "photos"}
SMALL = {**FOLDER, "size": 32}


def striped(target: int, rng: np.random.Generator, *, width: int = 40, height: int = 32) -> Image.Image:
    """A photo of a bar: in colour, not square, larger than the model's input."""
    pixels = np.repeat(draw(target, rng)[:, :, None], 3, 2)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(root: Path, n: int, *, classes: list[str] = CLASSES, seed: int = 0) -> Path:
    """One folder per class, with n pictures each."""
    rng = np.random.default_rng(seed)
    for target, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            striped(target % 3, rng).save(root / name / f"{i:03d}.png")
    return root


def own_context(inputs: Path, model: dict[str, Any], data: dict[str, Any], **changes: Any) -> TaskContext:
    """The context of an audit of these; keyword arguments replace its parts."""
    parts: dict[str, Any] = {
        "audit": "own",
        "seed": 3,
        "config": {"model": model, "data": data, "items": {"discover": 12}},
        "concepts": {"rotation": [0, 15, 30], "darkening": [0, 0.4, 0.8]},
        "discrepancy": {},
        "inputs": inputs,
        "compute": Compute("cpu", threads=1, batch_size=8),
    }
    return TaskContext(**{**parts, **changes})


def timm_weights(path: Path, n: int = 3) -> Any:
    """Save random weights of timm's resnet10t as people save them; return the network."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("resnet10t", pretrained=False, num_classes=n).eval()
    if path.suffix == ".safetensors":
        save_file(net.state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
    return net


def timm_folder(folder: Path, *, labels: list[str], **config: Any) -> Any:
    """Write the folder that timm's save_for_hf writes for a network; return the network."""
    folder.mkdir(parents=True)
    net = timm_weights(folder / "model.safetensors")
    pretrained = {**net.pretrained_cfg, "num_classes": 3, **config}
    pretrained = {key: value for key, value in pretrained.items() if key not in ("url", "hf_hub_id", "file")}
    told = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": pretrained, "label_names": labels}
    (folder / "config.json").write_text(json.dumps(told))
    return net


def tiny_vit(folder: Path, classes: list[str] = CLASSES) -> Any:
    """A ViT of transformers with its preprocessor_config.json, as save_pretrained() writes them."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    told = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return model


def onnx_network(path: Path, *, side: int | None = 16, batch: int | None = None, probabilities: bool = False) -> Any:
    """Write a small network as an ONNX file; return it as a torch network."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.5, (4, 3, 5, 5)).astype(np.float32)
    weight, bias = rng.normal(0, 2, (4, 3)).astype(np.float32), rng.normal(0, 0.1, 3).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["maps"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["maps"], ["seen"]),
        helper.make_node("GlobalAveragePool", ["seen"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        *([helper.make_node("Softmax", ["logits"], ["scores"], axis=1)] if probabilities else []),
    ]
    out = "scores" if probabilities else "logits"
    dims = [batch or "n", 3, side or "h", side or "w"]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, [batch or "n", 3])],
        [numpy_helper.from_array(v, k) for k, v in (("kernel", kernel), ("weight", weight), ("bias", bias))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 5, padding=2, bias=False), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, 3),
    )  # fmt: skip
    state = {"0.weight": kernel, "4.weight": weight.T, "4.bias": bias}
    net.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return net.eval()


def prepared(inputs: Path, model: dict[str, Any], data: dict[str, Any] = SMALL, **changes: Any) -> ImageClassification:
    """The task after `prepare` and `load` of a model."""
    context = own_context(inputs, model, data, **changes)
    assert ImageClassification.check(context) == []
    out = inputs.parent / "prepare"
    ImageClassification.prepare(context, out)
    return ImageClassification.load(context, out)


def fails(inputs: Path, model: dict[str, Any], message: str, data: dict[str, Any] = SMALL) -> None:
    """Expect that `prepare` refuses a model with this message."""
    with pytest.raises(UsageError, match=message):
        ImageClassification.prepare(own_context(inputs, model, data), inputs.parent / "prepare")


def answers(task: ImageClassification, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean pixels of some items and the outputs of the task's model."""
    pixels = task.clean(np.arange(n))
    with torch.inference_mode():
        return pixels, task.model(pixels)


def check_answers(task: ImageClassification, net: torch.nn.Module, tolerance: float = 1e-4) -> None:
    """Check that the task's model answers as a network does that gets its pictures normalised."""
    pixels, logits = answers(task)
    with torch.inference_mode():
        theirs = net(normalised(pixels, task.model.form.mean, task.model.form.std))
    assert torch.allclose(getattr(theirs, "logits", theirs), logits, atol=tolerance)


def normalised(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


def check_search(task: ImageClassification) -> None:
    """Check that probing and embedding items works as for any other model."""
    items = task.items.ids("discover")
    cells = task.concepts.sample(len(items), np.random.default_rng(0))
    batch = task.probe(items, cells)
    assert np.isfinite(batch.discrepancy).all()
    alone = [task.probe([item], cell[None]).discrepancy[0] for item, cell in zip(items, cells, strict=True)]
    assert np.allclose(alone, batch.discrepancy, atol=1e-5)
    seen = task.embed(items)
    assert seen.shape[0] == len(items)
    assert seen.std(0).max() > 0.1
