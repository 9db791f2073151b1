"""Verdicts and gates as both reports show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.pages.words import percent, points, points_interval, words


def verdict_view(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict for the page: whether it passed, and each gate with its numbers in its own unit."""
    gates = [_gate(gate) for gate in verdict.get("gates") or []]
    passed = _maybe(verdict.get("passed"))
    return {"passed": passed, "gates": gates, "text": _text(passed, [gate["passed"] for gate in gates])}


def _text(passed: bool | None, results: Sequence[bool | None]) -> str:
    """The verdict in words; a gate with nothing to judge is never counted as passed."""
    unjudged = results.count(None)
    if passed is None:
        if not results:
            return "No gates set: nothing to pass or fail"
        return f"No verdict: {unjudged} of {len(results)} gates could not be judged"
    if not passed:
        return f"✗ Failed {results.count(False)} of {len(results)} gates"
    return "✓ Passed all gates"


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    name = str(gate.get("gate", ""))
    measure, _, bound = name.partition(".")
    change = bound.startswith("change")
    show = points if change else percent
    value, low, high = gate.get("value"), gate.get("low"), gate.get("high")
    sign = "≥" if bound.endswith("min") else "≤"
    unit = " points" if change else ""
    spread = points_interval(low, high) if change else f"{percent(low)} to {percent(high)}"
    what = f"change of {words(measure)}" if change else words(measure.removeprefix("max_"))
    return {
        "name": what,
        "bound": f"{sign} {show(gate.get('bound'))}{unit}",
        "value": f"{show(value)}{unit}",
        "interval": spread if low is not None and high is not None else "–",
        "passed": _maybe(gate.get("passed")),
    }


def _maybe(passed: Any) -> bool | None:
    return None if passed is None else bool(passed)
