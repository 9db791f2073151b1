"""Review a landscape and record a decision, on a page, in the terminal, or by options for scripts."""

from __future__ import annotations

import os
import shlex
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import Audit, Preset, command, console, errors, flag, open_workspace, say, value
from stages.core.errors import UsageError

if TYPE_CHECKING:
    from flows.people.approval import DecisionOutcome
    from stages.decisions import Action, Decision
    from stages.params import Params

_Audit = Annotated[str, typer.Argument(metavar="AUDIT", help="Name of an audit in params.yaml.")]
_Reviewer = Annotated[str | None, value("NAME", "Your name.", show_default="git's user.name")]
_Landscape = Annotated[str | None, value("HASH", "Refuse if the current landscape is a different one.")]
_Revise = Annotated[bool, flag("--revise", "Replace an earlier decision, which is kept on record.")]


@command("faded review mnist", "faded review mnist --terminal", "faded review mnist --link --reviewer 'Ada L.'")
def review(
    audit: Audit = None,
    preset: Preset = None,
    terminal: Annotated[bool, flag("--terminal", "Ask in the terminal instead of on a page.")] = False,
    revise: Annotated[bool, flag("--revise", "Decide again; the earlier decision is kept.")] = False,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Record a decision written by hand (docs/review.md).")
    ] = None,
    reviewer: Annotated[str | None, value("NAME", "Who decides: the link is for this reviewer only.")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; anything but 127.0.0.1 is reachable from the network.", show_default="127.0.0.1"
        ),
    ] = None,
    port: Annotated[
        int | None, value("N", "Port to listen on.", min=0, max=65535, show_default="8711, or any free one")
    ] = None,
    open_: Annotated[
        bool | None, flag("--open/--no-open", "Open the browser, or only print the link.", show_default=False)
    ] = None,
    link: Annotated[bool, flag("--link", "Print a new link to the page being served now.")] = False,
) -> None:
    """Review a landscape and decide which failure modes to repair, on a local page.

    The page opens from a link that works once, and the command ends when the decision is recorded. If no browser can
    be opened, it asks in the terminal. The decision is bound to the landscape shown, and is written to
    data/AUDIT/decisions, which belongs in git.
    """
    from flows.people.review.links import one_time_link

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    params.repair(name)
    by = "" if from_ is not None else _who(params, name, reviewer)
    if link:
        say(_anew(one_time_link(name, by), revise))
    elif from_ is not None:
        from flows.people.approval import decide
        from stages.decisions.files import check_fits, read_draft

        check_fits(name, draft := read_draft(from_), from_)
        _show_outcome(decide(params, name, draft, "file", revise=revise))
    elif terminal or (open_ is None and not _has_screen() and _interactive()):
        if not terminal:
            say("no browser can be opened here, so you are asked in the terminal; --no-open prints a link instead")
        _in_terminal(params, name, revise, by)
    else:
        _on_page(params, name, by, host, port, _has_screen() if open_ is None else open_, revise)


def _who(params: Params, name: str, reviewer: str | None) -> str:
    """Return the reviewer whose page or dialogue it is; empty if reviewers enter their name there."""
    from flows.people.approval import git_user, signer
    from stages.decisions import listed_keys

    if reviewer is None and not listed_keys(params, name):
        return ""
    return signer(params, name, git_user() if reviewer is None else reviewer)[0]


def _has_screen() -> bool:
    """Return whether this machine can show a browser, which is not so over ssh."""
    named = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in named)


def _interactive() -> bool:
    return sys.stdin.isatty()


def _in_terminal(params: Params, name: str, revise: bool, by: str) -> None:
    from flows.people.review.terminal import review_landscape

    review_landscape(params, name, console, revise, by or None)


def _on_page(params: Params, name: str, by: str, host: str | None, port: int | None, open_: bool, revise: bool) -> None:
    """Serve the page until a decision is recorded, or use a server that is running here already."""
    from flows.people.approval import open_standing
    from flows.people.review.links import one_time_link, running
    from flows.people.review.server import HOST, serve_review, warning

    open_standing(params, name, revise)
    if (server := running()) is not None:
        console.print(f"a review server is already running here (process {server.pid}) and shows it")
        if host is not None or port is not None:
            _warn(f"it listens at {server.url}: --host and --port do not change that")
        _show(name, one_time_link(name, by), open_, revise)
        return
    host = host or HOST
    if (danger := warning(host)) is not None:
        _warn(danger)
    decided = False
    try:
        with serve_review([name], host, port) as page:
            _show(name, page.link(name, by), open_, revise)
            console.print(f"waiting for a decision on {name}; Ctrl-C ends it")
            # Other commands may show their audits here, so do not cut off their reviewers.
            while not decided or (others := page.undecided()):
                if decided:
                    browsers = "browser has" if others == 1 else "browsers have"
                    console.print(f"{others} other {browsers} a page open; Ctrl-C ends it")
                outcome = page.next_outcome()
                _show_outcome(outcome)
                decided = decided or outcome.audit == name
    except KeyboardInterrupt:
        if not decided:
            errors.print(f"stopped; no decision on {name} was recorded here")
            raise typer.Exit(130) from None


def _warn(text: str) -> None:
    errors.print(f"[bold yellow]warning:[/] {text}", soft_wrap=True)


def _show(name: str, link: str, open_: bool, revise: bool) -> None:
    from flows.people.review.links import write_way_in

    link = _anew(link, revise)
    say(f"open this link, it works once: {link}")
    if open_:
        webbrowser.open(write_way_in(name, link).as_uri())


def _anew(link: str, revise: bool) -> str:
    """The link, to a page that asks again although the landscape is decided, if it is for that."""
    return f"{link}&again=yes" if revise else link


def _show_outcome(outcome: DecisionOutcome) -> None:
    word = "approved" if outcome.approve else "rejected"
    say(f"{outcome.reviewer} {word} the repair of {outcome.audit}.", *outcome.next_steps)


@command("faded approve mnist --repair M1,M3='seen in the field' --accept M2='rare' --ignore M4")
def approve(
    audit: _Audit,
    reviewer: _Reviewer = None,
    reason: Annotated[str, typer.Option(help="Reason for the decision as a whole.")] = "",
    repair: Annotated[
        list[str] | None, value("MODES=WHY", "Modes to repair, such as M1,M3='seen in the field'.")
    ] = None,
    accept: Annotated[
        list[str] | None, value("MODES=WHY", "Failures to accept, such as M2='too rare to matter'.")
    ] = None,
    ignore: Annotated[list[str] | None, value("MODES", "Modes to ignore, such as M4,M5.")] = None,
    landscape: _Landscape = None,
    revise: _Revise = False,
) -> None:
    """Approve the repair of an audit that waits for a decision; a flow run suspended on it resumes.

    Every failure mode needs a choice, and one to repair or accept needs a reason. --repair, --accept and --ignore are
    repeatable.
    """
    from flows.people.draft import decision_of, missing
    from flows.request import read_modes

    name, present = _open(audit, landscape)
    modes = read_modes(name)
    chosen = _choices({"repair": repair or (), "accept": accept or (), "ignore": ignore or ()})
    known = [mode.id for mode in modes]
    if unknown := [mode for mode in chosen if mode not in known]:
        raise UsageError(f"unknown mode(s) {', '.join(unknown)}; the landscape has {', '.join(known) or 'none'}")
    fields = {"reviewer": _name(reviewer), "reason": reason, "decision": "approve"}
    for mode, (action, why) in chosen.items():
        fields |= {f"action.{mode}": action, f"reason.{mode}": why}
    undecided, silent = missing(fields, modes)
    if not (undecided or silent):
        _decide(name, decision_of(fields, present, modes), revise)
        return
    needed = ((undecided, "a choice"), (silent, "a reason"))
    lacking = [f"{', '.join(lack)}: {what} is needed" for lack, what in needed if lack]
    words = [f"--{action} {mode}={shlex.quote(why)}" for mode, (action, why) in chosen.items() if action != "ignore"]
    words += [f"--repair {mode}=''" for mode in undecided]
    words += [f"--ignore {mode}" for mode, (action, _) in chosen.items() if action == "ignore"]
    given = {"reviewer": reviewer, "reason": reason, "landscape": landscape}
    words += [f"--{key} {shlex.quote(text)}" for key, text in given.items() if text]
    words += ["--revise"] if revise else []
    example = (
        f", with --accept {undecided[0]}='' or --ignore {undecided[0]} for a mode not to repair" if undecided else ""
    )
    raise UsageError(
        f"nothing was recorded. {'; '.join(lacking)}. Write your reasons between the quotes{example}:\n"
        f"  faded approve {name} {' '.join(words)}"
    )


@command("faded reject mnist --reviewer 'Ada L.' --reason 'the labels are wrong'")
def reject(
    audit: _Audit,
    reason: Annotated[str, typer.Option(help="Reason for the rejection.")],
    reviewer: _Reviewer = None,
    landscape: _Landscape = None,
    revise: _Revise = False,
) -> None:
    """Reject the landscape of an audit: no repair is made, and the audit ends as if a gate had failed."""
    from flows.people.draft import decision_of

    name, present = _open(audit, landscape)
    fields = {"reviewer": _name(reviewer), "reason": reason, "decision": "reject"}
    _decide(name, decision_of(fields, present, []), revise)


def _open(audit: str, landscape: str | None) -> tuple[str, str]:
    """Return the audit's name and the hash of its current landscape."""
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

    name = reviewer if reviewer is not None else git_user()
    if not name.strip():
        raise UsageError("a decision needs the reviewer's name, found none: use --reviewer NAME")
    return name


def _choices(options: Mapping[Action, Sequence[str]]) -> dict[str, tuple[Action, str]]:
    """Return the choices and reasons by mode from options such as `--repair M1,M3='seen in the field'`."""
    chosen: dict[str, tuple[Action, str]] = {}
    for action, text in ((action, text) for action, texts in options.items() for text in texts):
        modes, _, reason = text.partition("=")
        for mode in filter(None, map(str.strip, modes.split(","))):
            if mode in chosen:
                raise UsageError(f"mode {mode} is named twice, expected one of --repair, --accept and --ignore")
            chosen[mode] = action, reason.strip()
    return chosen


def _decide(name: str, decision: Decision, revise: bool) -> None:
    from flows.people.approval import decide
    from stages.params import load_params

    outcome = decide(load_params(), name, decision, "command", revise=revise)
    choices = ", ".join(f"{mode.action} {mode.id}" for mode in decision.modes) or "no modes"
    word = f"approved ({choices})" if decision.approve else "rejected"
    say(f"{outcome.reviewer} {word} landscape {decision.landscape} of {name}.", *outcome.next_steps)
