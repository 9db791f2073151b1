"""Divide one search among independent explorers, each with its own items, budget and seed.

Items are divided, so no two shares can make the same probe, and each share's budget is proportional to its items. Every
pair of item and cell is then as likely to be among the control's draws as in an undivided search: within a share each
is drawn with probability budget / (items * cells), which is the same in all shares up to a remainder of less than one
probe. Such a stratified sample is at least as informative as one drawn at random (Cochran 1977, Sampling Techniques,
5.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.errors import UsageError
from stages.core.ledger import Ledger
from stages.explorers.model_based import Auto
from stages.explorers.search import SearchResult, ShowProgress, roles_of, silent, spend
from stages.params import DiscoverConfig
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute

STREAM = b"shards"  # separates the random draws here from those of an undivided search


@dataclass(frozen=True)
class Share:
    """The part of a search that one of several independent explorers gets.

    Args:
        part: number of the share, from 1.
        item_ids: its items, in the order of the whole search; no other share has any of them.
        budget: unique probes for its agent, and as many for its control.
        whole: unique probes of all shares for each role. `auto` chooses by it, so that all shares choose the same
            explorer, which finds more than random draws even with a share's fewer probes (docs/scaling.md).
        enumerated: whether the budget of the whole search covers all pairs, and so that of each share does.
        seed: seed of all randomness in this share.
    """

    part: int
    item_ids: list[str]
    budget: int
    whole: int
    enumerated: bool
    seed: int


def divide(item_ids: Sequence[str], n_cells: int, budget: int, shards: int, seed: int) -> list[Share]:
    """Divide items and budget among shares: sizes differ by at most one item, budgets by that item's part and a probe.

    Args:
        item_ids: the items of the whole search.
        n_cells: number of cells that occur in use.
        budget: unique probes of the whole search, for each role.
        shards: number of shares.
        seed: seed of the draw; other seeds divide the items differently.

    Raises:
        UsageError: if there are fewer items or probes than shares, or too few probes for the smallest share.
    """
    n, total = len(item_ids), min(budget, len(item_ids) * n_cells)
    for what, count in (("items of the split discover", n), ("probes of discover.budget", total)):
        if count < shards:
            raise UsageError(f"discover.shards is {shards:,}, but there are {count:,} {what}: each share needs one")
    drawn = np.random.default_rng([seed, *STREAM]).permutation(n)
    ends = [n * part // shards for part in range(shards + 1)]
    spent = [total * end // n for end in ends]
    budgets = np.diff(spent).tolist()
    if min(budgets) == 0:
        raise UsageError(
            f"discover.shards is {shards:,}: of {n:,} items and a discover.budget of {total:,} probes a share would get"
            " no probe, and each needs one"
        )
    return [
        Share(
            part=part,
            item_ids=[item_ids[i] for i in sorted(drawn[ends[part - 1] : ends[part]].tolist())],
            budget=budgets[part - 1],
            whole=total,
            enumerated=budget >= n * n_cells,
            seed=int(np.random.SeedSequence([seed, *STREAM, part]).generate_state(1)[0] % (2**31)),
        )
        for part in range(1, shards + 1)
    ]


def search_share(
    task: LoadedTask,
    share: Share,
    config: DiscoverConfig,
    *,
    ledger: Ledger | None = None,
    compute: Compute | None = None,
    show: ShowProgress = silent,
) -> SearchResult:
    """Search one share with agent and control as in a whole search, independent of the other shares."""
    roles = roles_of(config, enumerated=share.enumerated)
    if isinstance(auto := roles.get("agent"), Auto):
        roles["agent"] = Auto(auto.settings, budget=share.whole)
    return spend(task, share.item_ids, roles, share.budget, seed=share.seed, ledger=ledger, compute=compute, show=show)
