"""How little has to change until the model fails, as the report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.concepts import Concept
from stages.report import figures
from stages.report.page import Picture
from stages.report.words import interval, number, percent

METHODS = {"beam": "beam search", "exact": "breadth-first search", "rl": "an agent trained on other items"}


def robustness_view(robustness: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The section on the smallest failing changes; None where none were sought.

    Args:
        robustness: as in landscape.json.
    """
    if not robustness:
        return None
    return {
        "sentence": _finding(robustness),
        "caveat": _caveat(robustness),
        "picture": _picture(robustness["within"]),
        "directions": robustness["directions"],
        "together": ", ".join(
            f"{' × '.join(entry['concepts'])} ({number(entry['items'])})" for entry in robustness["together"]
        ),
        "changed": robustness["found"],
    }


def _finding(robustness: Mapping[str, Any]) -> str:
    items, unchanged, found, held = (robustness[key] for key in ("items", "fail_unchanged", "found", "not_found"))
    said = [f"{number(unchanged)} fail unchanged", f"{number(found)} after some steps"]
    if held:
        said.append(f"for {number(held)} no failure was found within {number(robustness['searched'])} steps")
    text = f"Of {number(items)} items drawn at random, {', '.join(said[:-1])} and {said[-1]}."
    median = robustness["median_radius"]
    return text if median is None else f"{text} Half of all items fail within {number(median)} steps."


def _caveat(robustness: Mapping[str, Any]) -> str:
    """How far to trust it: who searched, what that proves, and where the steps start."""
    method, probes = METHODS.get(robustness["method"], robustness["method"]), number(robustness["probes"])
    said = [f"Found by {method} with {probes} probes of its own."]
    if robustness["proven"] == robustness["found"]:
        said.append("All smaller changes were asked and pass, so these are the smallest.")
    else:
        said.append(
            f"What was found does fail, but a smaller change may have been missed: {number(robustness['proven'])} of"
            f" {number(robustness['found'])} are known to be the smallest. The shares are lower bounds: the model is no"
            " more robust than this."
        )
    if robustness["not_neutral"]:
        lacking = ", ".join(robustness["not_neutral"])
        said.append(f"Steps start from {robustness['start']}: no level that changes nothing is known of {lacking}.")
    return " ".join(said)


def _picture(within: list[dict[str, Any]]) -> Picture:
    """Share of items that fail within so many steps, with Wilson's interval."""
    steps = Concept("steps from the start", tuple(entry["steps"] for entry in within))
    rates = pd.DataFrame(within).rename(columns={"value": "rate"})
    alt = "Share of items that fail within so many steps: " + ", ".join(
        f"{entry['steps']} {percent(entry['value'])} [{interval(entry['low'], entry['high'])}]" for entry in within
    )
    return Picture(alt, [("", figures.effect_view(steps, rates, 1.0))], 330, "Items that fail within so many steps")
