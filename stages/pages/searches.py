"""The search as shown on all pages: failures against unique probes, agent against control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.pages.figures import AFTER, AGENT, BEFORE, CONTROL, DASHED, VALUE_COLOURS, curves
from stages.pages.page import Picture
from stages.pages.words import is_number, number, percent
from stages.records import Search, Searches
from stages.records.search import ModelSearches

_IN_WORDS = ("explorer", "chosen", "why")  # in titles and sentences rather than in the table
_SAID = {"failure_rate": "share of its probes that failed"}  # not a rate: neither search draws cells as they occur
_SURROGATES = {"process": "Gaussian process", "boosting": "boosted trees"}


class SearchRun(NamedTuple):
    """One search by one explorer: its title, how its line is drawn, its curve (may be empty) and its final numbers."""

    title: str
    colour: str
    dash: str
    curve: pd.DataFrame
    totals: dict[str, Any]  # explorers may add their own


class SearchView(NamedTuple):
    """Searches side by side: sentences, curves, and a table with a column for each search."""

    sentences: list[str]
    picture: Picture | None
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def search_view(probes: pd.DataFrame, search: Searches) -> SearchView | None:
    """Compare the agent with its control: curves, final numbers, and a sentence on which found more."""
    runs = _runs(probes, search)
    return _view([_who_found_more(runs) + _who_chose(search.agent)], runs) if runs else None


def compare_searches(probes: pd.DataFrame, search: Mapping[str, ModelSearches]) -> SearchView | None:
    """Return the same search on each model in one picture; `probes` has the columns model and purpose."""
    rows = probes[probes["purpose"] == "search"]
    parts = {model: (rows[rows["model"] == model], found) for model, found in search.items()}
    return _together(parts, {"before": BEFORE, "after": AFTER}, str.capitalize)


def searches_of(results: Mapping[str, tuple[pd.DataFrame, Searches]]) -> SearchView | None:
    """Return the searches of several results in one picture, each in its own colour and with its control dashed."""
    return _together(results, dict(zip(results, cycle(VALUE_COLOURS), strict=False)), str)


def _together(
    parts: Mapping[str, tuple[pd.DataFrame, Searches]], colours: Mapping[str, str], named: Callable[[str], str]
) -> SearchView | None:
    all_runs, sentences = [], []
    for name, (probes, search) in parts.items():
        runs = _runs(probes, search, f"{name}: ", (colours[name], colours[name]))
        if runs:
            sentences.append(f"{named(name)}: {_who_found_more(runs)}")
            all_runs += runs
    return _view(sentences, all_runs) if all_runs else None


def _runs(
    probes: pd.DataFrame,
    search: Searches,
    prefix: str = "",
    colours: tuple[str, str] = (AGENT, CONTROL),
) -> list[SearchRun]:
    runs, looks = [], {"agent": (colours[0], ""), "control": (colours[1], DASHED)}
    for role, known in search.roles.items():
        curve, numbers = _curve(probes[probes["role"] == role]), known.to_json()
        totals = {k: v for k, v in numbers.items() if k not in _IN_WORDS and not isinstance(v, list | dict)}
        if len(curve):
            totals |= {"probes": len(curve), "failures": int(curve["failures"].iloc[-1])}
        runs.append(SearchRun(f"{prefix}{role} ({known.explorer})", *looks[role], curve, totals))
    return runs


def _curve(probes: pd.DataFrame) -> pd.DataFrame:
    """Return failures against unique probes of one search, in the order of queries: columns probes, failures."""
    failures = probes.sort_values("order")["failed"].astype(int).cumsum()
    return pd.DataFrame({"probes": np.arange(1, len(failures) + 1), "failures": failures.to_numpy()})


def _view(sentences: list[str], runs: Sequence[SearchRun]) -> SearchView:
    drawn = [run for run in runs if len(run.curve)]
    picture = None
    if drawn:
        ends = "; ".join(
            f"{r.title} {number(r.totals['failures'])} in {number(r.totals['probes'])} probes" for r in drawn
        )
        drawing = curves([(run.title, run.colour, run.dash, run.curve) for run in drawn])
        picture = Picture(f"Failures found against unique probes: {ends}.", drawing)
    keys = dict.fromkeys(key for run in runs for key in run.totals)
    rows = [(_SAID.get(key, key), [_cell(key, run.totals.get(key)) for run in runs]) for key in keys]
    return SearchView(sentences, picture, [run.title for run in runs], rows)


def _cell(key: str, value: Any) -> str:
    if key.endswith(("rate", "entropy")) and is_number(value) and 0 <= value <= 1:
        return percent(value)
    return number(_SURROGATES.get(value, value) if key == "surrogate" else value)


def _who_chose(agent: Search | None) -> str:
    """Name the explorer that `auto` chose and why; empty if the user named one."""
    if agent is None or agent.chosen is None:
        return ""
    why = f": {agent.why}" if agent.why else ""
    return f" The explorer was set to auto, which chose {agent.chosen}{why}."


def _who_found_more(runs: Sequence[SearchRun]) -> str:
    """State which search found more, as plainly if the agent loses as if it wins."""
    names = [run.title.rpartition(": ")[2] for run in runs]
    found, probes = ([run.totals[key] for run in runs] for key in ("failures", "probes"))
    if len(runs) == 1:
        return f"The {names[0]} found {number(found[0])} failures in {number(probes[0])} unique probes."
    agent, control = found
    budget = f"With {number(probes[0])} unique probes each"
    if probes[0] != probes[1]:
        budget = f"With {number(probes[0])} and {number(probes[1])} unique probes"
    counts = f"the {names[0]} found {agent:,} failures and the {names[1]} {control:,}"
    if control > agent:
        return f"{budget}, {counts}: the control found more, so the agent did not pay off here."
    if agent < 1.05 * control or agent == control:
        return f"{budget}, {counts}: hardly a difference."
    return f"{budget}, {counts}" + (f": {agent / control:.1f} times as many." if control else ".")
