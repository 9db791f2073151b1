"""The report on a repair: changes in the target modes, changes elsewhere, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.landscape.verdict import beside_control, beside_noise
from stages.pages import figures
from stages.pages.bias import comparison_bias
from stages.pages.doses import doses_view
from stages.pages.examples import NOTHING_KNOWN, OUTCOMES, Source, explore_changes
from stages.pages.first_page import ABOUT_NOTHING, About, comparison_page
from stages.pages.gallery import Shrinker
from stages.pages.marginals import marginal, shown_concepts
from stages.pages.page import LAST_TITLES, Picture, contents_of, render
from stages.pages.parts import MapPart, label_of, map_part, space_of, space_part, top_rate, worst_first
from stages.pages.ratings import fails
from stages.pages.scales import nice_ceiling
from stages.pages.searches import compare_searches
from stages.pages.sheets import show_sheets, strips
from stages.pages.slices import compared_sentence, compared_view
from stages.pages.verdicts import verdict_view
from stages.pages.words import flatten, interval, listed, number, percent, points, points_interval, score
from stages.records import Compared, Comparison, Difference, Plan, RepairVerdict
from stages.records import repair as records
from stages.tasks.contract import Sheet

LIMITS = (
    "Both models are tested on the same items and cells, so differences are paired. The repair never saw these items.",
    "Intervals are 95% intervals from resampled items, or groups of items that belong together. They say nothing about "
    "items unlike the ones used here.",
    "A gate passes only on evidence: if the interval crosses its bound, the gate fails.",
    "The landscapes are estimates from two searches with the same budget; the paired differences are counted.",
    "By chance alone, the same model differs between two halves of the items: this is the noise floor of the shift. "
    "Halves have fewer items and probes than the whole, so the floor is overstated.",
)
_NAMES = {
    "target_failure_rate": "target modes: failure rate",
    "other_failure_rate": "all other cells: failure rate",
    "failure_rate": "overall: failure rate",
    "target_not_passing": "target modes: failing or invalid",
    "other_not_passing": "all other cells: failing or invalid",
    "automatic_target_failure_rate": "target modes: failure rate by the automatic measure",
    "automatic_other_failure_rate": "all other cells: failure rate by the automatic measure",
    "automatic_failure_rate": "overall: failure rate by the automatic measure",
    "fixed": "fixed: failed before, passes now",
    "newly_failing": "newly failing: passed before, fails now",
}
_CONTROLS = {
    "as_used": "Control: a copy trained for as many steps on cells as they occur in use instead of the modes.",
    "clean": "Control: a copy trained for as many steps on unchanged inputs.",
}
SIDES = {"_before": "Before", "_after": "After"}
_PARTS = {"clean": "Unchanged inputs", "targets": "In the target modes", "others": "Everywhere else"}
_OTHERS = {"control": "control", "noise": "queried again"}
_EXAMPLES = {
    "fixed": "Fixed: failed before, passes now",
    "newly_failing": "Newly failing: passed before, fails now",
}
TITLES = {  # of the sections, in order; the table of contents uses the same words
    "gates": "Gates",
    "differences": "Before and after",
    "measures": "Other measures",
    "doses": "Failures against training steps",
    "bias": "Bias",
    "sheets": "Contact sheets",
    "landscape": "Both landscapes",
    "modes": "Failure modes",
    "examples": "Examples",
    "slices": "Which items fail",
    "moved": "Did failures move elsewhere?",
    "search": "The search, repeated",
    "shift": "How far the landscape moved",
    "policy": "Where the search has learnt to look",
    "reduced": "Reduced failures",
    **LAST_TITLES,
}


class ChangeRow(NamedTuple):
    """A paired difference as shown in the table; rates that no model had before (newly failing) have no change."""

    key: str
    name: str
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    pairs: int
    action: str | None
    control: float | None
    control_change: float | None
    control_low: float | None
    control_high: float | None
    noise: float | None
    noise_change: float | None
    noise_low: float | None
    noise_high: float | None


class MeasureRow(NamedTuple):
    """One measure, formatted with the digits its scale requires; changes are followed by their interval."""

    name: str
    before: str
    after: str
    change: list[str]
    others: list[list[str]]
    baselines: list[str]


class MeasurePart(NamedTuple):
    """Measures for some of the answers; `others` are the models besides the two."""

    title: str
    rows: list[MeasureRow]
    others: list[str]
    baselines: list[str]


class Decided(NamedTuple):
    """Who decided which modes to repair; a rule is never presented as a person."""

    text: str
    reason: str
    policy: bool
    agreement: str
    ceiling: str


class Moved(NamedTuple):
    """A distance beside those explained by chance, `low` to `high`, on a scale that ends at `scale`."""

    title: str
    said: str
    value: float
    low: float | None
    high: float | None
    scale: float


class ShiftPart(NamedTuple):
    """How far the landscape moved, and all numbers of the shift."""

    rows: list[tuple[str, str]]
    parts: list[Moved]


class PolicyRow(NamedTuple):
    """How the policy moved along one concept: its picture, and the numbers as shown in the table."""

    name: str
    picture: Picture
    means: str
    looks: str
    distance: float
    floor: str
    beyond: bool | None


def write_comparison_report(
    out: Path,
    *,
    comparison: Comparison,
    verdict: RepairVerdict,
    landscapes: pd.DataFrame,
    probes: pd.DataFrame,
    plan: Plan,
    galleries: Mapping[str, Sequence[Compared]],
    provenance: Mapping[str, Any],
    attributes: pd.DataFrame = NOTHING_KNOWN,
    about: About = ABOUT_NOTHING,
    sheets: Mapping[str, Sequence[Sheet]] | None = None,
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the comparison before and after as one self-contained page.

    Args:
        out: the page; the same inputs give the same bytes.
        comparison: the comparison.
        verdict: the verdict on it.
        landscapes: one row per cell with rate_before, low_before, ..., rate_after, ....
        probes: as in re_evaluate's probes.parquet.
        plan: what was repaired.
        galleries: examples by kind ("fixed", "newly_failing"), and their items "unchanged".
        provenance: as in provenance.json.
        attributes: attributes of the test items, one row per item id.
        about: what was audited.
        sheets: contact sheets by model ("before", "after").
        skipped: files that could not be used, as {file, reason}.
    """
    space = comparison.space
    names = shown_concepts(landscapes, space, "rate_before")
    top = top_rate(landscapes, space, names, ("rate_before", "rate_after"))
    differences = [_row(entry, key, entry.name or _NAMES[key]) for key, entry in comparison.shown_differences.items()]
    for key, entry in (comparison.automatic or {}).items():
        differences.append(_row(entry, f"automatic_{key}", _NAMES[f"automatic_{key}"]))
    modes = [_row(mode, mode.id, f"{mode.id}: {listed(mode.text)}", mode.action) for mode in comparison.modes]
    examples = [row for kind in OUTCOMES for row in galleries.get(kind, ())]
    unchanged = {one.item: one.exhibit for one in galleries.get("unchanged", ())}
    beside = [shown.image for row in examples if (shown := unchanged.get(row.item)) and shown.image is not None]
    drawn = [row.drawn for row in examples if row.drawn is not None]
    shrinker = Shrinker((row.exhibit for row in examples), [*drawn, *beside, *strips(sheets or {})])
    regions = {mode.id: mode.cells for mode in plan.modes}
    explorer = explore_changes(galleries, Source(space, shrinker, unchanged, attributes), regions)
    judged = verdict_view(verdict)
    parts = {
        "differences": differences,
        "doses": doses_view(comparison.doses or []),
        "bias": comparison_bias(comparison.bias),
        "sheets": show_sheets(sheets or {}, shrinker),
        "measures": _measures(comparison.measures or {}),
        "landscape": _landscape(landscapes, space, names, top, regions),
        "modes": modes,
        "slices": compared_view(comparison),
        "moved": [_row(region, "", listed(region.text)) for region in comparison.failures_moved.regions],
        "dumbbells": _dumbbells(modes or differences),
        "search": compare_searches(probes, comparison.search),
        "shift": _shift(comparison.shift),
        "policy": _policy(comparison),
        "reduced": comparison.reduced_failures,
    }
    ends = {"gates": judged.gates, "moved": True, "examples": explorer.groups, "skipped": skipped}
    estimator = {"items": comparison.items, "estimator": comparison.estimator.to_json()}
    render(
        "comparison.html.j2",
        out,
        audit=comparison.audit,
        first=comparison_page(comparison, judged, plan, about, galleries, attributes, shrinker),
        finding=_finding(comparison),
        decision=_decision(verdict),
        control=_CONTROLS[comparison.control or "as_used"],
        invalid=_invalid(comparison.invalid),
        slices_sentence=compared_sentence(comparison),
        titles=TITLES,
        contents=contents_of(TITLES, parts | ends | {"provenance": provenance}),
        verdict=judged,
        explorer=explorer,
        kinds=_EXAMPLES,
        points=space_part(landscapes, space, names, top, SIDES),
        rate=_rate(comparison.differences.get("failure_rate"), "In use" if comparison.usage else "Of uniform draws"),
        usage=comparison.usage is not None,
        skipped=[(entry["file"], entry["reason"]) for entry in skipped],
        provenance=list(flatten(provenance)),
        metrics=list(flatten(estimator)),
        limits=LIMITS,
        **parts,
    )


def _row(entry: Difference, key: str, name: str, action: str | None = None) -> ChangeRow:
    control, noise = entry.control, entry.noise
    moved = control if control and control.changed else None
    return ChangeRow(
        key=key,
        name=name,
        before=entry.before,
        after=entry.after,
        change=entry.change,
        low=entry.low,
        high=entry.high,
        pairs=entry.pairs,
        action=action,
        control=control.after if control else None,
        control_change=control.change if control else None,
        control_low=moved.low if moved else None,
        control_high=moved.high if moved else None,
        noise=noise.after if noise else None,
        noise_change=noise.change if noise else None,
        noise_low=noise.low if noise else None,
        noise_high=noise.high if noise else None,
    )


def _finding(comparison: Comparison) -> list[str]:
    """Return further findings: whether aiming helped, what is noise, and what failing means."""
    found = [*beside_control(comparison), *beside_noise(comparison)]
    if comparison.ratings:
        found.append(f"Failing here means {fails(comparison.ratings)}, as learnt from people's ratings.")
    return found


def _invalid(invalid: records.InvalidPairs) -> str:
    """Return how many common probes are not valid; empty if all are."""
    where = " and ".join(
        f"{percent(rate.value)} [{interval(rate.low, rate.high)}] of the common probes {part}"
        for part, rate in (("in the target modes", invalid.targets), ("everywhere else", invalid.others))
        if rate.value
    )
    if not where:
        return ""
    return f"Invalid before the repair, and so counted as passed: {where}."


def _measures(measures: Mapping[str, records.Measures]) -> list[MeasurePart]:
    """Return the task's own measures on unchanged inputs, in the target modes and elsewhere."""
    parts = []
    for key, title in _PARTS.items():
        part = measures.get(key)
        if part is None or not part.measures:
            continue
        first = next(iter(part.measures.values()))
        others, baselines = list(first.others), list(first.baselines)
        rows = [_measure(name, entry, part.pairs) for name, entry in part.measures.items() if entry.pairs]
        heading = f"{title}: {number(part.pairs)} answers to {number(part.items)} items"
        parts.append(MeasurePart(heading, rows, [_OTHERS[other] for other in others], baselines))
    return parts


def _measure(name: str, entry: records.MeasureDifference, n: int) -> MeasureRow:
    """Format one measure, with the number of digits its scale requires."""
    digits = 1 if any(value is not None and abs(value) >= 10 for value in (entry.before, entry.after)) else 3

    def moved(change: records.Change) -> list[str]:
        value, low, high = (score(x, digits, "+") for x in (change.change, change.low, change.high))
        return [value, f"{low} to {high}" if change.low is not None else ""]

    return MeasureRow(
        name=name if entry.pairs == n else f"{name} ({number(entry.pairs)} of {number(n)})",
        before=score(entry.before, digits),
        after=score(entry.after, digits),
        change=moved(entry),
        others=[[score(other.after, digits), *moved(other)] for other in entry.others.values()],
        baselines=[score(value, digits) for value in entry.baselines.values()],
    )


def _decision(verdict: RepairVerdict) -> Decided:
    policy = verdict.decided_by == "policy"
    reviewer = f"decided by {verdict.by or verdict.reviewer or 'a person who gave no name'}"
    return Decided(
        text="decided by policy, no human" if policy else reviewer,
        reason=verdict.reason or "",
        policy=policy,
        agreement=verdict.agreement.statement if verdict.agreement else "",
        ceiling=verdict.ceiling.statement if verdict.ceiling else "",
    )


def _landscape(
    landscapes: pd.DataFrame, space: ConceptSpace, names: Sequence[str], top: float, modes: Mapping[str, Region]
) -> MapPart | None:
    """Return both landscapes and their difference, each over the same pair of concepts."""
    part = map_part(landscapes, space, names, top, SIDES, modes)
    if part is None or len(names) < 2:
        return part
    choices = worst_first(landscapes, space, names, "rate_before")
    tables = {view: marginal(landscapes, space, view) for view in choices}
    changes = {view: rates["rate_after"] - rates["rate_before"] for view, rates in tables.items()}
    largest, variants = nice_ceiling(pd.concat([change.abs() for change in changes.values()])), []
    for view, rates in tables.items():
        row, column = space_of(space, view).concepts
        variants.append((label_of(view), figures.change_map(row, column, rates, largest)))
    first = changes[choices[0]]
    ends = f"{points(first.min())} to {points(first.max())} points"
    alt = f"Change of the failure rate over {label_of(choices[0])}: {ends}."
    return part._replace(pictures=[*part.pictures, Picture(alt, variants, 420, "Change", "landscape-view")])


def _dumbbells(rows: Sequence[ChangeRow]) -> Picture | None:
    shown = [row for row in rows if row.before is not None and row.after is not None and "clean" not in row.key]
    if not shown:
        return None
    alt = "Failure rates before and after: " + "; ".join(
        f"{row.name} {percent(row.before)} to {percent(row.after)}" for row in shown
    )
    lines = [figures.Dumbbell(row.key, row.name, row.before, row.after, row.control) for row in shown]
    return Picture(alt, [("", figures.dumbbells(lines))], 110 + 46 * len(shown))


def _shift(shift: records.Shift) -> ShiftPart:
    named = (
        ("Where failures lie", shift.normalised, shift.noise_floor.normalised),
        ("Where, and how many", shift.null_cell, shift.noise_floor.null_cell),
    )
    ends = [end for _, value, floor in named for end in (value, floor.max) if end is not None]
    parts = []
    for title, value, floor in named:
        if value is None:
            continue
        said = "there is no noise floor to compare it with."
        if floor.max is not None:
            said = "moved more than chance explains." if value > floor.max else "chance may explain it."
        parts.append(Moved(title, said, value, floor.min, floor.max, 1.1 * max(ends)))
    return ShiftPart(list(flatten(shift.to_json())), parts)


def _rate(row: Difference | None, where: str) -> str:
    """State the overall failure rate before and after; empty if unknown."""
    if row is None or row.before is None:
        return ""
    spread = f"{points(row.change)} points, 95% interval {points_interval(row.low, row.high)}"
    return f"{where}, {percent(row.before)} failed before, and {percent(row.after)} after ({spread})."


def _policy(comparison: Comparison) -> list[PolicyRow]:
    """Return where the policies look, by concept; the one that moved most comes first."""
    rows = []
    for moved in comparison.policy or ():
        concept = next(one for one in comparison.space.concepts if one.name == moved.concept)
        most = [
            concept.label(max(range(len(concept)), key=shares.__getitem__)) for shares in (moved.before, moved.after)
        ]
        looks = f"{most[0]} ({percent(max(moved.before))}) → {most[1]} ({percent(max(moved.after))})"
        means = [f"{number(mean)}{concept.unit}" for mean in (moved.mean_before, moved.mean_after) if mean is not None]
        floor = moved.noise_floor
        shares = ", ".join(
            f"{concept.label(i)} {percent(old)} to {percent(new)}"
            for i, (old, new) in enumerate(zip(moved.before, moved.after, strict=True))
        )
        figure = figures.level_shares(concept, moved.before, moved.after)
        picture = Picture(f"Share of draws by level of {concept.name}: {shares}.", [("", figure)], 260, concept.name)
        rows.append(
            PolicyRow(
                concept.name,
                picture,
                " → ".join(means) or number(None),
                looks,
                moved.distance,
                number(None) if floor.max is None else f"{number(floor.min)} to {number(floor.max)}",
                moved.beyond_noise,
            )
        )
    return sorted(rows, key=lambda row: -row.distance)
