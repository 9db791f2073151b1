"""A task whose model is any Python function of a batch, or a torch module; `faded.audit` creates one.

In an audit of the pipeline `prepare.model` names the function, `prepare.concepts` the user's own concepts, both as
package.module:name, and `prepare.items` a table in the audit's inputs, as `Result.to_workspace` writes it.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field

from stages.concepts import Concept
from stages.core.errors import UsageError
from stages.core.files import read_table
from stages.params import Strict
from stages.tasks.attributes import PrincipalAxes
from stages.tasks.base import Task
from stages.tasks.contract import Exhibit, Items, ProbeBatch, Quality, Split, TaskContext
from stages.tasks.functions.answers import AnswerScorer, Measure, ask_all, call_model, check_unchanged, doubts, read
from stages.tasks.functions.items import KINDS, as_concept, check, space_of
from stages.tasks.labels import LONGEST

_COMPARED = 64  # number of items whose answers must be the same under the name
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
        self.judge = AnswerScorer(settings.answers, config.classes, measure)
        self.doubts: list[str] = table.attrs.get("doubts", [])
        self._rows = {item: row for row, item in enumerate(table["id"])}
        self._vectors: np.ndarray | None = None

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: PrepareConfig | None, discrepancy: Any) -> list[str]:
        if prepare is None or (path := context.inputs / prepare.items).exists():
            return []
        return [f"prepare.items: there is no {path}"]

    @classmethod
    def check_repair(cls, context: TaskContext, settings: Mapping[str, Any]) -> list[str]:
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
            name: as_concept(name, import_named(target, context.inputs), context.concepts[name])
            for name, target in config.concepts.items()
            if name in context.concepts
        }
        table = read_table(prepared / "items.parquet")
        told = None if measure is None else import_named(measure, context.inputs)
        return cls(context, table, import_named(config.model, context.inputs), own, told)

    def unchanged(self) -> np.ndarray:
        """Return the model's answers to all unchanged items. Raises a UsageError if it has none to an item."""
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

    def _changed(self, item_ids: Sequence[str], cells: np.ndarray) -> tuple[np.ndarray, Any]:
        rows = np.array([self._rows[item] for item in item_ids], dtype=np.int64)
        return rows, self.given.change(rows, np.asarray(cells), item_ids, self.concepts, self.context.seed)

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        rows, batch = self._changed(item_ids, cells)
        discrepancy, outputs = self.judge(call_model(self.model, batch), self._labels(rows))
        return ProbeBatch(discrepancy, discrepancy > self.threshold, outputs)

    def _labels(self, rows: np.ndarray) -> list[str]:
        labels: list[str] = self.items.table["label"].iloc[rows].tolist()
        return labels

    def notes(self) -> Sequence[str]:
        return self.doubts

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        if self._vectors is None:
            features = self.given.features()
            self._vectors = PrincipalAxes.of(features)(features)
        return self._vectors[[self._rows[item] for item in item_ids]]

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        return self._told_apart(pd.concat([self.items.table[["label"]], self.given.about()], axis=1), item_ids)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        if not len(item_ids):
            return []
        rows, batch = self._changed(item_ids, cells)
        outputs = self.probe(item_ids, cells).outputs
        changed = batch.to_numpy() if isinstance(batch, pd.DataFrame) else batch
        return [
            self.given.exhibit(row, item, f"expected {label[:LONGEST]} → answered {output}")
            for row, item, label, output in zip(rows.tolist(), changed, self._labels(rows), outputs, strict=True)
        ]

    def clean_quality(self, split: Split) -> Quality:
        ids = self.items.ids(split)
        rows = np.array([self._rows[item] for item in ids])
        discrepancy, _ = self.judge(self._unchanged(rows), self._labels(rows))
        return Quality("clean accuracy", 1.0 - (discrepancy > self.threshold), ids)


def import_named(target: str, inputs: Path) -> Any:
    """Import package.module:name, from a module in the audit's inputs or an installed one.

    Raises a UsageError if it cannot be imported.
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


def carried(
    task: FunctionTask, model: str | None, concepts: Mapping[str, str], measure: str | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what params.yaml needs to name the model, the concepts and the measure of a task, for another process.

    Raises a UsageError if one has no importable name, or the function of that name is a different one.

    Args:
        task: made from functions of a session.
        model: name of the model; None: the name by which it was defined.
        concepts: names of concepts, by default also those by which they were defined.
        measure: name of the measure, likewise.

    Returns:
        model, concepts and measure for params.yaml, and the files they need, by name.
    """
    own = {one.name: one for one in task.concepts.concepts if one.apply is not None}
    if unknown := set(concepts) - set(own):
        raise UsageError(f"concepts: {', '.join(sorted(unknown))} is not a concept of your own in this audit")
    names: dict[str, Any] = {"model": model or _name("model", task.model)}
    if own:
        names["concepts"] = {
            name: concepts.get(name) or _name(f"concepts: {{{name!r}: ...}}", one.apply) for name, one in own.items()
        }
    if task.judge.measure is not None:
        names["measure"] = measure or _name("discrepancy", task.judge.measure)
    targets = [names["model"], *names.get("concepts", {}).values(), *([names["measure"]] if "measure" in names else [])]
    found = {target: import_named(target, Path()) for target in targets}
    for name, target in names.get("concepts", {}).items():
        as_concept(name, found[target], own[name].levels)
    _same_answers(task, names["model"], found[names["model"]])
    return names, {file.name: file.read_bytes() for target in targets for file in _files(target)}


def _name(argument: str, function: Any) -> str:
    module, name = getattr(function, "__module__", "__main__"), getattr(function, "__qualname__", "")
    if module == "__main__" or not name or "<" in name or hasattr(function, "__self__"):
        raise UsageError(
            f"{name or type(function).__name__} has no file that a pipeline could run: put it into a module, and name"
            f" it as module:name, to_workspace(..., {argument if ':' in argument else argument + '=...'})"
        )
    return f"{module}:{name}"


def _files(target: str) -> list[Path]:
    """Return the file of a module outside installed packages; empty for an installed one."""
    top = target.partition(":")[0].partition(".")[0]
    path = Path(str(sys.modules[top].__file__))
    if top in packages_distributions():
        return []
    if path.name == "__init__.py":
        raise UsageError(f"{target}: the package {top} is not installed: install it, or put {target} into one file")
    return [path]


def _same_answers(task: FunctionTask, name: str, found: Any) -> None:
    items = task.items.table["label"].iloc[:_COMPARED]
    batch = task.given.unchanged(items.index.to_numpy())
    one, other = (task.judge(call_model(model, batch), items.tolist()) for model in (task.model, found))
    if one[1] != other[1] or (one[0] != other[0]).any():
        raise UsageError(f"{name} answers otherwise than the model of this audit: it is not the same model")
