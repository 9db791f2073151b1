"""What repairs of a classifier are worth within their budget of harm: `python -m benchmarks.repair_paths AUDIT TRIAL`.

Needs the stages prepare and collect_feedback of the audit. Models learn from four fifths of the repair items, go as far
as the default budget allows on other items, and are judged on yet others. TRIAL is one of

- `parts`: what of the network is trained. The budget is kept on held-out repair and discover items; test items judge.
- `depths`: one share of the way for all layers, or one for each depth, of which the one with the fewest failures on
  held-out repair items is taken. Discover items judge.
- `balanced`: the audit's repair beside the last layer alone, also on batches that are balanced over groups (Kirichenko
  et al. 2022), of the audit's modes and of weaknesses that a copy of the model was taught. As `depths`.

docs/results.md and docs/research.md quote the tables. Take 40, 2 and 6 minutes of CPU time.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks._shared import in_points, targets_of
from benchmarks.rare_modes import SCALES, Planting
from benchmarks.repair_batches import AIMED, Affine, Early, Pictures, estimate, moved, trained, under_test
from stages.concepts import Region
from stages.core.intervals import Resampler
from stages.landscape.harm import PARTS, HeldOutAnswers, choose_share, harm_at
from stages.params import load_params
from stages.params.repair import HarmConfig
from stages.tasks.base import known_attributes
from stages.tasks.classification.models import Classifier, clone
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.classification.repair import FineTuning
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.training import PairSampler

BUDGET, RESAMPLES, DRAWS = HarmConfig(), 4000, 50_000
SEARCHED, STEPS = 150, 24  # a photo costs 10 ms, a step of 32 photos 3 s


class StatisticsAlone(FineTuning):
    """Nothing is trained; batch normalisation gets the statistics of images from the targets, or as used."""

    def run(self) -> pd.DataFrame:
        rng = np.random.default_rng(self.seed)
        drawn = (self.pairs[0][0].draw(self.settings.batch_size, rng) for _ in range(20))
        estimate(self.model, (self.task.inputs(self.items[rows].tolist(), cells) for rows, cells in drawn))
        return pd.DataFrame()


class OfGroup(PairSampler):
    """Draws only items that the targets are about."""

    def _rows(self, number: int, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(np.resize(rng.permutation(self.rows[number]), n))


class Balanced(FineTuning):
    """Aimed images are of the groups that the modes name; with as many as used, batches are balanced."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        plan: RepairPlan = given[-1]
        if plan.control is None:
            (_, aimed), *others = self.pairs
            known = known_attributes(self.task, self.items.tolist())
            self.pairs = [(OfGroup(self.task.concepts, plan.targets, known), aimed), *others]


LAST = {"method": "last-layer", "learning_rate": 0.01}
LAST_LAYER: Mapping[str, tuple[type[FineTuning], dict[str, Any]]] = {
    "last layer, batches as by default": (FineTuning, LAST),
    "last layer, balanced": (Balanced, {**LAST, "as_used": 0.5, "replay": 0.0, "candidates": 1}),
}
PHOTOS = {"batch_size": 32, "candidates": 1}
TRIALS: Mapping[str, tuple[type[FineTuning], dict[str, Any]]] = {
    "statistics of batch normalisation": (StatisticsAlone, PHOTOS),
    "scales and shifts of batch normalisation": (Affine, {**PHOTOS, "learning_rate": 1e-3}),
    "all layers, self-distilled": (FineTuning, {**PHOTOS, "learning_rate": 1e-4, "method": "self-distilled"}),
    "first half of the layers": (Early, {**PHOTOS, "learning_rate": 3e-4}),
    "all layers": (FineTuning, {**PHOTOS, "learning_rate": 1e-4}),
}
TAUGHT: Mapping[str, Sequence[Region]] = {
    "mnist": (
        Region({"noise": (1, 2, 3)}, {"label": ("4", "9")}),
        Region({"rotation": (1, 2, 3, 4), "scale": (1, 2, 3)}, {"label": ("3", "5")}),
    ),
    "fashion": (
        Region({"noise": (1, 2, 3)}, {"label": ("coat", "bag")}),
        Region({"rotation": (1, 2, 3), "scale": (1, 2, 3)}, {"label": ("sandal", "dress")}),
    ),
}


class Went(NamedTuple):
    """A model that went as far as it may.

    Args:
        path: of the way, for people.
        failed: (n,) bool, on the pictures that judge.
    """

    path: str
    failed: np.ndarray


Train = Callable[[RepairPlan], Classifier]


class Bench:
    """The pictures on which models of a task are chosen, and those on which they are judged."""

    def __init__(
        self,
        task: ClassifierProbes,
        targets: list[TargetMode],
        items: tuple[Sequence[str], Sequence[str]],
        most: tuple[tuple[int, int], tuple[int, int]],
    ) -> None:
        self.task, self.targets = task, targets
        self.choice, self.judging = (
            Pictures.of(task, targets, np.array(of), n, DRAWS) for of, n in zip(items, most, strict=True)
        )
        self.before = answers(self.choice, self.choice.before)
        told = self.judging.judge(self.judging.before)
        print(f"{self.judging.share:.1%} of use in targets; before: {100 * told[0]:.1f}% fail there\n", flush=True)

    def within_budget(self, model: Classifier) -> Went:
        """Move a model as far as the budget allows."""

        def ask(share: float) -> HeldOutAnswers:
            return answers(self.choice, self.choice.failures(self.task, moved(self.task.model, model, share)))

        share = choose_share(self.before, ask, BUDGET, lambda: 0.0).share
        there = self.judging.failures(self.task, moved(self.task.model, model, share)) if share else self.judging.before
        return Went(f"{share:.0%}", there)

    def best(self, models: Iterator[tuple[str, Classifier]]) -> Went:
        """Choose the model with the fewest failures in the targets of those that the budget allows."""
        best, fewest = Went("0", self.judging.before), 1.0
        for path, model in models:
            failed = self.choice.failures(self.task, model)
            targets = self.choice.judge(failed)[0]
            if targets < fewest and harm_at(1.0, self.before, answers(self.choice, failed), BUDGET).allowed:
                best, fewest = Went(path, self.judging.failures(self.task, model)), targets
        return best

    def change(self, one: np.ndarray, other: np.ndarray, part: str = "targets") -> str:
        """Say the difference of two rates of failures (n,) in points, with its interval over items."""
        there = self.judging.parts == part
        items = self.judging.items[there]
        rate = Resampler(items, RESAMPLES, 0).mean((one - other)[there], np.ones(len(items)))
        return in_points(rate)

    def both(self, name: str, seeds: Sequence[int], train: Train, *beside: list[Went]) -> list[Went]:
        """Train repair and control with all seeds, and print both; return the repair."""
        found = {}
        for copy in ("control", "repair"):
            start = process_time()
            plans = [RepairPlan(self.targets, {}, seed, draft=True) for seed in seeds]
            plans = [replace(plan, control="as_used") for plan in plans] if copy == "control" else plans
            found[copy] = [self.within_budget(train(plan)) for plan in plans]
            others = (found["control"], *beside) if copy == "repair" else ()
            self.row(f"{name}, {copy}", found[copy], process_time() - start, *others)
        return found["repair"]

    def row(self, name: str, went: list[Went], seconds: float, *beside: list[Went]) -> None:
        """Print a row of a table: one training or path with all seeds, and its difference from others."""
        judged = 100 * np.mean([self.judging.judge(one.failed) for one in went], axis=0)
        rate, before = mean_of(went), self.judging.before
        cells = [name, ", ".join(one.path for one in went), f"{judged[0]:.1f}", self.change(rate, before)]
        cells += [f"{judged[2]:.2f}", f"{judged[3]:.1f}", f"{seconds:.0f}"]
        for other in map(mean_of, beside):
            broken = (self.change(rate * ~before, other * ~before, part) for part in ("targets", "others"))
            cells += [self.change(rate, other), *broken]
        print(f"| {' | '.join(cells)} |", flush=True)


def mean_of(went: list[Went]) -> np.ndarray:
    """Return how often models fail on each picture: (n,)."""
    return np.mean([one.failed for one in went], axis=0)


def answers(pictures: Pictures, failed: np.ndarray) -> HeldOutAnswers:
    """Return answers to pictures, of which (n,) fail, as the budget of harm judges them."""
    inside, elsewhere, clean = (pictures.parts == part for part in ("targets", "others", "clean"))
    weights = inside * pictures.share / inside.sum() + elsewhere * (1 - pictures.share) / elsewhere.sum()
    return HeldOutAnswers(failed[~clean], weights[~clean], (~failed[clean]).astype(float))


def along(start: Classifier, end: Classifier, share: Callable[[float], float]) -> Classifier:
    """Return a copy whose layers went each its share of the way, by their depth from 0 to 1."""
    model, first, last = clone(end), start.state_dict(), end.state_dict()
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in start.named_parameters()))
    depth = {layer: number / (len(layers) - 1) for number, layer in enumerate(layers)}
    for name, _ in start.named_parameters():
        last[name] = torch.lerp(first[name], last[name], share(depth[name.rpartition(".")[0]]))
    model.load_state_dict(last)
    return model


def halves(early: float, late: float, depth: float) -> float:
    """Return the share of a layer by the half it is in."""
    return early if depth < 0.5 else late


def linear(first: float, last: float, depth: float) -> float:
    """Return the share of a layer between those of the first and the last one (LiNeS: Wang et al. 2024)."""
    return first + (last - first) * depth


SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
PATHS: Mapping[str, tuple[Callable[[float, float, float], float], list[tuple[float, float]]]] = {
    "one number": (halves, [(k / PARTS, k / PARTS) for k in range(1, PARTS + 1)]),
    "one for each half": (halves, list(product(SHARES, repeat=2))),
    "linear in depth": (linear, list(product(SHARES, repeat=2))),
}


def parts(audit: str, *chosen: str) -> None:
    """Print what is reached by training parts of the network, all or those named, and with other seeds if given."""
    seeds = [int(one) for one in chosen if one.isdigit()] or [7, 8]
    names = [one for one in chosen if not one.isdigit()] or [*TRIALS]
    task, held_out = under_test(audit)
    items = held_out + task.items.ids("discover")[:SEARCHED], task.items.ids("test")
    bench = Bench(task, targets_of(audit), items, ((100, 200), (400, 400)))
    for name in names:
        kind, settings = TRIALS[name]
        bench.both(name, seeds, partial(after, task, STEPS, kind, settings))


def depths(audit: str) -> None:
    """Print what is reached with a share for each depth."""
    task, held_out = under_test(audit)
    bench = Bench(task, targets_of(audit), (held_out, task.items.ids("discover")), ((1000, 2000), (2000, 4000)))
    found: dict[str, list[Went]] = {name: [] for name in PATHS}
    start = process_time()
    for seed in (7, 8, 9):
        model = repaired(audit, task, RepairPlan(bench.targets, {}, seed, draft=True))
        for name, (path, shares) in PATHS.items():
            ways = ((f"{a:g}/{b:g}", along(task.model, model, partial(path, a, b))) for a, b in shares)
            found[name].append(bench.best(ways))
    for name, went in found.items():
        bench.row(name, went, process_time() - start, found["one number"])


def balanced(audit: str) -> None:
    """Print what is reached by balancing batches over groups."""
    task, held_out = under_test(audit)
    original = task.model
    for region in (None, *TAUGHT[audit]):
        task.model, targets = original, targets_of(audit)
        if region is not None:
            targets = [TargetMode("taught", region)]
            teaching = RepairPlan(targets, {}, 7, draft=True)
            task.model, _ = trained(
                task, teaching, SCALES["mnist"].planting, Planting, as_used=0.2, replay=0.3, candidates=1
            )
        print(f"\n{'its own modes' if region is None else region.describe(task.concepts)}")
        bench = Bench(task, targets, (held_out, task.items.ids("discover")), ((1000, 2000), (2000, 4000)))
        default = bench.both("as by default", (7, 8, 9), partial(repaired, audit, task))
        for name, (kind, settings) in LAST_LAYER.items():
            bench.both(name, (7, 8, 9), partial(repaired, audit, task, kind=kind, **settings), default)


def after(
    task: ClassifierProbes, steps: int, kind: type[FineTuning], settings: Mapping[str, Any], plan: RepairPlan
) -> Classifier:
    """Train for so many steps."""
    return trained(task, plan, steps, kind, **settings)[0]


def repaired(
    audit: str, task: ClassifierProbes, plan: RepairPlan, kind: type[FineTuning] = FineTuning, **changed: Any
) -> Classifier:
    """Train as the audit's repair does, or with changed settings."""
    settings: dict[str, Any] = {**load_params().repair(audit).restructure.settings, **changed}
    steps = settings.pop("epochs", 4) * -(-len(task.items.ids("repair")) // AIMED)
    return after(task, steps, kind, settings, plan)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"parts": parts, "depths": depths, "balanced": balanced}[sys.argv[2]](sys.argv[1], *sys.argv[3:])
