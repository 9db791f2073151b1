"""Repair of a chat model by what is added to its prompts: greedy forward selection, without training.

A piece is an instruction, a question with its right answer, a change that is undone in the question, or a way to ask:
passages in another order, a second look at the answer, the best of several answers. In each round the configuration so
far, and it with each further piece, answer the same pairs of item and cell; the piece that mends most stays, until none
helps or all candidates are used. A control draws its pairs, and its examples, as they occur in use or unchanged: it
tries as much and learns as much about the questions, only not about the failures.

A piece does not stay if a pair that must pass newly fails with it; then the next best one is tried on these pairs.

The items of examples are in no pair, as an example tells the answer.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from stages.core.files import append_sealed, content_hash, read_sealed
from stages.core.progress import progress
from stages.params import checked
from stages.tasks.chat.config import CONTEXT, ChatRepair
from stages.tasks.chat.configuration import (
    AnsweredExample,
    BestOf,
    Configuration,
    Normalisation,
    PassageOrder,
    Piece,
    SecondLook,
    instructions,
    question_in,
    save_configuration,
)
from stages.tasks.chat.conversation import in_example
from stages.tasks.chat.playing import BEST_OF, answer_in, draws_in
from stages.tasks.chat.probes import ChatProbes
from stages.tasks.contract import RatedExample, RepairPlan, RepairRecord
from stages.tasks.language.chats import OpenAIChat
from stages.tasks.training import PairSampler, sampler, write_card, write_loader

GOOD = 8  # rating from which an answer is shown as it was given
COLUMNS = ("step", "loss", "round", "piece", "kept")
AS_EXAMPLES = 0.25  # of the repair items at most
MUST_PASS = -1  # in place of the number of a round: its pairs are those that must pass
DRAWN = 8  # pairs drawn for each example, of which some cannot be used


class Gained(NamedTuple):
    """A piece that was chosen, and the shares of its round's pairs that failed without it and with it."""

    piece: Piece
    before: float
    after: float


class Selection(NamedTuple):
    """What was chosen and what it cost.

    Args:
        configuration: the base's configuration with the chosen pieces.
        gained: the chosen pieces, in order.
        curve: one row for each configuration tried.
        requests: number of distinct inputs that were asked.
    """

    configuration: Configuration
    gained: Sequence[Gained]
    curve: pd.DataFrame
    requests: int


def repair(task: ChatProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Choose a configuration and write it with its card and a proxy that applies it.

    Raises a UsageError when there are no repair items.
    """
    settings = checked(ChatRepair, plan.settings, "restructure.settings")
    trial = PromptTrial.of(task, plan, settings)
    limit = plan.steps(settings.candidates)
    found = select(trial, limit, f"{'control' if plan.control else 'repair'}, prompt")
    out_dir.mkdir(parents=True, exist_ok=True)
    save_configuration(found.configuration, out_dir)
    if plan.draft:
        return RepairRecord(settings.method, limit, {}, found.curve)
    if not found.gained:
        print(f"{'control' if plan.control else 'repair'}: nothing helps, so it is the model under test")
    numbers = {
        "items": len(trial.items),
        "tried": len(found.curve),
        "requests": found.requests,
        "pieces": len(found.gained),
        "characters": len(found.configuration.text),
    }
    source = task.source(task.context, "model")
    write_card(
        out_dir,
        __file__,
        plan,
        base=task.model.hash,
        origin=source.origin(task.context.inputs),
        settings=settings,
        steps=limit,
        numbers=numbers,
        gained=found.gained,
        space=task.concepts,
    )
    write_loader(
        out_dir,
        __file__,
        url=source.base if isinstance(source, OpenAIChat) else "",
        needs=any(isinstance(piece, Normalisation | PassageOrder | BestOf) for piece in found.configuration.pieces),
        temperature=BEST_OF,
    )
    return RepairRecord(settings.method, limit, numbers, found.curve)


@dataclass(frozen=True)
class PromptTrial:
    """Tries configurations on pairs of item and cell.

    Args:
        plan: its seed, and the scratch folder in which results are kept.
        items: ids of the items to answer.
        size: pairs of a round.
        pool: the pieces to choose from, in the order in which they are tried.
        known: which pairs failed, by configuration and round, from an earlier run that was killed.
        asked: what the model was given.
    """

    task: ChatProbes
    plan: RepairPlan
    items: Sequence[str]
    size: int
    draws: PairSampler
    pool: Sequence[Piece]
    known: dict[str, list[bool]]
    asked: set[Any]

    @classmethod
    def of(cls, task: ChatProbes, plan: RepairPlan, settings: ChatRepair) -> Self:
        """Collect the pieces, and the items left to answer. Raises a UsageError as `repair` does."""
        items = task.items.ids("repair")
        most = min(settings.examples, int(AS_EXAMPLES * len(items)))
        talks = any(one.conversation for one in task.questions)
        tools = any(one.conversation and one.conversation.tools for one in task.questions)  # calls fit into no example
        free = [item for item in items if item not in {pair.item for pair in plan.must_pass}]
        shown = [] if tools else [*_rated(task, plan), *_answered(task, plan, free, most)]
        left = [item for item in items if item not in {example.example for example in shown}]
        own = instructions(CONTEXT in task.configuration.prompt, settings.instructions)
        undone = settings.normalise if not talks and _finds_questions(task, items) else ()
        pool: dict[Piece, None] = dict.fromkeys([*own, *shown, *(Normalisation(normalise=name) for name in undone)])
        ways: dict[Piece, bool] = {
            PassageOrder(order="similar_first"): settings.order and not talks,
            SecondLook(): settings.second_look,
            BestOf(best_of=settings.best_of or 2): settings.best_of is not None,
        }
        pool |= {piece: None for piece, tried in ways.items() if tried}
        fits = [piece for piece in pool if not _with(task, task.configuration.plus(piece)).too_long()]
        for piece in pool:
            if piece not in fits:
                print(f"note: the model has no room for this piece, which is not tried ({piece})")
        order = np.random.default_rng([plan.seed, 13]).permutation(len(fits))
        draws, ordered = sampler(task, plan, left), [fits[k] for k in order]
        known: dict[str, list[bool]] = dict(map(json.loads, read_sealed(_kept(plan))))
        return cls(task, plan, left, settings.pairs, draws, ordered, known, set())

    def pairs(self, number: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Draw the pairs of a round: items, cells (n, concepts) and repeats (n,)."""
        if number == MUST_PASS:
            items, told = zip(*self.plan.must_pass, strict=True)
            return list(items), np.array(told, dtype=np.int64), np.zeros(len(items), dtype=np.int64)
        rng = np.random.default_rng([self.plan.seed, 12, number])
        rows, cells = self.draws.draw(self.size, rng)
        return [self.items[row] for row in rows.tolist()], cells, np.full(len(cells), number)

    def failing(self, configuration: Configuration, number: int) -> np.ndarray:
        """Return which pairs of a round fail with a configuration, (pairs,) bool."""
        with_it, pairs = _with(self.task, configuration), self.pairs(number)
        self.asked.update(with_it.changed(*pairs))
        key = content_hash([], configuration.model_dump(mode="json"), number)
        if key not in self.known:
            self.known[key] = with_it.probe(*pairs).failed.tolist()
            append_sealed(_kept(self.plan), json.dumps([key, self.known[key]]).encode())
        return np.array(self.known[key])

    def keeps(self, configuration: Configuration) -> bool:
        """Whether all pairs that must pass, and do without any piece, pass with a configuration."""
        if not self.plan.must_pass:
            return True
        before = self.failing(self.task.configuration, MUST_PASS)
        return not (self.failing(configuration, MUST_PASS) & ~before).any()


def select(trial: PromptTrial, limit: int, what: str) -> Selection:
    """Choose pieces one by one, and try at most `limit` configurations.

    A piece has to mend more than it breaks by more than one standard error of the difference (that of the numbers of
    pairs that changed), as the best of many is ahead by chance. If two mend as much, the shorter one is taken.
    """
    task, rows, gained, left = trial.task, list[dict[str, Any]](), list[Gained](), list(trial.pool)
    chosen = task.configuration
    with progress(what, limit) as tell:

        def ask(number: int, configuration: Configuration, piece: Piece | None = None) -> np.ndarray:
            failed = trial.failing(configuration, number)
            told = {"step": len(rows) + 1, "loss": failed.mean(), "round": number, "piece": str(piece or "")}
            rows.append({**told, "kept": False})
            tell(len(rows), f"{failed.mean():.0%} fail")
            return failed

        for number in count():
            if not left or len(rows) + 1 >= limit:
                break
            before, better = ask(number, chosen), list[tuple[tuple[int, int, int], Piece]]()
            for piece in left[: limit - len(rows)]:
                after = ask(number, chosen.plus(piece), piece)
                mended, broken = int((before & ~after).sum()), int((after & ~before).sum())
                if mended > broken and (mended - broken) ** 2 > mended + broken:
                    better.append(((mended - broken, -len(piece.text), -len(rows)), piece))
            best_first = sorted(better, key=lambda one: one[0], reverse=True)
            kept = next((one for one in best_first if trial.keeps(chosen.plus(one[1]))), None)
            if kept is None:
                break
            (_, _, step), piece = kept
            rows[-step - 1]["kept"] = True
            gained.append(Gained(piece, float(before.mean()), rows[-step - 1]["loss"]))
            chosen = chosen.plus(piece)
            left = [one for one in left if one != piece and not _with(task, chosen.plus(one)).too_long()]
        tell(limit, f"{len(gained)} piece(s) chosen")
    return Selection(chosen, gained, pd.DataFrame(rows, columns=COLUMNS), len(trial.asked))


def _with(task: ChatProbes, configuration: Configuration) -> ChatProbes:
    """Return the task with another configuration and the same answers: each input is asked once."""
    other = copy.copy(task)
    other.configuration = configuration
    return other


def _rated(task: ChatProbes, plan: RepairPlan) -> list[AnsweredExample]:
    """Return examples that people judged, with the corrected or the praised answer; those of a control in its cells."""
    told = rated_answers(plan)
    cells = np.array([one.cell for one, _ in told], dtype=np.int64)
    if told and plan.control is not None:  # which must not know the modes
        ids = [one.item for one, _ in told]
        _, cells = sampler(task, plan, ids).draw(len(ids), np.random.default_rng([plan.seed, 10]))
    turns = task.changed([one.item for one, _ in told], cells)
    shown = zip(told, turns, strict=True)
    return [AnsweredExample(example=one.item, said=in_example(turn), answer=answer) for (one, answer), turn in shown]


def rated_answers(plan: RepairPlan) -> list[tuple[RatedExample, str]]:
    """Return the examples that people judged and whose answer is known, with it: the corrected or the praised one."""
    told = [
        (one, one.corrected or (answer_in(draws_in(one.output)[0]) if (one.rating or 0) >= GOOD else ""))
        for one in plan.examples
    ]
    return [(one, answer) for one, answer in told if answer]


def _answered(task: ChatProbes, plan: RepairPlan, items: Sequence[str], most: int) -> list[AnsweredExample]:
    """Return up to `most` repair items with their expected answers, each in a cell of the plan."""
    rows, cells = sampler(task, plan, items).draw(DRAWN * most, np.random.default_rng([plan.seed, 11]))
    found = dict[str, AnsweredExample]()
    for item, cell in zip([items[row] for row in rows.tolist()], cells, strict=True):
        [place], [given] = task.rows([item]), task.changed([item], cell[None])
        answers = task.expected(item, cell)
        if len(found) < most and answers and task.is_valid(place, cell, 0, given):
            found.setdefault(item, AnsweredExample(example=item, said=in_example(given), answer=answers[0]))
    return list(found.values())


def _finds_questions(task: ChatProbes, items: Sequence[str]) -> bool:
    """Whether the questions are found in what the user says: changes can be undone in no others."""
    rows = task.rows(items)
    for row, turn in zip(rows, task.unchanged(rows), strict=True):
        start, end = question_in(turn.said, task.configuration.prompt)
        if turn.said[start:end] != task.questions[row].question:
            return False
    return True


def _kept(plan: RepairPlan) -> Path | None:
    """Where a run keeps what it found out, so that it resumes after a kill."""
    return plan.scratch / "configurations.jsonl" if plan.scratch else None
