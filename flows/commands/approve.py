"""Decide without looking again: for people who have seen the report, and for scripts."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from flows.commands import app, console, open_workspace

_Audit = Annotated[str, typer.Argument(metavar="AUDIT", help="A name under audits: in params.yaml.")]
_Reviewer = Annotated[
    Optional[str],  # noqa: UP045  # typer reads this at run time
    typer.Option("--reviewer", metavar="NAME", help="Who decides.", show_default="git's user.name"),
]
_Landscape = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--landscape", metavar="HASH", help="Refuse if the present landscape is another one."),
]
_Revise = Annotated[bool, typer.Option("--revise", help="Take the place of an earlier decision, which is kept.")]


@app.command(
    rich_help_panel="Decide",
    epilog="Examples:  [cyan]faded approve mnist --reviewer 'Ada L.'[/]"
    "   [cyan]faded approve mnist --repair M1,M3 --accept M2 --reason 'seen in the field'[/]",
)
def approve(
    audit: _Audit,
    reviewer: _Reviewer = None,
    reason: Annotated[str, typer.Option("--reason", help="Why.")] = "",
    repair: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--repair", metavar="MODES", help="Repair exactly these, as M1,M3.", show_default="the confirmed"),
    ] = None,
    accept: Annotated[str, typer.Option("--accept", metavar="MODES", help="Accept these failures, as M2.")] = "",
    landscape: _Landscape = None,
    revise: _Revise = False,
) -> None:
    """Approve the repair of an audit that waits for a decision; a flow run that is suspended on it goes on.

    Without --repair and --accept the modes that are confirmed are repaired, and the others ignored.
    """
    chosen = None if repair is None else _names(repair)
    _decide(audit, reviewer, reason, landscape, approve=True, repair=chosen, accept=_names(accept), revise=revise)


@app.command(
    rich_help_panel="Decide",
    epilog="Example:  [cyan]faded reject mnist --reviewer 'Ada L.' --reason 'the labels are wrong'[/]",
)
def reject(
    audit: _Audit,
    reason: Annotated[str, typer.Option("--reason", help="Why.")],
    reviewer: _Reviewer = None,
    landscape: _Landscape = None,
    revise: _Revise = False,
) -> None:
    """Reject the landscape of an audit: no repair is made, and the audit ends as at a failed gate."""
    _decide(audit, reviewer, reason, landscape, approve=False, revise=revise)


def _decide(
    audit: str,
    reviewer: str | None,
    reason: str,
    landscape: str | None,
    *,
    approve: bool,
    repair: list[str] | None = None,
    accept: list[str] | None = None,
    revise: bool,
) -> None:
    from flows.approval import choose, decide, git_user, read_modes, waits_for_person
    from stages.decisions import Decision, landscape_hash
    from stages.errors import UsageError

    params, [name] = open_workspace([audit], False)
    params.repair(name)
    present = landscape_hash(name)
    if landscape is not None and landscape != present:
        raise UsageError(
            f"the present landscape of {name} is {present}, not {landscape}: look at it (`faded review {name}`)"
        )
    if not (by := (reviewer if reviewer is not None else git_user()).strip()):
        raise UsageError("a decision needs the reviewer's name, found none: say --reviewer NAME")
    words = choose(read_modes(name), repair, accept or [])
    decision = Decision(landscape=present, reviewer=by, reason=reason, approve=approve, modes=words)
    kept, woken = decide(params, name, decision, "command", revise=revise)

    said = ", ".join(f"{word.action} {word.id}" for word in kept.decision.modes) or "no modes"
    word = f"approved ({said})" if approve else "rejected"
    console.print(f"{by} {word} landscape {present} of {name}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"recorded in {kept.path}: commit it", markup=False, highlight=False, soft_wrap=True)
    for line in woken or [f"nothing waits for it in a flow: `faded audit {name}` goes on from here"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not waits_for_person(params, name):
        note = f"repairs.{name}.feedback.policy is top-k, so a rule decides; set it to wait for people to decide"
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]
