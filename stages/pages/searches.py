"""The search as both reports show it: failures against unique probes, agent against control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.pages import figures
from stages.pages.page import Picture
from stages.pages.scales import AFTER, AGENT, BEFORE, CONTROL
from stages.pages.words import is_number, number, percent

_IN_WORDS = ("explorer", "chosen", "why")  # said in titles and sentences, not in the table
_SURROGATES = {"process": "Gaussian process", "boosting": "boosted trees"}


class Run(NamedTuple):
    """One search by one explorer: its title, how its line is drawn, its curve (may be empty) and its final numbers."""

    role: str
    title: str
    colour: str
    dash: str
    curve: pd.DataFrame
    totals: dict[str, Any]


def search_view(probes: pd.DataFrame, search: Mapping[str, Any]) -> dict[str, Any] | None:
    """The agent against its control: curves, final numbers, and a sentence that says who found more."""
    runs = _runs(probes, search)
    return {"sentence": _who_found_more(runs) + _who_chose(search), **_body(runs)} if runs else None


def compare_searches(probes: pd.DataFrame, search: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same search on each model in one picture; probes with the columns model and purpose."""
    rows = probes[probes["purpose"] == "search"] if "purpose" in probes else probes
    looks = {"before": BEFORE, "after": AFTER, "control": CONTROL}
    all_runs, sentences = [], []
    for model, colour in looks.items():
        part = rows[rows["model"] == model] if "model" in rows else rows.iloc[:0]
        runs = _runs(part, search.get(model) or {}, f"{model}: ", (colour, colour))
        if runs:
            sentences.append(f"{model.capitalize()}: {_who_found_more(runs)}")
            all_runs += runs
    return {"sentences": sentences, **_body(all_runs)} if all_runs else None


def _runs(
    probes: pd.DataFrame,
    search: Mapping[str, Any],
    prefix: str = "",
    colours: tuple[str, str] = (AGENT, CONTROL),
) -> list[Run]:
    runs = []
    for role, colour, dash in (("agent", colours[0], "solid"), ("control", colours[1], "dash")):
        rows = probes[probes["role"] == role] if {"role", "failed"} <= set(probes.columns) else probes.iloc[:0]
        known = search.get(role) or {}
        if not len(rows) and not known:
            continue
        explorer = known.get("explorer") or (rows["explorer"].iloc[0] if "explorer" in rows and len(rows) else role)
        totals = {
            key: value for key, value in known.items() if key not in _IN_WORDS and not isinstance(value, list | dict)
        }
        curve = _curve(rows) if len(rows) else pd.DataFrame({"probes": [], "failures": []})
        if len(rows):
            totals |= {"probes": len(curve), "failures": int(curve["failures"].iloc[-1])}
        runs.append(Run(role, f"{prefix}{role} ({explorer})", colour, dash, curve, totals))
    return runs


def _curve(probes: pd.DataFrame) -> pd.DataFrame:
    """Failures against unique probes of one search, in the order they were asked: columns probes, failures."""
    ordered = probes.sort_values("order") if "order" in probes else probes
    failures = ordered["failed"].astype(int).cumsum()
    return pd.DataFrame({"probes": np.arange(1, len(ordered) + 1), "failures": failures.to_numpy()})


def _body(runs: Sequence[Run]) -> dict[str, Any]:
    drawn = [run for run in runs if len(run.curve)]
    picture = None
    if drawn:
        ends = "; ".join(
            f"{r.title} {number(r.totals['failures'])} in {number(r.totals['probes'])} probes" for r in drawn
        )
        figure = figures.curves([(run.title, run.colour, run.dash, run.curve) for run in drawn])
        picture = Picture(f"Failures found against unique probes: {ends}.", [("", figure)], 360)
    keys = dict.fromkeys(key for run in runs for key in run.totals)
    return {
        "picture": picture,
        "columns": [run.title for run in runs],
        "rows": [(key, [_cell(key, run.totals.get(key)) for run in runs]) for key in keys],
    }


def _cell(key: str, value: Any) -> str:
    if key.endswith(("rate", "entropy")) and is_number(value) and 0 <= value <= 1:
        return percent(value)
    return number(_SURROGATES.get(value, value) if key == "surrogate" else value)


def _who_chose(search: Mapping[str, Any]) -> str:
    """Which explorer `auto` took and why; nothing where the user named one."""
    agent = search.get("agent") or {}
    if "chosen" not in agent:
        return ""
    why = f": {agent['why']}" if agent.get("why") else ""
    return f" The explorer was left to auto, which took {agent['chosen']}{why}."


def _who_found_more(runs: Sequence[Run]) -> str:
    """A sentence that is as plain when the agent loses as when it wins."""
    by_role = {run.role: run.totals for run in runs}
    names = {run.role: run.title.rpartition(": ")[2] for run in runs}
    a, c = (by_role.get(role, {}) for role in ("agent", "control"))
    if not (is_number(a.get("failures")) and is_number(c.get("failures"))):
        role = "control" if is_number(c.get("failures")) else runs[0].role
        total = by_role[role]
        found = f"{number(total.get('failures'))} failures in {number(total.get('probes'))} unique probes"
        return f"The {names[role]} found {found}."
    agent, control = int(a["failures"]), int(c["failures"])
    budget = f"With {number(a.get('probes'))} unique probes each"
    if a.get("probes") != c.get("probes"):
        budget = f"With {number(a.get('probes'))} and {number(c.get('probes'))} unique probes"
    counts = f"the {names['agent']} found {agent:,} failures and the {names['control']} {control:,}"
    if control > agent:
        return f"{budget}, {counts}: here the control found more. The agent did not pay off in this run."
    if agent < 1.05 * control or agent == control:
        return f"{budget}, {counts}: hardly a difference."
    return f"{budget}, {counts}" + (f": {agent / control:.1f} times as many." if control else ".")
