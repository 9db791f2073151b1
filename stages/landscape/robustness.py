"""Summarize the smallest failing changes: how robust items are, and in which directions they are weakest."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.core.intervals import median, wilson
from stages.landscape.pairs import UNKNOWN, probes_inside
from stages.microscopic.search import FOUND, NOT_FOUND, UNCHANGED
from stages.microscopic.walks import Moves
from stages.records import RateRecord, Robustness
from stages.records.landscape import AtEpsilon, Attack, Direction, Minimal, Together, Within
from stages.records.search import Gradient, Walks

COMBINATIONS = 5  # maximum number of sets of concepts to list


def summarize_robustness(table: pd.DataFrame, space: ConceptSpace, walks: Walks) -> Robustness | None:
    """Describe the distribution of the radii and the weakest directions.

    The shares of items that fail within k steps are proportions with Wilson's interval, because items are drawn at
    random. They are given up to the number of steps to which all items were searched: an item without a failure is
    known to hold (as far as the search can tell) only up to there, and is not counted as holding forever.

    Returns:
        None if no item was explored.
    """
    if table.empty:
        return None
    moves = Moves(space, space.start)
    radius = table["radius"].astype("Float64").fillna(np.inf).to_numpy(dtype=float)
    changed = table[table["status"] == FOUND]
    censored = table.loc[table["status"] == NOT_FOUND, "searched"]
    deepest = int(censored.min()) if len(censored) else int(radius.max())
    half = float(np.sort(radius)[(len(radius) - 1) // 2])  # items that held count as infinite: an upper bound
    within = [wilson(int((radius <= k).sum()), len(radius)).to_json() for k in range(deepest + 1)]
    return Robustness(
        method=walks.method,
        probes=walks.probes,
        items=len(table),
        fail_unchanged=(table["status"] == UNCHANGED).sum(),
        found=len(changed),
        not_found=len(censored),
        searched=int(censored.min()) if len(censored) else None,
        proven=(changed["radius"] == changed["at_least"]).sum(),
        median_radius=int(half) if np.isfinite(half) else None,
        start=space.describe(moves.start.tolist()),
        not_neutral=[c.name for c in space.concepts if c.neutral not in c.levels],
        within=[Within(steps=k, **share) for k, share in enumerate(within)],
        directions=_directions(table, changed, space, moves),
        together=_together(changed, space, moves),
    ).having(gradient=_attacks(table, walks.gradient) if walks.gradient else None)


def _attacks(table: pd.DataFrame, tried: Gradient) -> list[Attack]:
    """Summarize how much noise along the gradient items withstand."""
    attacks = []
    for attack in tried.attacks:
        least = table[f"epsilon_{attack}"].astype("Float64").fillna(np.inf).to_numpy(dtype=float)
        middle, low, high = (max(value, 0.0) if value < np.inf else None for value in median(least))
        within = [(epsilon, wilson(int((least <= epsilon).sum()), len(least))) for epsilon in tried.epsilons]
        attacks.append(
            Attack(
                attack=attack,
                not_found=np.isinf(least).sum(),
                median=middle,
                low=low,
                high=high,
                within=[AtEpsilon(epsilon=epsilon, **share.to_json()) for epsilon, share in within],
            )
        )
    return attacks


def reached(table: pd.DataFrame, space: ConceptSpace, region: Region, attributes: pd.DataFrame = UNKNOWN) -> Minimal:
    """Count the smallest failing changes that end in a region, with their median number of steps (None if none)."""
    changed = table[table["status"] == FOUND]
    inside = probes_inside(space, region, changed, attributes)
    steps = changed.loc[inside, "radius"]
    return Minimal(reached=inside.sum(), of=len(changed), median_radius=float(steps.median()) if len(steps) else None)


def nearest(table: pd.DataFrame, space: ConceptSpace, n: int) -> pd.DataFrame:
    """Return the n smallest failing changes to show, from as many different sets of concepts as possible."""
    changed = table[table["status"] == FOUND].sort_values("radius", kind="stable")
    sets = pd.Series(_concepts_changed(changed, space, space.start), index=changed.index, dtype=object)
    again = sets.duplicated()
    return pd.concat([changed[~again], changed[again]]).head(n).sort_values("radius", kind="stable")


def describe_steps(space: ConceptSpace, cell: Sequence[int], steps: int) -> str:
    """Describe a change and its size: "2 steps: rotation 10°, blur 0.6"; for prompts "1 thing said: digit four"."""
    noun, said = ("thing", " said") if space.adds_words else ("step", "")
    changes = [
        f"{c.name} {c.label(int(i))}" for c, i, at in zip(space.concepts, cell, space.start, strict=True) if i != at
    ]
    return f"{steps} {noun}{'' if steps == 1 else 's'}{said}: {', '.join(changes)}"


def _concepts_changed(changed: pd.DataFrame, space: ConceptSpace, start: np.ndarray) -> list[tuple[str, ...]]:
    differs = changed[space.names].to_numpy(dtype=np.int64) != start
    return [tuple(np.array(space.names)[row].tolist()) for row in differs]


def _directions(table: pd.DataFrame, changed: pd.DataFrame, space: ConceptSpace, moves: Moves) -> list[Direction]:
    """Count per concept the smallest changes with it, and the steps it needs alone. Most used first."""
    cells = changed[space.names].to_numpy(dtype=np.int64)
    tried = table[table["tried_alone"] & (table["status"] != UNCHANGED)]  # a small budget does not reach all items
    entries = []
    for j, concept in enumerate(space.concepts):
        only = np.where(np.arange(len(space)) == j, cells, moves.start)
        steps = moves.steps(only)
        used = steps > 0
        alone = tried[f"alone_{concept.name}"].dropna()
        entries.append(
            Direction(
                concept=concept.name,
                used=used.sum(),
                share=float(used.mean()) if len(used) else None,
                mean_steps=float(steps[used].mean()) if used.any() else None,
                alone=RateRecord.from_rate(wilson(len(alone), len(tried))),
                alone_median_steps=float(alone.median()) if len(alone) else None,
            )
        )
    return sorted(entries, key=lambda entry: -entry.used)


def _together(changed: pd.DataFrame, space: ConceptSpace, moves: Moves) -> list[Together]:
    counts = Counter(_concepts_changed(changed, space, moves.start))
    order = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [Together(concepts=list(names), items=n) for names, n in order[:COMBINATIONS]]
