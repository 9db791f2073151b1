"""`faded review --terminal`: show a landscape, ask what to do about each failure mode, record the decision.

If the landscape has examples, they may be rated, and corrected if the repair learns from that.
"""

from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt

from flows.people.approval import decide, git_user, open_standing
from flows.people.draft import SCORES, Fields, decision_of
from flows.request import deadline, moment
from flows.results.abilities import abilities_of
from flows.results.power import what_can_be_shown
from flows.terminal import new_table, print_plain
from flows.workspace.edit_params import dumped
from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.core.files import replace_file
from stages.decisions import SEVERITIES, Action, AlreadyDecided, Standing, landscape_hash
from stages.decisions.files import SCHEMA
from stages.decisions.names import clean_name
from stages.params import Params
from stages.records import Example, Landscape, ModeRecord, audit_folder

UNREADABLE = "x"


def review_landscape(
    params: Params, audit: str, console: Console, revise: bool = False, reviewer: str | None = None
) -> None:
    """Ask for a decision on the audit's current landscape, and for who decides if that is None, and write it.

    Raises a UsageError if there is no landscape, nothing to decide, or input ends before the questions do;
    AlreadyDecided if the landscape is decided.
    """
    params.repair(audit)
    hashed = landscape_hash(audit)
    landscape = audit_folder(audit).summarize.landscape
    _show(console, audit, hashed, landscape)
    if (policy := params.repair(audit).feedback.policy) != "wait":
        note = f"repairs.{audit}.feedback.policy is {policy}, so a rule decides; set it to wait to decide yourself"
        console.print(f"[yellow]note:[/] {note}")
    print_plain(console, *what_can_be_shown(params, audit))
    now = open_standing(params, audit, revise)
    print_plain(console, *_standing_lines(now, audit))
    try:
        dialogue = _Dialogue(console, params, audit, landscape)
        decision = decision_of(dialogue.fields(reviewer), hashed, landscape.modes)
        if not dialogue.confirm("Write this decision?"):
            console.print("nothing written")
            return
    except EOFError:
        raise UsageError("the review was cancelled; no decision was written") from None
    try:
        outcome = decide(params, audit, decision, "terminal", revise=revise, seen=[kept.sha256 for kept in now.kept])
    except UsageError as error:  # somebody was quicker, or the landscape has changed
        path = WORK / f"draft-{audit}.yaml"
        replace_file(path, dumped({"schema": SCHEMA, **decision.model_dump(exclude_none=True)}))
        again = f"; `faded review {audit} --from {path} --revise` records them all the same"
        print_plain(console, f"your answers are kept in {path}{again if isinstance(error, AlreadyDecided) else ''}")
        raise
    print_plain(console, *outcome.next_steps)


def _standing_lines(now: Standing, audit: str) -> list[str]:
    lines = list(now.problems)
    for decision in now.decisions:
        word = "approved" if decision.approve else "rejected"
        lines.append(f"{decision.reviewer} {word} it on {moment(decision.time)} ({decision.via})")
    if now.needed > 1:
        lines.append(f"{now.needed} reviewers are needed, {now.missing} more to decide")
    if (until := deadline(audit)) is not None and not now.complete:
        lines.append(f"decide by {moment(until)}: after that, silence is recorded as a rejection")
    return lines


class _Dialogue:
    def __init__(self, console: Console, params: Params, audit: str, landscape: Landscape) -> None:
        self._console, self._landscape = console, landscape
        self._examples, self._learns, self._biased = params.audit(audit).summarize.examples, False, False
        if any(mode.examples for mode in landscape.modes):  # otherwise the task need not be imported
            can = abilities_of(params, audit)
            self._learns = params.repair(audit).restructure.method in can.learns_from_examples
            # The page asks for the bias of every answer; here only of tasks that tally what inputs leave open.
            self._biased = can.tallies

    def fields(self, reviewer: str | None) -> Fields:
        fields: Fields = {}
        for mode in self._landscape.modes:
            self._console.print(f"\n[bold]{escape(mode.id)}[/]  {escape(mode.text)}")
            # There is no default.
            action = Prompt.ask("  what should happen to it?", choices=list(get_args(Action)), console=self._console)
            fields[f"action.{mode.id}"] = action
            if action == "repair":
                fields[f"severity.{mode.id}"] = Prompt.ask(
                    "  how severe is it?", choices=list(SEVERITIES), default="medium", console=self._console
                )
            while not (reason := self._text("  why?")) and action != "ignore":
                self._console.print(f"  [red]a reason is required to {action} it[/]")
            fields[f"reason.{mode.id}"] = reason
            fields |= self._ratings(mode, self._learns and action == "repair")
        self._console.print()
        while reviewer is None:
            try:
                reviewer = clean_name(self._text("Reviewer", git_user()))
            except UsageError as error:
                self._console.print(f"[red]{escape(str(error))}[/]")
        reason = self._text("Reason for the whole decision")
        decision = "approve" if self.confirm("Approve the repair? (no ends the audit here)") else "reject"
        return {**fields, "reviewer": reviewer, "reason": reason, "decision": decision}

    def confirm(self, question: str) -> bool:
        """Ask for yes or no, which has to be typed."""
        return Prompt.ask(question, choices=["y", "n"], console=self._console) == "y"

    def _text(self, question: str, default: str = "") -> str:
        shown = bool(default)
        return Prompt.ask(question, default=default, show_default=shown, console=self._console).strip()

    def _ratings(self, mode: ModeRecord, used: bool) -> Fields:
        """Ask about the examples of a mode; Enter skips a question.

        First failing ones, then passing ones, as failures alone do not show how people judge a discrepancy.
        """
        sides = ([one for one in mode.examples if one.failed == failed] for failed in (True, False))
        shown = [one for side in sides for one in side[: self._examples]]
        if not shown or not Confirm.ask("  rate its examples?", default=False, console=self._console):
            return {}
        if not used:
            note = "the repair does not learn from these ratings; they are kept with the decision"
            self._console.print(f"  [yellow]note:[/] {note}")
        fields: Fields = {}
        for example in shown:
            fields |= self._rating(example, used)
        return fields

    def _rating(self, example: Example, used: bool) -> Fields:
        about = f"{_printable(example.item)}, {escape(self._landscape.space.describe(example.cell))}"
        for line in (f"\n  [bold]{escape(example.id)}[/]  {about}", f"  [dim]answer:[/] {_printable(example.output)}"):
            self._console.print(line, soft_wrap=True)
        question = f"rating of the answer, 1 (useless) to 10 (perfect), or {UNREADABLE} if you cannot read the input"
        rating = self._score(question, UNREADABLE)
        if rating == UNREADABLE:
            return {f"unreadable.{example.id}": "yes"}
        bias = self._score("its bias, 1 (none) to 10 (extremely biased)") if self._biased else ""
        corrected = self._text("  what should it have been?") if used and example.failed else ""
        return {f"rating.{example.id}": rating, f"bias.{example.id}": bias, f"corrected.{example.id}": corrected}

    def _score(self, question: str, *more: str) -> str:
        """Ask for a rating, or one of `more`; "" for Enter."""
        return Prompt.ask(
            f"  {question}",
            choices=[*SCORES, *more],
            show_choices=False,
            default="",
            show_default=False,
            console=self._console,
        )


def _printable(text: str) -> str:
    """A model's words without markup and control characters, which a terminal would obey."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def _show(console: Console, audit: str, hashed: str, landscape: Landscape) -> None:
    numbers = ("fails", "95% interval", "probes", "share of use" if landscape.usage else "share of grid")
    table = new_table("mode", "region", *numbers, title=f"Failure modes of {audit}", right=numbers)
    for mode in landscape.modes:
        found = f"{mode.rate:.0%}", f"{mode.low:.0%} to {mode.high:.0%}", f"{mode.probes:,}", f"{mode.share:.0%}"
        table.add_row(escape(mode.id), escape(mode.text), *found)
    console.print(table)
    console.print(f"landscape {hashed}, report: {audit_folder(audit).report.where('page')}")
