"""Verdicts and gates as shown in both reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.pages.words import percent, points, points_interval, words
from stages.records import Gate, Verdict

SLICES = "slices."  # prefix of the name of an attribute
_NAMES = {"max_mode_rate": "failure rate in the worst mode"}


class GateView(NamedTuple):
    """A gate with its numbers in its own unit."""

    name: str
    bound: str
    value: str
    interval: str
    passed: bool | None


class VerdictView(NamedTuple):
    """A verdict for the page: whether it passed, in words too, each gate, and whether any gate is by slice."""

    passed: bool | None
    text: str
    gates: list[GateView]
    by_slice: bool


def verdict_view(verdict: Verdict) -> VerdictView:
    """Prepare a verdict for the page."""
    gates = [_gate(gate) for gate in verdict.gates]
    by_slice = any(gate.gate.startswith(SLICES) for gate in verdict.gates)
    return VerdictView(verdict.passed, _text(verdict.passed, [gate.passed for gate in gates]), gates, by_slice)


def _text(passed: bool | None, results: Sequence[bool | None]) -> str:
    """Return the verdict in words; a gate with nothing to judge never counts as passed."""
    unjudged = results.count(None)
    if passed is None:
        if not results:
            return "No gates set: nothing to pass or fail"
        return f"No verdict: {unjudged} of {len(results)} gates could not be judged"
    if not passed:
        return f"✗ Failed {results.count(False)} of {len(results)} gates"
    return "✓ Passed all gates"


def _gate(gate: Gate) -> GateView:
    measure, _, bound = gate.gate.rpartition(".") if gate.gate.startswith(SLICES) else gate.gate.partition(".")
    change = bound.startswith("change")
    show, unit = (points, " points") if change else (percent, "")
    spread = points_interval(gate.low, gate.high) if change else f"{percent(gate.low)} to {percent(gate.high)}"
    name = _NAMES.get(measure) or words(measure.removeprefix("max_"))
    if gate.gate.startswith(SLICES):
        decided = "" if gate.slice is None else f" ({gate.slice} decides)"
        name = f"failure rate of every {measure.removeprefix(SLICES)}{decided}"
    return GateView(
        name=f"change of {name}" if change else name,
        bound=f"{'≥' if bound.endswith('min') else '≤'} {show(gate.bound)}{unit}",
        value=f"{show(gate.value)}{unit}",
        interval="–" if gate.low is None or gate.high is None else spread,
        passed=gate.passed,
    )
