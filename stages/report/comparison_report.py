"""The report on a repair: what changed where people asked for it, what changed elsewhere, and whether that passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.concepts import ConceptSpace
from stages.report import figures
from stages.report.gallery import Shown, Shrinker
from stages.report.marginals import marginal, shown_concepts, views
from stages.report.page import Picture, render
from stages.report.parts import label_of, landscape_part, space_of, top_rate
from stages.report.scales import nice_ceiling
from stages.report.searches import compare_searches
from stages.report.verdicts import verdict_view
from stages.report.words import flatten, is_number, number, percent, points, points_interval, skipped, words
from stages.tasks.contract import Exhibit

LIMITS = (
    "Before and after are judged on the same items and cells, on items the repair never saw: differences are paired.",
    "Intervals are 95% intervals over resampled items. They do not cover items unlike the ones used here.",
    "A gate passes only on evidence: if the interval reaches across its bound, it fails.",
    "The landscapes are estimates from two searches at the same budget; the paired differences are counted.",
    "The same model differs between two halves of the items, by chance: that is the noise floor of the shift.",
)
_NAMES = {
    "target": "target modes",
    "target_failure_rate": "target modes: failure rate",
    "other": "all other cells",
    "other_failure_rate": "all other cells: failure rate",
    "failure_rate": "whole grid: failure rate",
    "fixed": "fixed: failed before, passes now",
    "newly_failing": "newly failing: passed before, fails now",
    "clean_quality": "quality on unchanged items",
}


def write_comparison_report(
    out: Path,
    *,
    verdict: Mapping[str, Any],
    landscapes: pd.DataFrame,
    space: ConceptSpace,
    probes: pd.DataFrame,
    galleries: Mapping[str, Sequence[tuple[Exhibit, str, str]]],
    provenance: Mapping[str, Any],
) -> None:
    """Write before against after as one self-contained page. What is missing in the inputs is left out.

    Args:
        out: the page; the same inputs give the same bytes.
        verdict: as in verdict.json of re_evaluate.
        landscapes: one row a cell with rate_before, low_before, ..., rate_after, ....
        space: the concepts of the landscapes.
        probes: as in re_evaluate's probes.parquet.
        galleries: (exhibit, output before, output after) for each kind of example ("fixed", "newly_failing").
        provenance: as in provenance.json.
    """
    names = shown_concepts(landscapes, space, "rate_before") if "rate_before" in landscapes else space.names
    top = top_rate(landscapes, space, names, ("rate_before", "rate_after"))
    differences = list(_differences(verdict.get("differences")))
    modes, moved = list(_differences(verdict.get("modes"))), verdict.get("failures_moved")
    sides = [
        part
        for suffix, title in (("_before", "Before"), ("_after", "After"))
        if (part := landscape_part(landscapes, space, names, top, suffix, title))
    ]
    parts = {
        "verdict": verdict_view(verdict),
        "differences": differences,
        "sides": sides,
        "changes": _changes(landscapes, space, names),
        "modes": modes,
        "moved": None if moved is None else list(_differences(moved.get("regions"))),
        "dumbbells": _dumbbells(modes or differences),
        "search": compare_searches(probes, verdict.get("search") or {}),
        "shift": _shift(verdict.get("shift") or {}),
        "reduced": _reduced(verdict.get("reduced_failures")),
        "examples": _examples(galleries),
    }
    titles = {
        "differences": "Before and after",
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
        contents=[(key, title) for key, title in titles.items() if parts[key] or (key == "moved" and moved)],
        skipped=list(skipped(provenance)),
        provenance=list(flatten(provenance)),
        metrics=list(flatten({key: verdict[key] for key in ("items", "estimator") if key in verdict})),
        limits=LIMITS,
        **parts,
    )


def _differences(data: Any) -> Iterator[dict[str, Any]]:
    """Paired differences in one form, from a list of entries or a mapping of name to entry.

    An entry's numbers: before, after, change with low and high, the same for the control under `control`.
    """
    entries: Iterable[Any] = data or []
    if isinstance(data, Mapping):
        entries = [{"key": key, **value} for key, value in data.items() if isinstance(value, Mapping)]
    for entry in entries:
        key = str(entry.get("key") or entry.get("id") or "")
        control = entry.get("control")
        control = control if isinstance(control, Mapping) else {"after": control} if is_number(control) else {}
        change = entry.get("change", entry.get("difference", entry.get("value")))
        text = entry.get("text")
        yield {
            "key": key,
            "name": f"{key}: {text}" if key and text else text or entry.get("name") or _NAMES.get(key, words(key)),
            "before": entry.get("before"),
            "after": entry.get("after"),
            "change": change,
            "low": entry.get("low"),
            "high": entry.get("high"),
            "n": entry.get("pairs", entry.get("n", entry.get("probes"))),
            "action": entry.get("action"),
            "control": control.get("after", control.get("value")),
            "control_change": control.get("change", control.get("difference")),
            "control_low": control.get("low"),
            "control_high": control.get("high"),
        }


def _finding(verdict: Mapping[str, Any], differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the repair did, in a few sentences: where it aimed, elsewhere, against the control, and to whom."""
    said = []
    by_key = {row["key"].removesuffix("_failure_rate"): row for row in differences}
    for key, what in (("target", "In the target modes"), ("other", "Everywhere else")):
        row = by_key.get(key, {})
        if is_number(row.get("before")) and is_number(row.get("after")):
            said.append(
                f"{what} failures went from {percent(row['before'])} to {percent(row['after'])} "
                f"({points(row['change'])} points, 95% interval {points_interval(row['low'], row['high'])})."
            )
    statement = (verdict.get("targeting") or {}).get("statement")
    if statement:
        said.append(f"{statement[0].upper()}{statement[1:]}.")
    newly = by_key.get("newly_failing", {})
    share = next((newly[k] for k in ("after", "change") if is_number(newly.get(k))), None)
    if share is not None:
        said.append(f"{percent(share)} of what passed before now fails.")
    return said


def _decision(verdict: Mapping[str, Any]) -> dict[str, str] | None:
    """Who decided which modes to repair; a rule is never passed off as a person."""
    source = {**(verdict.get("plan") or {}), **verdict}
    by = source.get("decided_by")
    if not by:
        return None
    reviewer = f"decided by {source.get('reviewer') or 'a person who gave no name'}"
    return {
        "text": "decided by policy, no human" if by == "policy" else reviewer,
        "reason": str(source.get("reason") or ""),
        "policy": "yes" if by == "policy" else "",
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
    rows = list(flatten(shift))
    if not rows:
        return None
    floor = shift.get("noise_floor")
    sentences = []
    kinds = {"normalised": "Shape alone", "null_cell": "Shape and amount", "with_null_cell": "Shape and amount"}
    for key, what in kinds.items():
        value = shift.get(key)
        noise = floor.get(key) if isinstance(floor, Mapping) else floor
        if value is not None and is_number(value) and noise is not None and is_number(noise):
            beyond = "more than chance explains" if value > noise else "no more than chance explains"
            same = f"the same model on two halves of the items differs by {number(noise)}"
            sentences.append(f"{what}: moved by {number(value)}, where {same}: {beyond}.")
    return {"rows": rows, "sentences": sentences}


def _reduced(data: Any) -> dict[str, Any] | None:
    """Definition 4.1 with its numbers; parts hold for the chosen modes and for the whole landscape."""
    if data is None:
        return None
    numbers = dict(data) if isinstance(data, Mapping) else {"holds": data}
    names = {"targets": "chosen modes", "total": "whole landscape"}
    parts = [
        {"name": name, "before": None, "after": None, "holds": None, "beyond_chance": None, **part}
        | {k: (part.get("change") or {}).get(k) for k in ("value", "low", "high")}
        for key, name in names.items()
        if isinstance(part := numbers.pop(key, None), Mapping)
    ]
    return {"holds": numbers.pop("holds", None), "parts": parts, "rows": list(flatten(numbers))}


def _examples(galleries: Mapping[str, Sequence[tuple[Exhibit, str, str]]]) -> list[tuple[str, str, list[Shown]]]:
    shrinker = Shrinker(exhibit for rows in galleries.values() for exhibit, _, _ in rows)
    kinds = {"fixed": ("Fixed: failed before, passes now", "passing")}
    kinds |= dict.fromkeys(("newly_failing", "newly failing"), ("Newly failing: passed before, fails now", "failing"))
    return [
        (*kinds.get(key, (words(key).capitalize(), "")), [shrinker.show(*row) for row in rows])
        for key, rows in galleries.items()
        if rows
    ]
