"""Trainings of a classifier's repair at equal harm: `python -m benchmarks.repair_batches AUDIT`, a table.

Needs the stages prepare and collect_feedback of the audit (`faded audit mnist`), whose modes are repaired. Every
training and its control as used take as many steps on four fifths of the repair items, are moved back towards the model
under test, and measured on the other fifth and the discover items, so that the test items stay unseen by the choice.
The table has the failures in the modes within a budget of new failures in use. docs/research.md quotes it. Takes
about ten minutes of CPU time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from benchmarks._shared import targets_of
from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.base import known_attributes
from stages.tasks.classification.backends import Backend
from stages.tasks.classification.config import RepairSettings
from stages.tasks.classification.models import Classifier, clone, seeded
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.classification.repair import FineTuning, samplers
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.load import load_alone

HELD_OUT, SEEDS = 0.2, (7, 8, 9)
AIMED = 19  # images of a batch by default, of which one pass takes as many as there are items
INSIDE, ELSEWHERE = 2000, 8000
PORTION = 128  # pictures at once: with a thousand each takes three times as long
SHARES, BUDGETS = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0), (0.005, 0.01, 0.02)


class CleanAnswers(FineTuning):
    """Images as used learn what the model under test answers to them unchanged."""

    def _loss(self, changed: Tensor, rows: np.ndarray, replayed: np.ndarray) -> Tensor:
        both = np.concatenate([rows, replayed])
        logits = self.model(torch.cat([changed, self.task.clean(replayed)]))
        labelled = self._losses(logits[: self.aimed], both[: self.aimed], True)
        return torch.cat([labelled, self._losses(logits[self.aimed :], both[self.aimed :], False)]).mean()


class Smoothed(FineTuning):
    """Labels are smoothed by a tenth."""

    def _losses(self, logits: Tensor, rows: np.ndarray, labelled: bool) -> Tensor:
        if not labelled:
            return super()._losses(logits, rows, labelled)
        return functional.cross_entropy(logits, self.task.targets(rows), reduction="none", label_smoothing=0.1)


class Pulled(FineTuning):
    """Weights are pulled towards those of the model under test (L2-SP: Li, Grandvalet and Davoine 2018)."""

    def _loss(self, changed: Tensor, rows: np.ndarray, replayed: np.ndarray) -> Tensor:
        pairs = zip(self.model.parameters(), self.teacher.parameters(), strict=True)
        apart = torch.stack([(now - before).square().sum() for now, before in pairs]).sum()
        return super()._loss(changed, rows, replayed) + 0.1 * apart


class Averaged(FineTuning):
    """The mean of the weights in the second half of the steps (Izmailov et al. 2018)."""

    def _epoch(self, epoch: int) -> Iterator[float]:
        for loss in super()._epoch(epoch):
            if len(self.losses) == self.steps // 2:
                self.mean = AveragedModel(self.model)
            elif len(self.losses) > self.steps // 2:
                self.mean.update_parameters(self.model)
            yield loss
        if len(self.losses) == self.steps:
            self.model.load_state_dict(self.mean.module.state_dict())


class Early(FineTuning):
    """Only the first half of the parameters is trained."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        parameters = list(self.model.parameters())
        for one in parameters[len(parameters) // 2 :]:
            one.requires_grad_(False)


class Affine(FineTuning):
    """Only the scales and shifts of batch normalisation are trained."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.model.requires_grad_(False)
        for norm in norms(self.model):
            norm.requires_grad_(True)


class Statistics(FineTuning):
    """Afterwards batch normalisation gets the statistics of images as used (Schneider et al. 2020)."""

    def run(self) -> pd.DataFrame:
        curve, rng = super().run(), np.random.default_rng(self.seed)
        drawn = ((rng.choice(self.items, PORTION).tolist(), self.task.concepts.sample(PORTION, rng)) for _ in range(40))
        estimate(self.model, (self.task.inputs(*one) for one in drawn))
        return curve


def norms(model: Classifier) -> list[nn.BatchNorm2d]:
    """Return the layers of batch normalisation."""
    return [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]


def estimate(model: Classifier, pictures: Iterable[Tensor]) -> None:
    """Give batch normalisation the statistics of batches of pictures (n, c, h, w)."""
    for norm in norms(model):
        norm.reset_running_stats()
        norm.train().momentum = None
    for batch in pictures:
        with torch.no_grad():
            model(batch)


RATE = {"learning_rate": 3e-3}
TRAININGS: dict[str, tuple[float, type[FineTuning], dict[str, Any]]] = {  # passes, kind and settings
    "1 pass, rate 0.001": (1, FineTuning, {}),
    "1 pass, rate 0.003": (1, FineTuning, RATE),
    "4 passes, rate 0.001": (4, FineTuning, {}),
    "**4 passes, rate 0.003**": (4, FineTuning, RATE),
    "as used: answers to unchanged ones": (4, CleanAnswers, RATE),
    "12 passes": (12, FineTuning, RATE),
    "rate 0.01": (4, FineTuning, {"learning_rate": 0.01}),
    "self-distilled": (4, FineTuning, {**RATE, "method": "self-distilled"}),
    "own answers where right": (4, FineTuning, {**RATE, "own_answers": True}),
    "temperature 4": (4, FineTuning, {**RATE, "temperature": 4.0}),
    "labels smoothed": (4, Smoothed, RATE),
    "mean of the last weights": (4, Averaged, RATE),
    "pulled to the original": (4, Pulled, RATE),
    "first half of the layers": (4, Early, RATE),
    "batch norm's affine": (4, Affine, RATE),
    "batch norm's statistics": (4, Statistics, RATE),
    "1 candidate": (4, FineTuning, {**RATE, "candidates": 1}),
    "70% aimed, 30% clean": (4, FineTuning, {**RATE, "as_used": 0.0, "replay": 0.3}),
    "30% aimed, 70% clean": (4, FineTuning, {**RATE, "as_used": 0.0, "replay": 0.7}),
    "20% aimed, 10% as used": (4, FineTuning, {**RATE, "as_used": 0.1, "replay": 0.7}),
    "20% aimed, 60% as used": (4, FineTuning, {**RATE, "as_used": 0.6, "replay": 0.2}),
}
LEADING = 5  # so many are trained with all seeds, the others, which lose, with the first


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
        unjudged = cls(of, parts, pixels, labels, float(inside.mean()), np.zeros(len(of), dtype=bool))
        return replace(unjudged, before=unjudged.failures(task, task.model))

    @torch.inference_mode()
    def failures(self, task: ClassifierProbes, model: Classifier) -> np.ndarray:
        """Return whether a model fails, on the task's backend: (n,) bool."""
        backend = Backend(model.eval(), task.context.compute)
        parts = self.pixels.split(task.context.compute.batch_size)
        return (torch.cat([backend(part).argmax(1) for part in parts]) != self.labels).numpy()

    def judge(self, failed: np.ndarray) -> np.ndarray:
        """Return failures in targets and elsewhere, new failures in use, and clean accuracy: of which (n,) fail."""
        inside, elsewhere, clean = (self.parts == part for part in ("targets", "others", "clean"))
        new = failed & ~self.before
        newly = self.share * new[inside].mean() + (1 - self.share) * new[elsewhere].mean()
        return np.array([failed[inside].mean(), failed[elsewhere].mean(), newly, 1 - failed[clean].mean()])


def under_test(audit: str) -> tuple[ClassifierProbes, list[str]]:
    """Load the model under test, and the repair items that are held out: its task has the others."""
    task = load_alone(audit, load_params().audit(audit), audit_folder(audit).prepare.path)
    assert isinstance(task, ClassifierProbes)
    task.items, held_out = task.items.divided(HELD_OUT)
    return task, held_out.ids("repair")


def trained(
    task: ClassifierProbes, plan: RepairPlan, steps: int, kind: type[FineTuning] = FineTuning, **settings: Any
) -> tuple[Classifier, float]:
    """Train a copy of the task's model, with these settings: the copy, and the CPU's seconds."""
    checked = RepairSettings(**{"method": "all-layers", "epochs": 1, **settings})
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
    numbers = [name for name in first if first[name].is_floating_point()]  # batch norm counts its batches
    model.load_state_dict({**last, **{name: torch.lerp(first[name], last[name], share) for name in numbers}})
    return model.eval()


def curve(task: ClassifierProbes, plan: RepairPlan, training: str, pictures: Pictures) -> tuple[np.ndarray, float]:
    """Train, and judge the model at each share of the way: (shares, measures) and the CPU's seconds."""
    passes, kind, settings = TRAININGS[training]
    steps = round(passes * -(-len(task.items.ids("repair")) // AIMED))
    model, seconds = trained(task, plan, steps, kind, **settings)
    ways = [moved(task.model, model, share) for share in SHARES]
    return np.array([pictures.judge(pictures.failures(task, way)) for way in ways]), seconds


def within(curve: np.ndarray, budget: float, shares: Sequence[float] = SHARES) -> float:
    """Return the fewest failures in targets, at any share of the way, with at most this rate of new failures."""
    fine = np.linspace(0, 1, 1001)
    targets, newly = (np.interp(fine, shares, curve[:, k]) for k in (0, 2))
    return float(targets[newly <= budget].min())


def main(audit: str) -> None:
    """Train all and print the table as Markdown."""
    task, held_out = under_test(audit)
    targets = targets_of(audit)
    items = np.array(held_out + task.items.ids("discover"))
    pictures = Pictures.of(task, targets, items, (INSIDE, ELSEWHERE), 10 * INSIDE)
    print(f"{pictures.share:.1%} of use in targets; before: {_told(pictures.judge(pictures.before))}\n")
    heads = ["training", *(f"{what}, {budget:.1%}" for budget in BUDGETS for what in ("repair", "control", "ahead"))]
    heads += [f"whole {copy}: targets | others | newly failing | clean" for copy in ("repair", "control")] + ["CPU-s"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * (len(heads) + 6)}")
    for number, (name, (_, kind, _)) in enumerate(TRAININGS.items()):
        if kind in (Affine, Statistics) and not norms(task.model):
            continue
        seeds = SEEDS if number < LEADING else SEEDS[:1]
        runs = {
            control: [
                curve(task, RepairPlan(targets, {}, seed, control=control, draft=True), name, pictures)
                for seed in seeds
            ]
            for control in (None, "as_used")
        }
        cells = [name]
        for budget in BUDGETS:
            repair, control = (100 * np.array([within(one, budget) for one, _ in of]) for of in runs.values())
            cells += [_range(repair), _range(control), _range(control - repair)]
        cells += [_told(np.mean([one[-1] for one, _ in of], axis=0)) for of in runs.values()]
        seconds = np.mean([one for of in runs.values() for _, one in of])
        print(f"| {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def _range(values: np.ndarray) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def _told(measures: np.ndarray) -> str:
    return " | ".join(f"{100 * value:.{digits}f}" for value, digits in zip(measures, (1, 2, 2, 1), strict=True))


if __name__ == "__main__":
    main(sys.argv[1])
