"""Choose how far a repaired model goes from the model under test to what it learnt, within a budget of harm.

Both the repair and its control are judged by repair items that neither learnt from, and by pairs that must pass. The
test items take no part.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.core.ledger import Ledger
from stages.core.processes import Crew
from stages.explorers.prober import Prober
from stages.landscape.pairs import draw_pairs, use_of_pairs
from stages.params import AuditConfig
from stages.params.repair import HarmConfig
from stages.ratings import rated
from stages.records.repair import Harm, HarmAtShare, MustPass, Training
from stages.tasks.base import LoadedTask, Task, known_attributes
from stages.tasks.contract import Compute, Pair
from stages.tasks.load import load_alone, task_context

PARTS = 20  # shares of the way are twentieths


class HeldOutAnswers(NamedTuple):
    """A model's answers to the held-out items.

    Args:
        failed: (pairs,) bool, on pairs of item and cell.
        weights: (pairs,), how much each pair counts.
        clean: (items,), clean quality.
        must_pass: (m,) bool, which of the pairs that must pass failed.
    """

    failed: np.ndarray
    weights: np.ndarray
    clean: np.ndarray
    must_pass: np.ndarray = np.zeros(0, dtype=bool)


_CARD = """
## How much it breaks

{said}. The numbers above are of the whole way.
"""


def keep_budget(held_out: "HeldOut", task: Task, trained: Mapping[str, Path], crew: Crew) -> dict[str, Harm]:
    """Move trained models as far back as the budget demands; the whole way stays among the other trainings.

    Args:
        trained: the folders of the repair and its control, by name.
        crew: processes that judge one model each.
    """
    harm = held_out.judge(trained, crew)
    for copy, folder in trained.items():
        said = how_far(copy, harm[copy])
        print(said)
        if harm[copy].share == 1:
            continue
        whole = folder.parent / Training.folder_of(copy, 1.0, 0)
        whole.parent.mkdir(exist_ok=True)
        folder.rename(whole)
        if harm[copy].share == 0:
            shutil.copytree(held_out.prepared / "model", folder)
            (folder / "README.md").write_text(f"# Unchanged copy\n\n{said}.\n", encoding="utf-8")
            continue
        task.move(whole, harm[copy].share, folder)
        if (card := folder / "README.md").exists():
            card.write_text(card.read_text(encoding="utf-8") + _CARD.format(said=said), encoding="utf-8")
    return harm


def how_far(copy: str, harm: Harm) -> str:
    """Say in a sentence how far a model went and what it breaks."""
    chosen = next((one for one in harm.tried if one.share == harm.share), harm.tried[-1])
    broke = f"{chosen.newly_failing:.1%} newly fail and clean quality loses {chosen.clean:.1%}"
    on = f"on {harm.items:,} held-out items"
    beyond = min((one for one in harm.tried if one.share > harm.share), key=lambda one: one.share, default=chosen)
    if beyond.must_pass and beyond.must_pass.failing:
        on = f"at {harm.at(beyond)}, {beyond.must_pass}; {on}"
    if harm.noise:
        broke += f" (the model under test, queried again: {harm.noise:.1%})"
    if harm.share == 0:
        least = f"{harm.at(chosen)}{'' if harm.pieces else ' of the way'}"
        return f"{copy}: stays the model under test, as {least} breaks too much: {on}, {broke}"
    return f"{copy}: {harm.goes(chosen)}: {on}, {broke}"


class HeldOut(NamedTuple):
    """What judges the models of one audit by the held-out items.

    Args:
        prepared: data/<audit>/prepare.
        budget: the most that a model may break.
        scratch: folder of models and answers.
        pairs: the pairs that must pass.
    """

    name: str
    audit: AuditConfig
    prepared: Path
    budget: HarmConfig
    scratch: Path
    pairs: Sequence[Pair] = ()

    def must_pass(self, models: Mapping[str, Path]) -> dict[str, MustPass]:
        """Count the pairs that must pass and that models, folders by name, fail; empty if there are none."""
        if not self.pairs:
            return {}
        before = self._must_pass(self._load(self.prepared / "model"), "model")
        found = {copy: self._must_pass(self._load(folder), copy) for copy, folder in models.items()}
        return {copy: must_pass(before, after) for copy, after in found.items()}

    def _must_pass(self, task: LoadedTask, name: str) -> np.ndarray:
        kept, items = Ledger(self.scratch / f"must-pass-{name}.jsonl"), list({pair.item: None for pair in self.pairs})
        prober = Prober(task, items, len(self.pairs), kept, task_context(self.name, self.audit, self.prepared).compute)
        cells = np.array([pair.cell for pair in self.pairs], dtype=np.int64)
        failed = prober.ask(np.array([items.index(pair.item) for pair in self.pairs]), cells).failed
        kept.close()
        return failed

    def judge(self, models: Mapping[str, Path], crew: Crew) -> dict[str, Harm]:
        """Find how far each of the trained models, folders by name, goes within the budget."""
        before = self.ask(self.prepared / "model")
        found = crew.ask(partial(self._judge, before), [(folder,) for folder in models.values()])
        return dict(zip(models, found, strict=True))

    def _judge(self, before: HeldOutAnswers, trained: Path) -> Harm:
        learner = load_alone(self.name, self.audit, self.prepared)

        def part(share: float) -> Path:
            return self.scratch / f"{trained.name}-{share:g}"

        def ask(share: float) -> HeldOutAnswers:
            shutil.rmtree(part(share), ignore_errors=True)
            learner.move(trained, share, part(share))
            return self.ask(part(share))

        found = choose_share(before, ask, self.budget, lambda: self._noise(before))
        if (pieces := learner.pieces_of(trained)) is None:
            return found
        tried = [one.having(pieces=len(learner.pieces_of(part(one.share)) or ())) for one in found.tried]
        return found.having(tried=tried, pieces=pieces)

    def ask(self, model: Path) -> HeldOutAnswers:
        """Query a model, a folder, with pairs of held-out items and cells as they occur in use, and unchanged items."""
        return self._ask(self._load(model), model.name)

    def _noise(self, before: HeldOutAnswers) -> float:
        again = self._load(self.prepared / "model").again()
        return 0.0 if again is None else newly_failing(before, self._ask(again, "noise"))

    def _load(self, model: Path) -> LoadedTask:
        task = load_alone(self.name, self.audit, self.prepared, model)
        task.items = task.items.divided(self.budget.held_out)[1]
        return rated(task, self.name, self.audit)

    def _ask(self, task: LoadedTask, name: str) -> HeldOutAnswers:
        compute = task_context(self.name, self.audit, self.prepared).compute
        found = ask_held_out(task, self.budget, self.audit.seed, compute, self.scratch / f"{name}.jsonl")
        return found._replace(must_pass=self._must_pass(task, name)) if self.pairs else found


def ask_held_out(task: LoadedTask, budget: HarmConfig, seed: int, compute: Compute, ledger: Path) -> HeldOutAnswers:
    """Query a model with pairs of the held-out items and cells, drawn as they occur in use, and unchanged items."""
    item_ids, space = task.items.ids("repair"), task.concepts
    known = known_attributes(task, item_ids)
    items, cells = draw_pairs(space, known, [], budget.pairs, seed + 2)
    weights = use_of_pairs(space, [], known, cells, np.zeros(len(cells), dtype=bool), seed)
    kept = Ledger(ledger)
    prober = Prober(task, item_ids, len(items), kept, compute)
    prober.ask(items, cells)
    kept.close()
    failed = prober.table()["failed"].to_numpy(dtype=bool)
    return HeldOutAnswers(failed, weights, task.clean_quality("repair").values.astype(float))


def choose_share(
    before: HeldOutAnswers, ask: Callable[[float], HeldOutAnswers], budget: HarmConfig, noise: Callable[[], float]
) -> Harm:
    """Find the largest share of the way, in twentieths, that breaks no more than the budget.

    Harm is assumed to grow with the share, so few shares are tried: the whole way, and otherwise by bisection. What is
    chosen was itself within the budget; 0 if nothing was. Harm is what was measured, not the end of its interval,
    which with some hundred items would forbid every repair; gates judge it on test items by its interval.

    Args:
        before: the answers of the model under test.
        ask: returns the answers of the model at a share of the way.
        budget: the most that it may break.
        noise: returns how much of what passed the model under test itself fails if queried again, which is allowed
            beside the budget: any other answer, however good, is as likely to fail. Only asked if the whole way breaks
            more than the budget.
    """
    whole = ask(1.0)
    tried = [harm_at(1.0, before, whole, budget)]
    floor = 0.0 if tried[0].allowed else noise()
    if floor:
        tried = [harm_at(1.0, before, whole, budget, floor)]
    low, high = (PARTS - 1, PARTS) if tried[0].allowed else (0, PARTS)
    while high - low > 1:
        middle = (low + high) // 2
        tried.append(harm_at(middle / PARTS, before, ask(middle / PARTS), budget, floor))
        low, high = (middle, high) if tried[-1].allowed else (low, middle)
    share = 1.0 if tried[0].allowed else low / PARTS
    return Harm(share=share, items=len(before.clean), tried=tried).having(noise=floor or None)


def harm_at(
    share: float, before: HeldOutAnswers, after: HeldOutAnswers, budget: HarmConfig, noise: float = 0.0
) -> HarmAtShare:
    """Return what a model breaks, given its answers and those of the model under test to the same pairs and items."""
    newly, lost = newly_failing(before, after), float((before.clean - after.clean).mean())
    kept = must_pass(before.must_pass, after.must_pass) if len(before.must_pass) else None
    allowed = newly <= budget.newly_failing + noise and lost <= budget.clean and not (kept and kept.failing)
    return HarmAtShare(share=share, newly_failing=newly, clean=lost, allowed=allowed).having(must_pass=kept)


def must_pass(before: np.ndarray, after: np.ndarray) -> MustPass:
    """Count pairs that must pass, given which of them fail before and after a repair, (m,) bool each."""
    return MustPass(pairs=int((~before).sum()), failing=int((~before & after).sum()), left_out=int(before.sum()))


def newly_failing(before: HeldOutAnswers, after: HeldOutAnswers) -> float:
    """Return the share of what passed before that fails after, by how common it is; 0 if nothing passed."""
    passed = before.weights * ~before.failed
    return float((passed * after.failed).sum() / passed.sum()) if passed.any() else 0.0
