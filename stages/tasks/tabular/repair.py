"""Repair of a model by refitting it on rows of chosen failure modes.

It is refitted on its own rows, those of the split repair, and copies of the latter that are changed by cells of the
target modes, drawn in proportion to severity x estimated failure risk. A control uses the same rows and as many copies,
changed by cells as they occur in use, or unchanged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.errors import UsageError
from stages.params import checked
from stages.tasks.base import known_attributes
from stages.tasks.cells import PairSampler
from stages.tasks.contract import RepairPlan, RepairRecord
from stages.tasks.tabular.models import RowModel
from stages.tasks.tabular.probes import RepairSettings, RowProbes
from stages.tasks.training import write_card, write_loader

RISK_PROBES = 2000  # enough for a logistic model of a few concepts


def repair(task: RowProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Fit a copy of the task's model and write it with its card; the module describes how.

    Raises:
        UsageError: if there is nothing to repair or to learn from.
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
    if plan.control is None and failed.any() and not failed.all():
        risk = LogisticRegression(max_iter=1000).fit(space.coordinates(cells), failed)
        sampler = PairSampler(space, targets, attributes, lambda c: risk.predict_proba(space.coordinates(c))[:, 1])
    rows, learnt = sampler.draw(settings.copies * len(items), rng)
    at, changed = task.changed(items[rows].tolist(), learnt, np.arange(len(rows)))
    clean, _ = task.changed(items.tolist(), np.tile(space.start, (len(items), 1)))
    labels = task.items.table["label"].to_numpy()
    table = pd.concat([task.rows.iloc[clean], changed], ignore_index=True)
    before, base = task.clean_quality("repair").values.mean(), task.model
    assert isinstance(base, RowModel)  # `Source.repair_errors` refuses a repair of others
    task.model = base.refit(table, np.concatenate([labels[clean], labels[at]]))
    try:
        numbers = {
            "items": len(items),
            "rows_added": len(table),
            "failures_before": float(failed.mean()),
            "failures_after": float(task.probe(asked, cells).failed.mean()),
            "clean_before": float(before),
            "clean_after": float(task.clean_quality("repair").values.mean()),
        }
        task.model.save(out_dir)
    finally:
        task.model = base
    write_card(
        out_dir,
        __file__,
        plan,
        base=task.model_hash,
        model=base,
        settings=settings.model_dump(),
        space=space,
        numbers=numbers,
    )
    write_loader(out_dir, __file__, **base.loading())
    curve = pd.DataFrame({"step": [0, 1], "loss": [numbers["failures_before"], numbers["failures_after"]]})
    return RepairRecord(settings.method, 1, numbers, curve)
