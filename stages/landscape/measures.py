"""A task's own measures beside the failure rate: of every model, and of answers that need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.errors import UsageError
from stages.landscape.compare import compare_values
from stages.landscape.intervals import Resampler
from stages.tasks.contract import Measured


def compare_measures(
    tasks: Mapping[str, Measured],
    answers: Mapping[str, pd.DataFrame],
    names: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Means of each measure for all models, the paired changes, and the means of the baselines, as in verdict.json.

    All means of one measure are over the same pairs: those that are valid, and for which it has a value for every
    model and baseline. Intervals are over resampled items.

    Args:
        tasks: the models; each measures its own answers, as a measure may compare an answer with another of the model.
        answers: model -> the same pairs in the same order, in the format of probes.parquet.
        names: of the concepts, in the order of the columns of a cell.
        resamples: of items, for the intervals.
        seed: of the resampling.
    """
    valid = answers["before"]["valid"].to_numpy(dtype=bool)
    asked = answers["before"][valid]
    items, cells = asked["item"].tolist(), asked[list(names)].to_numpy(dtype=np.int64)
    found = {"pairs": len(asked), "items": int(asked["item"].nunique()), "invalid": int((~valid).sum())}
    if not items:
        return {**found, "measures": {}}

    def measured(task: Measured, outputs: Sequence[str]) -> pd.DataFrame:
        return _checked(task, task.measure(items, cells, outputs), len(items))

    base = tasks["before"]
    models = {model: measured(tasks[model], table.loc[valid, "output"].tolist()) for model, table in answers.items()}
    baselines = {name: measured(base, list(outputs)) for name, outputs in base.baselines(items, cells).items()}
    resampler = Resampler(np.asarray(items), resamples, seed)
    entries = {}
    for name in models["before"].columns:
        values = {model: table[name].to_numpy(dtype=float) for model, table in models.items()}
        without_model = {b: table[name].to_numpy(dtype=float) for b, table in baselines.items()}
        known = ~np.isnan([*values.values(), *without_model.values()]).any(axis=0)
        values = {model: np.where(known, column, 0.0) for model, column in values.items()}
        means = {b: float(column[known].mean()) if known.any() else None for b, column in without_model.items()}
        entries[name] = {
            **compare_values(resampler, values, known.astype(float)),
            "baselines": means,
        }
    return {**found, "measures": entries}


def _checked(task: Measured, table: pd.DataFrame, n: int) -> pd.DataFrame:
    """The measures of n probes; infinite ones would make every mean so."""
    where = f"{type(task).__name__}.measure"
    if len(table) != n:
        raise UsageError(f"{where} was asked to measure {n} outputs and answered with {len(table)} rows")
    if np.isinf(table.to_numpy(dtype=float)).any():
        raise UsageError(f"{where} answered a value that is infinite; nan stands for none")
    return table.reset_index(drop=True)
