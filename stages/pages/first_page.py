"""The first page of both reports: what was audited, whether to deploy it, where it fails worst, and the next steps.

It is for readers with two minutes, and prints as two pages; the rest of the report has the details.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from stages.landscape.bias import newly_skewed
from stages.landscape.verdict import harm
from stages.pages.gallery import ExhibitView, Gallery, Shrinker
from stages.pages.sentences import as_much, by_usage, decided_by, fails, gate_view, how_common, what_was_tested
from stages.pages.words import interval, listed, number, percent, points, points_interval
from stages.records import (
    AuditFolder,
    Comparison,
    Difference,
    Gate,
    Landscape,
    ModeRecord,
    PairedProbe,
    Plan,
    RateRecord,
    Verdict,
)
from stages.records.provenance import PrepareMetrics
from stages.tasks.contract import Exhibit

MODES = 3  # number of modes on the page
_CONTROL = "the control, trained for as many steps without aiming"

Light = Literal["red", "amber", "green"]
_HEADLINES: dict[Light, str] = {
    "red": "Not ready to deploy",
    "amber": "Decide before deploying",
    "green": "Ready to deploy, by its gates",
}


class About(NamedTuple):
    """What was audited, by names for people.

    Args:
        model: origin of the model.
        data: origin of the data.
        date: the day of the report, as 2026-11-28.
        clean: how often the model is right on unchanged items of the search; None if unknown.
        workspace: whether it is an audit of a workspace, to which commands apply, or one from Python.
    """

    model: str = ""
    data: str = ""
    date: str = ""
    clean: RateRecord | None = None
    workspace: bool = True


ABOUT_NOTHING = About()


def known_of(here: AuditFolder) -> PrepareMetrics:
    """Return what `prepare` recorded of model and data; empty for an audit from Python, which has no such stage."""
    return here.prepare.metrics if here.prepare.has("metrics") else PrepareMetrics()


def about(here: AuditFolder) -> About:
    """Return model, data and date of an audit.

    SOURCE_DATE_EPOCH (seconds) overrides the date, so that a report can be reproduced byte for byte.
    """
    at = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(at), UTC) if at else datetime.now(UTC)
    return About(*known_of(here).origins, f"{now:%Y-%m-%d}", workspace=here.prepare.has("metrics"))


class Tile(NamedTuple):
    """One number, and the sentence that continues it."""

    value: str
    text: str


class Card(NamedTuple):
    """An important failure mode: its rate, the items it affects most, and one example."""

    id: str
    link: str
    text: str
    rate: float | None
    low: float | None
    high: float | None
    before: float | None
    sentences: list[str]
    pair: ExhibitView | None


class Step(NamedTuple):
    """A next step: a sentence, and the command for it."""

    text: str
    command: str


class FirstPage(NamedTuple):
    """The page: facts, a light with its reason, numbers with their sentences, modes, and the next steps.

    `tested` says up to which changes all this holds, `usage` how common they were taken to be; without a usage, rates
    are over the grid. `left` modes are not on the page.
    """

    facts: list[tuple[str, str]]
    light: Light
    reason: str
    tested: str
    tiles: list[Tile]
    usage: str
    over_grid: bool
    heading: str
    modes: list[Card]
    left: int
    steps: list[Step]

    @property
    def headline(self) -> str:
        """The light in words."""
        return _HEADLINES[self.light]


def landscape_page(
    landscape: Landscape,
    verdict: Verdict,
    about: About,
    galleries: Mapping[str, Gallery],
    unchanged: Mapping[str, Exhibit],
    shrinker: Shrinker,
) -> FirstPage:
    """Return the first page of the report on a landscape.

    Args:
        landscape: the record.
        verdict: the verdict on it.
        about: what was audited.
        galleries: examples by the id of their mode.
        unchanged: the unchanged items of examples, by id.
        shrinker: makes pictures small.
    """
    modes = sorted(landscape.modes, key=lambda mode: -mode.rate * mode.share)
    light, reason = _landscape_light(landscape, verdict)
    cards = []
    for mode in modes[:MODES]:
        gallery, items = galleries.get(mode.id), {example.id: example.item for example in mode.examples}
        pair = None
        if gallery and gallery.failing:
            item = items.get(gallery.ids[0], "") if gallery.ids else ""
            pair = shrinker.brief(gallery.failing[0], unchanged.get(item))
        link, text = f"mode-{1 + landscape.modes.index(mode)}", listed(mode.text)
        spread = (mode.rate, mode.low, mode.high)
        cards.append(Card(mode.id, link, text, *spread, None, _about_mode(landscape, mode), pair))
    return FirstPage(
        facts=[*_facts(about), ("Searched on", f"{number(landscape.items)} items")],
        light=light,
        reason=reason,
        tested=what_was_tested(landscape.space),
        tiles=_landscape_tiles(landscape, about),
        usage=" ".join(filter(None, (how_common(landscape.space, landscape.usage), as_much(landscape)))),
        over_grid=landscape.usage is None,
        heading="What fails",
        modes=cards,
        left=len(modes) - len(cards),
        steps=_landscape_steps(landscape, verdict, about),
    )


def comparison_page(
    comparison: Comparison,
    verdict: Verdict,
    plan: Plan,
    about: About,
    galleries: Mapping[str, Sequence[PairedProbe]],
    attributes: pd.DataFrame,
    shrinker: Shrinker,
) -> FirstPage:
    """Return the first page of the report on a repair.

    Args:
        comparison: the comparison before and after.
        verdict: the verdict on it.
        plan: what was repaired.
        about: what was audited.
        galleries: examples by kind ("fixed", "newly_failing", "unchanged").
        attributes: attributes of the items, by their ids.
        shrinker: makes pictures small.
    """
    light, reason = _comparison_light(comparison, verdict, plan)
    severity = {mode.id: mode.severity for mode in plan.modes}
    modes = sorted(comparison.modes, key=lambda mode: (mode.action != "repair", -severity.get(mode.id, 0.0)))
    examples = _example_of_each(comparison, plan, galleries, attributes)
    clean = {one.item: one.exhibit for one in galleries.get("unchanged", ())}
    cards = []
    for mode in modes[:MODES]:
        sentences = []
        if mode.control and mode.control.after is not None:
            sentences.append(f"{_CONTROL[0].upper()}{_CONTROL[1:]}: {percent(mode.control.after)}.")
        if len(set(severity.values())) > 1:
            sentences.append(f"Severity {number(severity[mode.id])}.")
        if mode.action != "repair":
            sentences.append(f"Not repaired: the decision was to {mode.action} it.")
        one = examples.get(mode.id)
        if any(one is bad for bad in galleries.get("newly_failing", ())):
            sentences.append("This example fails only since the repair; no fixed one was recorded.")
        pair = shrinker.brief(one.exhibit, clean.get(one.item), one) if one else None
        spread = (mode.after, mode.after_low, mode.after_high)
        cards.append(Card(mode.id, "modes", listed(mode.text), *spread, mode.before, sentences, pair))
    return FirstPage(
        facts=[
            *_facts(about),
            ("Decided by", decided_by(plan)),
            ("Tested on", f"{number(comparison.items)} items that neither the search nor the repair has seen"),
        ],
        light=light,
        reason=reason,
        tested=what_was_tested(comparison.space),
        tiles=_comparison_tiles(comparison),
        usage=how_common(comparison.space, comparison.usage),
        over_grid=False,
        heading="What the repair targeted" if plan.targets else "What failed before",
        modes=cards,
        left=len(modes) - len(cards),
        steps=_comparison_steps(comparison, light, plan),
    )


def _example_of_each(
    comparison: Comparison, plan: Plan, galleries: Mapping[str, Sequence[PairedProbe]], attributes: pd.DataFrame
) -> dict[str, PairedProbe]:
    """Return one example of each mode that has any: a fixed one if possible, else a newly failing one."""
    rows = [one for kind in ("fixed", "newly_failing") for one in galleries.get(kind, ()) if one.cell]
    cells, attributes = np.array([one.cell for one in rows]), attributes.reindex([one.item for one in rows])
    inside = {mode.id: mode.cells.contains(comparison.space, cells, attributes) for mode in plan.modes} if rows else {}
    return {mode: rows[int(found.argmax())] for mode, found in inside.items() if found.any()}


def _facts(about: About) -> list[tuple[str, str]]:
    facts = [("Model", about.model), ("Data", about.data), ("Date", about.date)]
    return [(name, value) for name, value in facts if value]


def _failed(gates: Sequence[Gate]) -> str:
    """Describe the first gate that failed, and how many more did."""
    failed = [gate_view(gate) for gate in gates if gate.passed is False]
    more = f", and {number(len(failed) - 1)} more failed" if len(failed) > 1 else ""
    return f"{failed[0].name}: {failed[0].value} ({failed[0].interval}); the gate requires {failed[0].bound}{more}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _some_modes(count: int) -> str:
    return "one confirmed failure mode" if count == 1 else f"{number(count)} confirmed failure modes"


def _landscape_light(landscape: Landscape, verdict: Verdict) -> tuple[Light, str]:
    found, rate = len(landscape.modes), percent(landscape.overall.value)
    if verdict.passed is False:
        return "red", f"{_capital(_failed(verdict.gates))}."
    if verdict.passed is None:
        judged = "Some gates could not be judged." if verdict.gates else "No gate says whether that is acceptable."
        where = f", most often in {_some_modes(found)}" if found else ""
        if usage := landscape.usage:
            return "amber", f"{rate} of what this model will meet fails, {by_usage(usage)}{where}. {judged}"
        return "amber", f"{rate} of uniformly drawn probes fail{where}. {judged}"
    if found:
        return "amber", f"It meets its gates, but has {_some_modes(found)} that somebody has to accept or repair."
    return "green", "It meets its gates, and no region was confirmed to fail more often than the rest."


def _comparison_light(comparison: Comparison, verdict: Verdict, plan: Plan) -> tuple[Light, str]:
    if verdict.passed is False:
        return "red", f"After the repair, {_failed(verdict.gates)}."
    if verdict.passed is None:
        what = "some gates could not be judged" if verdict.gates else "no gate says what the repair has to achieve"
        return "amber", f"{_capital(what)}."
    against = [*_risen_in_targets(comparison), *harm(comparison)]
    if regions := comparison.failures_moved.regions:
        against.append(f"Failures rose in {listed(regions[0].text)}.")
    if worse := [f"{of.attribute} {one.value}" for of in comparison.slices or () for one in of.values if one.worse]:
        against.append(f"Failures rose significantly for {', '.join(worse)}.")
    if comparison.bias and (skewed := newly_skewed(comparison.bias)):
        against.append(f"Newly skewed: {', '.join(f'{one.attribute} of {one.subject}' for one in skewed)}.")
    if against:
        return "amber", f"It meets its gates, but: {' '.join(against)}"
    if not plan.targets:
        return "green", "No mode was chosen for repair, and the unchanged model meets its gates."
    chosen = " A rule, not a person, chose what to repair." if plan.decided_by == "policy" else ""
    where = "in the target modes, elsewhere, on unchanged inputs or for any kind of item"
    met = f"meets all {number(len(verdict.gates))} gates" if len(verdict.gates) > 1 else "meets its gate"
    return "green", f"The repaired model {met}, and no rise in failures beyond chance was found {where}.{chosen}"


def _risen_in_targets(comparison: Comparison) -> list[str]:
    keys = ("target_failure_rate", *(["target_not_passing"] if comparison.some_invalid else []))
    risen = [entry for key in keys if (entry := comparison.differences[key]).moved.low > 0]
    return [f"Failures in the target modes rose from {percent(e.before)} to {percent(e.after)}." for e in risen[:1]]


def _landscape_tiles(landscape: Landscape, about: About) -> list[Tile]:
    """Return failure rates unchanged, in use, in the worst mode, and for the worst attribute."""
    overall, tiles = landscape.overall, []
    if unchanged := landscape.unchanged:
        spread = interval(unchanged.low, unchanged.high)
        tiles.append(
            Tile(percent(unchanged.value), f"of {number(unchanged.n)} unchanged items already fail ({spread})")
        )
    elif clean := about.clean:
        wrong = percent(1 - clean.value) if clean.value is not None else percent(None)
        low, high = (None if bound is None else 1 - bound for bound in (clean.high, clean.low))
        tiles.append(Tile(wrong, f"of {number(clean.n)} unchanged inputs are answered wrongly ({interval(low, high)})"))
    elif (walked := landscape.robustness) and walked.items and walked.start == "neutral":
        text = f"of {number(walked.items)} items fail unchanged"
        tiles.append(Tile(number(walked.fail_unchanged), text))
    if landscape.usage:
        text = f"of what this model will meet fails, {by_usage(landscape.usage)}"
    else:
        over = f"all {number(landscape.space.n_cells)} combinations of {_joined(landscape.space.names)}"
        text = f"of probes drawn uniformly over {over} fail"
    text += f" ({interval(overall.low, overall.high)})"
    if counted := landscape.invalid.not_passing:
        text += (
            f"; {percent(counted.value)} ({interval(counted.low, counted.high)}) counting as"
            f" failures the {percent(landscape.invalid.value)} that {landscape.invalid.what}"
        )
    if ratings := landscape.ratings:
        text += f". Failing means {fails(ratings)}"
    tiles.append(Tile(percent(overall.value), text))
    if landscape.modes:
        worst = max(landscape.modes, key=lambda mode: mode.rate)
        tiles.append(
            Tile(
                percent(worst.rate), f"fail in the worst mode, {listed(worst.text)} ({interval(worst.low, worst.high)})"
            )
        )
    else:
        tiles.append(Tile("none", "no region was confirmed to fail more often than the rest"))
    if landscape.slices and landscape.slices.worse:
        attribute, one = landscape.slices.worse[0]
        spread, rest = interval(one.low, one.high), percent(one.rest)
        tiles.append(Tile(percent(one.rate), f"of {attribute} {one.value} fail ({spread}), {rest} of all other items"))
    return tiles


def _comparison_tiles(comparison: Comparison) -> list[Tile]:
    quality, overall = comparison.differences["clean_quality"], comparison.differences.get("failure_rate")
    tiles = [_moved(quality, f"{quality.name} on unchanged inputs")]
    if (usage := comparison.usage) and overall and overall.before is not None:
        tiles.insert(0, _moved(overall, f"of what the model will meet fails, {by_usage(usage)}"))
    for key, where in (("target_failure_rate", "fail in the target modes"), ("other_failure_rate", "fail elsewhere")):
        entry = comparison.differences[key]
        if entry.before is None:
            continue
        tile = _moved(entry, where)
        if entry.control and entry.control.after is not None:
            text = f"{tile.text}; {_CONTROL}: {percent(entry.control.after)}"
            tile = tile._replace(text=text)
        if comparison.some_invalid:
            counted = comparison.differences[key.replace("failure_rate", "not_passing")]
            tile = tile._replace(
                text=f"{tile.text}; {percent(counted.before)} → {percent(counted.after)} counting invalid probes as"
                " failures"
            )
        tiles.append(tile)
    newly = comparison.differences["newly_failing"]
    if newly.after is not None:
        spread = interval(newly.low, newly.high)
        tiles.append(Tile(percent(newly.after), f"of what passed before now fails, the price of the repair ({spread})"))
    return tiles


def _moved(entry: Difference, what: str) -> Tile:
    value = f"{percent(entry.before)} → {percent(entry.after)}"
    return Tile(value, f"{what} ({points(entry.change)} points, {points_interval(entry.low, entry.high)})")


def _about_mode(landscape: Landscape, mode: ModeRecord) -> list[str]:
    """Return sentences on a mode: how common it is, how much it matters, and for which items it is worst."""
    where = "use" if landscape.usage else "the grid"
    often = f"{mode.lift:.1f} times" if mode.lift < 10 else f"{mode.lift:.0f} times"
    sentences = [f"It makes up {percent(mode.share)} of {where} and fails {often} as often as all of it."]
    if mode.of_failures is not None:
        before = [other.id for other in landscape.modes[: landscape.modes.index(mode)]]
        beyond = f", and not in {listed(' or '.join(before))}" if before else ""
        sentences.append(f"About {percent(mode.of_failures, 0)} of all failures lie here{beyond}.")
    if whom := _for_whom(landscape, mode):
        sentences.append(whom)
    if confused := landscape.confused(mode, 1):
        sentences.append(f"Most often: {confused}.")
    return sentences


def _for_whom(landscape: Landscape, mode: ModeRecord) -> str:
    """Name the items for which the rate is clearly higher than in the whole mode; empty if there are none."""
    found = [
        (one.rate, f"{of.attribute} {one.value}: {percent(one.rate)} ({interval(one.low, one.high)})")
        for of in ((landscape.slices and landscape.slices.modes.get(mode.id)) or ())
        for one in of.values
        if one.rate is not None and one.low is not None and one.low > mode.high
    ]
    return f"Worst for {max(found)[1]}." if found else ""


def _joined(names: Sequence[str]) -> str:
    """Join names with "and" before the last; of more than four only give the number."""
    if len(names) > 4:
        return f"{len(names)} changes"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _landscape_steps(landscape: Landscape, verdict: Verdict, about: About) -> list[Step]:
    name = landscape.audit
    if not about.workspace:
        return [
            Step("Look at the failures, in Python:", "result.failures"),
            Step(
                "Repeat this audit by commands, with gates and a history:",
                'result.to_workspace("folder", model="module:function")',
            ),
        ]
    steps = [Step("See what comes next (a decision, a repair or its verdict):", f"faded status {name}")]
    if verdict.gates:  # the audit ends here
        steps = [Step("Keep the evidence:", f"faded evidence {name}")]
    if landscape.usage and not landscape.usage.stated:
        steps.append(Step("State or measure how common these changes are in use:", f"faded usage {name}"))
    return steps


def _comparison_steps(comparison: Comparison, light: Light, plan: Plan) -> list[Step]:
    name = comparison.audit
    if light == "red":
        change = f"Change repairs.{name} in params.yaml and run what has changed:"
        again = [Step("Decide again:", f"faded review {name} --revise")] if plan.decided_by == "human" else []
        return [
            *again,
            Step(f"Or change repairs.{name} in params.yaml and run:" if again else change, f"faded audit {name}"),
        ]
    return [
        Step("Keep the evidence:", f"faded evidence {name}"),
        Step("Export the repaired model with its card:", f"faded export {name} deploy/{name}"),
    ]
