"""Data for `dvc plots`: tables of a few hundred rows, written beside the reports that show the same."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.pages.marginals import marginal, shown_concepts
from stages.records import Comparison

_POINTS = 200  # points of each curve; more could not be distinguished


def search_plot(probes: pd.DataFrame) -> pd.DataFrame:
    """Return failures against unique probes of agent and control, in columns `role`, `probes`, `failures`."""
    parts = []
    for role, rows in probes.groupby("role", sort=True):
        found = rows.sort_values("order")["failed"].astype(int).cumsum().to_numpy()
        at = np.unique(np.linspace(0, len(found) - 1, _POINTS).round().astype(int))
        parts.append(pd.DataFrame({"role": role, "probes": at + 1, "failures": found[at]}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["role", "probes", "failures"])


def pair_plot(cells: pd.DataFrame, space: ConceptSpace) -> pd.DataFrame:
    """Return the estimated failure rate (%) over the pair of concepts with the highest rate.

    Args:
        cells: the landscape, one row per cell.
        space: its concepts.

    Returns:
        Columns `x` and `y`, each a concept with its level, and `failure_rate`; no rows if there is only one concept.
    """
    rates = [marginal(cells, space, pair) for pair in combinations(shown_concepts(cells, space), 2)]
    if not rates or cells["rate"].isna().all():
        return pd.DataFrame(columns=["x", "y", "failure_rate"])
    worst = max(rates, key=lambda table: float(table["rate"].max()))
    x, y = (space.concepts[space.names.index(name)] for name in worst.columns[:2])
    return pd.DataFrame(
        {
            "x": [f"{x.name} {x.label(level)}" for level in worst[x.name]],
            "y": [f"{y.name} {y.label(level)}" for level in worst[y.name]],
            "failure_rate": (100 * worst["rate"]).round(1),
        }
    )


def modes_plot(comparison: Comparison) -> pd.DataFrame:
    """Return the failure rate (%) in each mode, in columns `mode`, `model` (before, after, control), `failure_rate`."""
    rows = [
        {"mode": f"{mode.id}: {mode.text}", "model": model, "failure_rate": round(100 * rate, 1)}
        for mode in comparison.modes
        for model, rate in (
            ("before", mode.before),
            ("after", mode.after),
            ("control", mode.control.after if mode.control else None),
        )
        if rate is not None
    ]
    return pd.DataFrame(rows, columns=["mode", "model", "failure_rate"])
