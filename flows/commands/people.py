"""Manage the reviewers who may decide, and learn from people's ratings what counts as a failure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands import Audit, Preset, command, console, flag, open_workspace, say, value
from stages.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.params import Params


@command("faded reviewers add 'Ada L.'", "faded reviewers add Bob --public-key bob.pub", "faded reviewers list")
def reviewers(
    what: Annotated[Literal["list", "add", "remove"], typer.Argument(metavar="WHAT", help="list, add or remove.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The reviewer to add or remove.")] = None,
    public_key: Annotated[
        str | None,
        value(
            "FILE|KEY",
            "Public key of a reviewer whose private key is elsewhere.",
            show_default="that of a key made here",
        ),
    ] = None,
    audit: Annotated[
        list[str] | None, value("AUDIT", "Only for this audit; repeatable.", show_default="all with human review")
    ] = None,
) -> None:
    """List, add or remove reviewers: once there are keys, only decisions signed with one of them count.

    Adding a reviewer creates a key unless there is one here: it stays with this user on this machine (FADED_KEYS), and
    signs decisions in that name. The public key goes to repairs.AUDIT.feedback.keys in params.yaml, which belongs in
    git. A reviewer who decides on another machine adds their name there, and sends the line that `list` shows.
    """
    key = None if public_key is None else _text(public_key)  # before the folder changes
    params, _ = open_workspace(audit, all_=audit is None)
    if what == "list":
        if name is not None or key is not None:
            raise UsageError("`faded reviewers list` takes neither a name nor a key")
        _list(params, audit)
        return
    if name is None:
        raise UsageError(f"`faded reviewers {what}` needs the NAME of a reviewer")
    audits = audit or [a for a, repair in params.repairs.items() if repair.feedback.policy == "wait"]
    if not audits:
        raise UsageError("no audit asks people to decide: set repairs.AUDIT.feedback.policy to wait first")
    for one in audits:
        params.repair(one)
    if what == "add":
        _add(params, audits, name, key)
    elif key is not None:
        raise UsageError("`faded reviewers remove` takes a name and no key")
    else:
        _remove(params, audits, name)


def _list(params: Params, audits: list[str] | None) -> None:
    from flows.people.approval import key_name
    from stages.core.keys import has_key
    from stages.decisions import listed_keys
    from stages.decisions.identity import key_id_of

    found: dict[tuple[str, str], list[str]] = {}
    for audit in audits or params.repairs:
        for name, line in listed_keys(params, audit).items():
            found.setdefault((name, line), []).append(audit)
    for (name, line), where in found.items():
        here = ", private key here" if has_key(key_name(name)) else ""
        say(f"{name}: key {key_id_of(line)}{here}, {', '.join(where)}", f"  {line}")
    if not found:
        say("no keys are listed: names of reviewers are not verified")


def _add(params: Params, audits: list[str], name: str, public_key: str | None) -> None:
    from flows.people.approval import key_name
    from stages.core.keys import key_path, private_key
    from stages.decisions import read_chain
    from stages.decisions.files import refuse_alike
    from stages.decisions.identity import check_keys, key_id_of, public_line, read_public
    from stages.decisions.names import clean_name, same_person

    name = clean_name(name)
    before = {audit: params.repairs[audit].feedback.keys for audit in audits}
    for audit, keys in before.items():
        refuse_alike(name, read_chain(audit), keys)
        if known := next((known for known in keys if same_person(known, name)), None):
            raise UsageError(
                f"{audit} lists a key of {known!r} already ({key_id_of(keys[known])}): remove it first,"
                f" `faded reviewers remove '{known}'`"
            )
    line = public_line(private_key(key_name(name))) if public_key is None else read_public(public_key)
    after = {audit: {**keys, name: line} for audit, keys in before.items()}
    for keys in after.values():
        check_keys(keys)
    _write(after)
    where = f", its private half is {key_path(key_name(name))}" if public_key is None else ""
    say(f"{name} decides on {', '.join(audits)} with key {key_id_of(line)}{where}.")
    say("From now on only decisions signed with a listed key are valid there. Commit params.yaml.")
    for audit, keys in after.items():
        if (needed := params.repairs[audit].feedback.reviewers) > len(keys):
            say(f"{audit} asks {needed} reviewers and lists {len(keys)} of them: add the others.")


def _remove(params: Params, audits: list[str], name: str) -> None:
    before = {audit: params.repairs[audit].feedback.keys for audit in audits}
    changed = {a: {n: line for n, line in keys.items() if n != name} for a, keys in before.items() if name in keys}
    if not changed:
        known = ", ".join(dict.fromkeys(n for keys in before.values() for n in keys)) or "none"
        raise UsageError(f"no key of {name!r} is listed for {', '.join(audits)}, found: {known}")
    _write(changed)
    say(f"{name} no longer decides on {', '.join(changed)}: decisions signed with that key are no longer valid.")
    for audit in (audit for audit, keys in changed.items() if not keys):
        say(f"No key is listed for {audit} any more, so names of its reviewers are not verified.")


def _text(public_key: str) -> str:
    if public_key.startswith(("ssh-", "-----")):
        return public_key
    try:
        return Path(public_key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--public-key {public_key}: expected a file or a line `ssh-ed25519 AAAA...`: {error}"
        ) from None


def _write(keys: Mapping[str, Mapping[str, str]]) -> None:
    from flows.workspace.edit_params import edit_file, with_keys

    edit_file(Path("params.yaml"), lambda text: with_keys(text, keys))


@command("faded ratings news", "faded ratings news --write")
def ratings(
    audit: Audit = None,
    preset: Preset = None,
    target: Annotated[
        Literal["quality", "bias"], value("quality|bias", "Which of the two ratings to use.")
    ] = "quality",
    write: Annotated[bool, flag("--write", "Write ratings.json and enable it in params.yaml.")] = False,
    labels: Annotated[Path | None, value("FILE", "Write the ratings as labels that a judge is calibrated on.")] = None,
    spot_check: Annotated[
        Path | None,
        value(
            "FILE", "Draw probes at random for people to judge (CSV); once they have, correct the failure rate by it."
        ),
    ] = None,
    draws: Annotated[int, value("N", "With --spot-check: the number of draws.", min=20)] = 100,
) -> None:
    """Compare human ratings with the automatic score, and show which probes people would call failures.

    With --write the next search looks for those. It refuses if there are too few ratings, or if they do not correlate
    with the automatic measure. With --labels nothing but that file is written.

    With --spot-check FILE nothing else is done: it writes FILE if there is none. Otherwise it reads the verdicts in it,
    shows the corrected rate and, with --write, names FILE in params.yaml, so that reports show it, too.
    """
    from flows.people.ratings import draw_spot_check, show_ratings, show_spot_check, write_labels, write_ratings

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    if spot_check is not None and spot_check.exists():
        show_spot_check(params, name, spot_check, console, write=write)
    elif spot_check is not None:
        draw_spot_check(name, spot_check, draws, params.audit(name).seed, console)
    elif labels is not None:
        write_labels(params, name, target, labels, console)
    else:
        learnt = show_ratings(params, name, target, console)
        if write:
            write_ratings(name, learnt, console)
