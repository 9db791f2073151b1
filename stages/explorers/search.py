"""A search by the explorer and its control, with the same budget of unique probes, on the same items."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stages.core.environment import torch_threads
from stages.core.ledger import Ledger
from stages.explorers.baselines import Exhaustive
from stages.explorers.contract import Explorer, ExplorerResult, make_explorer
from stages.explorers.policy import Policy
from stages.explorers.prober import Prober
from stages.params import DiscoverConfig
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute

ShowProgress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""Opens a display for (description, total); yields a function of (completed, note): `stages.core.progress.progress`."""


@contextmanager
def silent(_description: str, _total: int) -> Iterator[Callable[[int, str], None]]:
    """Show nothing."""
    yield lambda _completed, _note: None


@dataclass(frozen=True)
class SearchResult:
    """The results of a search.

    Args:
        probes: all unique probes of both roles, in the format of probes.parquet.
        policy: the agent's policy, if it learns one.
        curves: role -> (unique probes, failures) after every batch.
        metrics: role -> explorer, budget, probes, failures, distinct failing cells and the explorer's own numbers.
        enumerated: whether the budget covered the grid, so that every pair was probed without an agent.
    """

    probes: pd.DataFrame
    policy: Policy | None
    curves: Mapping[str, list[tuple[int, int]]]
    metrics: Mapping[str, dict[str, Any]]
    enumerated: bool


def search(
    task: LoadedTask,
    item_ids: Sequence[str],
    config: DiscoverConfig,
    *,
    seed: int,
    ledger: Ledger | None = None,
    compute: Compute | None = None,
    show: ShowProgress = silent,
    label: str = "",
) -> SearchResult:
    """Let the agent and then the control spend the same budget.

    A budget that covers all (item, cell) pairs is spent on all of them, and the result is marked as enumerated. From
    any other budget some probes are kept back to measure the regions that the search names. Answers are shared through
    the ledger, but budgets are not: each role pays for all of its probes.

    Args:
        seed: seed of all randomness here; the two roles use different streams of it.
        ledger: answers so far; if it has a file, the search can be resumed.
        label: shown before the role.
    """
    pairs = len(item_ids) * task.concepts.n_used
    budget = config.searched(pairs)
    roles = roles_of(config, enumerated=budget == pairs)
    return spend(task, item_ids, roles, budget, seed=seed, ledger=ledger, compute=compute, show=show, label=label)


def roles_of(config: DiscoverConfig, *, enumerated: bool) -> dict[str, Explorer]:
    """Return the explorers by role: the agent and its control, or a single one that enumerates all pairs."""
    if enumerated:
        return {"control": Exhaustive()}
    return {"agent": make_explorer(config.explorer, config.settings), "control": make_explorer(config.baseline, {})}


def spend(
    task: LoadedTask,
    item_ids: Sequence[str],
    roles: Mapping[str, Explorer],
    budget: int,
    *,
    seed: int,
    ledger: Ledger | None = None,
    compute: Compute | None = None,
    show: ShowProgress = silent,
    label: str = "",
) -> SearchResult:
    """Let each of the `roles_of` a search spend the budget, one after the other; the rest is as for `search`."""
    ledger = ledger if ledger is not None else Ledger()
    tables, curves, metrics, policy = [], {}, {}, None
    for role, explorer in roles.items():
        with show(f"{label}{role} ({explorer.name})", budget) as tell, torch_threads(1):
            prober = Prober(task, item_ids, budget, ledger, compute, partial(show_failures, tell))
            found = explorer.explore(prober, _stream(seed, role))
        policy = found.policy if role == "agent" else policy
        table = prober.table()
        name = str(found.details.get("chosen", explorer.name))  # `auto` reports the one it chose
        tables.append(table.assign(role=role, explorer=name))
        curves[role] = prober.curve
        metrics[role] = _metrics(name, prober, table, found)
    probes = pd.concat(tables, ignore_index=True)
    first = ["role", "explorer"]
    enumerated = "agent" not in roles
    return SearchResult(probes[first + [c for c in probes if c not in first]], policy, curves, metrics, enumerated)


def show_failures(tell: Callable[[int, str], None], spent: int, failures: int) -> None:
    """Show the unique probes so far, and the failures among them."""
    tell(spent, f"{failures:,} failures")


def _stream(seed: int, role: str) -> int:
    """Derive a separate seed for each role, so that agent and control draw independently."""
    return int(np.random.SeedSequence([seed, sum(role.encode())]).generate_state(1)[0] % (2**31))


def _metrics(explorer: str, prober: Prober, table: pd.DataFrame, found: ExplorerResult) -> dict[str, Any]:
    failing = table.loc[table["failed"], prober.space.names]
    return {
        "explorer": explorer,
        "budget": prober.budget,
        "probes": prober.spent,
        "failures": prober.failures,
        "failure_rate": prober.failures / max(1, prober.spent),
        "failing_cells": len(failing.drop_duplicates()),
        **found.details,
    }
