"""Batches of a classifier's repair compared at equal harm: `python -m benchmarks.repair_batches [STEPS]`, two tables.

Needs the stages prepare and collect_feedback of the audit mnist (`faded audit mnist`), whose modes are repaired. Every
batch and its control as used are trained for as many steps on four fifths of the repair items, then moved back towards
the model under test, and measured on the other fifth and the discover items, so that the test items stay unseen by the
choice. The second table has the fewest failures in the modes within a budget of new failures in use.
docs/classification.md quotes it. Takes a quarter of an hour.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.base import known_attributes
from stages.tasks.classification.config import RepairSettings
from stages.tasks.classification.models import Classifier, clone, seeded
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.classification.repair import FineTuning, samplers
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.load import load_alone

AUDIT, HELD_OUT, SEEDS = "mnist", 0.2, (7, 8, 9)
INSIDE, ELSEWHERE = 3000, 12_000
PORTION = 128  # pictures at once: with a thousand each takes three times as long
SHARES, BUDGETS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.005, 0.01)


class PassingToo(FineTuning):
    """Images as used are only those that the model under test gets right, and they learn its answers to them."""

    def _worst(self, changed: Tensor, rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits, before = self.model(changed), self.teacher(changed)
            losses = self._losses(logits, rows, True).reshape(-1, self.changed)
            kept = self._kept(logits, before).reshape(-1, self.changed)
        passes = (before.argmax(1) == self.task.targets(rows)).reshape(-1, self.changed)
        losses[:, self.aimed :] = torch.where(passes, kept, -1.0)[:, self.aimed :]
        return losses.argmax(0).cpu().numpy() * self.changed + np.arange(self.changed)

    def _loss(self, changed: Tensor, rows: np.ndarray, replayed: np.ndarray) -> Tensor:
        pixels = torch.cat([changed, self.task.clean(replayed)])
        logits = self.model(pixels)
        with torch.no_grad():
            before = self.teacher(pixels[self.aimed :])
        learnt = self._losses(logits[: self.aimed], rows[: self.aimed], True)
        return torch.cat([learnt, self._kept(logits[self.aimed :], before)]).mean()

    def _kept(self, logits: Tensor, before: Tensor) -> Tensor:
        soft = self.settings.temperature
        told, wanted = (functional.log_softmax(one / soft, 1) for one in (logits, before))
        return functional.kl_div(told, wanted, reduction="none", log_target=True).sum(1) * soft**2


BATCHES: dict[str, tuple[type[FineTuning], float, float]] = {  # share as used, and clean
    "30 / 0 / 70": (FineTuning, 0.0, 0.7),
    "30 / 20 / 50": (FineTuning, 0.2, 0.5),
    "30 / 30 / 40": (FineTuning, 0.3, 0.4),
    "40 / 20 / 40": (FineTuning, 0.2, 0.4),
    "20 / 20 / 60": (FineTuning, 0.2, 0.6),
    "30 / 30 passing / 40": (PassingToo, 0.3, 0.4),
    "30 / 60 passing / 10": (PassingToo, 0.6, 0.1),
}


@dataclass(frozen=True)
class Pictures:
    """The same pictures for all models: changed ones in the targets, then changed ones elsewhere, then clean ones.

    Args:
        items: (n,) ids of the items.
        parts: (n,) `targets`, `others` or `clean`.
        pixels: (n, c, h, w).
        labels: (n,) class indices.
        share: of use that lies in the targets.
        before: (n,) bool, whether the model under test fails.
    """

    items: np.ndarray
    parts: np.ndarray
    pixels: Tensor
    labels: Tensor
    share: float
    before: np.ndarray

    @classmethod
    def of(
        cls, task: ClassifierProbes, targets: list[TargetMode], items: np.ndarray, most: tuple[int, int], draws: int
    ) -> Pictures:
        """Draw pictures as they occur in use, at `most` so many in the targets and elsewhere of so many draws."""
        rng, attributes = np.random.default_rng(0), known_attributes(task, items.tolist())
        rows, cells = rng.integers(0, len(items), draws), task.concepts.sample(draws, rng)
        inside = np.any([t.region.contains(task.concepts, cells, attributes.iloc[rows]) for t in targets], axis=0)
        sides = [np.flatnonzero(side)[:n] for side, n in zip((inside, ~inside), most, strict=True)]
        rows, cells = (drawn[np.concatenate(sides)] for drawn in (rows, cells))
        changed = [
            task.inputs(items[rows[k : k + PORTION]].tolist(), cells[k : k + PORTION])
            for k in range(0, len(rows), PORTION)
        ]
        of = np.concatenate([items[rows], items])
        parts = np.repeat(["targets", "others", "clean"], [*map(len, sides), len(items)])
        pixels, labels = (
            torch.cat([*changed, task.clean(task.rows(items.tolist()))]),
            task.targets(task.rows(of.tolist())),
        )
        return cls(of, parts, pixels, labels, float(inside.mean()), failures(task.model, pixels, labels))

    def judge(self, failed: np.ndarray) -> np.ndarray:
        """Return failures in targets and elsewhere, new failures in use, and clean accuracy: of which (n,) fail."""
        inside, elsewhere, clean = (self.parts == part for part in ("targets", "others", "clean"))
        new = failed & ~self.before
        newly = self.share * new[inside].mean() + (1 - self.share) * new[elsewhere].mean()
        return np.array([failed[inside].mean(), failed[elsewhere].mean(), newly, 1 - failed[clean].mean()])


@torch.inference_mode()
def failures(model: Classifier, pixels: Tensor, labels: Tensor) -> np.ndarray:
    """Return whether a model fails on pictures (n, c, h, w) of classes (n,): (n,) bool."""
    return (torch.cat([model(part).argmax(1) for part in pixels.split(PORTION)]) != labels).numpy()


def under_test() -> tuple[ClassifierProbes, list[str]]:
    """Load the model under test, and the repair items that are held out: its task has the others."""
    task = load_alone(AUDIT, load_params().audit(AUDIT), audit_folder(AUDIT).prepare.path)
    assert isinstance(task, ClassifierProbes)
    task.items, held_out = task.items.divided(HELD_OUT)
    return task, held_out.ids("repair")


def trained(
    task: ClassifierProbes, plan: RepairPlan, steps: int, kind: type[FineTuning] = FineTuning, **settings: Any
) -> tuple[Classifier, float]:
    """Train a copy of the task's model, with these settings: the copy, and the CPU's seconds."""
    checked = RepairSettings(method="all-layers", epochs=1, **settings)
    model, items = clone(task.model), task.items.ids("repair")
    with seeded(plan.seed):
        run = kind(task, model, task.model, samplers(task, plan, items), checked, plan)
        run.steps = steps
        start = process_time()
        with redirect_stdout(sys.stderr):  # its progress does not belong into the table
            run.run()
    return model.eval(), process_time() - start


def moved(start: Classifier, end: Classifier, share: float) -> Classifier:
    """Return a copy that has gone this share of the way from one model's weights to another's."""
    model, first, last = clone(end), start.state_dict(), end.state_dict()
    model.load_state_dict({name: torch.lerp(first[name], last[name], share) for name in first})
    return model.eval()


def curve(
    task: ClassifierProbes, plan: RepairPlan, batch: str, steps: int, pictures: Pictures
) -> tuple[np.ndarray, float]:
    """Train with one batch, and judge the model at each share of the way: (shares, measures) and the CPU's seconds."""
    kind, as_used, replay = BATCHES[batch]
    model, seconds = trained(task, plan, steps, kind, as_used=as_used, replay=replay)
    ways = [moved(task.model, model, share) for share in SHARES]
    return np.array([pictures.judge(failures(way, pictures.pixels, pictures.labels)) for way in ways]), seconds


def within(curve: np.ndarray, budget: float) -> float:
    """Return the fewest failures in targets, at any share of the way, with at most this rate of new failures."""
    fine = np.linspace(0, 1, 1001)
    targets, newly = (np.interp(fine, SHARES, curve[:, k]) for k in (0, 2))
    return float(targets[newly <= budget].min())


def main(steps: int) -> None:
    """Train all and print both tables as Markdown."""
    task, held_out = under_test()
    plan = audit_folder(AUDIT).collect_feedback.plan
    targets = [TargetMode(mode.id, mode.cells, mode.severity) for mode in plan.targets]
    items = np.array(held_out + task.items.ids("discover"))
    pictures = Pictures.of(task, targets, items, (INSIDE, ELSEWHERE), 20 * INSIDE)
    before = pictures.judge(pictures.before)
    print(f"{pictures.share:.1%} of use in targets; before: {_told(before)}\n")
    heads = ["aimed / as used / clean (%)", "", "targets", "others", "newly failing", "clean", "CPU-s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    found: dict[tuple[str, bool], list[np.ndarray]] = {}
    for batch in BATCHES:
        for control in (False, True):
            plans = [
                RepairPlan(targets, {}, seed, control="as_used" if control else None, draft=True) for seed in SEEDS
            ]
            runs = [curve(task, one, batch, steps, pictures) for one in plans]
            curves = found[batch, control] = [one for one, _ in runs]
            seconds = np.mean([one for _, one in runs])
            for k, share in list(enumerate(SHARES))[:0:-1]:
                name = f"{batch} | {'control' if control else 'repair'} @{share:g}"
                told = _told(np.mean(curves, axis=0)[k])
                print(f"| {name} | {told} | {seconds:.1f} |", flush=True)
    heads = [f"{what} at {budget:.1%}" for budget in BUDGETS for what in ("repair", "control")]
    print(f"\n| aimed / as used / clean (%) | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
    for batch in BATCHES:
        cells = []
        for budget in BUDGETS:
            for control in (False, True):
                reached = [100 * within(one, budget) for one in found[batch, control]]
                cells.append(f"{np.mean(reached):.1f} ({min(reached):.1f} to {max(reached):.1f})")
        print(f"| {batch} | {' | '.join(cells)} |")


def _told(measures: np.ndarray) -> str:
    return " | ".join(f"{100 * value:.{digits}f}" for value, digits in zip(measures, (1, 2, 2, 1), strict=True))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 106)
