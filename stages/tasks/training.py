"""What all repairs by training share: a schedule, a checkpoint from which a killed run goes on, and the model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.files import checksum, put_aside
from stages.tasks.contract import RepairPlan

if TYPE_CHECKING:
    from typing_extensions import Buffer


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up over the first tenth of the steps, then a cosine to 0."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def save_checkpoint(
    path: Path | None, trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW, done: int, losses: list[float]
) -> None:
    """Write what a run needs to go on; it appears whole or not at all. Without a path nothing is kept.

    Args:
        path: a safetensors file.
        trained: the parameters that change, by name.
        optimizer: of these parameters.
        done: how far the run is, in its own units.
        losses: of the steps so far.
    """
    if path is None:
        return
    tensors = {f"model.{n}": p.detach() for n, p in trained.items()}
    for name, parameter in trained.items():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    state = json.dumps({"done": done, "losses": losses})
    save_file(kept, part, metadata={"state": state, "checksum": _checksum(path, state, kept)})
    part.replace(path)


def resume(
    path: Path | None, trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW, device: str
) -> tuple[int, list[float]]:
    """Go back to what `save_checkpoint` kept; return how far that was and the losses until then.

    A damaged checkpoint is put aside, and training starts anew.
    """
    if path is None or not path.exists():
        return 0, []
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError):
        about, kept = {}, {}
    if about.get("checksum") != _checksum(path, about.get("state", ""), kept):
        put_aside(path)
        return 0, []
    state: Mapping[str, Any] = json.loads(about["state"])
    for name, parameter in trained.items():
        parameter.data.copy_(kept[f"model.{name}"])
        optimizer.state[parameter] = {
            # AdamW counts its steps on the CPU.
            key: kept[f"{key}.{name}"].to("cpu" if key == "step" else device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return int(state["done"]), list(state["losses"])


def _checksum(path: Path, state: str, tensors: Mapping[str, Tensor]) -> str:
    parts: list[Buffer] = [state.encode()]
    for name, tensor in sorted(tensors.items()):
        parts += [
            f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(),
            tensor.reshape(-1).view(torch.uint8).numpy().data,
        ]
    return checksum(path, *parts)


def render_card(templates: Path, plan: RepairPlan, **values: Any) -> str:
    """The model card of a repair: the template model_card.md of a task, with what the plan says and `values`."""
    loader = jinja2.FileSystemLoader(templates)
    template = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    decision = dict.fromkeys(("decided_by", "reviewer", "reason", "landscape")) | dict(plan.decision)
    return template.get_template("model_card.md").render(
        control=plan.control, seed=plan.seed, decision=decision, targets=plan.targets, **values
    )
