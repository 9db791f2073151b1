"""The card of a repaired model: the README of the repair, followed by its evaluation before and after."""

from __future__ import annotations

import re

from stages.pages.page import environment
from stages.records import Comparison, Plan, RepairVerdict

_NAMES = {
    "target_failure_rate": "failures in the target modes",
    "other_failure_rate": "failures in all other cells",
    "failure_rate": "failures overall",
    "target_not_passing": "failing or invalid in the target modes",
    "other_not_passing": "failing or invalid in all other cells",
    "newly_failing": "newly failing (passed before, fails now)",
    "fixed": "fixed (failed before, passes now)",
}


def model_card(
    readme: str | None, comparison: Comparison, verdict: RepairVerdict, plan: Plan, loader: str | None = None
) -> str:
    """Return the whole card.

    Args:
        readme: the README of the repair, which for an adapter names its base model; None if there is none.
        loader: load.py of the repaired model's folder; None if there is none.
    """
    text = readme.rstrip() if readme else f"# Repaired model of the audit {verdict.audit}"
    shown = f"## How to load it\n\n`load.py` in this folder:\n\n```python\n{loader.rstrip()}\n```\n\n" if loader else ""
    return f"{text}\n\n{shown}{evaluation_section(comparison, verdict, plan)}"


def evaluation_section(comparison: Comparison, verdict: RepairVerdict, plan: Plan) -> str:
    """Return the comparison as Markdown: the table, the gates, who decided on which landscape, and the limits."""
    markdown = environment().overlay(autoescape=False)
    markdown.filters = markdown.filters | {"line": _line}
    template = markdown.get_template("model_card.md.j2")
    return template.render(comparison=comparison, verdict=verdict, plan=plan, names=_NAMES).lstrip() + "\n"


def _line(text: str) -> str:
    """Put a user's text on one line of a table and escape it, so that none of its Markdown or HTML takes effect."""
    plain = " ".join(str(text).split()).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`\[\]*_])", r"\\\1", plain)
