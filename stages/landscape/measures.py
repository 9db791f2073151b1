"""A task's own measures beside the failure rate, for every model and for baselines without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stages.errors import UsageError
from stages.intervals import Resampler
from stages.landscape.compare import compare_values
from stages.records.repair import MeasureDifference, Measures
from stages.tasks.base import LoadedTask

KEYS = ("part", "kind", "name")  # columns besides the measures; kind is "model" or "baseline"


def measure_answers(
    tasks: Mapping[str, LoadedTask], parts: Mapping[str, Mapping[str, pd.DataFrame]], names: Sequence[str]
) -> pd.DataFrame:
    """Measure the answers of all models and baselines to each pair that is valid for a model, as in measures.parquet.

    Args:
        tasks: the models; each measures its own answers, because a measure may compare two answers of one model.
        parts: part -> model -> the same pairs in the same order, in the format of probes.parquet.
        names: names of the concepts, in the order of a cell's columns.

    Returns:
        One row per answer: `part`, `kind`, `name` (of the model or baseline), and one column per measure.
    """
    found = [pd.DataFrame({key: pd.Series(dtype="str") for key in KEYS})]
    for part, answers in parts.items():
        if not answers:
            continue
        valid = _valid(answers)
        asked = answers["before"][valid]
        items, cells = asked["item"].tolist(), asked[list(names)].to_numpy(dtype=np.int64)
        if not items:
            continue
        base = tasks["before"]
        outputs = {("model", model): table.loc[valid, "output"].tolist() for model, table in answers.items()}
        outputs |= {("baseline", name): list(said) for name, said in base.baselines(items, cells).items()}
        for (kind, name), said in outputs.items():
            task = tasks[name] if kind == "model" else base
            table = _checked(task, task.measure(items, cells, said), len(items))
            found.append(table.assign(part=part, kind=kind, name=name))
    table = pd.concat(found[1:] or found, ignore_index=True)
    return table[[*KEYS, *(column for column in table if column not in KEYS)]]


def compare_measures(
    answers: Mapping[str, pd.DataFrame], measured: pd.DataFrame, *, resamples: int, seed: int
) -> Measures:
    """Compute the means of each measure for all models, the paired changes, and the means of the baselines.

    All means of one measure are over the same pairs: those that are valid for a model and have a value for every model
    and baseline. Intervals resample items.

    Args:
        answers: model -> the same pairs in the same order, in the format of probes.parquet.
        measured: the result of `measure_answers` for this part.
        resamples: number of resamples of the items, for the intervals.
        seed: seed of the resampling.
    """
    valid = _valid(answers)
    pairs = answers["before"][valid]
    items = pairs["item"].tolist()
    found = Measures(pairs=len(items), items=len(set(items)), invalid=int((~valid).sum()), measures={})
    if not items:
        return found
    resampler = Resampler(pairs["item"], resamples, seed, pairs.get("group"))
    entries = {}
    for name in [column for column in measured if column not in KEYS]:
        values, without_model = (
            {who: rows[name].to_numpy(dtype=float) for who, rows in part.groupby("name", sort=False)}
            for part in (measured[measured["kind"] == kind] for kind in ("model", "baseline"))
        )
        known = ~np.isnan([*values.values(), *without_model.values()]).any(axis=0)
        values = {model: np.where(known, column, 0.0) for model, column in values.items()}
        means = {b: float(column[known].mean()) if known.any() else None for b, column in without_model.items()}
        moved = compare_values(resampler, values, known.astype(float))
        entries[name] = MeasureDifference(baselines=means, **moved.to_json())
    return found.having(measures=entries)


def _valid(answers: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Return the pairs that are valid for at least one model: leaving out those of a single one would favour it."""
    return np.any([table["valid"].to_numpy(dtype=bool) for table in answers.values()], axis=0)


def _checked(task: LoadedTask, table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Check the measures of n probes; a single infinite value would make every mean infinite."""
    where = f"{type(task).__name__}.measure"
    if len(table) != n:
        raise UsageError(f"{where} was asked to measure {n} outputs and answered with {len(table)} rows")
    if np.isinf(table.to_numpy(dtype=float)).any():
        raise UsageError(f"{where} answered a value that is infinite; nan stands for none")
    return table.reset_index(drop=True)
