"""What an audit begins with, whatever its kind: its kind's concepts with moderate levels, items, compute, gates.

Levels are only where calibration starts: it measures how often the model fails with them, and draws them in or out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from flows.audit_block import Draft
from flows.init.kinds import Kind
from stages.errors import UsageError
from stages.tasks.init import Init, Proposal

SEED = 7
SEARCH_SECONDS = 600.0  # what a search is meant to take
PROBES_OF_SEARCH = 2.5  # for each one of its budget: two explorers, and half as many in small steps
BUDGETS = (200, 4000)  # at least, for anything to be learnt; at most, for more seldom shows more
# Of each split at least: fewer tell nothing, and intervals over items would be wide as the range.
FEWEST = 10
# Of few items an interval is wide, and a strict bound would fail for want of evidence.
_FEW = 500


@dataclass(frozen=True)
class Wanted:
    """What a person asked for.

    Args:
        name: of the audit.
        kind: what the model does.
        model: `prepare.model`.
        data: the block of the data.
        proposal: of the kind.
        repair: whether a repair is to follow.
        budget: unique probes of the search; None: by what a probe takes.
        items: how many items there are to draw from; None where nobody knows yet.
        pools: how many of these are meant for which split; {} where the audit draws them.
    """

    name: str
    kind: Kind
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    proposal: Proposal
    repair: bool
    budget: int | None
    items: int | None
    pools: Mapping[str, int] = field(default_factory=dict)


def propose(wanted: Wanted) -> Draft:
    """An audit that is whole and valid, before anything was measured.

    Args:
        wanted: what was asked for.

    Raises:
        UsageError: when there are too few items.
    """
    items = count_items(wanted)
    kind, proposal = wanted.kind, wanted.proposal
    url = "endpoint" in wanted.model
    audit = {
        "seed": SEED,
        "task": kind.name,
        "compute": {"device": "auto", "threads": 1, "batch_size": proposal.batch_size},
        "prepare": {
            "model": dict(wanted.model),
            "data": dict(wanted.data),
            **proposal.prepare,
            "items": items,
        },
        "concepts": {name: list(levels) for name, levels in proposal.concepts.items()},
        "discrepancy": dict(kind.init.discrepancy),
        "discover": {"explorer": "auto", "baseline": "random", "budget": wanted.budget or BUDGETS[0]},
        "summarize": {"modes": 6},
        **({} if wanted.repair else {"gates": {"max_failure_rate": 0.5}}),
    }
    notes = {
        "compute": "auto takes a GPU, if there is one",
        **({} if url else {"prepare.model": f"files lie under data/{wanted.name}/inputs"}),
        "prepare.items": _said_items(wanted),
        "concepts": "Weakest level first. Not calibrated yet: `faded init` was interrupted; run it again to resume.",
        "discrepancy": kind.init.meaning,
        "discover": "unique probes for each of the two",
        **{f"concepts.{name}": note for name, note in proposal.notes.items()},
        **({} if wanted.repair else {"gates": "passes if at most half of the grid fails, by its whole interval"}),
        "repair.feedback": "a rule decides; {policy: wait} asks a person",
        "repair.gates": "A gate passes only if the whole 95% interval is on the right side of its bound.",
    }
    repair = repair_block(kind.init, items, wanted.budget or BUDGETS[0]) if wanted.repair else None
    above = frozenset({"concepts", "discrepancy", "repair.gates"})
    return Draft(wanted.name, audit, repair, notes, above)


def count_items(wanted: Wanted) -> dict[str, int]:
    """Items of each split: as many as are useful, of few a third each.

    Raises:
        UsageError: when there are too few.
    """
    init, splits = wanted.kind.init, ("discover", "repair", "test") if wanted.repair else ("discover",)
    if wanted.items is None or not init.limited:
        return {split: init.most[split] for split in splits}
    counts, left = {}, wanted.items
    for n, split in enumerate(splits):
        there = wanted.pools.get(split, 0) if wanted.pools else left // (len(splits) - n)
        counts[split] = min(init.most[split], there)
        left -= counts[split]
    if few := [f"{n:,} for {split}" for split, n in counts.items() if n < FEWEST]:
        ready = f"; its own splits are {', '.join(wanted.pools)}" if wanted.pools else ""
        if wanted.pools and not wanted.pools.get("discover"):
            ready += ", none of them (discover, or val) to search for failures"
        without = ", or --no-repair" if wanted.repair and counts["discover"] >= FEWEST else ""
        raise UsageError(
            f"--data: too few items, {', '.join(few)}, where {FEWEST} are the minimum for each of {', '.join(splits)}"
            f"{ready}: give more data{without}"
        )
    if "repair" in counts and not wanted.pools:  # a repair learns from whatever is left
        counts["repair"] = min(init.most["repair"], counts["repair"] + left)
    return counts


def search_budget(probe_seconds: float) -> int:
    """Unique probes so that both explorers and the small steps take about SEARCH_SECONDS, in two digits."""
    probes = SEARCH_SECONDS / (PROBES_OF_SEARCH * probe_seconds)
    low, high = BUDGETS
    bounded = min(high, max(low, probes))
    digits = 10 ** (len(str(int(bounded))) - 2)
    return int(bounded // digits * digits)


def all_pairs(audit: Mapping[str, Any]) -> int:
    """Pairs of an item to search and a cell of the grid: a search cannot spend more."""
    return int(audit["prepare"]["items"]["discover"]) * prod(len(levels) for levels in audit["concepts"].values())


def repair_block(init: Init, items: Mapping[str, int], budget: int) -> dict[str, Any]:
    """How the model is repaired, and what the repair has to reach."""
    few = items["test"] < _FEW
    return {
        "feedback": {"policy": "top-k", "modes": 3},
        "restructure": {"method": init.method, "control": init.control, "settings": {}},
        "re_evaluate": {"paired_probes": pairs(budget)},
        "gates": {
            "target_failure_rate": {"change_max": -0.05},
            "other_failure_rate": {"change_max": 0.05 if few else 0.0},
            "newly_failing": {"max": 0.1 if few else 0.05},
            "clean_quality": {"change_min": -0.1 if few else -0.02},
        },
    }


def pairs(budget: int) -> int:
    """Common probes of both models, inside and outside the target modes, for a search of that budget."""
    return max(100, min(2000, budget // 2))


def _said_items(wanted: Wanted) -> str:
    of = f"of {wanted.items:,}; " if wanted.items is not None and wanted.kind.init.limited else ""
    splits = "no item is in two of them" if wanted.repair else "an audit that ends with its landscape needs no others"
    return of + splits
