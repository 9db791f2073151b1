"""What all repairs share: training pairs, rates, checkpoints, part of the way to what was learnt, card and check.

A sampler draws pairs (item, cell) from the target modes. In the end a fresh process reads the written repair as any
user would, and compares it with the model in memory. Otherwise `re_evaluate` would judge a wrongly written model as if
it were the repair. A task has a module whose `main` reads a folder, queries the model as `compare_in_fresh_process` was
told, and calls `compare`.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jinja2
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.concepts import ConceptSpace
from stages.core.errors import BugError, UsageError, run_as_command
from stages.core.files import checksum, put_aside
from stages.core.progress import progress
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.contract import LOADER, RepairPlan, TargetMode

if TYPE_CHECKING:
    from typing_extensions import Buffer


CANDIDATES = 8  # cells drawn for each one that is trained on


def sampler(task: LoadedTask, plan: RepairPlan, items: Sequence[str]) -> "PairSampler":
    """Return the sampler that a plan asks for: pairs of these items and cells.

    Raises a UsageError as `RepairPlan.regions` and `PairSampler` do.
    """
    return PairSampler(task.concepts, plan.regions(task.concepts), known_attributes(task, items))


class PairSampler:
    """Draws training pairs from the targets: rows of items, each with a cell of a target.

    If a target is about only some items, every other row is one of the remaining items, in the same cells: a model that
    sees only one class in these cells learns to always answer that class. Raises a UsageError if a target is about none
    of the items.

    Args:
        targets: where to draw, in proportion to severity.
        attributes: attributes of the items, one row each.
        risk: cells (n, d) -> (n,) failure risk by which cells are weighted; None weights all alike.
    """

    def __init__(
        self,
        space: ConceptSpace,
        targets: Sequence[TargetMode],
        attributes: pd.DataFrame,
        risk: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.space, self.targets, self.risk, self._items = space, targets, risk, np.arange(len(attributes))
        self.rows = [np.flatnonzero(target.region.about(attributes)) for target in targets]
        if none := [t for t, rows in zip(targets, self.rows, strict=True) if not len(rows)]:
            raise UsageError(
                f"{none[0].id} ({none[0].region.describe(space)}) is about none of the {len(attributes)} items that the"
                " repair learns from: add items (prepare.items.repair), or choose other modes"
            )
        severity = np.array([t.severity for t in targets], dtype=float)
        self.share = severity / severity.sum()

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw n pairs: rows of items (n,) and cells (n, d) int64."""
        counts = rng.multinomial(n, self.share)
        parts = [(self._rows(number, k, rng), self._cells(number, k, rng)) for number, k in enumerate(counts)]
        rows, cells = (np.concatenate(side) for side in zip(*parts, strict=True))
        order = rng.permutation(len(rows))
        return rows[order], cells[order]

    def _rows(self, number: int, n: int, rng: np.random.Generator) -> np.ndarray:
        rows = self.rows[number]
        others = np.setdiff1d(self._items, rows)
        half = n // 2 if len(others) else 0
        sides = (np.resize(rng.permutation(side), count) for side, count in ((rows, n - half), (others, half)))
        return rng.permutation(np.concatenate([*sides]))

    def _cells(self, number: int, n: int, rng: np.random.Generator) -> np.ndarray:
        region = self.targets[number].region
        if self.risk is None or n == 0:
            return region.sample(self.space, n, rng)
        candidates = region.sample(self.space, CANDIDATES * n, rng)
        weights = self.risk(candidates)
        return candidates[rng.choice(len(candidates), size=n, replace=False, p=weights / weights.sum())]


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
        peak: the highest learning rate.
        checkpoint: file for unfinished work; None stores none.
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

    Raises a UsageError if the folder has no weights.

    Args:
        share: of the way. Whole numbers are the original's at 0, otherwise the trained ones.
        original: all tensors of the model under test, by their names in the trained model's files.
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

    It adds B A to weights, where B is zero before training, so B is multiplied by the share. Raises a UsageError if the
    folder has no weights.

    Args:
        share: of the way.
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


# Another process may compute other last bits (threads, kernels), which is far less than what the repair changed.
TOLERANCE = 0.02


def compare_in_fresh_process(
    module: str, folder: Path, base: Path, known: Mapping[str, Tensor], question: Mapping[str, Any]
) -> None:
    """Run a task's module, which compares the answers of the repair in a folder with known ones.

    Raises a BugError if the module fails.

    Args:
        module: run as `python -m module FOLDER BASE TENSORS ASKED`, see `command_line`.
        base: the model folder it was made for.
        known: answers of the models in memory before and after the repair.
        question: the query, as plain data.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tensors, asked = Path(scratch) / "known.safetensors", Path(scratch) / "asked.json"
        save_file(dict(known), tensors)
        asked.write_text(json.dumps(question, ensure_ascii=False), encoding="utf-8")
        safe = ["-P"] if sys.flags.safe_path else []  # as this stage was started
        command = [sys.executable, *safe, "-m", module, folder, base, tensors, asked]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.rpartition("error: ")[2].strip()  # libraries print warnings before it
        raise BugError(f"the repaired model could not be read back from {folder}: {told}")


def compare_answers(what: str, found: Tensor, known: Mapping[str, Tensor]) -> None:
    """Compare answers read back with those `before` and `after` the repair.

    Raises a BugError if they differ from `after` by more than a small part of what the repair changed.
    """
    before, after = known["before"].float(), known["after"].float()
    changed, off = float((after - before).norm()), float((found.float() - after).norm())
    if not off <= TOLERANCE * changed:
        raise BugError(
            f"its {what} differ by {off:.3g} from those in memory, where the repair changed them by {changed:.3g}"
        )


def command_line(doc: str | None, main: Callable[[Path, Path, Path, Path], None]) -> None:
    """Run a module's `main` with the four paths of its command."""
    parser = argparse.ArgumentParser(description=doc)
    for name in ("folder", "base", "tensors", "asked"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    run_as_command(lambda: main(arguments.folder, arguments.base, arguments.tensors, arguments.asked))
