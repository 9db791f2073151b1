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
    from flows.approval import choose, git_user, read_modes
    from flows.review.recording import record
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
    outcome = record(params, name, decision, "command", revise=revise)

    said = ", ".join(f"{word.action} {word.id}" for word in words) or "no modes"
    word = f"approved ({said})" if approve else "rejected"
    for line in (f"{by} {word} landscape {present} of {name}.", *outcome.said):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]
