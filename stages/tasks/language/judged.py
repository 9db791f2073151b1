"""Base of the tasks whose models answer in texts, by a measure, or by a language model that judges."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from stages.tasks.account import Expected
from stages.tasks.base import Task
from stages.tasks.contract import Exhibit, Items, ProbeBatch, TaskContext
from stages.tasks.judging.calibration import JudgeCalibration
from stages.tasks.judging.verdicts import ABSTAINED, AnswerToJudge, Judge, JudgeVerdict, Parts, within
from stages.tasks.language.encoders import Embedder, EmbedderSource
from stages.tasks.language.judges import expected_judgements
from stages.tasks.sources import ItemCounts


class JudgedTexts(Task):
    """A model that answers in texts, with its items.

    A subclass defines what the model is given (`changed`, `query`), what an answer is measured by (`measured`), and
    what a judge reads (`about`); this class remembers answers and lets the judge decide those that are left to it.

    Args:
        items: the table that `prepare` writes.
        judge: the language model that judges answers, if there is one.
        about_judge: sentences about it for the report.
    """

    rubric: ClassVar[str]
    """What makes an answer acceptable, if the judge's settings do not say."""

    settings: Any  # the `discrepancy:` block, which has `near` and `validity`

    def __init__(
        self, context: TaskContext, items: pd.DataFrame, embedder: Embedder, judge: Judge | None, notes: Sequence[str]
    ) -> None:
        torch.set_num_threads(context.compute.threads)
        self.context, self.embedder, self.judge, self._about_judge = context, embedder, judge, notes
        if judge is not None:
            vars(self)["not_valid"] = f"{self.not_valid}, or {ABSTAINED}"
        assert self.discrepancy_block is not None
        self.settings = self.discrepancy_block.model_validate(dict(context.discrepancy))
        self.items = Items(items)
        self._rows = {item: row for row, item in enumerate(items["id"])}
        self._answers: dict[Any, str] = {}

    # What a task defines; rows are those of the table of items

    @abstractmethod
    def changed(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> list[Any]:
        """Return what the model is given in n probes; inputs that it cannot distinguish are equal."""

    @abstractmethod
    def query(self, inputs: Sequence[Any]) -> list[str]:
        """Query the model on inputs that it was not given before."""

    @abstractmethod
    def clean(self, rows: Sequence[int]) -> list[str]:
        """Return the answers of the model under test to n unchanged items."""

    @abstractmethod
    def is_valid(self, row: int, cell: np.ndarray, repeat: int, given: Any) -> bool:
        """Whether a changed item, as given to the model, is still similar enough to the original (`validity`)."""

    @abstractmethod
    def measured(self, row: int, output: str) -> float:
        """Discrepancy of an answer to one item, by the measure alone."""

    @abstractmethod
    def is_plain(self, row: int, output: str) -> bool:
        """Whether the judge is never asked about this answer."""

    @abstractmethod
    def about(self, row: int) -> Parts:
        """Return what a judge reads about an answer to one item."""

    @staticmethod
    @abstractmethod
    def about_entry(entry: Any) -> Parts:
        """Return what a judge reads about an answer to one entry of the data."""

    # Probing

    def rows(self, item_ids: Sequence[str]) -> list[int]:
        return [self._rows[item] for item in item_ids]

    def answers(self, inputs: Sequence[Any]) -> list[str]:
        """Return the model's answers to n inputs; known answers are not requested again."""
        unknown = [one for one in dict.fromkeys(inputs) if one not in self._answers]
        # The same number of pieces for each process, with inputs of all lengths in each.
        processes = self.context.compute.processes
        count = -(-len(unknown) // (self.context.compute.batch_size * processes)) * processes
        pieces = [piece for k in range(count) if (piece := unknown[k::count])]
        for piece, answers in zip(pieces, self.shared(self.query, [(p,) for p in pieces]), strict=True):
            self._answers.update(zip(piece, answers, strict=True))
        return [self._answers[one] for one in inputs]

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """See Task. Outputs are the answers.

        A changed item too far from its original (`validity`) is no evidence: its probe is not valid and has not failed.
        """
        cells = np.asarray(cells, dtype=np.int64)
        again = [0] * len(item_ids) if repeats is None else np.asarray(repeats).tolist()
        given, rows = self.changed(item_ids, cells, repeats), self.rows(item_ids)
        outputs = self.answers(given)
        found, abstained = self._discrepancies(rows, outputs)
        valid = np.array(list(map(self.is_valid, rows, cells, again, given)), dtype=bool) & ~abstained
        found = np.where(valid, found, np.minimum(found, np.float32(self.threshold)))
        return ProbeBatch(found, found > self.threshold, outputs, valid)

    def failures(self, rows: Sequence[int]) -> np.ndarray:
        """Which of n items fail unchanged: (n,) bool."""
        return self._discrepancies(rows, self.clean(rows))[0] > self.threshold

    def _discrepancies(self, rows: Sequence[int], outputs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return discrepancies of n answers, (n,) float32, and where the judge was asked and abstained, (n,) bool."""
        found, trials = self._trials(rows, outputs)
        if self.judge is None:
            return found, np.zeros(len(found), dtype=bool)
        return self.judge.settle(found, trials, self.threshold)

    def _trials(self, rows: Sequence[int], outputs: Sequence[str]) -> tuple[np.ndarray, dict[int, AnswerToJudge]]:
        """Return discrepancies of n answers by the measure, (n,) float32, and the answers that the judge decides.

        The judge decides those near the threshold. Pairs compare an answer with that to the unchanged item.
        """
        found = np.array([self.measured(*one) for one in zip(rows, outputs, strict=True)], dtype=np.float32)
        if self.judge is None:
            return found, {}
        trials, near = {}, within(found, self.settings.near)
        for n, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            if near[n] and not self.is_plain(row, output):
                baseline = self.clean([row])[0] if self.judge.settings.pairwise else ""
                trials[n] = AnswerToJudge(self.about(row), output, baseline)
        return found, trials

    def verdicts(self, rows: Sequence[int], outputs: Sequence[str]) -> list[JudgeVerdict | None]:
        """Return the judge's verdicts on n answers; None for those that it does not decide."""
        _, trials = self._trials(rows, outputs)
        said = dict(zip(trials, self.judge.verdicts(list(trials.values())), strict=True)) if self.judge else {}
        return [said.get(n) for n in range(len(rows))]

    def recalled(self, item_ids: Sequence[str], cells: np.ndarray, answers: ProbeBatch) -> list[Exhibit]:
        """See Task: without the words of the judge, which are not kept."""
        task = copy.copy(self)
        task.judge = None
        return Task.recalled(task, item_ids, cells, answers)

    # Preparation

    def judge_numbers(self, judged: tuple[Judge, JudgeCalibration] | None) -> dict[str, Any]:
        """Return, for the metrics, how the judge was calibrated and how many clean answers it decides."""
        return {} if judged is None else {"judge": {**judged[1].to_json(), **self.decided()}}

    def decided(self) -> dict[str, int]:
        """Count the answers to unchanged items that the judge decides, and those it abstains from."""
        rows = range(len(self.items.table))
        said = [verdict for verdict in self.verdicts(rows, self.clean(rows)) if verdict is not None]
        none = sum(verdict.acceptable is None for verdict in said)
        return {"unchanged": len(rows), "decided": len(said) - none, "abstained": none}

    @classmethod
    def _embedder(cls, context: TaskContext) -> Embedder:
        source: EmbedderSource = cls.source(context, "embedder")
        return source.load(context.inputs, context.compute.device)

    @classmethod
    def expected_judgements(cls, context: TaskContext) -> Expected | None:
        """See Task: one for each answer, as it is not known in advance how many the judge must decide."""
        counts = ItemCounts.model_validate(context.config["items"]).model_dump()

        def length() -> float:
            entries = cls.source(context, "data").load(context.inputs)[0]
            return float(np.mean([sum(len(text) for _, text in cls.about_entry(entry)) for entry in entries]))

        return expected_judgements(context, sum(counts.values()), cls.rubric, length)
