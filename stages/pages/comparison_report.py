"""The report on a repair: what changed where people asked for it, what changed elsewhere, and whether that passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.concepts import ConceptSpace
from stages.pages import figures
from stages.pages.bias import comparison_bias
from stages.pages.gallery import Shown, Shrinker
from stages.pages.marginals import marginal, shown_concepts, views
from stages.pages.page import Picture, render
from stages.pages.parts import label_of, landscape_part, space_of, top_rate
from stages.pages.ratings import fails
from stages.pages.scales import nice_ceiling
from stages.pages.searches import compare_searches
from stages.pages.sheets import show_sheets, strips
from stages.pages.verdicts import verdict_view
from stages.pages.words import flatten, interval, is_number, number, percent, points, points_interval, score
from stages.records import Compared
from stages.tasks.contract import Sheet

LIMITS = (
    "Before and after are judged on the same items and cells, on items the repair never saw: differences are paired.",
    "Intervals are 95% intervals over resampled items. They do not cover items unlike the ones used here.",
    "A gate passes only on evidence: if the interval reaches across its bound, it fails.",
    "The landscapes are estimates from two searches at the same budget; the paired differences are counted.",
    "The same model differs between two halves of the items, by chance: that is the noise floor of the shift. Halves "
    "have fewer items and probes than the whole, so it is overstated.",
)
_NAMES = {
    "target_failure_rate": "target modes: failure rate",
    "other_failure_rate": "all other cells: failure rate",
    "failure_rate": "whole grid: failure rate",
    "automatic_target_failure_rate": "target modes: failure rate by the automatic measure",
    "automatic_other_failure_rate": "all other cells: failure rate by the automatic measure",
    "automatic_failure_rate": "whole grid: failure rate by the automatic measure",
    "fixed": "fixed: failed before, passes now",
    "newly_failing": "newly failing: passed before, fails now",
}
_CONTROLS = {
    "uniform": "Control: a copy trained for as many steps on uniformly drawn cells instead of the modes.",
    "clean": "Control: a copy trained for as many steps on unchanged inputs.",
}
_PARTS = {"clean": "Unchanged inputs", "targets": "In the target modes", "others": "Everywhere else"}
_OTHERS = {"control": "control", "noise": "asked again"}
_EXAMPLES = {
    "fixed": ("Fixed: failed before, passes now", "passing"),
    "newly_failing": ("Newly failing: passed before, fails now", "failing"),
}


def write_comparison_report(
    out: Path,
    *,
    verdict: Mapping[str, Any],
    landscapes: pd.DataFrame,
    space: ConceptSpace,
    probes: pd.DataFrame,
    galleries: Mapping[str, Sequence[Compared]],
    provenance: Mapping[str, Any],
    sheets: Mapping[str, Sequence[Sheet]] | None = None,
    skipped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write before against after as one self-contained page. What is missing in the inputs is left out.

    Args:
        out: the page; the same inputs give the same bytes.
        verdict: as in verdict.json of re_evaluate.
        landscapes: one row a cell with rate_before, low_before, ..., rate_after, ....
        space: the concepts of the landscapes.
        probes: as in re_evaluate's probes.parquet.
        galleries: examples of each kind ("fixed", "newly_failing").
        provenance: as in provenance.json.
        sheets: contact sheets by model ("before", "after").
        skipped: what could not be used, as {file, reason}.
    """
    names = shown_concepts(landscapes, space, "rate_before") if "rate_before" in landscapes else space.names
    top = top_rate(landscapes, space, names, ("rate_before", "rate_after"))
    differences = [_row(entry, key) for key, entry in (verdict.get("differences") or {}).items()]
    differences += [_row(entry, f"automatic_{key}") for key, entry in (verdict.get("automatic") or {}).items()]
    modes, moved = [_row(entry, entry["id"]) for entry in verdict.get("modes") or []], verdict.get("failures_moved")
    sides = [
        part
        for suffix, title in (("_before", "Before"), ("_after", "After"))
        if (part := landscape_part(landscapes, space, names, top, suffix, title))
    ]
    galleries = {kind: [Compared(*row) for row in rows] for kind, rows in galleries.items()}
    examples = [row for rows in galleries.values() for row in rows]
    drawn = [row.drawn for row in examples if row.drawn is not None]
    shrinker = Shrinker((row.exhibit for row in examples), [*drawn, *strips(sheets or {})])
    parts = {
        "verdict": verdict_view(verdict),
        "differences": differences,
        "bias": comparison_bias(verdict.get("bias")),
        "sheets": show_sheets(sheets or {}, shrinker),
        "measures": _measures(verdict.get("measures") or {}),
        "sides": sides,
        "changes": _changes(landscapes, space, names),
        "modes": modes,
        "moved": None if moved is None else [_row(entry, "") for entry in moved["regions"]],
        "dumbbells": _dumbbells(modes or differences),
        "search": compare_searches(probes, verdict.get("search") or {}),
        "shift": _shift(verdict.get("shift") or {}),
        "reduced": _reduced(verdict.get("reduced_failures")),
        "examples": _examples(galleries, shrinker),
    }
    titles = {
        "differences": "Before and after",
        "measures": "Measures",
        "bias": "Bias",
        "sheets": "Contact sheets",
        "sides": "Landscapes",
        "changes": "Change",
        "modes": "Modes",
        "moved": "Moved",
        "search": "Search",
        "shift": "Shift",
        "reduced": "Reduced failures",
        "examples": "Examples",
    }
    render(
        "comparison.html.j2",
        out,
        audit=str(verdict.get("audit") or provenance.get("audit") or "Before and after the repair"),
        finding=_finding(verdict, differences),
        decision=_decision(verdict),
        control=_CONTROLS[verdict.get("control") or "uniform"],
        invalid=_invalid(verdict.get("invalid") or {}),
        contents=[(key, title) for key, title in titles.items() if parts[key] or (key == "moved" and moved)],
        skipped=[(entry["file"], entry["reason"]) for entry in skipped],
        provenance=list(flatten(provenance)),
        metrics=list(flatten({key: verdict[key] for key in ("items", "estimator") if key in verdict})),
        limits=LIMITS,
        **parts,
    )


def _row(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A paired difference as the table shows it; shares that no model had before (newly failing) have no change."""
    control, noise, text = entry.get("control", {}), entry.get("noise", {}), entry.get("text")
    changed = "change" in control
    return {
        "key": key,
        "name": f"{key}: {text}" if key and text else text or entry.get("name") or _NAMES[key],
        **{name: entry.get(name) for name in ("before", "after", "change", "low", "high", "pairs", "action")},
        "control": control.get("after"),
        "control_change": control.get("change"),
        "control_low": control.get("low") if changed else None,
        "control_high": control.get("high") if changed else None,
        "noise": noise.get("after"),
        **{f"noise_{name}": noise.get(name) for name in ("change", "low", "high")},
    }


def _finding(verdict: Mapping[str, Any], differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the repair did, in a few sentences: where it aimed, elsewhere, against the control, and to whom."""
    said = []
    by_key = {row["key"]: row for row in differences}
    for key, what in (("target_failure_rate", "In the target modes"), ("other_failure_rate", "Everywhere else")):
        row = by_key.get(key, {})
        if is_number(row.get("before")):
            said.append(
                f"{what} failures went from {percent(row['before'])} to {percent(row['after'])} "
                f"({points(row['change'])} points, 95% interval {points_interval(row['low'], row['high'])})."
            )
    for statement in ((verdict.get(key) or {}).get("statement") for key in ("targeting", "noise")):
        if statement:
            said.append(f"{statement[0].upper()}{statement[1:]}.")
    if ratings := verdict.get("ratings"):
        said.append(f"Failing here means {fails(ratings)}, as people's ratings have taught.")
    newly = by_key.get("newly_failing", {})
    if is_number(newly.get("after")):
        said.append(f"{percent(newly['after'])} of what passed before now fails.")
    return said


def _invalid(invalid: Mapping[str, Any]) -> str:
    """How many common probes left nothing a model could be blamed for; empty if none did."""
    shares = {_PARTS[part].lower(): rate for part, rate in invalid.items() if rate["value"]}
    if not shares:
        return ""
    where = " and ".join(
        f"{part} {percent(rate['value'])} [{interval(rate['low'], rate['high'])}]" for part, rate in shares.items()
    )
    return f"Changed beyond recognition, and so counted as passed for every model: {where} of the common probes."


def _measures(measures: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The task's own measures on unchanged inputs, in the target modes and elsewhere."""
    parts = []
    for key, title in _PARTS.items():
        entries = (measures.get(key) or {}).get("measures")
        if not entries:
            continue
        first = next(iter(entries.values()))
        others, baselines = [other for other in _OTHERS if other in first], list(first["baselines"])
        n = measures[key]["pairs"]
        known = {name: entry for name, entry in entries.items() if entry["pairs"]}
        rows = [_measure(name, entry, n, others, baselines) for name, entry in known.items()]
        heading = f"{title}: {number(n)} answers to {number(measures[key]['items'])} items"
        parts.append({"title": heading, "rows": rows, "others": [_OTHERS[o] for o in others], "baselines": baselines})
    return parts


def _measure(
    name: str, entry: Mapping[str, Any], n: int, others: Sequence[str], baselines: Sequence[str]
) -> dict[str, Any]:
    """One measure as the table shows it, all its numbers with as many digits as its scale asks for."""
    digits = 1 if any(is_number(entry[model]) and abs(entry[model]) >= 10 for model in ("before", "after")) else 3

    def moved(change: Mapping[str, Any]) -> list[str]:
        value, low, high = (score(change[key], digits, "+") for key in ("change", "low", "high"))
        return [value, f"{low} to {high}" if change["low"] is not None else ""]

    return {
        "name": name if entry["pairs"] == n else f"{name} ({number(entry['pairs'])} of {number(n)})",
        "before": score(entry["before"], digits),
        "after": score(entry["after"], digits),
        "change": moved(entry),
        "others": [[score(entry[other]["after"], digits), *moved(entry[other])] for other in others],
        "baselines": [score(entry["baselines"][baseline], digits) for baseline in baselines],
    }


def _decision(verdict: Mapping[str, Any]) -> dict[str, str] | None:
    """Who decided which modes to repair; a rule is never passed off as a person."""
    by = verdict.get("decided_by")
    if not by:
        return None
    reviewer = f"decided by {verdict.get('by') or verdict.get('reviewer') or 'a person who gave no name'}"
    return {
        "text": "decided by policy, no human" if by == "policy" else reviewer,
        "reason": str(verdict.get("reason") or ""),
        "policy": "yes" if by == "policy" else "",
        "agreement": str((verdict.get("agreement") or {}).get("statement", "")),
    }


def _changes(landscapes: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> list[Picture]:
    """Difference heat maps, one for each pair of concepts, on one colour scale."""
    if len(names) < 2 or not {"rate_before", "rate_after"} <= set(landscapes.columns):
        return []
    tables = {view: marginal(landscapes, space, view) for view in views(names, 2)}
    largest = pd.concat([(t["rate_after"] - t["rate_before"]).abs() for t in tables.values()])
    top, pictures = nice_ceiling(largest), []
    for view, rates in tables.items():
        row, column = space_of(space, view).concepts
        change = rates["rate_after"] - rates["rate_before"]
        ends = f"{points(change.min())} to {points(change.max())} points"
        alt = f"Change of the failure rate over {label_of(view)}: {ends}."
        pictures.append(Picture(alt, [("", figures.change_map(row, column, rates, top))], 330, label_of(view)))
    return pictures


def _dumbbells(rows: Sequence[Mapping[str, Any]]) -> Picture | None:
    shown = [
        dict(row) for row in rows if is_number(row["before"]) and is_number(row["after"]) and "clean" not in row["key"]
    ]
    if not shown:
        return None
    alt = "Failure rates before and after: " + "; ".join(
        f"{row['name']} {percent(row['before'])} to {percent(row['after'])}" for row in shown
    )
    return Picture(alt, [("", figures.dumbbells(shown))], 110 + 46 * len(shown))


def _shift(shift: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far the landscape moved, beside how far it moves by chance."""
    if not shift:
        return None
    sentences = []
    for view, what in (("normalised", "Shape alone"), ("null_cell", "Shape and amount")):
        value, floor = shift[view], shift["noise_floor"][view]
        if value is None or floor["max"] is None:
            continue
        same = f"the same model on two halves of the items differs by {number(floor['min'])} to {number(floor['max'])}"
        beyond = "more than chance explains" if value > floor["max"] else "chance may explain that"
        sentences.append(f"{what}: moved by {number(value)}, where {same}: {beyond}.")
    return {"rows": list(flatten(shift)), "sentences": sentences}


def _reduced(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Reduced failures with their numbers, on the chosen modes and over the whole grid."""
    if data is None:
        return None
    names = {"targets": "chosen modes", "total": "whole grid"}
    parts = [{"name": name, **data[key], **data[key]["change"]} for key, name in names.items()]
    return {"holds": data["holds"], "parts": parts}


def _examples(galleries: Mapping[str, Sequence[Compared]], shrinker: Shrinker) -> list[tuple[str, str, list[Shown]]]:
    return [(*_EXAMPLES[key], [shrinker.show(*row) for row in rows]) for key, rows in galleries.items() if rows]
