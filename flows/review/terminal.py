"""`faded review`: show a landscape in the terminal, ask what to do about each failure mode, write the decision.

Where the landscape lists examples, those that fail may be rated too, and corrected if the repair learns from that.
"""

from __future__ import annotations

import math
import subprocess
from typing import Any, cast, get_args

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt
from rich.table import Table

from stages.concepts import ConceptSpace
from stages.decisions import (
    SEVERITIES,
    Action,
    Decision,
    ExampleRating,
    ModeDecision,
    landscape_hash,
    record_decision,
    standing,
)
from stages.errors import AlreadyDecided, UsageError
from stages.files import read_json, stage_dir
from stages.params import Params, task_class
from stages.restructure import learns_from_examples

RATINGS = [str(rating) for rating in range(1, 11)]


def review_landscape(params: Params, audit: str, console: Console, revise: bool = False) -> None:
    """Ask for a decision on the audit's present landscape and write it; Enter takes the default of a question.

    Args:
        params: the workspace's.
        audit: whose landscape.
        console: where to ask.
        revise: decide again, in the place of an earlier decision.

    Raises:
        UsageError: when there is no landscape, nothing to decide, or the answers end before the questions do.
    """
    params.repair(audit)
    landscape = landscape_hash(audit)
    summary = read_json(stage_dir(audit, "summarize") / "landscape.json")
    _show(console, audit, landscape, summary)
    if params.repairs[audit].feedback.policy != "wait":
        note = f"repairs.{audit}.feedback.policy is top-k, so a rule decides; set it to wait to decide yourself"
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    now = standing(params, audit)
    if now.complete and not revise:
        raise AlreadyDecided(
            f"{', '.join(d.reviewer for d in now.decisions)} decided on landscape {landscape} of {audit} already;"
            f" to decide again on purpose: `faded review {audit} --revise`"
        )
    try:
        decision = _dialogue(landscape, summary, _learns(params, audit, summary["modes"]), console)
        if not Confirm.ask("Write this decision?", default=True, console=console):
            console.print("nothing written")
            return
    except EOFError:
        raise UsageError("the review was broken off; no decision was written") from None
    written = record_decision(params, audit, decision, "terminal", revise=revise)
    console.print(
        f"written to {written.path}: commit it, then run `faded audit {audit}`", highlight=False, soft_wrap=True
    )


def _learns(params: Params, audit: str, modes: list[dict[str, Any]]) -> bool:
    """Whether the audit's repair learns from examples; the task is not imported where there are none to ask about."""
    shown = any(mode.get("examples") for mode in modes)
    method = params.repair(audit).restructure.method
    return shown and learns_from_examples(task_class(audit, params.audit(audit)), method)


def _dialogue(landscape: str, summary: dict[str, Any], learns: bool, console: Console) -> Decision:
    def choose(question: str, choices: list[str], default: str) -> str:
        return Prompt.ask(question, choices=choices, default=default, console=console)

    def text(question: str, default: str = "") -> str:
        return _text(console, question, default)

    decided, rated = [], []
    for mode in summary["modes"]:
        console.print(f"\n[bold]{escape(mode['id'])}[/]  {escape(mode['text'])}", highlight=False)
        default = "repair" if mode.get("confirmed") else "ignore"  # Enter never repairs what may be chance
        action = cast(Action, choose("  what is to happen with it?", list(get_args(Action)), default))
        severity = choose("  how severe is it?", list(SEVERITIES), "medium") if action == "repair" else "medium"
        reason = text("  why?")
        decided.append(ModeDecision(id=mode["id"], action=action, severity=SEVERITIES[severity], reason=reason))
        rated += _rate_examples(mode, summary["concepts"], learns and action == "repair", console)
    console.print()
    reviewer = text("Reviewer", _git_user())
    if not reviewer:
        raise UsageError("a decision needs the reviewer's name, found none")
    return Decision(
        landscape=landscape,
        reviewer=reviewer,
        reason=text("Reason for the whole decision"),
        approve=Confirm.ask("Approve the repair? (no ends the audit here)", default=True, console=console),
        modes=decided,
        examples=rated,
    )


def _text(console: Console, question: str, default: str = "") -> str:
    return Prompt.ask(question, default=default, show_default=bool(default), console=console).strip()


def _rate_examples(
    mode: dict[str, Any], concepts: list[dict[str, Any]], used: bool, console: Console
) -> list[ExampleRating]:
    """Ask about the failing examples of a mode, which an older landscape does not list; Enter says nothing of one.

    Args:
        mode: as in landscape.json.
        concepts: as in landscape.json.
        used: whether the repair will learn from what is said; only then corrections are asked for.
        console: where to ask.
    """
    failing = [example for example in mode.get("examples", ()) if example["failed"]]
    if not failing or not Confirm.ask("  rate its examples?", default=False, console=console):
        return []
    if not used:
        console.print("  [yellow]note:[/] no repair will learn from these ratings; they are kept with the decision")
    space, rated = ConceptSpace.from_json(concepts), []
    for example in failing:
        asked = f"{_printable(example['item'])}, {escape(space.describe(example['cell']))}"
        console.print(f"\n  [bold]{escape(example['id'])}[/]  {asked}", highlight=False, soft_wrap=True)
        console.print(f"  [dim]answer:[/] {_printable(example['output'])}", highlight=False, soft_wrap=True)
        rating = Prompt.ask(
            "  rating of the answer, 1 (useless) to 10 (perfect)",
            choices=RATINGS,
            show_choices=False,
            default="",
            show_default=False,
            console=console,
        )
        corrected = _text(console, "  what should it have been?") if used else ""
        if rating or corrected:
            rated.append(
                ExampleRating(id=example["id"], rating=int(rating) if rating else None, corrected=corrected or None)
            )
    return rated


def _printable(text: str) -> str:
    """A model's words for the terminal: no markup, and no control characters, which a terminal would obey."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def _git_user() -> str:
    done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _show(console: Console, audit: str, landscape: str, summary: dict[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Failure modes of {audit}", title_justify="left")
    table.add_column("mode")
    table.add_column("region", overflow="fold")
    for name in ("fails", "95% interval", "probes", "share of grid", "confirmed"):
        table.add_column(name, justify="right")
    for mode in summary["modes"]:
        table.add_row(
            escape(mode["id"]),
            escape(mode["text"]),
            *_rate(mode),
            f"{mode['probes']:,}",
            f"{mode['share']:.0%}",
            "yes" if mode["confirmed"] else "no",
        )
    console.print(table)
    console.print(f"landscape {landscape}, report: {stage_dir(audit, 'summarize') / 'report.html'}", highlight=False)


def _rate(mode: dict[str, Any]) -> tuple[str, str]:
    """The rate of a mode and its interval, which are missing where no probe of the control lies in it."""
    numbers = [mode.get(key) for key in ("rate", "low", "high")]
    if any(number is None or math.isnan(number) for number in numbers):
        return "–", "not measured"  # noqa: RUF001
    rate, low, high = (f"{number:.0%}" for number in numbers)
    return rate, f"{low} to {high}"
