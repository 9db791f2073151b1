"""A task whose model is any Python function of a batch, or a torch module; `faded.audit` creates one.

In an audit of the pipeline `prepare.model` names the function, `prepare.concepts` the user's own concepts, both as
package.module:name, and `prepare.items` a table in the audit's inputs, as `Result.to_workspace` writes it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field

from stages.concepts import Concept
from stages.errors import UsageError
from stages.files import read_table
from stages.params import Strict
from stages.tasks.base import Task
from stages.tasks.contract import Exhibit, Items, ProbeBatch, Quality, Split, TaskContext
from stages.tasks.features import PrincipalAxes
from stages.tasks.functions.answers import LONGEST, Judge, Measure, ask, ask_all, check_unchanged, read
from stages.tasks.functions.doubts import doubts
from stages.tasks.functions.items import KINDS, as_concept, check, space_of

_NAME = r"^\w+(\.\w+)*:\w+(\.\w+)*$"


class PrepareConfig(Strict):
    """The `prepare:` block."""

    model: str = Field(pattern=_NAME, description="package.module:name of a function of a batch, or a torch module")
    items: str = Field("items.parquet", description="in the audit's inputs, as `Result.to_workspace` wrote it")
    concepts: dict[str, str] = Field(default_factory=dict, description="own concepts: package.module:name of each")
    classes: list[str] = Field(default_factory=list, description="of scores, in the order of their columns")


class DiscrepancyConfig(Strict):
    """The `discrepancy:` block."""

    answers: Literal["labels", "scores", "probabilities", "texts", "own"] = Field(description="what the model answers")
    measure: str | None = Field(None, pattern=_NAME, description="own: a function (answer, expected) -> discrepancy")
    threshold: float = Field(description="discrepancies above it are failures")


class FunctionTask(Task):
    """A function under test with items of one kind.

    Args:
        context: as for any task.
        table: columns id, split, label and those of the items, with their form and `doubts` in `attrs`.
        model: the function, or torch module.
        own: the user's own concepts by name.
        measure: the user's own measure of an answer.
    """

    prepare_block = PrepareConfig
    discrepancy_block = DiscrepancyConfig

    def __init__(
        self,
        context: TaskContext,
        table: pd.DataFrame,
        model: Callable[..., Any],
        own: Mapping[str, Concept],
        measure: Measure | None = None,
    ) -> None:
        config = PrepareConfig.model_validate(dict(context.config))
        settings = DiscrepancyConfig.model_validate(dict(context.discrepancy))
        kind = KINDS[table.attrs["form"]["kind"]]
        if errors := check(kind, context.concepts, own):
            raise UsageError("\n".join(errors))
        self.context, self.model, self.threshold = context, model, settings.threshold
        self.concepts = space_of(kind, context.concepts, own)
        self.given = kind.from_table(table)
        self.items = Items(table[["id", "split", "label"]].copy())
        self.judge = Judge(settings.answers, config.classes, measure)
        self.doubts: list[str] = table.attrs.get("doubts", [])
        self._rows = {item: row for row, item in enumerate(table["id"])}
        self._vectors: np.ndarray | None = None

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: PrepareConfig | None, discrepancy: Any) -> list[str]:
        """See Task: whether the table of items is there."""
        if prepare is None or (path := context.inputs / prepare.items).exists():
            return []
        return [f"prepare.items: there is no {path}"]

    @classmethod
    def check_repair(cls, context: TaskContext, settings: Mapping[str, Any]) -> list[str]:
        """See Task: a function has no accessible weights to repair."""
        return [f"a function has no weights to repair: remove {context.audit} from repairs:"]

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """See Task: queries the model on all unchanged items, so that errors in it are found here."""
        cls.require_valid(context)
        config = PrepareConfig.model_validate(dict(context.config))
        table = read_table(context.inputs / config.items)
        (out_dir / "model").mkdir()
        (out_dir / "model" / "model.json").write_text(json.dumps(config.model_dump(), indent=1) + "\n")
        table.to_parquet(out_dir / "items.parquet", index=False)
        task = cls.load(context, out_dir)
        answers = task.unchanged()
        table.attrs["doubts"] = task.find_doubts(answers)
        table.to_parquet(out_dir / "items.parquet", index=False)
        passed = task.judge(answers, table["label"].tolist())[0] <= task.threshold
        return {"items": len(table), "clean_accuracy": {"discover": float(passed.mean())}}

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        config = PrepareConfig.model_validate(dict(context.config))
        measure = DiscrepancyConfig.model_validate(dict(context.discrepancy)).measure
        own = {
            name: as_concept(name, named(target, context.inputs), context.concepts[name])
            for name, target in config.concepts.items()
            if name in context.concepts
        }
        table = read_table(prepared / "items.parquet")
        told = None if measure is None else named(measure, context.inputs)
        return cls(context, table, named(config.model, context.inputs), own, told)

    def unchanged(self) -> np.ndarray:
        """Return the model's answers to all unchanged items.

        Raises:
            UsageError: if it has none to an item.
        """
        answers = self._unchanged(np.arange(len(self._rows)))
        if self.judge.kind != "own":
            check_unchanged(read(answers))
        return answers

    def _unchanged(self, rows: np.ndarray) -> np.ndarray:
        return ask_all(self.model, self.given.unchanged, rows, self.context.compute.batch_size)

    def find_doubts(self, answers: np.ndarray) -> list[str]:
        """Return what `notes` says from now on, given the answers to all unchanged items."""
        labels = self.items.table["label"].tolist()
        self.doubts = doubts(self.judge, self.threshold, answers, labels, self._unchanged)
        return self.doubts

    def _asked(self, item_ids: Sequence[str], cells: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray]:
        """Return rows, changed items and the model's answers to them."""
        rows = np.array([self._rows[item] for item in item_ids], dtype=np.int64)
        batch = self.given.change(rows, np.asarray(cells), item_ids, self.concepts, self.context.seed)
        return rows, batch, ask(self.model, batch)

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        rows, _, answers = self._asked(item_ids, cells)
        discrepancy, outputs = self.judge(answers, self._labels(rows))
        return ProbeBatch(discrepancy, discrepancy > self.threshold, outputs)

    def _labels(self, rows: np.ndarray) -> list[str]:
        labels: list[str] = self.items.table["label"].iloc[rows].tolist()
        return labels

    def notes(self) -> Sequence[str]:
        """See Task: what was noticed on unchanged items."""
        return self.doubts

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        if self._vectors is None:
            features = self.given.features()
            self._vectors = PrincipalAxes.of(features)(features)
        return self._vectors[[self._rows[item] for item in item_ids]]

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        """See Task: what was expected, the columns of a DataFrame, and the length of texts."""
        return self._told_apart(pd.concat([self.items.table[["label"]], self.given.about()], axis=1), item_ids)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        if not len(item_ids):
            return []
        rows, batch, answers = self._asked(item_ids, cells)
        outputs = self.judge(answers, self._labels(rows))[1]
        changed = batch.to_numpy() if isinstance(batch, pd.DataFrame) else batch
        return [
            self.given.exhibit(row, item, f"expected {label[:LONGEST]} → answered {output}")
            for row, item, label, output in zip(rows.tolist(), changed, self._labels(rows), outputs, strict=True)
        ]

    def clean_quality(self, split: Split) -> Quality:
        """See Task: 1 if the answer to the unchanged item is not a failure."""
        ids = self.items.ids(split)
        rows = np.array([self._rows[item] for item in ids])
        discrepancy, _ = self.judge(self._unchanged(rows), self._labels(rows))
        return Quality("clean accuracy", 1.0 - (discrepancy > self.threshold), ids)


def named(target: str, inputs: Path) -> Any:
    """Import package.module:name, from a module in the audit's inputs or an installed one.

    Raises:
        UsageError: if it cannot be imported.
    """
    module, _, name = target.partition(":")
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # compiled files there would be another input
    sys.path.insert(0, str(inputs.resolve()))
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may fail in any way
        raise UsageError(f"{target} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(inputs.resolve()))
        sys.dont_write_bytecode = before
    return found
