"""Choose how far a repaired model goes from the model under test to what it learnt, within a budget of harm.

Both the repair and its control are judged by repair items that neither learnt from. The test items take no part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.core.errors import UsageError
from stages.core.ledger import Ledger
from stages.core.processes import Crew
from stages.explorers.prober import Prober
from stages.landscape.pairs import draw_pairs, use_of_pairs
from stages.params import AuditConfig
from stages.params.repair import HarmConfig
from stages.ratings import rated
from stages.records.repair import Harm, HarmAtShare
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.contract import Compute
from stages.tasks.load import load_learner, task_context

PARTS = 10  # shares of the way are tenths


class HeldOutAnswers(NamedTuple):
    """A model's answers to the held-out items.

    Args:
        failed: (pairs,) bool, on pairs of item and cell.
        weights: (pairs,), how much each pair counts.
        clean: (items,), clean quality.
    """

    failed: np.ndarray
    weights: np.ndarray
    clean: np.ndarray


class HeldOut(NamedTuple):
    """What judges the models of one audit by the held-out items.

    Args:
        name: the audit's name.
        audit: its configuration.
        prepared: data/<audit>/prepare.
        budget: the most that a model may break.
        scratch: folder of models and answers.
    """

    name: str
    audit: AuditConfig
    prepared: Path
    budget: HarmConfig
    scratch: Path

    def keep(self, models: Mapping[str, Path]) -> dict[str, Harm]:
        """Find how far each of the trained models, folders by name, goes within the budget."""
        crew = Crew(task_context(self.name, self.audit, self.prepared).compute.processes)
        before = self.ask(self.prepared / "model")
        found = crew.ask(partial(self._keep, before), [(folder,) for folder in models.values()])
        return dict(zip(models, found, strict=True))

    def _keep(self, before: HeldOutAnswers, trained: Path) -> Harm:
        learner = load_learner(self.name, self.audit, self.prepared, self.budget.held_out)

        def ask(share: float) -> HeldOutAnswers:
            folder = self.scratch / f"{trained.name}-{share:g}"
            shutil.rmtree(folder, ignore_errors=True)
            learner.move(trained, share, folder)
            return self.ask(folder)

        return choose_share(before, ask, self.budget)

    def ask(self, model: Path) -> HeldOutAnswers:
        """Query a model, a folder, with pairs of held-out items and cells as they occur in use, and unchanged items."""
        task = load_learner(self.name, self.audit, self.prepared, self.budget.held_out, model)
        judged = rated(task, self.name, self.audit)
        compute = task_context(self.name, self.audit, self.prepared).compute
        return ask_held_out(judged, self.budget, self.audit.seed, compute, self.scratch / f"{model.name}.jsonl")


def ask_held_out(task: LoadedTask, budget: HarmConfig, seed: int, compute: Compute, ledger: Path) -> HeldOutAnswers:
    """Query a model with pairs of the held-out items and cells, drawn as they occur in use, and unchanged.

    Raises:
        UsageError: if there are no held-out items.
    """
    item_ids, space = task.items.ids("held_out"), task.concepts
    if not item_ids:
        found = len(task.items.ids("repair"))
        raise UsageError(
            f"restructure.harm.held_out: {budget.held_out:g} of {found} repair items is none; expected some, from which"
            " the budget of harm is kept: add items (prepare.items.repair), or harm: null"
        )
    known = known_attributes(task, item_ids)
    items, cells = draw_pairs(space, known, [], budget.pairs, seed + 2)
    weights = use_of_pairs(space, [], known, cells, np.zeros(len(cells), dtype=bool), seed)
    kept = Ledger(ledger)
    prober = Prober(task, item_ids, len(items), kept, compute)
    prober.ask(items, cells)
    kept.close()
    failed = prober.table()["failed"].to_numpy(dtype=bool)
    return HeldOutAnswers(failed, weights, task.clean_quality("held_out").values.astype(float))


def choose_share(before: HeldOutAnswers, ask: Callable[[float], HeldOutAnswers], budget: HarmConfig) -> Harm:
    """Find the largest share of the way, in tenths, that breaks no more than the budget.

    Harm is assumed to grow with the share, so few shares are tried: the whole way, and otherwise by bisection. What is
    chosen was itself within the budget; 0 if nothing was. Harm is what was measured, not the end of its interval,
    which with some hundred items would forbid every repair; gates judge it on test items by its interval.

    Args:
        before: the answers of the model under test.
        ask: returns the answers of the model at a share of the way.
        budget: the most that it may break.
    """
    tried: dict[int, HarmAtShare] = {}

    def allowed(part: int) -> bool:
        tried[part] = harm_at(part / PARTS, before, ask(part / PARTS), budget)
        return tried[part].allowed

    if allowed(PARTS):
        return Harm(share=1.0, tried=list(tried.values()))
    low, high = 0, PARTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return Harm(share=low / PARTS, tried=list(tried.values()))


def harm_at(share: float, before: HeldOutAnswers, after: HeldOutAnswers, budget: HarmConfig) -> HarmAtShare:
    """Return what a model breaks, given its answers and those of the model under test to the same pairs and items."""
    passed = before.weights * ~before.failed
    newly = float((passed * after.failed).sum() / passed.sum()) if passed.any() else 0.0
    lost = float((before.clean - after.clean).mean())
    allowed = newly <= budget.newly_failing and lost <= budget.clean
    return HarmAtShare(share=share, newly_failing=newly, clean=lost, allowed=allowed)
