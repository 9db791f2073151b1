"""Decide without a review page: for people who have seen the report, and for scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from flows.commands import app, console, open_workspace

if TYPE_CHECKING:
    from stages.decisions import ModeDecision

_Audit = Annotated[str, typer.Argument(metavar="AUDIT", help="Name of an audit in params.yaml.")]
_Reviewer = Annotated[
    Optional[str],  # noqa: UP045  # typer reads this at run time
    typer.Option("--reviewer", metavar="NAME", help="Your name.", show_default="git's user.name"),
]
_Landscape = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--landscape", metavar="HASH", help="Refuse if the current landscape is a different one."),
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
        Optional[list[str]],  # noqa: UP045
        typer.Option("--repair", metavar="MODES=WHY", help="Modes to repair, such as M1,M3='seen in the field'."),
    ] = None,
    accept: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--accept", metavar="MODES=WHY", help="Failures to accept, such as M2='too rare to matter'."),
    ] = None,
    ignore: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--ignore", metavar="MODES", help="Modes to ignore, such as M4,M5."),
    ] = None,
    landscape: _Landscape = None,
    revise: _Revise = False,
) -> None:
    """Approve the repair of an audit that waits for a decision; a flow run suspended on it resumes.

    Every failure mode needs a choice, and one to repair or accept needs a reason. --repair, --accept and --ignore are
    repeatable.
    """
    from flows.request import choose, missing, read_modes
    from stages.core.errors import UsageError

    name, present = _open(audit, landscape)
    modes, repaired, accepted = read_modes(name), _reasons(repair), _reasons(accept)
    ignored = [mode for text in ignore or () for mode in _names(text)]
    undecided, silent = missing(modes, repaired, accepted, ignored)
    if undecided or silent:
        told = [f"{', '.join(undecided)}: a choice is needed"] if undecided else []
        told += [f"{', '.join(silent)}: a reason is needed"] if silent else []
        words = [
            f"--repair {mode}={shlex.quote(why)}" for mode, why in {**repaired, **dict.fromkeys(undecided, "")}.items()
        ]
        words += [f"--accept {mode}={shlex.quote(why)}" for mode, why in accepted.items()]
        words += [f"--ignore {','.join(ignored)}"] if ignored else []
        words += [f"--{key} {shlex.quote(text)}" for key, text in (("reviewer", reviewer), ("reason", reason)) if text]
        words += [f"--landscape {landscape}"] if landscape else []
        words += ["--revise"] if revise else []
        instead = (
            f", with --accept {undecided[0]}='' or --ignore {undecided[0]} for a mode not to repair"
            if undecided
            else ""
        )
        raise UsageError(
            f"nothing was recorded. {'; '.join(told)}. Write your reasons between the quotes{instead}:\n"
            f"  faded approve {name} {' '.join(words)}"
        )
    _decide(name, present, reviewer, reason, choose(modes, repaired, accepted, ignored), approve=True, revise=revise)


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
    name, present = _open(audit, landscape)
    _decide(name, present, reviewer, reason, [], approve=False, revise=revise)


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


def _decide(
    name: str,
    present: str,
    reviewer: str | None,
    reason: str,
    words: Sequence[ModeDecision],
    *,
    approve: bool,
    revise: bool,
) -> None:
    from flows.people.approval import git_user
    from flows.people.review.recording import record
    from stages.core.errors import UsageError
    from stages.decisions import Decision
    from stages.decisions.names import clean_name
    from stages.params import load_params

    by = reviewer if reviewer is not None else git_user()
    if not by.strip():
        raise UsageError("a decision needs the reviewer's name, found none: use --reviewer NAME")
    decision = Decision(landscape=present, reviewer=clean_name(by), reason=reason, approve=approve, modes=list(words))
    outcome = record(load_params(), name, decision, "command", revise=revise)

    said = ", ".join(f"{word.action} {word.id}" for word in words) or "no modes"
    word = f"approved ({said})" if approve else "rejected"
    for line in (f"{outcome.reviewer} {word} landscape {present} of {name}.", *outcome.said):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _reasons(given: Sequence[str] | None) -> Mapping[str, str]:
    """Return reasons by mode from options such as `M1,M3=seen in the field`; a missing reason is empty."""
    from stages.core.errors import UsageError

    pairs = [
        (mode, why.strip()) for text in given or () for names, _, why in [text.partition("=")] for mode in _names(names)
    ]
    if len(pairs) > len(reasons := dict(pairs)):
        raise UsageError(f"a mode is named twice in {' '.join(given or ())}, expected each once")
    return reasons


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]
