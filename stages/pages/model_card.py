"""The card of a repaired model: the README of the repair, followed by its evaluation before and after."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stages.pages.sentences import decided_by, gate_view
from stages.pages.words import number, percent, points, points_interval
from stages.records import Comparison, Difference, Gate, Plan, RepairVerdict

_NAMES = {
    "target_failure_rate": "failures in the target modes",
    "other_failure_rate": "failures in all other cells",
    "failure_rate": "failures overall",
    "target_not_passing": "failing or invalid in the target modes",
    "other_not_passing": "failing or invalid in all other cells",
    "newly_failing": "newly failing (passed before, fails now)",
    "fixed": "fixed (failed before, passes now)",
}
_CONTROLS = {
    "as_used": "the control is a copy trained for as many steps on cells as they occur in use",
    "clean": "the control is a copy trained for as many steps on unchanged inputs",
}
_LIMITS = (
    "Measured on items that neither the search nor the repair has seen; nothing is known about items unlike them.",
    "Measured within the ranges of the audited concepts; nothing is known beyond them.",
    "Intervals are 95% intervals from resampled items, or groups of items that belong together. A gate passes only if"
    " the whole interval is within its bound.",
)


def model_card(
    readme: str | None, comparison: Comparison, verdict: RepairVerdict, plan: Plan, loader: str | None = None
) -> str:
    """Return the whole card.

    Args:
        readme: the README of the repair, which for an adapter names its base model; None if there is none.
        comparison: the comparison before and after.
        verdict: the verdict on it.
        plan: what was repaired.
        loader: load.py of the repaired model's folder; None if there is none.
    """
    text = readme.rstrip() if readme else f"# Repaired model of the audit {verdict.audit}"
    shown = f"## How to load it\n\n`load.py` in this folder:\n\n```python\n{loader.rstrip()}\n```\n\n" if loader else ""
    return f"{text}\n\n{shown}{evaluation_section(comparison, verdict, plan)}"


def evaluation_section(comparison: Comparison, verdict: RepairVerdict, plan: Plan) -> str:
    """Return the comparison as Markdown: the table, the gates, who decided on which landscape, and the limits."""
    others = [name for name in ("control", "noise") if any(name in e.others for e in comparison.differences.values())]
    titles = {"control": "control", "noise": "queried again (noise)"}
    lines = [
        "## Evaluation before and after",
        "",
        _line(verdict.statement),
        "",
        *_table(
            ["measure", "before", "after", "change (95% interval)", *(titles[name] for name in others)],
            [_row(key, entry, others) for key, entry in comparison.shown_differences.items()],
        ),
        "",
        *_notes(comparison, others),
        *_gates(verdict.gates),
        *_modes(plan),
        *_table(
            ["", ""],
            [
                ["items", f"{number(comparison.items)} held-out items"],
                ["decided by", _line(decided_by(plan))],
                *([["reason", _line(plan.reason)]] if plan.reason else []),
                ["landscape decided on", f"`{plan.landscape}`"],
            ],
        ),
        "",
        "### Limits of this evaluation",
        "",
        *(f"- {limit}" for limit in _LIMITS),
    ]
    return "\n".join(lines) + "\n"


def _row(key: str, entry: Difference, others: Sequence[str]) -> list[str]:
    spread = "" if entry.changed else f" ({percent(entry.after_low)} to {percent(entry.after_high)})"
    change = f"{points(entry.change)} points ({points_interval(entry.low, entry.high)})"
    return [
        _line(_NAMES.get(key) or entry.name or key),
        percent(entry.before) if entry.changed else "",
        f"{percent(entry.after)}{spread}",
        change if entry.change is not None else "",
        *(percent(entry.others[name].after if name in entry.others else None) for name in others),
    ]


def _notes(comparison: Comparison, others: Sequence[str]) -> list[str]:
    """Explain the columns, and compare the shift of the landscape with chance."""
    said = []
    if "control" in others and comparison.control:
        said.append(_CONTROLS[comparison.control])
    if "noise" in others:
        said.append("the noise floor is the unchanged model, queried again")
    moved, floor = comparison.shift.normalised, comparison.shift.noise_floor.normalised
    if moved is not None and floor.max is not None:
        said.append(
            f"the landscape's shape moved by {number(moved)}; between two halves of the items the same model"
            f" differs by {number(floor.mean)} on average and by {number(floor.max)} at most"
        )
    return [f"{text[0].upper()}{text[1:]}." for text in said] + ([""] if said else [])


def _gates(gates: Sequence[Gate]) -> list[str]:
    if not gates:
        return []
    word = {True: "yes", False: "no", None: "not judged"}
    rows = [[_line(g.name), g.bound, g.value, g.interval, word[g.passed]] for g in map(gate_view, gates)]
    return [*_table(["gate", "bound", "value", "95% interval", "passed"], rows), ""]


def _modes(plan: Plan) -> list[str]:
    """Tell what was decided on each failure mode, and why."""
    if not plan.modes:
        return []
    rows = [[mode.id, _line(mode.text), mode.action, _line(mode.reason)] for mode in plan.modes]
    return [*_table(["failure mode", "where", "decided", "reason"], rows), ""]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def _line(text: str) -> str:
    """Put a user's text on one line of a table and escape it, so that none of its Markdown or HTML takes effect."""
    plain = " ".join(str(text).split()).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`\[\]*_])", r"\\\1", plain)
