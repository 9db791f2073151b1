"""Query further trainings of a repair and its control with the same pairs of unseen items and cells.

Failures against training steps show what aiming is worth: a control that trains longer may reach the same rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.core.files import stage_dir
from stages.core.ledger import Ledger
from stages.core.processes import WORTH, Crew
from stages.explorers.policy import load_policy
from stages.explorers.prober import Prober
from stages.landscape.pairs import draw_pairs, inside_any, use_of_pairs
from stages.params import AuditConfig
from stages.ratings import rated
from stages.records import AuditFolder
from stages.records.repair import Training
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.load import load_alone, task_context

_OF_MODEL = ("copy_of", "training", "dose", "steps")
UNTRAINED = Training(folder="", copy_of="before", training=0, dose=0.0, steps=0)


class WeightedPairs(NamedTuple):
    """Pairs of items, by number (n,), and cells (n, concepts), and how much each counts (n,)."""

    items: np.ndarray
    cells: np.ndarray
    weights: np.ndarray


def ask_trainings(here: AuditFolder, audit: AuditConfig, task: LoadedTask, pairs: int, scratch: Path) -> pd.DataFrame:
    """Query the model before and all trained models with the same pairs, and with every unchanged test item.

    Args:
        here: the records of the audit.
        audit: its configuration.
        task: the model before.
        pairs: number of pairs in each part.
        scratch: folder of the ledgers.

    Returns:
        A table with `copy_of`, `training`, `dose`, `steps`, `part`, `item`, `weight`, `valid` and `value`: 1 for a
        failure and 0 otherwise, or the clean quality in the part `clean`. Empty if repair and control were trained
        once.
    """
    trained = here.restructure.trainings.models
    if not any(model.training for model in trained):
        return pd.DataFrame(columns=[*_OF_MODEL, "part", "item", "weight", "value", "valid"])
    name, prepared = here.path.name, stage_dir(here.path.name, "prepare")
    models = {prepared / "model": UNTRAINED}
    models |= {here.restructure.path / "models" / model.folder: model for model in trained}
    ask = partial(_ask, name, audit, prepared, _parts(here, task, pairs, audit.seed), scratch)
    crew = Crew(task_context(name, audit, prepared).compute.processes, after=WORTH)
    tables = crew.ask(ask, [(folder,) for folder in models])
    told = [{column: getattr(model, column) for column in _OF_MODEL} for model in models.values()]
    return pd.concat([table.assign(**about) for table, about in zip(tables, told, strict=True)], ignore_index=True)


def _parts(here: AuditFolder, task: LoadedTask, n: int, seed: int) -> dict[str, WeightedPairs]:
    """Draw the pairs to query: `targets`, `others` and, if the repair followed the search's policy, `drawn`.

    The last are the cells where that policy, learnt on other items, looks for these, without a query.
    """
    space, item_ids = task.concepts, task.items.ids("test")
    targets = [mode.cells for mode in here.collect_feedback.plan.targets]
    known = known_attributes(task, item_ids)
    items, cells = draw_pairs(space, known, targets, n, seed + 1)
    inside = inside_any(space, targets, cells, known.iloc[items])
    use = use_of_pairs(space, targets, known, cells, inside, seed)
    sides = {"targets": inside, "others": ~inside}
    found = {part: WeightedPairs(items[side], cells[side], use[side]) for part, side in sides.items()}
    followed = here.restructure.trainings.by_policy
    if followed and (policy := load_policy(here.discover.path / "policy")) is not None:
        rows = np.resize(np.random.default_rng([seed, 2]).permutation(len(item_ids)), n)
        drawn = policy.sample(task.embed(item_ids), -(-n // len(item_ids)), seed)
        pairs = np.unique(np.column_stack([rows, drawn[rows, np.arange(n) // len(item_ids)]]), axis=0)
        found["drawn"] = WeightedPairs(pairs[:, 0], pairs[:, 1:], np.ones(len(pairs)))
    return found


def _ask(
    name: str, audit: AuditConfig, prepared: Path, asked: Mapping[str, WeightedPairs], scratch: Path, folder: Path
) -> pd.DataFrame:
    """Return the answers of one model: `part`, `item`, `weight`, `value`, `valid`."""
    task = rated(load_alone(name, audit, prepared, folder), name, audit)
    item_ids, compute = task.items.ids("test"), task_context(name, audit, prepared).compute
    ledger, tables = Ledger(scratch / f"{folder.name}.jsonl"), []
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
