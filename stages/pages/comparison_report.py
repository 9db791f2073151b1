"""The report on a repair: changes in the target modes, changes elsewhere, and the verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.landscape.verdict import at_same_harm
from stages.pages import figures
from stages.pages.bias import HOW, MODELS, changed_bias
from stages.pages.examples import OUTCOMES, ExampleSource, explore_changes
from stages.pages.first_page import ABOUT_NOTHING, About, comparison_page
from stages.pages.gallery import Shrinker, show_sheets, strips
from stages.pages.maps import rate_maps, shown_concepts, top_rate
from stages.pages.page import Picture, render
from stages.pages.sections import NOTHING_KNOWN, compare_searches, risen_slices
from stages.pages.words import counted, listed, number, percent, points
from stages.records import Comparison, Difference, PairedProbe, Plan, RepairVerdict
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
SIDES = {"_before": "before", "_after": "after"}
_PARTS = {"clean": "Unchanged inputs", "targets": "In the target modes", "others": "Everywhere else"}
_EXAMPLES = {
    "fixed": "Fixed: failed before, passes now",
    "newly_failing": "Newly failing: passed before, fails now",
}


ChangeRow = tuple[str, Difference]  # name, and what changed


def write_comparison_report(
    out: Path,
    *,
    comparison: Comparison,
    verdict: RepairVerdict,
    landscapes: pd.DataFrame,
    probes: pd.DataFrame,
    plan: Plan,
    galleries: Mapping[str, Sequence[PairedProbe]],
    provenance: Mapping[str, Any],
    attributes: pd.DataFrame = NOTHING_KNOWN,
    about: About = ABOUT_NOTHING,
    harm: Mapping[str, records.Harm] | None = None,
    sheets: Mapping[str, Sequence[Sheet]] | None = None,
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the comparison before and after as one self-contained page.

    Args:
        out: the page; the same inputs give the same bytes.
        landscapes: one row per cell with rate_before, low_before, ..., rate_after, ....
        probes: as in re_evaluate's probes.parquet.
        galleries: examples by kind ("fixed", "newly_failing"), and their items "unchanged".
        attributes: attributes of the test items, one row per item id.
        harm: how far the repair and its control went, if they had a budget.
        sheets: contact sheets by model ("before", "after").
        skipped: files that could not be used, as {file, reason}.
    """
    space = comparison.space
    names = shown_concepts(landscapes, space, "rate_before")
    top = top_rate(landscapes, space, names, ("rate_before", "rate_after"))
    differences: list[ChangeRow] = [(e.name or _NAMES[k], e) for k, e in comparison.shown_differences.items()]
    for key, entry in (comparison.automatic or {}).items():
        differences.append((_NAMES[f"automatic_{key}"], entry))
    modes: list[ChangeRow] = [(f"{mode.id}: {listed(mode.text)}", mode) for mode in comparison.modes]
    examples = [row for kind in OUTCOMES for row in galleries.get(kind, ())]
    unchanged = {one.item: one.exhibit for one in galleries.get("unchanged", ())}
    beside = [shown.image for row in examples if (shown := unchanged.get(row.item)) and shown.image is not None]
    drawn = [row.drawn for row in examples if row.drawn is not None]
    shrinker = Shrinker((row.exhibit for row in examples), [*drawn, *beside, *strips(sheets or {})])
    regions = {mode.id: mode.cells for mode in plan.modes}
    measures = {
        f"{title}: {number(part.pairs)} answers to {number(part.items)} items": part
        for key, title in _PARTS.items()
        if (part := (comparison.measures or {}).get(key)) and part.measures
    }
    frontier = comparison.frontier
    render(
        "comparison.html.j2",
        out,
        audit=comparison.audit,
        first=comparison_page(comparison, verdict, plan, about, galleries, attributes, shrinker),
        verdict=verdict,
        differences=differences,
        modes=modes,
        control=_CONTROLS[comparison.control or "as_used"],
        invalid=comparison.invalid,
        measures=measures,
        baselined=any(entry.baselines for part in measures.values() for entry in part.measures.values()),
        frontier=frontier,
        frontier_picture=frontier_picture(frontier) if frontier else None,
        equal_harm=" ".join(at_same_harm(comparison)),
        how_far=how_far_each(harm or {}),
        bias=changed_bias(comparison.bias),
        bias_how=HOW,
        bias_models=MODELS,
        sheets=show_sheets(sheets or {}, shrinker),
        landscape=rate_maps(landscapes, space, names, top, SIDES, regions),
        concepts=space.concepts,
        names=names,
        explorer=explore_changes(galleries, ExampleSource(space, shrinker, unchanged, attributes), regions),
        kinds=_EXAMPLES,
        must_pass=plan.must_pass,
        slices=[of for of in comparison.slices or () if of.values],
        risen_slices=risen_slices(comparison),
        moved=[(listed(region.text), region) for region in comparison.failures_moved.regions],
        search=compare_searches(probes, comparison.search),
        shift=comparison.shift,
        policy=_policy(comparison),
        reduced=comparison.reduced_failures,
        usage=comparison.usage is not None,
        skipped=skipped,
        provenance=provenance,
        limits=LIMITS,
    )


def frontier_picture(found: records.Frontier) -> Picture:
    """Draw a frontier."""
    published = found.published
    told = (
        f"Failures in the target modes against what newly fails. The repair: {percent(published.targets.value)} fail,"
        f" {percent(published.newly_failing.value)} newly fail; before: {percent(found.before.value)} fail."
    )
    return Picture(told, figures.frontier_chart(found))


def how_far_each(harm: Mapping[str, records.Harm]) -> str:
    """Say how far the repair and its control went to what they learnt, and what stopped them."""
    said: list[str] = []
    for copy, one in harm.items():
        tried = {at.share: at for at in one.tried}
        name, went = {"repaired": "repair"}.get(copy, copy), "stays the model under test"
        if one.share:
            went = f"{one.goes(tried[one.share])}: {_breaks(tried[one.share])}"
        if beyond := [share for share in tried if share > one.share]:
            nearest = tried[min(beyond)]
            went += f"; at {one.at(nearest)}, {_breaks(nearest)}, more than its budget of harm allows"
        on = "" if said else f"On {counted(one.items, 'repair item')} held out of the training, "
        said.append(f"{on}{'the' if on else 'The'} {name} {went}.")
        if one.noise and copy == "repaired":
            again = f"{percent(one.noise, 2)} newly fail if the model under test is queried again"
            said.append(f"{again}, which is allowed beside the budget.")
    return " ".join(said)


def _breaks(at: records.HarmAtShare) -> str:
    """Say what a model breaks at a share of the way."""
    kept = f", {at.must_pass}" if at.must_pass and at.must_pass.failing else ""
    return f"{percent(at.newly_failing, 2)} newly fail, clean quality {points(-at.clean)} points{kept}"


def _policy(comparison: Comparison) -> list[tuple[records.PolicyShift, str, str]]:
    """Return by concept how the policy moved, its means, and where it looks most; the furthest first."""
    rows = []
    for moved in comparison.policy or ():
        concept = next(one for one in comparison.space.concepts if one.name == moved.concept)
        before, after = (
            f"{concept.label(shares.index(max(shares)))} ({percent(max(shares))})"
            for shares in (moved.before, moved.after)
        )
        means = [f"{number(mean)}{concept.unit}" for mean in (moved.mean_before, moved.mean_after) if mean is not None]
        rows.append((moved, " → ".join(means) or number(None), f"{before} → {after}"))
    return sorted(rows, key=lambda row: -row[0].distance)
