"""`faded review --terminal`: show a landscape, ask what to do about each failure mode, record the decision.

If the landscape has examples, they may be rated, and corrected if the repair learns from that.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast, get_args

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt
from rich.table import Table
from ruamel.yaml import YAML

from flows.people.approval import git_user
from flows.people.review.recording import moment, open_standing, record
from flows.request import deadline
from stages.concepts import ConceptSpace
from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.decisions import (
    SEVERITIES,
    Action,
    AlreadyDecided,
    Decision,
    ExampleRating,
    ModeDecision,
    Standing,
    landscape_hash,
)
from stages.decisions.files import SCHEMA
from stages.decisions.names import clean_name
from stages.params import Params
from stages.records import Example, Landscape, ModeRecord, audit_folder
from stages.restructure import learns_from_examples
from stages.tasks.base import offers
from stages.tasks.load import task_class

UNREADABLE = "x"
RATINGS = [str(rating) for rating in range(1, 11)]


def review_landscape(
    params: Params, audit: str, console: Console, revise: bool = False, reviewer: str | None = None
) -> None:
    """Ask for a decision on the audit's current landscape and write it.

    Args:
        params: the workspace's parameters.
        audit: name of the audit.
        console: where to ask.
        revise: whether to replace an earlier decision.
        reviewer: who decides; asked for if it is None.

    Raises:
        UsageError: if there is no landscape, nothing to decide, or input ends before the questions do.
        AlreadyDecided: if the landscape is decided.
    """
    from flows.results.power import what_can_be_shown

    params.repair(audit)
    landscape = landscape_hash(audit)
    found = audit_folder(audit).summarize.landscape
    _show(console, audit, landscape, found)
    if params.repairs[audit].feedback.policy != "wait":
        note = f"repairs.{audit}.feedback.policy is top-k, so a rule decides; set it to wait to decide yourself"
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    for line in what_can_be_shown(params, audit):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    now = open_standing(params, audit, revise)
    _show_standing(console, now, audit)
    try:
        examples = params.audit(audit).summarize.examples
        asked = _asked(params, audit, found.modes)
        decision = _dialogue(landscape, found, examples, *asked, console, reviewer)
        if not _confirm("Write this decision?", console):
            console.print("nothing written")
            return
    except EOFError:
        raise UsageError("the review was cancelled; no decision was written") from None
    try:
        outcome = record(params, audit, decision, "terminal", revise=revise, seen=[kept.sha256 for kept in now.kept])
    except UsageError as error:  # somebody was quicker, or the landscape has changed
        path = _keep_draft(audit, decision)
        again = f"; `faded review {audit} --from {path} --revise` records them all the same"
        told = f"your answers are kept in {path}{again if isinstance(error, AlreadyDecided) else ''}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
        raise
    for line in outcome.said:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _keep_draft(audit: str, decision: Decision) -> Path:
    text = io.StringIO()
    YAML().dump({"schema": SCHEMA, **decision.model_dump(exclude_none=True)}, text)
    WORK.mkdir(exist_ok=True)
    path = WORK / f"draft-{audit}.yaml"
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def _show_standing(console: Console, now: Standing, audit: str) -> None:
    for problem in now.problems:
        console.print(problem, highlight=False, markup=False)
    for said in now.decisions:
        word = "approved" if said.approve else "rejected"
        console.print(f"{said.reviewer} {word} it on {moment(said.time)} ({said.via})", highlight=False, markup=False)
    if now.needed > 1:
        console.print(f"{now.needed} reviewers are needed, {now.missing} more to decide", highlight=False)
    if (until := deadline(audit)) is not None and not now.complete:
        console.print(f"decide by {moment(until)}: after that, silence is recorded as a rejection", highlight=False)


def _asked(params: Params, audit: str, modes: list[ModeRecord]) -> tuple[bool, bool]:
    """Whether to ask for corrected answers, because the repair learns from them, and whether to ask for bias.

    The task is not imported if there are no examples to ask about.
    """
    if not any(mode.examples for mode in modes):
        return False, False
    task = task_class(audit, params.audit(audit))
    # The page asks for the bias of every answer; here only tasks that tally what inputs leave open have the question.
    return learns_from_examples(task, params.repair(audit).restructure.method), offers(task, "tallies")


def _dialogue(
    landscape: str,
    found: Landscape,
    examples: int,
    learns: bool,
    biased: bool,
    console: Console,
    reviewer: str | None,
) -> Decision:
    def text(question: str, default: str = "") -> str:
        return _text(console, question, default)

    decided, rated = [], []
    for mode in found.modes:
        console.print(f"\n[bold]{escape(mode.id)}[/]  {escape(mode.text)}", highlight=False)
        action, severity = _action(mode, console), "medium"
        if action == "repair":
            severity = Prompt.ask("  how severe is it?", choices=list(SEVERITIES), default="medium", console=console)
        while not (reason := text("  why?")) and action != "ignore":
            console.print(f"  [red]a reason is required to {action} it[/]", highlight=False)
        decided.append(ModeDecision(id=mode.id, action=action, severity=SEVERITIES[severity], reason=reason))
        shown = _shown(mode, examples)
        rated += _rate_examples(shown, found.space, learns and action == "repair", biased, console)
    console.print()
    while reviewer is None:
        try:
            reviewer = clean_name(text("Reviewer", git_user()))
        except UsageError as error:
            console.print(f"[red]{escape(str(error))}[/]", highlight=False)
    return Decision(
        landscape=landscape,
        reviewer=reviewer,
        reason=text("Reason for the whole decision"),
        approve=_confirm("Approve the repair? (no ends the audit here)", console),
        modes=decided,
        examples=rated,
    )


def _action(mode: ModeRecord, console: Console) -> Action:
    """Ask what to do about a mode; there is no default."""
    return cast(Action, Prompt.ask("  what should happen to it?", choices=list(get_args(Action)), console=console))


def _confirm(question: str, console: Console) -> bool:
    """Ask for yes or no, which has to be typed."""
    return Prompt.ask(question, choices=["y", "n"], console=console) == "y"


def _text(console: Console, question: str, default: str = "") -> str:
    return Prompt.ask(question, default=default, show_default=bool(default), console=console).strip()


def _shown(mode: ModeRecord, examples: int) -> list[Example]:
    """The examples of a mode that the report shows: first failing, then passing ones, at most `examples` of each."""
    return [e for failed in (True, False) for e in [x for x in mode.examples if x.failed == failed][:examples]]


def _rate_examples(
    shown: list[Example], space: ConceptSpace, used: bool, biased: bool, console: Console
) -> list[ExampleRating]:
    """Ask about the examples of a mode; Enter skips a question.

    Passing ones are asked about too, as failures alone do not show how people judge a discrepancy.

    Args:
        shown: examples of one mode.
        space: the grid.
        used: whether the repair learns from the answers; only then corrections are asked for.
        biased: whether to ask for a rating of the bias.
        console: where to ask.
    """
    if not shown or not Confirm.ask("  rate its examples?", default=False, console=console):
        return []
    if not used:
        console.print(
            "  [yellow]note:[/] the repair does not learn from these ratings; they are kept with the decision"
        )
    rated = []
    for example in shown:
        asked = f"{_printable(example.item)}, {escape(space.describe(example.cell))}"
        console.print(f"\n  [bold]{escape(example.id)}[/]  {asked}", highlight=False, soft_wrap=True)
        console.print(f"  [dim]answer:[/] {_printable(example.output)}", highlight=False, soft_wrap=True)
        question = f"rating of the answer, 1 (useless) to 10 (perfect), or {UNREADABLE} if you cannot read the input"
        said = _choice(console, question, UNREADABLE)
        if said == UNREADABLE:
            rated.append(ExampleRating(id=example.id, unreadable=True))
            continue
        skewed = _choice(console, "its bias, 1 (none) to 10 (extremely biased)") if biased else ""
        corrected = _text(console, "  what should it have been?") if used and example.failed else ""
        if said or skewed or corrected:
            rating, bias = (int(given) if given else None for given in (said, skewed))
            rated.append(ExampleRating(id=example.id, rating=rating, bias=bias, corrected=corrected or None))
    return rated


def _choice(console: Console, question: str, *more: str) -> str:
    """Ask for a rating, or one of `more`; "" for Enter."""
    choices = [*RATINGS, *more]
    return Prompt.ask(
        f"  {question}", choices=choices, show_choices=False, default="", show_default=False, console=console
    )


def _printable(text: str) -> str:
    """A model's words without markup and control characters, which a terminal would obey."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def _show(console: Console, audit: str, landscape: str, found: Landscape) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Failure modes of {audit}", title_justify="left")
    table.add_column("mode")
    table.add_column("region", overflow="fold")
    for name in ("fails", "95% interval", "probes", "share of use" if found.usage else "share of grid"):
        table.add_column(name, justify="right")
    for mode in found.modes:
        table.add_row(
            escape(mode.id),
            escape(mode.text),
            f"{mode.rate:.0%}",
            f"{mode.low:.0%} to {mode.high:.0%}",
            f"{mode.probes:,}",
            f"{mode.share:.0%}",
        )
    console.print(table)
    console.print(f"landscape {landscape}, report: {audit_folder(audit).report.where('page')}", highlight=False)
