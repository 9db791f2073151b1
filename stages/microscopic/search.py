"""Microscopic exploration: find the smallest change, in single steps of single concepts, that makes the model fail."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.core.environment import torch_threads
from stages.core.ledger import Ledger
from stages.explorers.prober import Prober
from stages.explorers.search import ShowProgress, show_failures, silent
from stages.microscopic.agent import train_and_walk
from stages.microscopic.settings import agent_settings
from stages.microscopic.walks import (
    NEVER,
    Moves,
    WalkState,
    reduce_drawn,
    reduce_strongest,
    search_layers,
    share_failures,
    try_alone,
    walk_back,
    widths,
)
from stages.params import DiscoverConfig, GradientConfig
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute

UNCHANGED, FOUND, NOT_FOUND = "fails unchanged", "found", "not found"
STREAM = b"microscopic"  # separates the random draws here from those of the macroscopic search


@dataclass(frozen=True)
class RobustnessResult:
    """The smallest changes of items that make the model fail.

    Args:
        table: one row per item, as robustness.parquet in docs/files.md.
        metrics: method, its own budget and probes (0 if the grid was enumerated), and counts, for metrics.json.
    """

    table: pd.DataFrame
    metrics: dict[str, Any]


def measure_robustness(
    task: LoadedTask,
    item_ids: Sequence[str],
    config: DiscoverConfig,
    *,
    seed: int,
    enumerated: bool = False,
    ledger: Ledger | None = None,
    compute: Compute | None = None,
    show: ShowProgress = silent,
) -> RobustnessResult:
    """Find the smallest failing change of each of some items, drawn at random.

    Every method first probes each item at the start, and finds how far each concept alone has to go. Then

    - `beam` starts with the strongest change and reduces it, which is fast. With categories, or two directions, it also
      draws other strong changes, and tries each failure of one item on others. It then searches outward and follows the
      cells nearest to failing, 1 of each layer, then 2, 4, ... up to `width`, as far as the budget allows (iterative
      broadening, Ginsberg and Harvey 1992); each pass only searches for something nearer than already known;
    - `exact` also reduces, then follows all cells (breadth-first search), so that the nearest failure is certain. An
      enumerated grid always uses it, because its answers are in the ledger;
    - `rl` trains an agent on other items (`stages.microscopic.agent`) and lets it walk, as in the paper.

    Changes found are irreducible: with one step less the item passes, as far as the budget allowed to probe that.

    If `microscopic.gradient` is set, the same items are attacked by noise (`smallest_noise`).

    Args:
        config: with `microscopic`, and the budget of the search it belongs to.
        enumerated: whether the ledger contains all answers.
        ledger: answers so far; if it has a file, the search can be resumed.
    """
    steps = config.microscopic
    moves = Moves(task.concepts, task.concepts.start)
    if steps.method == "none":
        nobody = WalkState(Prober(task, [], 0), moves, 0)
        return RobustnessResult(
            _table(task.concepts, nobody, [], np.zeros(0, dtype=bool)), {"method": "none", "items": 0}
        )
    method, budget, wanted = steps.method, config.microscopic_budget, steps.items
    if enumerated:
        method, budget, wanted = "exact", len(item_ids) * task.concepts.n_cells, len(item_ids)
    rng = np.random.default_rng([seed, *STREAM])
    wanted = min(wanted, budget, len(item_ids))  # each is probed at least once
    order = rng.permutation(len(item_ids))
    chosen, others = (sorted(part.tolist()) for part in (order[:wanted], order[wanted:]))
    walking = [item_ids[i] for i in chosen]
    everyone = walking + ([item_ids[i] for i in others] if method == "rl" else [])
    details: dict[str, Any] = {}
    with show(f"small steps ({method})", budget) as tell, torch_threads(1):
        prober = Prober(task, everyone, budget, ledger, compute, partial(show_failures, tell))
        walks = WalkState(prober, moves, len(walking), steps.max_steps)
        harm = try_alone(walks)
        if method != "rl":
            reduce_strongest(walks, harm)
            reduce_drawn(walks, harm, rng)
            walk_back(walks)
        if method == "exact":
            search_layers(walks, None)
        elif method == "beam":
            for width in widths(steps.width):
                search_layers(walks, width)
                walk_back(walks)
                share_failures(walks)
        else:
            details = train_and_walk(walks, agent_settings(steps), int(rng.integers(2**31)))
            walk_back(walks)
            share_failures(walks)
    table = _table(task.concepts, walks, walking, np.isfinite(harm).all(axis=1))
    if steps.gradient is not None:
        noise = smallest_noise(task, walking, walks.radius > 0, steps.gradient, show)
        for attack, least in noise.items():
            table[f"epsilon_{attack}"] = pd.Series(least, dtype="Float64").where(pd.Series(np.isfinite(least)), pd.NA)
        details["gradient"] = steps.gradient.model_dump()
    counts = table["status"].value_counts()
    metrics = {
        "method": method,
        "budget": 0 if enumerated else prober.budget,
        "probes": 0 if enumerated else prober.spent,
        "items": len(walking),
        "fail_unchanged": int(counts.get(UNCHANGED, 0)),
        "found": int(counts.get(FOUND, 0)),
        "not_found": int(counts.get(NOT_FOUND, 0)),
        "longest": walks.limit,
        **details,
    }
    return RobustnessResult(table, metrics)


def smallest_noise(
    task: LoadedTask, item_ids: Sequence[str], passing: np.ndarray, config: GradientConfig, show: ShowProgress
) -> dict[str, np.ndarray]:
    """Find by bisection the smallest epsilon of the list at which each attack makes each item fail.

    It assumes that an attack that succeeds also succeeds with more noise. The failure it returns is real in any case,
    but one with less noise may be missed.

    Args:
        task: the model under test, which offers `attacked`.
        item_ids: n items.
        passing: (n,) bool, which of them pass unchanged; the others need no noise, and get 0.

    Returns:
        {attack: (n,) float64 epsilons, inf if no epsilon of the list is enough}.
    """
    epsilons = np.array(config.epsilons)
    found: dict[str, np.ndarray] = {}
    for attack in config.attacks:
        low, high = np.zeros(len(item_ids), dtype=np.int64), np.where(passing, len(epsilons), 0)
        with show(f"noise along the gradient ({attack})", len(item_ids)) as tell:
            while (left := np.flatnonzero(low < high)).size:
                middle = (low[left] + high[left]) // 2
                for at in np.unique(middle):
                    items = left[middle == at]
                    failed = task.attacked([item_ids[i] for i in items], attack, float(epsilons[at]), config.steps)
                    high[items[failed]], low[items[~failed]] = at, at + 1
                tell(int((low == high).sum()), "")
        found[attack] = np.where(passing, np.append(epsilons, np.inf)[high], 0.0)
    return found


def _table(space: ConceptSpace, walks: WalkState, item_ids: Sequence[str], tried_alone: np.ndarray) -> pd.DataFrame:
    found = walks.radius < NEVER
    status = np.select([walks.radius == 0, found], [UNCHANGED, FOUND], NOT_FOUND)
    alone = walks.alone.T
    return pd.DataFrame(
        {
            "item": pd.Series(item_ids, dtype="str"),
            "status": pd.Series(status, dtype="str"),
            "radius": _nullable(walks.radius, found),
            "at_least": walks.passed + 1,
            "searched": walks.searched,
            "queries": walks.queries,
            **{name: _nullable(levels, found) for name, levels in zip(space.names, walks.failing.T, strict=True)},
            "tried_alone": tried_alone,
            **{
                f"alone_{name}": _nullable(steps, steps < NEVER) for name, steps in zip(space.names, alone, strict=True)
            },
        }
    )


def _nullable(values: np.ndarray, known: np.ndarray) -> pd.Series:
    return pd.Series(values, dtype="Int64").where(pd.Series(known), pd.NA)
