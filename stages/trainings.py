"""What further trainings of a repair and its control answer, on the same pairs of unseen items and cells.

Failures against steps say what aiming is worth: the control reaches any rate, too, if it may train for longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import Region
from stages.explorers.policies import load_policy
from stages.explorers.prober import Prober
from stages.landscape.pairs import draw_pairs, inside_any
from stages.ledger import Ledger
from stages.params import AuditConfig
from stages.processes import WORTH, Crew
from stages.ratings import rated
from stages.records.repair import Training
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.load import load_alone, task_context

PAIRS = 1000  # of each part
UNTRAINED = Training(folder="", copy_of="before", training=0, steps=0)


class Part(NamedTuple):
    """Pairs of items, by their numbers (n,), and cells (n, concepts)."""

    items: np.ndarray
    cells: np.ndarray


def parts(task: LoadedTask, targets: Sequence[Region], policy_folder: Path, pairs: int, seed: int) -> dict[str, Part]:
    """What all trainings are asked about, by name: `targets`, `others` and, of a search that learnt a policy, `drawn`.

    Args:
        task: gives the test items.
        targets: the target modes.
        policy_folder: of what the search learnt on other items: `drawn` is where it would look for these.
        pairs: of each part, at most.
        seed: of the draws.
    """
    space, item_ids = task.concepts, task.items.ids("test")
    known = known_attributes(task, item_ids)
    n, rng = min(pairs, PAIRS), np.random.default_rng([seed, 2])
    items, cells = draw_pairs(space, known, targets, n, seed + 1)
    inside = inside_any(space, targets, cells, known.iloc[items])
    found = {"targets": Part(items[inside], cells[inside]), "others": Part(items[~inside], cells[~inside])}
    if (policy := load_policy(policy_folder)) is not None:
        rows = np.resize(rng.permutation(len(item_ids)), n)
        drawn = policy.sample(task.embed(item_ids), -(-n // len(item_ids)), seed)
        pairs_drawn = np.column_stack([rows, drawn[rows, np.arange(n) // len(item_ids)]])
        unique = np.unique(pairs_drawn, axis=0)
        found["drawn"] = Part(unique[:, 0], unique[:, 1:])
    return found


def ask_trainings(
    name: str,
    audit: AuditConfig,
    prepared: Path,
    models: Mapping[Path, Training],
    asked: Mapping[str, Part],
    scratch: Path,
) -> pd.DataFrame:
    """Put the parts, and every unchanged test item, to all models.

    Args:
        name: of the audit.
        audit: how it is searched.
        prepared: its folder of the stage prepare.
        models: what was trained, by its folder.
        asked: see `parts`.
        scratch: keeps ledgers.

    Returns:
        A row each: `copy_of`, `training`, `steps`, `part`, `item` and `value`; that is 1 for a failure and 0 for none,
        of the part `clean` the clean quality.
    """
    ask = partial(_ask, name, audit, prepared, asked, scratch)
    crew = Crew(task_context(name, audit, prepared).compute.processes, after=WORTH)
    tables = crew.ask(ask, [(folder,) for folder in models])
    named = [
        table.assign(copy_of=training.copy_of, training=training.training, steps=training.steps)
        for table, training in zip(tables, models.values(), strict=True)
    ]
    columns = ["copy_of", "training", "steps", "part", "item", "value"]
    return pd.concat(named, ignore_index=True)[columns] if named else pd.DataFrame(columns=columns)


def _ask(
    name: str, audit: AuditConfig, prepared: Path, asked: Mapping[str, Part], scratch: Path, folder: Path
) -> pd.DataFrame:
    """Answers of one model: `part`, `item`, `value`."""
    task = rated(load_alone(name, audit, prepared, folder), name, audit)
    item_ids, compute = task.items.ids("test"), task_context(name, audit, prepared).compute
    ledger, tables = Ledger(scratch / f"{folder.name}.jsonl"), []
    for part, (items, cells) in asked.items():
        prober = Prober(task, item_ids, len(items), ledger, compute)
        prober.ask(items, cells)
        found = prober.table()
        tables.append(pd.DataFrame({"part": part, "item": found["item"], "value": found["failed"].astype(float)}))
    ledger.close()
    quality = task.clean_quality("test")
    return pd.concat([*tables, pd.DataFrame({"part": "clean", "item": quality.item_ids, "value": quality.values})])
