"""What all repairs share: a learning-rate schedule, checkpoints, part of the way to what was learnt, the model card."""

from __future__ import annotations

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.core.errors import UsageError
from stages.core.files import checksum, put_aside
from stages.core.progress import progress
from stages.tasks.contract import LOADER, RepairPlan

if TYPE_CHECKING:
    from typing_extensions import Buffer

CLIP = 1.0  # maximum norm of the gradient


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: linear warm-up over the first tenth of the steps, then a cosine to 0."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def save_checkpoint(
    path: Path | None, trained: Mapping[str, Tensor], optimizer: torch.optim.AdamW, done: int, losses: list[float]
) -> None:
    """Write a checkpoint, atomically. Without a path nothing is stored.

    Args:
        path: a safetensors file.
        trained: the trained parameters, by name.
        optimizer: their optimizer.
        done: progress of the run, in its own units.
        losses: losses of the steps so far.
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
    """Restore the state that `save_checkpoint` wrote; return its progress and the losses until then.

    A damaged checkpoint is moved aside, and training starts over.
    """
    if path is None or not path.exists():
        return 0, []
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
    except (OSError, SafetensorError):
        about, kept = {}, {}
    if about.get("checksum") != _checksum(path, about.get("state", ""), kept):
        put_aside(path)
        return 0, []
    state: Mapping[str, Any] = json.loads(about["state"])
    for name, parameter in trained.items():
        parameter.data.copy_(kept[f"model.{name}"])
        if f"step.{name}" not in kept:  # a parameter that takes no part in answers has no gradient, so no AdamW state
            continue
        # A fused step goes through the memory of all four tensors alike, so they need the parameter's own layout.
        optimizer.state[parameter] = {"step": kept[f"step.{name}"].to(device)} | {
            key: torch.empty_like(parameter).copy_(kept[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")
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


class StepwiseTraining(ABC):
    """Training whose steps depend only on their number and the state, so that a killed run can resume.

    Args:
        trained: the trained parameters, by name.
        steps: number of steps.
        peak: the highest learning rate.
        checkpoint: file for unfinished work; None stores none.
        device: device of the parameters.
    """

    save_every: ClassVar[int]  # maximum number of steps that a kill costs
    shown: ClassVar[int]  # number of last losses whose mean is on the progress bar

    def __init__(
        self, trained: Mapping[str, Tensor], steps: int, peak: float, checkpoint: Path | None, device: str
    ) -> None:
        self.trained, self.steps, self.peak, self.checkpoint, self.device = trained, steps, peak, checkpoint, device
        self.optimizer = torch.optim.AdamW(trained.values(), lr=peak, weight_decay=0.0, fused=True)
        self.losses: list[float] = []

    @abstractmethod
    def backward(self, step: int) -> float:
        """Accumulate the gradients of one step; return its loss."""

    def run(self, what: str) -> pd.DataFrame:
        """Train to the end.

        Args:
            what: label of the progress bar.

        Returns:
            One row per step: step and loss.
        """
        done, self.losses = resume(self.checkpoint, self.trained, self.optimizer, self.device)
        with progress(what, self.steps) as tell:
            for step in range(done, self.steps):
                for group in self.optimizer.param_groups:
                    group["lr"] = rate(step, self.steps, self.peak)
                self.optimizer.zero_grad()
                self.losses.append(self.backward(step))
                torch.nn.utils.clip_grad_norm_(self.trained.values(), CLIP)
                self.optimizer.step()
                tell(step + 1, f"loss {np.mean(self.losses[-self.shown :]):.3f}")
                if (step + 1) % self.save_every == 0 or step + 1 == self.steps:
                    save_checkpoint(self.checkpoint, self.trained, self.optimizer, step + 1, self.losses)
        return pd.DataFrame({"step": np.arange(1, len(self.losses) + 1), "loss": self.losses})


def interpolate(folder: Path, share: float, out_dir: Path, original: Mapping[str, Tensor]) -> None:
    """Write a model whose weights are all trained, moved part of the way from the original; see `Task.move`.

    Args:
        folder: the trained model.
        share: of the way. Whole numbers are the original's at 0, otherwise the trained ones.
        out_dir: receives the moved model.
        original: all tensors of the model under test, by their names in the trained model's files.

    Raises:
        UsageError: if the folder has no weights.
    """

    def between(name: str, trained: Tensor) -> Tensor:
        before = original[name].cpu()
        if share == 0.0:
            return before
        if not trained.is_floating_point():
            return trained
        exact = torch.promote_types(trained.dtype, torch.float32)
        return torch.lerp(before.to(exact), trained.to(exact), share).to(trained.dtype)

    _rewrite(folder, share, out_dir, between)


def scale_adapter(folder: Path, share: float, out_dir: Path) -> None:
    """Write a low-rank adapter moved part of the way; see `Task.move`.

    It adds B A to weights, where B is zero before training, so B is multiplied by the share.

    Args:
        folder: the trained adapter, with the names of peft.
        share: of the way.
        out_dir: receives the moved adapter.

    Raises:
        UsageError: if the folder has no weights.
    """
    _rewrite(folder, share, out_dir, lambda name, trained: trained * share if ".lora_B." in name else trained)


def _rewrite(folder: Path, share: float, out_dir: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Copy a model's folder with other weights; at 1 every byte is copied, below 1 no weights in its subfolders."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UsageError(f"{folder} has no weights to move: expected *.safetensors")
    if share == 1.0:
        shutil.copytree(folder, out_dir, dirs_exist_ok=True)
        return
    shutil.copytree(folder, out_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    for path in weights:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            moved = {name: change(name, file.get_tensor(name)).contiguous() for name in file.keys()}  # noqa: SIM118
        save_file(moved, out_dir / path.name, metadata=about)
        sort_header(out_dir / path.name)


def sort_header(path: Path) -> None:
    """Sort the metadata in the header of a safetensors file, which the library writes in any order.

    The same tensors then give the same bytes, and DVC sees that nothing changed. The format: the header's length as
    eight bytes, the header as JSON padded with spaces, the tensors.
    """
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".part")
    part.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    part.replace(path)


def write_card(out_dir: Path, module: str, plan: RepairPlan, **values: Any) -> None:
    """Write README.md, the model card of a repair.

    Args:
        out_dir: the folder of the repaired model.
        module: file of the task's repair, in the same folder as templates/model_card.md.
        plan: what was repaired, and who decided it.
        values: further values for the template.
    """
    decision = dict.fromkeys(("decided_by", "reviewer", "reason", "landscape")) | dict(plan.decision)
    card = _template(module, "model_card.md").render(
        control=plan.control, seed=plan.seed, decision=decision, targets=plan.targets, **values
    )
    (out_dir / "README.md").write_text(card, encoding="utf-8")


def write_loader(out_dir: Path, module: str, **values: Any) -> None:
    """Write load.py, which loads a model with its own library and without Faded; the model's card shows it.

    Args:
        out_dir: the folder of the repaired model.
        module: file of the task's repair, in the same folder as templates/load.py.j2.
        values: for the template, which writes those that people typed with the filter `repr`.
    """
    code = _template(module, "load.py.j2", trim_blocks=True, lstrip_blocks=True).render(**values)
    (out_dir / LOADER).write_text(code, encoding="utf-8")


def _template(module: str, name: str, **options: Any) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(module).parent / "templates")
    made = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, **options)
    made.filters["repr"] = repr
    return made.get_template(name)
