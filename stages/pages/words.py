"""Numbers, names and sentences for people: on use, gates, decisions, and what failing means; and the glossary."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from markupsafe import Markup

from stages.concepts import Concept, ConceptSpace
from stages.core.intervals import Rate
from stages.records import Gate, Landscape, Plan, RateRecord, RepairVerdict, Verdict
from stages.records.landscape import Corrected, RatingsBound, Unshown, UsageRecord, Within

_MEANING = {  # keys of metrics that need explanation
    "failing_cells": "distinct failing cells",
    "steps": "steps taken, including repeats",
    "filled_at_random": "probes filled in at random",
    "surrogate": "surrogate model",
    "fits": "fits of the surrogate model",
    "random_probes": "probes drawn at random",
    "policy_entropy": "entropy of the policy, relative to a uniform one",
    "name": "estimator",
    "probes_agent": "probes of the agent",
    "probes_control": "probes of the control",
    "log_loss_constant": "log loss of always predicting the overall rate",
    "brier": "Brier score",
    "brier_constant": "Brier score of always predicting the overall rate",
    "calibration_error": "expected calibration error",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, including those of numpy but not booleans."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any, digits: int = 1) -> str:
    """Format a share as a percentage: "71.0%"; a dash if there is none."""
    return f"{100 * value:.{digits}f}%" if is_number(value) else "–"


def interval(low: Any, high: Any) -> str:
    """Format the bounds of an interval of shares: "64.0–77.0%"; a dash if there is none."""
    return f"{100 * low:.1f}–{100 * high:.1f}%" if is_number(low) and is_number(high) else "–"


def with_interval(rate: RateRecord | Rate | Within) -> str:
    """Format a rate with its interval: "71.0% (64.0–77.0%)"."""
    return f"{percent(rate.value)} ({interval(rate.low, rate.high)})"


def points(value: Any) -> str:
    """Format a difference of shares in percentage points, signed unless it is 0: "−20.0"."""
    if not is_number(value):
        return "–"
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def whole_points(value: Any) -> str:
    """Format a difference of shares in whole percentage points: "−44", "+3", "0"; empty if there is none."""
    return f"{round(100 * value):+d}".replace("-", "−").replace("+0", "0") if is_number(value) else ""


def points_interval(low: Any, high: Any) -> str:
    """Format the bounds of a difference: "−24.0 to −16.0"."""
    return f"{points(low)} to {points(high)}" if is_number(low) and is_number(high) else "–"


def counted(n: int, noun: str) -> str:
    """Format a number of things: "1 item", "1,200 items"."""
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"


def score(value: Any, digits: int, sign: str = "") -> str:
    """Format a measure: "0.712"; with `sign` "+" a change: "+0.020"; a dash if there is none."""
    # "z": no sign before a negative value that rounds to zero
    return f"{value:{sign}z.{digits}f}".replace("-", "−") if is_number(value) else "–"


def p_value(value: float | None) -> str:
    """Format the probability of a result by chance: "0.012"."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def score_digits(*values: float | None) -> int:
    """Return the number of decimals that the scale of a measure requires."""
    return 1 if any(value is not None and abs(value) >= 10 for value in values) else 3


def times(value: Any) -> str:
    """Format a ratio: "3.1×"."""
    return f"{value:.2g}×" if is_number(value) and value < 10 else f"{value:.0f}×" if is_number(value) else "–"


def number(value: Any) -> str:
    """Format any single value: integers with thousands separators, floats with three significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:.3g}"
    return str(value)


def words(key: str) -> str:
    """Write a key as a person would say it: "failure_rate" -> "failure rate"."""
    return _MEANING.get(key) or key.replace("_", " ").replace(".", " · ")


def listed(region: str) -> str:
    """Write the values of a region as a list: "digit is 3 or 8 or 9" -> "digit is 3, 8 or 9"."""
    return re.sub(r" or (?=(?:(?! and ).)* or )", ", ", region)


def marked(name: str, proposed: Mapping[str, str]) -> str:
    """Return the name of a concept or an attribute, with who proposed it, if it was proposed."""
    return f"{name} (proposed by {proposed[name]})" if name in proposed else name


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested plain data to (name, text) rows; lists of plain values are joined, `schema` is left out."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key == "schema":
            continue
        if isinstance(value, Mapping) and key == "versions":
            yield name, ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(number(item) for item in value) or "none"
        else:
            # Integers in provenance are seeds, years and sizes, so they have no thousands separators.
            yield name, str(value) if isinstance(value, int) and not isinstance(value, bool) else number(value)


GLOSSARY = {
    "cell": "One level for every concept: one combination of the grid.",
    "concept": "A named way in which an input can change, in levels that people understand: rotation, blur.",
    "confirmed": "On probes that had no part in finding it, a region failed significantly more often than the rest.",
    "control": "What a search or repair is compared with at the same cost. For a search: draws that do not look for "
    "failures, by which rates are counted. For a repair: a copy trained for as many steps without aiming.",
    "discrepancy": "How far an answer is from what people expect, on the task's own scale.",
    "failure": "An answer whose discrepancy is above the threshold.",
    "failure rate": "The share of inputs that fail. Each cell counts as often as it occurs in use; by `usage: uniform` "
    "all count alike.",
    "fresh probe": "A probe held back from the search, and drawn in a region only after that was found.",
    "gate": "A bound set before the audit. It passes only if the whole interval is on the right side of it.",
    "grid": "All combinations of the levels of all concepts.",
    "interval": "In 95 of 100 repetitions with other probes or items like these, it would cover the true rate.",
    "invalid probe": "A probe that is not held against the model, because nobody could read its changed input, for "
    "example. It counts as passed.",
    "item": "One input as it was, before any change.",
    "level": "One step of a concept, such as 25° of rotation.",
    "lift": "The failure rate inside a mode divided by that of all of use.",
    "mode": "A failure mode: a region that a person can read, confirmed to fail more often than the rest.",
    "newly failing": "Passed before the repair and fails after it.",
    "noise floor": "How far a number moves although nothing has changed, for example between two halves of the items.",
    "points": "Percentage points: from 20% to 15% is −5 points.",
    "policy": "What the search has learnt about where to look; not a failure rate.",
    "probe": "One query of the model: an item, changed as a cell says, and the answer.",
    "repair": "Fine-tuning a copy of the model on the modes that were chosen.",
    "use": "What the model will meet: how often each cell occurs, as it was assumed, stated or measured.",
    "threshold": "The discrepancy above which an answer counts as a failure.",
}


def term(word: str, shown: str = "") -> Markup:
    """Return a word as a link to its glossary entry, which the page's script shows as a tooltip.

    Raises a KeyError if the glossary does not contain the word.

    Args:
        shown: the form used in the sentence, if different.
    """
    return Markup('<a class="term" href="#{0}" aria-describedby="{0}" data-tip="{1}">{2}</a>').format(
        anchor(word), GLOSSARY[word], shown or word
    )


def anchor(word: str) -> str:
    """Return the id of a word's entry."""
    return f"term-{word.replace(' ', '-')}"


_COUNTS = ("nothing", "one thing", *("two", "three", "four", "five", "six", "seven", "eight", "nine"))
_FEW = 3  # levels of a concept without an order that are named
_SLICES = "slices."  # prefix of a gate on an attribute
_NAMES = {"max_mode_rate": "failure rate of the mode with the highest upper limit"}


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
    return f"Tested: {', '.join(ranges) or 'unchanged inputs'}{up_to}; nothing is known beyond."


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
