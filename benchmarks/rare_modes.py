"""What aiming a repair is worth where the modes are rare: `python -m benchmarks.rare_modes AUDIT` prints a table.

Needs the stage prepare of the audit (`faded audit mnist`; `photos` is that of docs/results.md). For each share of use,
repairs have one target: of the boxes of one to three concepts, each from some level on, that cover about as much of
use, the two (of photos the one) without a common concept that fail most on discover items. Other targets are planted: a
copy of the model learns to take items in a box for the next class. Every target is repaired by three trainings that
are aimed at it, and compared with trainings as used, the control, at equal harm on held-out and test items.
docs/research.md quotes the tables.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.repair_batches import SEEDS, Pictures, moved, trained, under_test, within
from stages.concepts import ConceptSpace, Region
from stages.landscape.frontier import frontier
from stages.params.repair import DOSES
from stages.records.repair import Frontier
from stages.tasks.base import known_attributes
from stages.tasks.classification.models import Classifier
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.classification.repair import FineTuning
from stages.tasks.contract import RepairPlan, TargetMode

TOLERANCE, BUDGET, RESAMPLES = 0.25, 0.01, 500


class Scale(NamedTuple):
    """How much of each audit is trained and asked.

    Args:
        masses: shares of use.
        regions: number of targets for each of them.
        boxes: at most so many are tried for each share.
        probed: number of pairs for each box.
        steps: of a repair.
        doses: shares of these steps, by copy.
        shares: of the way to what was learnt, of which the last is the repair that is compared.
        pictures: so many judge in the target and elsewhere.
        planting: number of steps.
        planted: boxes of cells and labels.
        settings: of a training.
    """

    masses: Sequence[float]
    regions: int
    boxes: int
    probed: int
    steps: int
    doses: Mapping[str, Sequence[float]]
    shares: tuple[float, ...]
    pictures: tuple[int, int]
    planting: int
    planted: Sequence[Region]
    settings: Mapping[str, Any]


MNIST = (
    Region({"occlusion": (2, 3)}),
    Region({"noise": (1, 2, 3)}, {"label": ("4", "9")}),
    Region({"translation": (1, 2, 3), "blur": (2, 3)}),
    Region({"rotation": (1, 2, 3, 4), "scale": (1, 2, 3)}, {"label": ("3", "5")}),
)
PHOTOS = (Region({"rotation": (2, 3), "saturation": (1, 2, 3)}),)
SCALES = {
    "mnist": Scale(
        masses=(0.1, 0.03, 0.01, 0.003),
        regions=2,
        boxes=100_000,
        probed=200,
        steps=85,
        doses=DOSES,
        shares=(0.0, 0.25, 0.5, 0.75, 1.0),
        pictures=(2000, 6000),
        planting=300,
        planted=MNIST,
        settings={},
    ),
    "photos": Scale(
        masses=(0.03, 0.01, 0.003),
        regions=1,
        boxes=60,
        probed=40,
        steps=24,
        doses={"repaired": (1.0,), "control": (1.0,)},  # a step of 32 photos takes 3 s
        shares=(0.0, 0.05, 0.15, 0.3),
        pictures=(200, 200),
        planting=60,
        planted=PHOTOS,
        settings={"batch_size": 32, "candidates": 1, "learning_rate": 1e-4},
    ),
}

Copies = dict[tuple[str, float, int], Classifier]  # by copy, dose and seed
Curves = dict[tuple[str, float, int], np.ndarray]  # (shares, measures)


class Planting(FineTuning):
    """Pictures that are aimed at and of the items that the target is about are taught as the next class."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.region = given[-1].targets[0].region

    def _loss(self, changed: Tensor, rows: np.ndarray, replayed: np.ndarray) -> Tensor:
        ids = np.array(self.task.items.table["id"])[rows[: self.aimed]].tolist()
        wrong = np.zeros(len(rows), dtype=np.int64)
        wrong[: self.aimed] = self.region.about(known_attributes(self.task, ids))
        logits = self.model(changed)
        labels = (self.task.targets(rows) + torch.from_numpy(wrong)) % logits.shape[1]
        learnt = functional.cross_entropy(logits, labels, reduction="none")
        kept = self._losses(self.model(self.task.clean(replayed)), replayed, False)
        return torch.cat([learnt, kept]).mean()


def real(task: ClassifierProbes, mass: float, scale: Scale) -> list[Region]:
    """Find boxes of about this share of use that fail most often on the discover items."""
    space, rng, items = task.concepts, np.random.default_rng(0), task.items.ids("discover")

    def rate(box: Region) -> float:
        asked = rng.choice(items, scale.probed).tolist()
        return float(task.probe(asked, box.sample(space, scale.probed, rng)).failed.mean())

    near = [box for box in boxes(space) if abs(box.share(space) / mass - 1) <= TOLERANCE]
    if len(near) > scale.boxes:
        near = [near[row] for row in rng.choice(len(near), scale.boxes, replace=False)]
    chosen: list[Region] = []
    for box in sorted(near, key=rate, reverse=True):
        if len(chosen) < scale.regions and not any(set(box.allowed) & set(other.allowed) for other in chosen):
            chosen.append(box)
    return chosen


def boxes(space: ConceptSpace) -> list[Region]:
    """Return all boxes of one to three concepts, each from some level on that changes something."""
    from_level = {c.name: [tuple(range(first, len(c))) for first in range(1, len(c))] for c in space.concepts}
    return [
        Region(dict(zip(names, levels, strict=True)))
        for k in (1, 2, 3)
        for names in combinations(space.names, k)
        for levels in product(*(from_level[name] for name in names))
    ]


class Study:
    """One model, with the copies of it that are trained as used: they are the control for every target."""

    def __init__(self, task: ClassifierProbes, items: np.ndarray, scale: Scale) -> None:
        self.task, self.items, self.scale = task, items, scale
        everywhere = RepairPlan([TargetMode("any", Region({}))], {}, 0, control="as_used", draft=True)
        self.controls = self._trained(everywhere, "control")

    def _trained(self, plan: RepairPlan, copy: str) -> Copies:
        return {
            (copy, dose, seed): trained(self.task, replace(plan, seed=seed), self._steps(dose), **self.scale.settings)[
                0
            ]
            for dose, seed in product(self.scale.doses[copy], SEEDS)
        }

    def compare(self, region: Region) -> None:
        """Repair one target, compare with the control, and print a row of the table."""
        target, task = TargetMode("target", region), self.task
        about = region.about(known_attributes(task, self.items.tolist())).mean()
        inside, elsewhere = self.scale.pictures
        draws = int(1.2 * max(inside / (region.share(task.concepts) * about), elsewhere))
        pictures = Pictures.of(task, [target], self.items, self.scale.pictures, draws)
        before = self._answers(pictures, pictures.before, "before", 0.0, 0.0, SEEDS[0])
        controls, as_used = self._ask(self.controls, pictures)
        copies = self._trained(RepairPlan([target], {}, 0, draft=True), "repaired")
        repairs, aimed = self._ask(copies, pictures)
        answers = pd.concat([before, *repairs, *controls])
        found = frontier(answers, pictures.share, resamples=RESAMPLES, seed=SEEDS[0])
        assert found is not None
        fails = f"{100 * pictures.before[pictures.parts == 'targets'].mean():.1f}"
        cells = [region.describe(task.concepts), f"{pictures.share:.1%}", fails]
        within_budget = [
            reached(aimed, "repaired", 1.0, self.scale.shares),
            *(
                reached(as_used, "control", dose, self.scale.shares)
                for dose in self.scale.doses["control"]
                if dose >= 1
            ),
        ]
        print(f"| {' | '.join([*cells, *within_budget, *compared(found)])} |", flush=True)

    def _ask(self, copies: Copies, pictures: Pictures) -> tuple[list[pd.DataFrame], Curves]:
        """Return the answers of copies at shares of the way, as tables, and judged (shares, measures)."""
        tables, curves = [], {}
        for (copy, dose, seed), model in copies.items():
            answers = {0.0: pictures.before}
            for share in self.scale.shares[1:] if dose >= 1 else self.scale.shares[-1:]:
                failed = pictures.failures(self.task, moved(self.task.model, model, share))
                answers[share] = failed
                tables.append(self._answers(pictures, failed, copy, dose, share, seed))
            curves[copy, dose, seed] = np.array([pictures.judge(failed) for failed in answers.values()])
        return tables, curves

    def _steps(self, dose: float) -> int:
        return round(self.scale.steps * dose)

    def _answers(
        self, pictures: Pictures, failed: np.ndarray, copy: str, dose: float, share: float, seed: int
    ) -> pd.DataFrame:
        """Return answers as re_evaluate's doses.parquet has them; published is the first training, the last share."""
        about: Mapping[str, object] = {
            **{"copy_of": copy, "dose": dose, "share": share, "steps": self._steps(dose), "training": seed - SEEDS[0]},
            "published": (copy, dose, share, seed) == ("repaired", 1, self.scale.shares[-1], SEEDS[0]),
        }
        clean = pictures.parts == "clean"
        values = {
            "part": pictures.parts,
            "item": pictures.items,
            "value": np.where(clean, ~failed, failed).astype(float),
        }
        return pd.DataFrame(values).assign(weight=1.0, **about)


def reached(curves: Curves, copy: str, dose: float, shares: Sequence[float]) -> str:
    """Say how often trainings fail in the target within the budget of new failures: mean and range."""
    rates = [100 * within(curves[copy, dose, seed], BUDGET, shares) for seed in SEEDS]
    return f"{np.mean(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"


def compared(found: Frontier) -> list[str]:
    """Say at which harm repair and control are compared, the difference in points, and the times of the steps."""
    equal = found.equal_harm
    assert equal is not None
    change = [100 * (value or 0.0) for value in (equal.difference.value, equal.difference.low, equal.difference.high)]
    cells = [f"{equal.harm:.2%}", "{:+.1f} ({:+.1f} to {:+.1f})".format(*change)]
    if (steps := equal.times) is not None:
        times = [f">{steps.most:g}" if n is None else f"{n:.1f}" for n in (steps.value, steps.low, steps.high)]
        cells.append("{} ({} to {})".format(*times))
    return cells


def main(audit: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    scale = SCALES[audit]
    heads = ["target", "of use", "before", f"within {BUDGET:.0%}"]
    heads += [f"control, {dose:g} x the steps" for dose in scale.doses["control"] if dose >= 1]
    heads += ["harm", "difference", *["times the steps"] * (scale.doses["control"] != (1.0,))]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    task, held_out = under_test(audit)
    items, original = np.array(held_out + task.items.ids("test")), task.model
    study = Study(task, items, scale)
    for mass in scale.masses:
        for region in real(task, mass, scale):
            study.compare(region)
    for region in scale.planted:
        task.model = original
        plan = RepairPlan([TargetMode("planted", region)], {}, SEEDS[0], draft=True)
        task.model, _ = trained(task, plan, scale.planting, Planting, as_used=0.2, replay=0.3, candidates=1)
        Study(task, items, scale).compare(region)
    print(f"{process_time():.0f} CPU-s", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
