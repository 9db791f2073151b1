"""The first page of both reports: what was audited, whether to deploy it, where it fails worst, and the next steps.

It is for readers with two minutes, and prints as one or two pages; the rest of the report has the details.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.landscape.verdict import at_same_harm, beside_control, beside_noise
from stages.pages.examples import changed_levels
from stages.pages.gallery import ExhibitView, Shrinker
from stages.pages.words import (
    by_usage,
    counted,
    decided_by,
    fails,
    gate_view,
    how_common,
    how_sure,
    interval,
    listed,
    number,
    p_value,
    percent,
    points,
    points_interval,
    what_was_tested,
)
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
    RepairVerdict,
    ShownExample,
    Verdict,
)
from stages.records.landscape import Example, Light
from stages.records.provenance import PrepareMetrics
from stages.records.slices import others_than
from stages.tasks.contract import Exhibit

MODES = 3  # number of modes on the page
_HALVES = ("neither half", "one half", "each half")
_CONTROL = "Control: a copy trained for as many steps without aiming."

HEADLINES: Mapping[Light, str] = {
    "red": "Not ready to deploy",
    "amber": "Decide before deploying",
    "green": "Passes its gates",
}


class About(NamedTuple):
    """What was audited, by names for people.

    Args:
        clean: how often the model is right on unchanged items of the search; None if unknown.
        workspace: whether it is an audit of a workspace, to which commands apply, or one from Python.
    """

    model: str = ""
    data: str = ""
    clean: RateRecord | None = None
    workspace: bool = True


ABOUT_NOTHING = About()


def known_of(here: AuditFolder) -> PrepareMetrics:
    """Return what `prepare` recorded of model and data; empty for an audit from Python, which has no such stage."""
    return here.prepare.metrics if here.prepare.has("metrics") else PrepareMetrics()


def model_and_data(here: AuditFolder) -> About:
    """Return model and data of an audit. A report has no date: the same results give the same bytes on any day."""
    return About(*known_of(here).origins, workspace=here.prepare.has("metrics"))


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
    are over the grid. `left` modes are not on the page. `finding` says what else the numbers mean, `note`
    where there is more.
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
    finding: str = ""
    note: str = ""

    @property
    def headline(self) -> str:
        return HEADLINES[self.light]


def landscape_page(
    landscape: Landscape,
    verdict: Verdict,
    about: About,
    galleries: Mapping[str, Sequence[ShownExample]],
    unchanged: Mapping[str, Exhibit],
    shrinker: Shrinker,
) -> FirstPage:
    """Return the first page of the report on a landscape, with examples by mode and their unchanged items by id."""
    modes = sorted(landscape.modes, key=lambda mode: -mode.rate * mode.share)
    cards, used = [], set[str]()
    for mode in modes[:MODES]:
        failing, pair = [one for one in galleries.get(mode.id, ()) if one.failed], None
        if failing:
            known = {example.id: example for example in mode.examples}
            probes = [known.get(one.id) for one in failing]
            at = _clearest(probes, mode.cells, landscape.space, used)
            (name, _, exhibit), probe = failing[at], probes[at]
            exhibit = replace(exhibit, caption=exhibit.caption.removeprefix(f"{name} - "))
            pair = shrinker.brief(exhibit, unchanged.get(probe.item) if probe else None)
        link, text = f"mode-{1 + landscape.modes.index(mode)}", listed(mode.text)
        spread = (mode.rate, mode.low, mode.high)
        cards.append(Card(mode.id, link, text, *spread, None, _about_mode(landscape, mode), pair))
    return FirstPage(
        facts=[*_facts(about), ("Searched on", f"{number(landscape.items)} items")],
        light=verdict.light or "amber",
        reason=_reason(verdict, "It", "no region was confirmed to fail above what they allow"),
        tested=what_was_tested(landscape.space),
        tiles=_landscape_tiles(landscape, about),
        usage=" ".join(filter(None, (how_common(landscape.space, landscape.usage), how_sure(landscape, verdict)))),
        over_grid=landscape.usage is None,
        heading="What fails, most failures first",
        modes=cards,
        left=len(modes) - len(cards),
        steps=_landscape_steps(landscape, verdict, about),
    )


def comparison_page(
    comparison: Comparison,
    verdict: RepairVerdict,
    plan: Plan,
    about: About,
    galleries: Mapping[str, Sequence[PairedProbe]],
    attributes: pd.DataFrame,
    shrinker: Shrinker,
) -> FirstPage:
    """Return the first page of the report on a repair, with examples by kind, and attributes of items by their ids."""
    what = "The repaired model" if plan.targets else "The unchanged model"
    found = "no rise in failures beyond chance was found in the target modes, elsewhere or for any kind of item"
    severity = {mode.id: mode.severity for mode in plan.modes}
    modes = sorted(comparison.modes, key=lambda mode: (mode.action != "repair", -severity.get(mode.id, 0.0)))
    examples = _example_of_each(comparison, plan, galleries.get("fixed", ()), attributes)
    clean = {one.item: one.exhibit for one in galleries.get("unchanged", ())}
    cards = []
    for mode in modes[:MODES]:
        sentences = []
        if mode.control and mode.control.after is not None:
            sentences.append(f"Control: {percent(mode.control.after)}.")
        if mode.before and (elsewhere := comparison.differences["other_failure_rate"].before):
            times = mode.before / elsewhere
            sentences.append(f"Before, it failed {times:.1f} times as often in these new items as everything else.")
        if plan.decided_by == "human" and mode.action == "repair":
            sentences.append(f"Severity {number(severity[mode.id])}.")
        if mode.action != "repair":
            sentences.append(f"Not repaired: the decision was to {mode.action} it.")
        one = examples.get(mode.id)
        pair = shrinker.brief(one.exhibit, clean.get(one.item), one) if one else None
        spread = (mode.after, mode.after_low, mode.after_high)
        cards.append(Card(mode.id, "differences", listed(mode.text), *spread, mode.before, sentences, pair))
    return FirstPage(
        facts=[
            *_facts(about),
            ("Decided by", decided_by(plan) + (f": “{verdict.reason}”" if verdict.reason else "")),
            ("Tested on", f"{number(comparison.items)} items that neither the search nor the repair has seen"),
        ],
        light=verdict.light or "amber",
        reason=f"{_reason(verdict, what, found)}{_largest_rise(comparison)}",
        tested=what_was_tested(comparison.space),
        tiles=_comparison_tiles(comparison),
        usage=how_common(comparison.space, comparison.usage),
        over_grid=False,
        heading="What the repair targeted" if plan.targets else "What failed before",
        modes=cards,
        left=len(modes) - len(cards),
        steps=_comparison_steps(comparison, verdict, plan),
        finding=" ".join(_finding(comparison, verdict)),
        note=f"{_CONTROL} What was found before the repair: data/{comparison.audit}/report/report.html",
    )


def _finding(comparison: Comparison, verdict: RepairVerdict) -> list[str]:
    """Say whether aiming helped and at equal harm, what is noise, what failing means, and how far reviewers agreed."""
    found = [*beside_control(comparison), *at_same_harm(comparison), *beside_noise(comparison)]
    if comparison.ratings:
        found.append(f"Failing here means {fails(comparison.ratings)}, as learnt from people's ratings.")
    return [*found, *(part.statement for part in (verdict.agreement, verdict.ceiling) if part)]


def _example_of_each(
    comparison: Comparison, plan: Plan, fixed: Sequence[PairedProbe], attributes: pd.DataFrame
) -> dict[str, PairedProbe]:
    """Return one failure that the repair fixed for each mode that has any, of another item for each if possible."""
    if not fixed:
        return {}
    cells, attributes = np.array([one.cell for one in fixed]), attributes.reindex([one.item for one in fixed])
    shown, used = {}, set[str]()
    for mode in plan.modes:
        inside = mode.cells.contains(comparison.space, cells, attributes)
        if rows := [one for one, held in zip(fixed, inside, strict=True) if held]:
            shown[mode.id] = rows[_clearest(rows, mode.cells, comparison.space, used)]
    return shown


def _clearest(
    examples: Sequence[Example | PairedProbe | None], region: Region, space: ConceptSpace, used: set[str]
) -> int:
    """Return which example of a region shows it best, and add its item to those used.

    That is one of an item that is not shown yet, with as few other changes as possible.
    """

    def unclear(at: int) -> tuple[bool, int]:
        if (one := examples[at]) is None:
            return True, len(space)
        return one.item in used, sum(name not in region.allowed for name, _ in changed_levels(space, one.cell))

    best = min(range(len(examples)), key=unclear)
    if (one := examples[best]) is not None:
        used.add(one.item)
    return best


def _facts(about: About) -> list[tuple[str, str]]:
    facts = [("Model", about.model), ("Data", about.data)]
    return [(name, value) for name, value in facts if value]


def _failed(gates: Sequence[Gate]) -> str:
    """Describe the first gate that failed, and how many more did."""
    failed = [gate_view(gate) for gate in gates if gate.passed is False]
    more = f", and {number(len(failed) - 1)} more failed" if len(failed) > 1 else ""
    return f"{failed[0].name}: {failed[0].value} ({failed[0].interval}); the gate requires {failed[0].bound}{more}"


def _reason(verdict: Verdict, what: str, found: str) -> str:
    """Say why the light is what it is: the gate that failed, what speaks against deploying, or what the gates allow."""
    if any(gate.passed is False for gate in verdict.gates):
        failed = _failed(verdict.gates)
        return f"{failed[:1].upper()}{failed[1:]}."
    concerns = " ".join(listed(concern) for concern in verdict.concerns)
    if not verdict.passed:
        return concerns
    if concerns:
        return f"{what} meets its gates, but: {concerns}"
    levels = ", ".join(f"{gate.name} {gate.bound}" for gate in map(gate_view, verdict.gates) if gate.level)
    return f"{what} meets its gates ({levels}), and {found}."


def _largest_rise(comparison: Comparison) -> str:
    """Name the largest rise of a kind of items that its own interval shows but the test of all kinds does not."""
    kinds = [(of.attribute, one) for of in comparison.slices or () for one in of.values]
    risen = [(name, one) for name, one in kinds if not one.worse and one.low is not None and one.low > 0]
    if not risen:
        return ""
    name, one = max(risen, key=lambda kind: kind[1].change or 0.0)
    spread = points_interval(one.low, one.high)
    return (
        f" The largest rise, {name} {one.value} by {points(one.change)} points ({spread}), may be chance:"
        f" p = {p_value(one.p)} among {counted(len(kinds), 'kind')} of items."
    )


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
        tiles.append(
            Tile(
                percent(one.rate),
                f"of items with {attribute} {one.value} fail ({spread}), {rest} of {others_than(attribute)}",
            )
        )
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
            tile = tile._replace(text=f"{tile.text}; control {percent(entry.control.after)}")
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
    if (halves := landscape.modes_found_again.in_halves.get(mode.id)) is not None:
        sentences.append(f"Found again in {_HALVES[halves]} of the items.")
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
    if verdict.gates:  # the audit ends here
        steps = [Step("Keep the evidence:", f"faded evidence {name}")]
    elif landscape.modes:
        steps = [Step("Look at the failures, and decide which of them to repair:", f"faded review {name}")]
    else:
        steps = [
            Step(
                f"Say how often it may fail, by gates in params.yaml (audits.{name}.gates), then:",
                f"faded audit {name}",
            )
        ]
    if landscape.usage and not landscape.usage.stated:
        steps.append(Step("State or measure how common these changes are in use:", f"faded usage {name}"))
    return steps


def _comparison_steps(comparison: Comparison, verdict: RepairVerdict, plan: Plan) -> list[Step]:
    name = comparison.audit
    if verdict.light == "red":
        change = f"Change repairs.{name} in params.yaml and run what has changed:"
        again = [Step("Decide again:", f"faded review {name} --revise")] if plan.decided_by == "human" else []
        return [
            *again,
            Step(f"Or change repairs.{name} in params.yaml and run:" if again else change, f"faded audit {name}"),
        ]
    cheaper = verdict.cheapest
    shorter = f" (a shorter training, of {number(cheaper.steps)} steps, passes all gates, too)" if cheaper else ""
    return [
        Step("Keep the evidence:", f"faded evidence {name}"),
        Step(f"Export the repaired model with its card{shorter}:", f"faded export {name} deploy/{name}"),
    ]
