"""Query all trainings of a repair and its control, the whole way and half-way, with the same pairs of unseen items.

What they mend against what they break shows what aiming is worth, see `stages.landscape.frontier`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.core.files import stage_dir
from stages.core.ledger import Ledger
from stages.core.processes import WORTH, Crew
from stages.explorers.prober import Prober
from stages.landscape.pairs import draw_pairs, inside_any, use_of_pairs
from stages.params import AuditConfig
from stages.params.repair import HALFWAY
from stages.ratings import rated
from stages.records import AuditFolder
from stages.records.repair import Training
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.load import load_alone, task_context

_OF_MODEL = ("copy_of", "training", "dose", "share", "steps")
UNTRAINED = Training(folder="", copy_of="before", training=0, dose=0.0, steps=0, share=0.0)


class WeightedPairs(NamedTuple):
    """Pairs of items, by number (n,), and cells (n, concepts), and how much each counts (n,)."""

    items: np.ndarray
    cells: np.ndarray
    weights: np.ndarray


def ask_trainings(here: AuditFolder, audit: AuditConfig, task: LoadedTask, pairs: int, scratch: Path) -> pd.DataFrame:
    """Query the model before and all trained models with the same pairs, and with every unchanged test item.

    Models that were trained for as many steps as the repair, or more, are also asked half-way to what they learnt.

    Args:
        here: the records of the audit.
        audit: its configuration.
        task: the model before.
        pairs: number of pairs in each part.
        scratch: folder of the ledgers.

    Returns:
        A table with `copy_of`, `training`, `dose`, `share`, `steps`, `published` (the repair and the control that are
        handed on), `part`, `item`, `weight`, `valid` and `value`: 1 for a failure and 0 otherwise, or the clean quality
        in the part `clean`. Empty if the plan repairs nothing, or there is neither a control nor a second training.
    """
    trainings = here.restructure.trainings
    trained, targets = trainings.models, here.collect_feedback.plan.targets
    if not targets or len({(model.copy_of, model.training) for model in trained}) == 1:
        return pd.DataFrame(columns=[*_OF_MODEL, "published", "part", "item", "weight", "value", "valid"])
    name, prepared = here.path.name, stage_dir(here.path.name, "prepare")
    models = {prepared / "model": UNTRAINED}
    models |= {here.restructure.path / "models" / model.folder: model for model in trained}
    if trainings.movable:
        models |= _halfway(task.automatic_task, models, scratch / "halfway")
    ask = partial(_ask, name, audit, prepared, _parts(here, task, pairs, audit.seed), scratch)
    crew = Crew(task_context(name, audit, prepared).compute.processes, after=WORTH)
    tables = crew.ask(ask, [(folder, _ledger(model)) for folder, model in models.items()])
    told = [
        {column: getattr(model, column) for column in _OF_MODEL}
        | {"published": model.folder in ("repaired", "control")}
        for model in models.values()
    ]
    return pd.concat([table.assign(**about) for table, about in zip(tables, told, strict=True)], ignore_index=True)


def _halfway(task: LoadedTask, models: Mapping[Path, Training], out: Path) -> dict[Path, Training]:
    """Write the models half-way to those that were trained for at least the repair's steps."""
    found, known = {}, {_ledger(model) for model in models.values()}
    for folder, model in models.items():
        moved = model.model_copy(update={"folder": "", "share": HALFWAY})
        if model.dose >= 1 and model.share == 1 and _ledger(moved) not in known:
            there = out / _ledger(moved)
            shutil.rmtree(there, ignore_errors=True)
            task.move(folder, HALFWAY, there)
            found[there] = moved
    return found


def _ledger(model: Training) -> str:
    return f"{model.copy_of}-{model.dose:g}-{model.training}-{model.share:g}"


def _parts(here: AuditFolder, task: LoadedTask, n: int, seed: int) -> dict[str, WeightedPairs]:
    """Draw the pairs to query: `targets` and `others`."""
    space, item_ids = task.concepts, task.items.ids("test")
    targets = [mode.cells for mode in here.collect_feedback.plan.targets]
    known = known_attributes(task, item_ids)
    items, cells = draw_pairs(space, known, targets, n, seed + 1)
    inside = inside_any(space, targets, cells, known.iloc[items])
    use = use_of_pairs(space, targets, known, cells, inside, seed)
    sides = {"targets": inside, "others": ~inside}
    return {part: WeightedPairs(items[side], cells[side], use[side]) for part, side in sides.items()}


def _ask(
    name: str,
    audit: AuditConfig,
    prepared: Path,
    asked: Mapping[str, WeightedPairs],
    scratch: Path,
    folder: Path,
    ledger_name: str,
) -> pd.DataFrame:
    """Return the answers of one model: `part`, `item`, `weight`, `value`, `valid`."""
    task = rated(load_alone(name, audit, prepared, folder), name, audit)
    item_ids, compute = task.items.ids("test"), task_context(name, audit, prepared).compute
    ledger, tables = Ledger(scratch / f"training-{ledger_name}.jsonl"), []
    for part, (items, cells, weights) in asked.items():
        prober = Prober(task, item_ids, len(items), ledger, compute)
        prober.ask(items, cells)
        found = prober.table()
        failed, valid = found["failed"].astype(bool), found["valid"].astype(bool)
        value = failed.astype(float)
        tables.append(
            pd.DataFrame({"part": part, "item": found["item"], "weight": weights, "value": value, "valid": valid})
        )
    ledger.close()
    quality = task.clean_quality("test")
    clean = pd.DataFrame({"item": quality.item_ids, "value": quality.values})
    tables.append(clean.assign(part="clean", weight=1.0, valid=True))
    return task.items.with_groups(pd.concat(tables))
