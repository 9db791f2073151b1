"""The prober, the only interface between an explorer and a task.

It counts the budget, in *unique* probes: a probe made before is answered from memory and costs nothing, and one in the
ledger (from before a kill, or made by the other explorer) does not query the model again. So every explorer pays the
same price for the same knowledge.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.core.environment import torch_threads
from stages.core.errors import UsageError
from stages.core.ledger import Key, Ledger
from stages.tasks.contract import Compute, ProbeBatch, Probed


class Answers(NamedTuple):
    """Answers to an explorer's n probes, all (n,).

    If `answered` is False, the budget was spent: discrepancy is NaN and failed False.
    """

    discrepancy: np.ndarray
    failed: np.ndarray
    fresh: np.ndarray  # new for this explorer, so paid from its budget
    answered: np.ndarray


class Prober:
    """Answers an explorer's probes within its budget.

    Args:
        item_ids: the items the explorer may use.
        budget: unique probes it may spend, at most the number of pairs of item and cell.
        ledger: answers already known; shared between explorers.
        on_progress: called with (unique probes, failures) after every batch.
    """

    def __init__(
        self,
        task: Probed,
        item_ids: Sequence[str],
        budget: int,
        ledger: Ledger | None = None,
        compute: Compute | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.task, self.item_ids = task, list(item_ids)
        self.space: ConceptSpace = task.concepts
        self.budget = min(budget, len(self.item_ids) * self.space.n_used)
        self.ledger = ledger if ledger is not None else Ledger()
        self.compute = compute or Compute()
        self._on_progress = on_progress
        self._asked: dict[Key, int] = {}  # -> its row, in the order of probing
        self._uniform: dict[Key, int] = {}  # -> number of probes when it was drawn evenly
        self._failures = 0
        self.curve: list[tuple[int, int]] = [(0, 0)]

    @property
    def spent(self) -> int:
        """Number of unique probes so far."""
        return len(self._asked)

    @property
    def left(self) -> int:
        """Number of unique probes the budget still allows."""
        return self.budget - self.spent

    @property
    def failures(self) -> int:
        """Number of failing unique probes so far."""
        return self._failures

    def ask(self, items: np.ndarray, cells: np.ndarray, *, uniform: bool | np.ndarray = False) -> Answers:
        """Make n probes.

        A probe repeated within the same call is paid once; probes beyond the budget stay unanswered.

        Args:
            items: (n,) positions in `item_ids`.
            cells: (n, d) level indices.
            uniform: which pairs, all or (n,) bool, were drawn evenly (`ConceptSpace.even`), independent of all answers:
                only such probes measure rates. A pair probed before also counts as drawn.
        """
        keys = [Key(self.item_ids[i], int(c)) for i, c in zip(items, self.space.flat(cells), strict=True)]
        fresh = np.zeros(len(keys), dtype=bool)
        answered = np.zeros(len(keys), dtype=bool)
        drawn = np.broadcast_to(uniform, len(keys))
        for n, key in enumerate(keys):
            if key not in self._asked and self.left > 0:
                self._asked[key] = len(self._asked)
                fresh[n] = True
            answered[n] = key in self._asked
            if drawn[n] and answered[n]:
                self._uniform.setdefault(key, self.spent)
        self._query([key for key, is_fresh in zip(keys, fresh, strict=True) if is_fresh])

        discrepancy = np.full(len(keys), np.nan, dtype=np.float32)
        failed = np.zeros(len(keys), dtype=bool)
        for n in np.flatnonzero(answered).tolist():
            answer = self.ledger[keys[n]]
            discrepancy[n], failed[n] = answer.discrepancy, answer.failed
        if fresh.any():
            self._failures += int((failed & fresh).sum())
            self.curve.append((self.spent, self._failures))
            if self._on_progress is not None:
                self._on_progress(self.spent, self._failures)
        return Answers(discrepancy, failed, fresh, answered)

    def _query(self, keys: list[Key]) -> None:
        """Query the model for probes that are not in the ledger, in batches, each on disk before the next."""
        unknown = [key for key in keys if key not in self.ledger]
        size = self.compute.batch_size * self.compute.processes
        for start in range(0, len(unknown), size):
            batch = unknown[start : start + size]
            cells = self.space.cells(np.array([key.cell for key in batch]))
            with torch_threads(self.compute.threads):
                answer = self.task.probe([key.item for key in batch], cells)
            self._check(answer, len(batch))
            own = answer.automatic
            automatic = None if own is None else (own.discrepancy, own.failed)
            self.ledger.append(batch, answer.discrepancy, answer.failed, answer.outputs, answer.valid, automatic)

    def _check(self, answer: ProbeBatch, n: int) -> None:
        """Refuse answers that would pass by accident: NaN is not above any threshold."""
        where = f"{type(self.task).__name__}.probe"
        shapes = (np.shape(answer.discrepancy), np.shape(answer.failed), (len(answer.outputs),))
        if shapes != ((n,),) * 3:
            raise UsageError(f"{where} was asked {n} probes and answered with shapes {shapes} instead of ({n},) each")
        valid = np.ones(n, dtype=bool) if answer.valid is None else np.asarray(answer.valid, dtype=bool)
        if valid.shape != (n,) or (np.asarray(answer.failed, dtype=bool) & ~valid).any():
            raise UsageError(
                f"{where} must call each of {n} probes valid or not, and none failed that is not valid: answer a"
                " discrepancy of at most the threshold for those"
            )
        if not np.isfinite(answer.discrepancy).all():
            raise UsageError(f"{where} answered a discrepancy that is not finite: the model's output cannot be judged")
        if not np.array_equal(answer.failed, answer.discrepancy > self.task.threshold):
            raise UsageError(
                f"{where} must call failed what has a discrepancy above its threshold {self.task.threshold}"
            )

    def table(self, first: int | None = None) -> pd.DataFrame:
        """Return the unique probes in order, in the format of probes.parquet without role and explorer.

        If people's ratings define what a failure is, `automatic` and `automatic_failed` are the task's own measure.

        Args:
            first: number of probes to return, as if the budget had ended there; by default all.
        """
        keys = list(self._asked)[:first]
        until = len(keys)
        cells = self.space.cells(np.array([key.cell for key in keys], dtype=np.int64))
        answers = [self.ledger[key] for key in keys]
        table = pd.DataFrame(
            {
                "order": np.arange(len(keys), dtype=np.int64),
                "item": pd.Series([key.item for key in keys], dtype="str"),
                **{name: cells[:, j] for j, name in enumerate(self.space.names)},
                "repeat": np.array([key.repeat for key in keys], dtype=np.int64),
                "uniform": np.array([self._uniform.get(key, np.inf) <= until for key in keys], dtype=bool),
                "discrepancy": np.array([a.discrepancy for a in answers], dtype=np.float32),
                "failed": np.array([a.failed for a in answers], dtype=bool),
                "valid": np.array([a.valid for a in answers], dtype=bool),
                "output": pd.Series([a.output for a in answers], dtype="str"),
            }
        )
        if answers and answers[0].automatic is not None:
            table["automatic"] = np.array([a.automatic for a in answers], dtype=np.float32)
            table["automatic_failed"] = np.array([a.automatic_failed for a in answers], dtype=bool)
        return self.task.items.with_groups(table)
