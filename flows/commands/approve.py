"""Decide without a review page: for people who have seen the report, and for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import app, open_workspace, say

if TYPE_CHECKING:
    from flows.people.draft import ModeDraft
    from stages.decisions import Action, Decision

_Audit = Annotated[str, typer.Argument(metavar="AUDIT", help="Name of an audit in params.yaml.")]
_Reviewer = Annotated[
    str | None, typer.Option("--reviewer", metavar="NAME", help="Your name.", show_default="git's user.name")
]
_Landscape = Annotated[
    str | None, typer.Option("--landscape", metavar="HASH", help="Refuse if the current landscape is a different one.")
]
_Revise = Annotated[bool, typer.Option("--revise", help="Replace an earlier decision, which is kept on record.")]


@app.command(
    epilog="Example:  [cyan]faded approve mnist --repair M1,M3='seen in the field' --accept M2='rare' --ignore M4[/]",
)
def approve(
    audit: _Audit,
    reviewer: _Reviewer = None,
    reason: Annotated[str, typer.Option("--reason", help="Reason for the decision as a whole.")] = "",
    repair: Annotated[
        list[str] | None,
        typer.Option("--repair", metavar="MODES=WHY", help="Modes to repair, such as M1,M3='seen in the field'."),
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", metavar="MODES=WHY", help="Failures to accept, such as M2='too rare to matter'."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="MODES", help="Modes to ignore, such as M4,M5.")
    ] = None,
    landscape: _Landscape = None,
    revise: _Revise = False,
) -> None:
    """Approve the repair of an audit that waits for a decision; a flow run suspended on it resumes.

    Every failure mode needs a choice, and one to repair or accept needs a reason. --repair, --accept and --ignore are
    repeatable.
    """
    import shlex

    from flows.people.draft import DecisionDraft
    from flows.request import read_modes
    from stages.core.errors import UsageError

    name, present = _open(audit, landscape)
    modes = read_modes(name)
    chosen = _choices({"repair": repair or (), "accept": accept or (), "ignore": ignore or ()})
    draft = DecisionDraft(reviewer=_name(reviewer), approve=True, reason=reason, modes=chosen)
    undecided, silent = draft.missing(modes)
    if not (undecided or silent):
        _decide(name, draft.decision(present, modes), revise)
        return
    lacking = [f"{', '.join(undecided)}: a choice is needed"] if undecided else []
    lacking += [f"{', '.join(silent)}: a reason is needed"] if silent else []
    words = [
        f"--{one.action} {mode}={shlex.quote(one.reason)}" for mode, one in chosen.items() if one.action != "ignore"
    ]
    words += [f"--repair {mode}=''" for mode in undecided]
    words += [f"--ignore {mode}" for mode, one in chosen.items() if one.action == "ignore"]
    words += [f"--{key} {shlex.quote(text)}" for key, text in (("reviewer", reviewer), ("reason", reason)) if text]
    words += [f"--landscape {landscape}"] if landscape else []
    words += ["--revise"] if revise else []
    example = (
        f", with --accept {undecided[0]}='' or --ignore {undecided[0]} for a mode not to repair" if undecided else ""
    )
    raise UsageError(
        f"nothing was recorded. {'; '.join(lacking)}. Write your reasons between the quotes{example}:\n"
        f"  faded approve {name} {' '.join(words)}"
    )


@app.command(
    epilog="Example:  [cyan]faded reject mnist --reviewer 'Ada L.' --reason 'the labels are wrong'[/]",
)
def reject(
    audit: _Audit,
    reason: Annotated[str, typer.Option("--reason", help="Reason for the rejection.")],
    reviewer: _Reviewer = None,
    landscape: _Landscape = None,
    revise: _Revise = False,
) -> None:
    """Reject the landscape of an audit: no repair is made, and the audit ends as if a gate had failed."""
    from flows.people.draft import DecisionDraft

    name, present = _open(audit, landscape)
    _decide(name, DecisionDraft(reviewer=_name(reviewer), approve=False, reason=reason).decision(present, []), revise)


def _open(audit: str, landscape: str | None) -> tuple[str, str]:
    """Return the audit's name and the hash of its current landscape."""
    from stages.core.errors import UsageError
    from stages.decisions import landscape_hash

    params, [name] = open_workspace([audit], False)
    params.repair(name)
    present = landscape_hash(name)
    if landscape is not None and landscape != present:
        raise UsageError(
            f"the current landscape of {name} is {present}, not {landscape}: look at it (`faded review {name}`)"
        )
    return name, present


def _name(reviewer: str | None) -> str:
    from flows.people.approval import git_user
    from stages.core.errors import UsageError

    name = reviewer if reviewer is not None else git_user()
    if not name.strip():
        raise UsageError("a decision needs the reviewer's name, found none: use --reviewer NAME")
    return name


def _choices(options: Mapping[Action, Sequence[str]]) -> dict[str, ModeDraft]:
    """Return the choices by mode from options such as `--repair M1,M3='seen in the field'`."""
    from flows.people.draft import ModeDraft
    from stages.core.errors import UsageError

    chosen: dict[str, ModeDraft] = {}
    for action, text in ((action, text) for action, texts in options.items() for text in texts):
        modes, _, reason = text.partition("=")
        for mode in filter(None, map(str.strip, modes.split(","))):
            if mode in chosen:
                raise UsageError(f"mode {mode} is named twice, expected one of --repair, --accept and --ignore")
            chosen[mode] = ModeDraft(action=action, reason=reason.strip())
    return chosen


def _decide(name: str, decision: Decision, revise: bool) -> None:
    from flows.people.approval import decide
    from stages.params import load_params

    outcome = decide(load_params(), name, decision, "command", revise=revise)
    choices = ", ".join(f"{mode.action} {mode.id}" for mode in decision.modes) or "no modes"
    word = f"approved ({choices})" if decision.approve else "rejected"
    say(f"{outcome.reviewer} {word} landscape {decision.landscape} of {name}.", *outcome.next_steps)
