"""Sentences of reports, and of other views of results: on use, gates, decisions, and what failing means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.concepts import Concept, ConceptSpace
from stages.pages.words import interval, number, percent, points, points_interval, words
from stages.records import Gate, Landscape, Plan, RepairVerdict, Verdict
from stages.records.landscape import Corrected, RatingsBound, Unshown, UsageRecord

_COUNTS = ("nothing", "one thing", *("two", "three", "four", "five", "six", "seven", "eight", "nine"))
_FEW = 3  # levels of a concept without an order that are named
_SLICES = "slices."  # prefix of a gate on an attribute
_NAMES = {"max_mode_rate": "failure rate in the worst mode"}


class GateView(NamedTuple):
    """A gate with its numbers in its own unit; `level` is whether it bounds a quantity, and not a difference."""

    name: str
    bound: str
    value: str
    interval: str
    passed: bool | None
    level: bool


def gate_view(gate: Gate) -> GateView:
    """Return a gate with its numbers in its own unit."""
    measure, _, bound = gate.gate.rpartition(".") if gate.gate.startswith(_SLICES) else gate.gate.partition(".")
    change, beside = bound.startswith("change"), bound.startswith("minus_control")
    show, unit = (points, " points") if change or beside else (percent, "")
    spread = (points_interval if change or beside else interval)(gate.low, gate.high)
    name = _NAMES.get(measure) or words(measure.removeprefix("max_"))
    if gate.gate.startswith(_SLICES):
        decided = "" if gate.slice is None else f" ({gate.slice} decides)"
        name = f"failure rate of every {measure.removeprefix(_SLICES)}{decided}"
    return GateView(
        name=f"change of {name}" if change else f"{name}, repair minus control" if beside else name,
        bound=f"{'≥' if bound.endswith('min') else '≤'} {show(gate.bound)}{unit}",
        value=f"{show(gate.value)}{unit}",
        interval="–" if gate.low is None or gate.high is None else spread,
        passed=gate.passed,
        level=not (change or beside),
    )


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict in words; a gate with nothing to judge never counts as passed."""
    results = [gate.passed for gate in verdict.gates]
    if verdict.passed is None:
        if not results:
            return "No gates set: nothing to pass or fail"
        return f"No verdict: {results.count(None)} of {len(results)} gates could not be judged"
    return "✓ Passed all gates" if verdict.passed else f"✗ Failed {results.count(False)} of {len(results)} gates"


def decided_by(decision: Plan | RepairVerdict) -> str:
    """Say who decided what to repair; a rule is never presented as a person."""
    if decision.decided_by == "policy":
        return "a rule, not a person"
    return decision.by or decision.reviewer or "a person who gave no name"


def fails(ratings: RatingsBound) -> str:
    """Define a failure by the ratings in force: "an expected rating below 5"."""
    if ratings.fails_below is not None:
        return f"an expected rating below {number(ratings.fails_below)}"
    return f"an expected rating of bias above {number(ratings.fails_above)}"


def what_was_tested(space: ConceptSpace) -> str:
    """Say up to which levels each concept was tested, and how many of them at once."""
    ranges = [text for j, concept in enumerate(space.concepts) if (text := _range(concept, _occurring(space, j)))]
    most = int(np.flatnonzero(space.usage.by_changes() > 0).max()) if space.usage else len(space)
    together = {len(space): ", alone and together", 1: ", one at a time" if len(space) > 1 else "", 0: ""}
    up_to = together.get(most, f", alone and up to {_count(most)} together")
    return f"Tested: {', '.join(ranges)}{up_to}; nothing is known beyond."


def _occurring(space: ConceptSpace, j: int) -> list[int]:
    """Return the levels of concept j that occur in use at all."""
    if space.usage is None:
        return list(range(space.sizes[j]))
    named = set(space.usage.combined[:, j].tolist())
    return [level for level, weight in enumerate(space.usage.weights[j]) if weight > 0 or level in named]


def _range(concept: Concept, levels: Sequence[int]) -> str:
    """Describe the levels of a concept that change something; empty if there are none."""
    changed = [level for level in levels if concept.levels[level] != concept.neutral]
    if not changed:
        return ""
    first, last = concept.label(changed[0]), concept.label(changed[-1])
    if not concept.ordered:
        named = ", ".join(concept.label(level) for level in changed)
        return f"{concept.name} ({named if len(changed) <= _FEW else f'{len(changed)} kinds'})"
    if concept.levels[levels[0]] == concept.neutral:
        return f"{concept.name} {'down' if concept.falling else 'up'} to {last}"
    return f"{concept.name} {first} to {last}" if len(changed) > 1 else f"{concept.name} {first}"


def _count(n: int) -> str:
    return _COUNTS[n] if n < len(_COUNTS) else number(n)


def by_usage(usage: UsageRecord) -> str:
    """Say where a usage is from: "by the usage that was assumed"."""
    if usage.inputs is not None:
        sure = ", whose number is allowed for in the intervals" if usage.worth else ""
        return f"by the usage measured on {number(usage.inputs)} inputs of {usage.source}{sure}"
    return f"by the usage that was {'stated' if usage.stated else 'assumed'}"


def how_common(space: ConceptSpace, usage: UsageRecord | None) -> str:
    """Say how many things change at once: "Usage assumed: nothing changes in 30% of inputs, one thing in 70%."."""
    always = [name for name, level in zip(space.names, space.neutral_levels, strict=True) if level is None]
    if usage is None or space.usage is None or len(always) == len(space):
        return ""
    shares = space.usage.by_changes()
    counts = [
        f"{_count(k)}{' changes' if k == 0 else ''} in {percent(share, 0)}{' of inputs' if not k else ''}"
        for k, share in enumerate(shares)
        if share >= 0.005
    ]
    whence = "measured" if usage.inputs is not None else "stated" if usage.stated else "assumed"
    beside = f"beside {', '.join(always)}, " if always else ""
    return f"Usage {whence}: {beside}{', '.join(counts)}."


def as_much(landscape: Landscape) -> str:
    """Say how the rate moves with how much changes: "8.4% if half as much changes, 24.5% if twice as much"."""
    half, more, space = landscape.half_as_much, landscape.twice_as_much, landscape.space
    if half is None or more is None or space.usage is None or space.usage.mean_changes <= 0:
        return ""
    # Where twice as much never occurs, it goes half of the way to the most that does.
    factor = space.usage.times(2.0).mean_changes / space.usage.mean_changes
    rates = [f"{percent(half.value)} if half as much changes"]
    if factor >= 1.05:
        rates.append(f"{percent(more.value)} if {'twice' if factor > 1.95 else f'{factor:.1f} times'} as much does")
    return f"The rate would be {', and '.join(rates)}."


def unshown_said(landscape: Landscape, unshown: Unshown | None) -> str:
    """Say how much may fail that was not shown: "With 95% confidence at most 1.2% of uses fail outside the modes."."""
    if unshown is None:
        return ""
    most, of = percent(unshown.at_most), "uses fail" if landscape.usage else "the grid fails"
    where = "outside the failure modes, in ways" if landscape.modes else "in ways"
    return f"With 95% confidence at most {most} of {of} {where} that this audit has not shown."


def corrected_said(landscape: Landscape, found: Corrected | None) -> str:
    """Say what people's verdicts on randomly drawn probes make of the failure rate; empty without any."""
    if found is None:
        return ""
    rate = found.overall
    return (
        f"People judged {number(found.probes)} probes drawn at random as they occur in use and overruled the automatic"
        f" verdict in {percent((found.only_people + found.only_automatic) / rate.n)}; corrected by that"
        f" (prediction-powered inference), {percent(rate.value)} fail ({interval(rate.low, rate.high)}) instead of"
        f" {percent(landscape.overall.value)}."
    )


def how_sure(landscape: Landscape, verdict: Verdict) -> str:
    """Say all that is known of how far to trust the rate in use: as much, corrected, and not shown."""
    said = corrected_said(landscape, verdict.corrected), unshown_said(landscape, verdict.unshown)
    return " ".join(filter(None, (as_much(landscape), *said)))
