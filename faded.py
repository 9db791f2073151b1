"""Audit a model from Python: `faded.audit(model, items, concepts=..., budget=...)`, in a notebook or a script.

Nothing is needed beside the model: no git, no DVC, no params.yaml, and nothing is written unless asked for. Tasks and
concepts of one's own import what they need from here, too.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _claim(*packages: str) -> None:
    """Have `stages` and `flows` mean those beside this file, whatever Python would find first under these names.

    Raises:
        ImportError: when others of these names were imported before.
    """
    for name in packages:
        home = Path(__file__).resolve().parent / name
        loaded = sys.modules.get(name)
        if loaded is None:
            found = importlib.util.spec_from_file_location(
                name, home / "__init__.py", submodule_search_locations=[str(home)]
            )
            assert found is not None and found.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        elif home not in [Path(folder).resolve() for folder in getattr(loaded, "__path__", ())]:
            raise ImportError(
                f"{name!r} is imported already, from {getattr(loaded, '__file__', None) or home.name}: Faded has a"
                " package of that name. Import faded in a process that does not need the other one",
                name=name,
            )


_claim("stages", "flows")

# ruff: noqa: E402  # from here on these names are ours
import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace, Level
from stages.errors import UsageError, did_you_mean
from stages.tasks.contract import (
    Exhibit,
    Items,
    ProbeBatch,
    Quality,
    RepairPlan,
    RepairRecord,
    Task,
    TaskContext,
)

if TYPE_CHECKING:
    from stages.explorers import SearchResult
    from stages.landscape import Landscape, Mode
    from stages.microscopic import Robustness
    from stages.params import AuditConfig
    from stages.tasks.functions import FunctionTask

__all__ = [
    "Concept",
    "ConceptSpace",
    "Exhibit",
    "Items",
    "ProbeBatch",
    "Quality",
    "RepairPlan",
    "RepairRecord",
    "Result",
    "Task",
    "TaskContext",
    "UsageError",
    "audit",
    "concept",
]

_LATER = {  # what is slow to import, or needs the libraries of an extra
    "ImageConcept": "stages.concepts.images",
    **dict.fromkeys(("TextConcept", "edit_letters", "leave_out", "reword"), "stages.concepts.texts"),
    "ImageClassification": "stages.tasks.classification",
    "Summarization": "stages.tasks.summarization",
    "TextToImage": "stages.tasks.text_to_image",
}
_FEWEST_PROBES = 40  # of fewer no mode can be both found and confirmed


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'faded' has no attribute {name!r}{did_you_mean(name, [*__all__, *_LATER])}")
    return getattr(importlib.import_module(_LATER[name]), name)


def concept(
    levels: Sequence[Level], *, unit: str = "", neutral: Level | None = None, ordered: bool | None = None
) -> Callable[[Callable[..., Any]], Concept]:
    """Make a concept of the function below it: (item, level) -> changed item.

    The same item and level must give the same answer. It is not called at the neutral level.

    Args:
        levels: numbers from the weakest to the strongest, or names without an order.
        unit: printed behind a level.
        neutral: the level that changes nothing; by default the first.
        ordered: whether levels have an order; by default numbers have one.
    """
    if isinstance(levels, str) or not len(levels):
        raise UsageError(f"concept: found levels {levels!r}, expected a list of them")

    def decorate(function: Callable[..., Any]) -> Concept:
        return Concept(
            function.__name__,
            tuple(levels),
            unit,
            ordered=not isinstance(levels[0], str) if ordered is None else ordered,
            neutral=levels[0] if neutral is None else neutral,
            apply=function,
        )

    return decorate


def audit(
    model: Any,
    items: Any,
    *,
    concepts: Mapping[str, Sequence[Level] | Concept] | Sequence[Concept],
    budget: int,
    expected: Sequence[Any] | None = None,
    classes: Sequence[Any] | None = None,
    discrepancy: Callable[[Any, str], float] | None = None,
    threshold: float | None = None,
    explorer: str = "auto",
    seed: int = 0,
    batch_size: int = 64,
    name: str = "audit",
) -> Result:
    """Find what makes a model fail.

    Args:
        model: a torch module, or any function of a batch of items. It answers with n labels, with scores or
            probabilities (n, classes), or with n texts.
        items: images (n, h, w), (n, h, w, c) or (n, c, h, w), uint8 or in [0, 1]; a list of texts; or rows of
            features, (n, d) or a DataFrame. The model is given batches of the same form.
        concepts: what may change about an item: the levels of built-in concepts by name, and concepts of your own.
        budget: changed items the model is asked about, by the search and by its uniform baseline each; half as many
            more are spent on the smallest changes that make it fail.
        expected: the right answer to each item; by default the model's own to the unchanged item.
        classes: names of the columns of scores; by default their numbers.
        discrepancy: (answer, expected) -> how wrong an answer is, for answers of any other kind.
        threshold: discrepancies above it are failures; by default every wrong label, and texts that share less than
            half of their words with what is expected.
        explorer: what chooses the probes, see docs/explorers.md.
        seed: of all randomness: the same seed gives the same result.
        batch_size: items the model is given at once.
        name: of the audit.

    Raises:
        UsageError: a ValueError, when the arguments or the model's answers are not as described here.
    """
    from pydantic import ValidationError

    from stages.explorers import make_explorer
    from stages.params import AuditConfig, errors_in, task_context, validation_lines
    from stages.tasks.functions.answers import THRESHOLDS, ask, classes_of, kind_of, labels_of, own_labels
    from stages.tasks.functions.items import as_given, read_concepts
    from stages.tasks.functions.task import FunctionTask

    if not callable(model):
        hint = "; hand over its method, model.predict_proba" if hasattr(model, "predict_proba") else ""
        raise UsageError(f"model: found {type(model).__name__}, expected a function or a torch module{hint}")
    levels, own = read_concepts(concepts)
    given = as_given(items)
    table = given.table()
    n = len(table)
    if n < 2 or not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(
            f"found {n} item(s) and batch_size {batch_size!r}, expected two items and one at once at least"
        )
    answers = np.concatenate(
        [ask(model, given.unchanged(rows)) for rows in np.array_split(range(n), -(-n // batch_size))]
    )
    kind = "own" if discrepancy is not None else kind_of(answers)
    names = classes_of(answers, kind, classes)
    table["id"], table["split"] = [str(row) for row in range(n)], "discover"
    table["label"] = own_labels(answers, kind, names) if expected is None else labels_of(expected, n, names)
    settings = {
        "seed": seed,
        "task": "stages.tasks.functions:FunctionTask",
        "code": "faded.py",
        "compute": {"gpus": 0, "batch_size": batch_size},
        "prepare": {"model": "__main__:model", "classes": names},
        "concepts": levels,
        "discrepancy": {"answers": kind, "threshold": THRESHOLDS.get(kind, 0.0) if threshold is None else threshold},
        "discover": {"explorer": explorer, "budget": budget},
        "summarize": {},
    }
    try:
        config = AuditConfig.model_validate(settings)
    except ValidationError as error:
        raise errors_in("this audit", validation_lines(error, AuditConfig)) from None
    make_explorer(explorer, {})
    task = FunctionTask(task_context(name, config), table, model, own, discrepancy)
    least = min(_FEWEST_PROBES, n * task.concepts.n_cells)
    if budget < least:
        raise UsageError(f"budget: found {budget}, expected {least} probes at least: fewer name no failure mode")
    return Result(name, task, config, table, *_discover(task, config))


def _discover(task: FunctionTask, config: AuditConfig) -> tuple[SearchResult, Robustness]:
    """Ask the model what the stage discover asks it."""
    from stages.explorers import search
    from stages.ledger import Ledger
    from stages.microscopic import measure_robustness

    ids, compute, ledger = task.items.ids("discover"), task.context.compute, Ledger()
    found = search(task, ids, config.discover, seed=config.seed, ledger=ledger, compute=compute)
    walked = measure_robustness(
        task, ids, config.discover, seed=config.seed, enumerated=found.enumerated, ledger=ledger, compute=compute
    )
    return found, walked


@dataclass(frozen=True, repr=False)
class Result:
    """What an audit found."""

    name: str
    _task: FunctionTask
    _config: AuditConfig
    _table: pd.DataFrame
    _found: SearchResult
    _walked: Robustness

    @property
    def probes(self) -> pd.DataFrame:
        """One row a probe, as in probes.parquet (docs/files.md)."""
        return self._found.probes

    @property
    def failures(self) -> pd.DataFrame:
        """What failed, the worst first: the item's row, the level of each concept, what was expected and answered."""
        failed = self.probes[self.probes["failed"]].sort_values("discrepancy", ascending=False, kind="stable")
        failed = failed.drop_duplicates(["item", *self._task.concepts.names])
        labels = self._task.items.table.set_index("id")["label"]
        return pd.DataFrame(
            {
                "item": failed["item"].astype(int),
                **{c.name: np.array(c.levels)[failed[c.name]] for c in self._task.concepts.concepts},
                "expected": labels.loc[failed["item"]].to_numpy(),
                "answer": failed["output"],
                "discrepancy": failed["discrepancy"],
            }
        ).reset_index(drop=True)

    @cached_property
    def _measured(self) -> tuple[Landscape, list[Mode]]:
        from stages.landscape import estimate, name_modes

        ids, seed = self._task.items.ids("discover"), self._config.seed
        evidence = (self.probes, ids, self._task.embed(ids), self._task.concepts)
        landscape = estimate(*evidence, threshold=self._task.threshold, seed=seed)
        return landscape, name_modes(
            landscape, *evidence, self._config.summarize, threshold=self._task.threshold, seed=seed
        )

    @property
    def landscape(self) -> pd.DataFrame:
        """One row a cell of the grid, with its failure rate."""
        return self._measured[0].table

    @property
    def modes(self) -> list[Mode]:
        """The failure modes."""
        return self._measured[1]

    def to_workspace(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        concepts: Mapping[str, str] | None = None,
        discrepancy: str | None = None,
    ) -> Path:
        """Make this audit one of the pipeline: `faded audit` in that folder asks the same probes again, and goes on.

        The model, and concepts of your own, are named as module:name, for a lambda or a notebook's function has no file
        that a pipeline could run. By default they are named as they were defined. A module that is one file is copied
        into the audit's inputs; a package has to be installed. Put files that a module reads beside its copy.

        Args:
            path: the folder of the workspace; it is made, in a git repository of its own if it is in none.
            model: what stands for the model there: a function of a batch or a torch module, with its weights loaded.
            concepts: what stands for concepts of your own, by name.
            discrepancy: what stands for the measure.

        Returns:
            The folder.

        Raises:
            UsageError: when something has no name, cannot be imported, or answers otherwise than the model here; then
                nothing is written.
        """
        from flows.new_workspace import add_audit, check_folder, write_workspace
        from stages.tasks.functions.carry import carried

        folder = Path(path)
        inputs = folder / "data" / self.name / "inputs"
        if inputs.exists():
            raise UsageError(f"{inputs} is there already: choose another name=... for this audit, or another folder")
        names, modules = carried(self._task, model, concepts or {}, discrepancy)
        folder.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["git", "-C", str(folder), "rev-parse"], capture_output=True, check=False).returncode:
            subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
        check_folder(folder)
        write_workspace(folder)
        inputs.mkdir(parents=True)
        self._table.to_parquet(inputs / "items.parquet", index=False)
        for name, text in modules.items():
            (inputs / name).write_bytes(text)
        block = self._config.model_dump(mode="json", exclude_unset=True)
        block["code"] = f"data/{self.name}/inputs"
        block["prepare"] |= {key: value for key, value in names.items() if key != "measure"}
        block["discrepancy"] |= {key: value for key, value in names.items() if key == "measure"}
        add_audit(folder, self.name, block)
        return folder
