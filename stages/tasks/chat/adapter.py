"""Repair of a chat model by training: a low-rank adapter (LoRA, Hu et al. 2022) learns the right answers.

A step teaches the shortest expected answers to questions of the split repair, in cells of the target modes. A control
learns as many in cells as they occur in use, or unchanged. Examples that people corrected, or rated `GOOD` or better,
are learnt as well. What passes is kept by teaching the model its own answers to questions as they occur in use
(`replay`), and to pairs that must pass. The loss is on the tokens of answers alone.

Left out are questions with a pattern in place of answers, as there is nothing to say, and those with tools: what is
right there follows from calls, and an answer without them would be made up.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.core.errors import UsageError
from stages.params import checked
from stages.tasks.chat.config import ChatRepair
from stages.tasks.chat.conversation import Given, Script
from stages.tasks.chat.playing import last_prompts
from stages.tasks.chat.probes import ChatProbes
from stages.tasks.chat.repair import GOOD, rated_answers
from stages.tasks.contract import Pair, RepairPlan, RepairRecord
from stages.tasks.hub import repository_of
from stages.tasks.language.form import save_form
from stages.tasks.language.generate import LanguageModel, greedy
from stages.tasks.language.training import LanguageTraining, Lesson, verify
from stages.tasks.training import sampler, write_card, write_loader

MUST_PASS = 4  # one in so many changed questions, rounded up, is of a pair that must pass
COMPARED = 3  # lessons on which to compare the written model with the one in memory


class Prompted(LanguageModel):
    """A chat model that reads whole prompts, with all that its chat template adds, in place of articles."""

    def inputs(self, article: str) -> list[int]:
        return self.encode(article)


def repair(task: ChatProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Train an adapter and write it with its card and a loader.

    Raises a UsageError when the settings are wrong, or there is nothing to learn, or nothing was learnt.
    """
    settings, under_test = checked(ChatRepair, plan.settings, "restructure.settings"), task.model
    assert isinstance(under_test, LanguageModel)  # `Chat.repair_conflicts` refuses others
    lessons, steps = AnswerLessons(task, plan, settings), plan.steps(settings.steps)
    form = under_test.form.model_copy(update={"base": under_test.hash})
    model, known = copy.deepcopy(under_test.model), (under_test.tokenizer, form, under_test.compute, under_test.hash)
    checkpoint = plan.scratch / "training.safetensors" if plan.scratch else None
    training = LanguageTraining(Prompted(model, *known), lessons, settings, steps, plan.seed, checkpoint)
    curve = training.run(f"{'control' if plan.control else 'repair'}, lora")
    out_dir.mkdir(parents=True, exist_ok=True)
    training.save(out_dir)
    save_form(form, out_dir)
    if plan.draft:
        return RepairRecord(settings.method, steps, {}, curve)
    # What is compared is read as an article, as a fresh process reads it: cut, and with the audit's system message.
    after, base = LanguageModel(training.whole(), *known), Path(under_test.model.name_or_path)
    verify(out_dir, base, under_test, after, lessons(0)[:COMPARED])
    some = max(1, len(curve) // 10)
    numbers = lessons.numbers | {
        "trained_parameters": sum(tensor.numel() for tensor in training.trained.values()),
        "loss_first": float(curve["loss"].head(some).mean()),
        "loss_last": float(curve["loss"].tail(some).mean()),
    }
    about = {
        "base": under_test.hash,
        "origin": form.origin,
        "settings": settings,
        "steps": steps,
        "space": task.concepts,
    }
    write_card(out_dir, __file__, plan, **about, good=GOOD, numbers=numbers)
    asked = {"name": repository_of(form.origin), "audit": task.context.audit, "form": form, "settings": greedy(form)}
    write_loader(out_dir, __file__, adapter=True, **asked)
    return RepairRecord(settings.method, steps, numbers, curve)


class AnswerLessons:
    """What the steps of a repair teach: a step depends only on the seed and its number.

    Raises a UsageError when there is nothing to learn, or as `sampler` does.
    """

    def __init__(self, task: ChatProbes, plan: RepairPlan, settings: ChatRepair) -> None:
        self.task = task
        items = task.items.ids("repair")
        learnt = [item for item in items if _says_what_is_right(task, item)]
        rated = [(one, answer) for one, answer in rated_answers(plan) if not _has_tools(task, one.item)]
        if (left_out := len(items) - len(learnt)) and plan.control is None:
            print(f"note: {left_out} of {len(items)} repair items have a pattern or tools, and are not learnt")
        if not learnt:
            raise UsageError(
                f"prepare.items.repair: lora needs questions with answers and without tools, found {len(items)} repair"
                " items and none such; use method prompt"
            )
        used = [Pair(items[row], cell) for row, cell in zip(*self._as_used(plan, items), strict=True)]
        self.replay, self.must_pass = (_passing(task, pairs) for pairs in (used, plan.must_pass))
        replayed = settings.replayed if self.replay else 0
        changed = settings.batch_size - replayed
        kept = min(len(self.must_pass), -(-changed // MUST_PASS), changed - 1)
        self.sizes = changed - kept, kept, replayed
        self.numbers = {
            "items": len(items),
            "learnt": len(learnt),
            "examples": len(rated),
            "replayed": len(self.replay),
            "must_pass_learnt": len(self.must_pass),
        }
        self._ids = [*learnt, *(one.item for one, _ in rated)]
        self._said = [None for _ in learnt] + [answer for _, answer in rated]
        n, rng = plan.steps(settings.steps) * self.sizes[0], np.random.default_rng([plan.seed, 5])
        self._rows, self._cells = sampler(task, plan, self._ids).draw(n, rng)
        if plan.control is None:  # a control must not know the modes of the examples
            for row, (one, _) in enumerate(rated, start=len(learnt)):
                self._cells[self._rows == row] = one.cell

    def _as_used(self, plan: RepairPlan, items: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Draw a cell for each item as it occurs in use, in the control as well."""
        as_used = sampler(self.task, replace(plan, control="as_used"), items)
        return as_used.draw(len(items), np.random.default_rng([plan.seed, 6]))

    def __call__(self, step: int) -> list[Lesson]:
        size, *of_kept = self.sizes
        drawn = range(step * size, (step + 1) * size)
        told = [self._changed(self._rows[k], self._cells[k], step) for k in drawn]
        for kept, n in zip((self.must_pass, self.replay), of_kept, strict=True):
            told += [kept[(step * n + k) % len(kept)] for k in range(n)]
        prompts = _prompts(self.task, [given for given, _ in told])
        return [Lesson(prompt, answer) for prompt, (_, answer) in zip(prompts, told, strict=True)]

    def _changed(self, row: int, cell: np.ndarray, repeat: int) -> tuple[Given, str]:
        """Return a changed question and its answer; unchanged, if the change leaves too little of it."""
        item, said, task = self._ids[row], self._said[row], self.task
        [place], [given] = task.rows([item]), task.changed([item], cell[None], np.array([repeat]))
        right = task.expected(item, cell)
        if not (said or right) or not task.is_valid(place, cell, repeat, given):
            [given], right = task.unchanged([place]), task.questions[place].answers
        return given, said or min(right, key=len)


def _passing(task: ChatProbes, pairs: Sequence[Pair]) -> list[tuple[Given, str]]:
    """Return what the model is given in the pairs that it passes without tools, and its own answers.

    Left out are answers that were cut, as it would learn to stop there.
    """
    if not pairs:
        return []
    assert isinstance(task.model, LanguageModel)
    items, cells = [pair.item for pair in pairs], np.array([pair.cell for pair in pairs], dtype=np.int64)
    found = task.probe(items, cells)
    assert found.valid is not None
    told = zip(items, cells, task.changed(items, cells), found.outputs, found.valid & ~found.failed, strict=True)
    kept = [
        (given, task.best_answer(item, cell, output))
        for item, cell, given, output, passes in told
        if passes and not _has_tools(task, item)
    ]
    return [(given, answer) for given, answer in kept if answer and not task.model.unfinished(answer)]


def _has_tools(task: ChatProbes, item: str) -> bool:
    talk = task.questions[task.rows([item])[0]].conversation
    return talk is not None and bool(talk.tools)


def _says_what_is_right(task: ChatProbes, item: str) -> bool:
    return bool(task.questions[task.rows([item])[0]].answers) and not _has_tools(task, item)


def _prompts(task: ChatProbes, given: Sequence[Given]) -> list[str]:
    """Return what the model under test reads before the answers."""
    assert isinstance(task.model, LanguageModel)
    if task.model.form.generation.chat:
        return last_prompts(task.model, [Script(*one) for one in given])
    return ["\n\n".join(filter(None, (one.system, one.said))) for one in given]
