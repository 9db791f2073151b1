"""Repair of a model: refitted on rows of chosen failure modes, or with another threshold for groups that fail.

By `risk-weighted` it is refitted on its own rows, those of the split repair, and copies of the latter that are changed
by cells of the target modes, drawn in proportion to severity x estimated failure risk. A control uses the same rows and
as many copies, changed by cells as they occur in use, or unchanged.

By `threshold` the model answers a class in a group more readily, until the rows of the split repair with that class
fail no more often in the group than in others. A control does the same in all groups.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.errors import UsageError
from stages.params import checked
from stages.tasks.base import known_attributes
from stages.tasks.contract import AND_LABEL, RepairPlan, RepairRecord
from stages.tasks.tabular.models import RowModel
from stages.tasks.tabular.probes import RepairSettings, RowProbes
from stages.tasks.training import PairSampler, write_card, write_loader

RISK_PROBES = 2000  # enough for a logistic model of a few concepts
TIE = 1e-6  # beyond a tie of two classes


def repair(task: RowProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Fit a copy of the task's model and write it with its card; the module describes how.

    Raises a UsageError if there is nothing to repair or to learn from.
    """
    from sklearn.linear_model import LogisticRegression

    settings = checked(RepairSettings, plan.settings, "restructure.settings")
    items, space = np.array(task.items.ids("repair")), task.concepts
    if len(items) == 0:
        raise UsageError("prepare.items.repair: a repair needs items to learn from, found 0")
    targets = plan.regions(space)
    rng = np.random.default_rng([plan.seed, 4])
    attributes = known_attributes(task, items.tolist())
    sampler = PairSampler(space, targets, attributes)
    rows, cells = sampler.draw(RISK_PROBES, rng)
    asked = items[rows].tolist()
    failed = task.probe(asked, cells).failed
    before, base = task.clean_quality("repair").values.mean(), task.model
    assert isinstance(base, RowModel)  # `Source.repair_errors` refuses a repair of others
    if settings.method == "threshold":
        task.model = replace(base, shifts=_shifts(task, plan, rng))
    else:
        if plan.control is None and failed.any() and not failed.all():
            risk = LogisticRegression(max_iter=1000).fit(space.coordinates(cells), failed)
            sampler = PairSampler(space, targets, attributes, lambda c: risk.predict_proba(space.coordinates(c))[:, 1])
        rows, learnt = sampler.draw(settings.copies * len(items), rng)
        asked_for, repeats = items[rows].tolist(), np.arange(len(rows))
        for pair in plan.must_pass:
            asked_for += [pair.item] * settings.copies
            learnt = np.concatenate([learnt, np.tile(pair.cell, (settings.copies, 1))])
            repeats = np.concatenate([repeats, np.arange(settings.copies)])
        at, changed = task.changed(asked_for, learnt, repeats)
        clean, _ = task.changed(items.tolist(), np.tile(space.start, (len(items), 1)))
        labels = task.items.table["label"].to_numpy()
        table = pd.concat([task.rows.iloc[clean], changed], ignore_index=True)
        task.model = base.refit(table, np.concatenate([labels[clean], labels[at]]))
    try:
        numbers = {
            "items": len(items),
            "rows_added": len(task.model.rows) - len(base.rows),
            "failures_before": float(failed.mean()),
            "failures_after": float(task.probe(asked, cells).failed.mean()),
            "clean_before": float(before),
            "clean_after": float(task.clean_quality("repair").values.mean()),
        }
        repaired = task.model
        repaired.save(out_dir)
    finally:
        task.model = base
    write_card(
        out_dir,
        __file__,
        plan,
        base=task.model_hash,
        model=repaired,
        settings=settings.model_dump(),
        space=space,
        numbers=numbers,
    )
    write_loader(out_dir, __file__, **repaired.loading())
    curve = pd.DataFrame({"step": [0, 1], "loss": [numbers["failures_before"], numbers["failures_after"]]})
    return RepairRecord(settings.method, 1, numbers, curve)


def _shifts(task: RowProbes, plan: RepairPlan, rng: np.random.Generator) -> dict[str, dict[str, list[float]]]:
    """Return `RowModel.shifts`: the smallest with which each group that a target names fails no more than the others.

    They are found one after the other, as the next groups are compared with those that have theirs. Raises a UsageError
    if no target is about a protected column and the label.
    """
    items, model, classes = task.items.ids("repair"), task.model, task.model.classes
    assert isinstance(model, RowModel)
    known, found = known_attributes(task, items), dict[str, dict[str, list[float]]]()
    named = [(target.region, f"{column}{AND_LABEL}", column) for target in plan.targets for column in task.protected]
    for region, both, column in named:
        at, rows = task.changed(items, region.sample(task.concepts, len(items), rng))
        labels, groups = task.items.table["label"].to_numpy()[at], task.rows[column].to_numpy()[at]
        for value in region.items.get(both, ()):
            inside = (known[both] == value).to_numpy()
            if not inside.any():
                continue
            label, group = labels[inside][0], groups[inside][0]
            margin = task.margins(at, replace(model, shifts=found).log_odds(rows))
            others = margin[~inside & (labels == label)] > 0
            shift = float(np.quantile(margin[inside], 1 - others.mean() if len(others) else 0.0, method="higher")) + TIE
            by_class = found.setdefault(column, {}).setdefault(group, [0.0] * len(classes))
            by_class[classes.index(label)] += max(0.0, shift)
    if not found:
        expected = " or ".join(f"{column}{AND_LABEL}" for column in task.protected)
        raise UsageError(
            f"restructure: threshold repairs failure modes about {expected}, and the plan names none of these"
        )
    if plan.control:
        alike = {column: np.sum(list(groups.values()), axis=0).tolist() for column, groups in found.items()}
        return {column: dict.fromkeys(sorted(set(task.rows[column])), shift) for column, shift in alike.items()}
    return found


def move(base: RowModel, folder: Path, share: float, out_dir: Path) -> None:
    """Write a repair of a model that goes only part of the way, see `Task.move`."""
    moved = base.towards(RowModel.read(folder), share)
    shutil.copytree(folder, out_dir, dirs_exist_ok=True)
    moved.save(out_dir)
    write_loader(out_dir, __file__, **moved.loading())
