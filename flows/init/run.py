"""The command itself: ask, look, write, calibrate. params.yaml is changed twice, each time whole or not at all.

First the whole audit is written, with levels that nobody has measured; `prepare` runs on it as in any audit, so that
nothing is done twice. Then the calibrated levels take their place. What is between the two is remembered under
.faded/init: the same command goes on there, and other answers replace what was written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from flows.edit_params import replace_file
from flows.init.answers import Answers, ask, shape_shown
from flows.init.block import Draft, with_blocks, without
from flows.init.calibrate import calibrate, calibrated
from flows.init.files import Placed, git_root, not_there, place, take_away
from flows.init.propose import propose
from flows.init.questions import Questions
from flows.init.state import Unfinished, forget, remember, unfinished
from flows.init.views import show_absent, show_calibration, show_next, show_seen
from flows.new_workspace import add_folders, write_workspace
from flows.workspace import enter_workspace, exclusive, has_audits
from stages.errors import UsageError
from stages.params import load_params, parse_yaml, read_bytes

PARAMS = Path("params.yaml")
_PATHS = ("model", "data", "templates", "judge")  # answers that may be paths


@dataclass(frozen=True)
class Options:
    """What a command line says.

    Args:
        answers: to questions, by name; None where it says nothing.
        labels: pairs LABEL=CLASS.
        words: SLOT=WORD,WORD each.
        copy: files are copied and not linked.
        budget: unique probes of the search; None: by what a probe takes.
        probes: of the calibration; None: `calibrate.PROBES`, or as many as its levels need.
        yes: guesses are taken without asking.
    """

    answers: Mapping[str, str | bool | None]
    labels: Sequence[str] = ()
    words: Sequence[str] = ()
    copy: bool = False
    budget: int | None = None
    probes: int | None = None
    yes: bool = False


def init_audit(folder: Path, options: Options, console: Console, *, asks: bool) -> None:
    """Ask, look, write an audit, and calibrate it.

    Args:
        folder: in a git repository; if it, or one above it, has audits already, another one is added there.
        options: what the command line says.
        console: where to ask and to tell.
        asks: whether there is a terminal to ask on.

    Raises:
        UsageError: when an answer is missing or will not do; params.yaml is as it was then.
        FadedError: when the model cannot be prepared for another reason; the same command goes on from there.
    """
    workspace = _workspace(folder)
    before = _text(workspace)
    earlier = list(unfinished(workspace, before))
    offered = _earlier(earlier, options, console)
    if offered is not None:
        options = replace(options, budget=options.budget or offered.budget, probes=options.probes or offered.probes)
    questions = Questions(
        console, options.answers, asks=asks, yes=options.yes, before=offered.answers if offered is not None else {}
    )
    taken = [name for name in _audits(before) if name not in {one.name for one in earlier if one.written}]
    answers = ask(questions, workspace, taken, labels=options.labels, words=options.words, budget=options.budget)
    questions.answers.update(_from_anywhere(questions.answers))
    draft = propose(answers.wanted, answers.model, shape_shown(answers), workspace)
    show_seen(console, answers.said, draft, workspace)
    if not questions.go_on("Write this audit and calibrate it"):
        raise UsageError("stopped: nothing was written")
    for path in write_workspace(workspace):
        console.print(f"wrote {path}", markup=False, highlight=False)
    os.chdir(workspace)
    enter_workspace()
    with exclusive():
        made = not_there(Path(), draft.name, answers.placed)
        for line in place(Path(), draft.name, answers.placed, copy=options.copy):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        add_folders(Path(), draft.name, repair=draft.repair is not None)
        _write_and_calibrate(draft, answers, made, questions, options, console)


def init_bare(folder: Path, options: Options, console: Console) -> None:
    """Make a folder a workspace without an audit, for one that is written by hand.

    Args:
        folder: in a git repository; a params.yaml with audits that lies there stays.
        options: what the command line says; nothing of an audit may be among it.
        console: where to tell.

    Raises:
        UsageError: when an audit is described, or it cannot become a workspace.
    """
    given = [f"--{name}" for name, answer in options.answers.items() if answer is not None]
    given += [f"--{name}" for name in ("budget", "probes", "words") if getattr(options, name)]
    given += ["--label"] if options.labels else []
    if given:
        raise UsageError(f"--bare makes a workspace without an audit: leave out {', '.join(given)}")
    written = write_workspace(folder)
    for path in written:
        console.print(f"wrote {path}", markup=False, highlight=False)
    told = "an audit is yours to write into" if written else "it is a workspace already; audits are in"
    console.print(f"{told} {folder / PARAMS}; `faded plan` checks it", markup=False, highlight=False, soft_wrap=True)


def _write_and_calibrate(
    draft: Draft,
    answers: Answers,
    made: Sequence[Placed],
    questions: Questions,
    options: Options,
    console: Console,
) -> None:
    here, name = Path(), draft.name
    text = _text(here)
    same = next((one for one in unfinished(here, text) if one.name == name), Unfinished(name))
    old = same.found_in(text)
    first = with_blocks(text, old, draft)
    written = (draft.audit_text, draft.repair_text)
    versions = (*((old,) if old else ()), written)
    remember(here, Unfinished(name, questions.answers, versions, options.budget, options.probes))
    if first != text:
        replace_file(PARAMS, first)
    if answers.model.absent or answers.data.absent:
        show_absent(console, name)
        return
    with _undone_if_wrong(name, questions, options, made, console):
        found = calibrate(load_params(PARAMS), draft, options.probes, console)
    final = calibrated(draft, found, budget=options.budget)
    text = _text(here)
    if not all(lines in text for lines in written):
        raise UsageError(f"audits.{name} was changed in {PARAMS} meanwhile, so its levels were not written")
    replace_file(PARAMS, with_blocks(text, written, final))
    for one in [name, *(one.name for one in unfinished(here, text) if not one.written)]:
        forget(here, one)
    show_calibration(console, final, found, aimed=options.budget is None)
    show_next(console, final)


@contextmanager
def _undone_if_wrong(
    name: str, questions: Questions, options: Options, made: Sequence[Placed], console: Console
) -> Iterator[None]:
    """Take an audit out of params.yaml again where its model or data turn out to be wrong.

    What a person answered is kept. Guesses are not: another model or other data have others. Nor is the number of
    probes: too few may be what is wrong.
    """
    try:
        yield
    except UsageError:
        text = _text(Path())
        same = next((one for one in unfinished(Path(), text) if one.name == name), None)
        if same is not None and (old := same.found_in(text)) is not None:
            replace_file(PARAMS, without(text, old))
            take_away(Path(), name, made)
            given = {key: answer for key, answer in questions.answers.items() if key not in questions.unasked}
            remember(Path(), Unfinished(name, given, budget=options.budget))
            console.print(f"{PARAMS} is as it was", style="yellow", highlight=False)
        raise


def _from_anywhere(answers: Mapping[str, str | bool]) -> dict[str, str]:
    """Answers that are paths, as they are found from any folder: the command that goes on may be typed in another."""
    paths = {name: Path(str(answers[name])).expanduser() for name in _PATHS if name in answers}
    return {name: str(path.absolute()) for name, path in paths.items() if path.exists()}


def _workspace(folder: Path) -> Path:
    """The folder itself, or the workspace that it is in.

    Raises:
        UsageError: when it is no folder, or in no git repository.
    """
    here = folder.resolve()
    if here.exists() and not here.is_dir():
        raise UsageError(f"{folder} is a file, expected a folder in a git repository")
    root = git_root(next(one for one in (here, *here.parents) if one.is_dir()))
    above = [one for one in (here, *here.parents) if one.is_relative_to(root)]
    return next((one for one in above if has_audits(one)), here)


def _text(workspace: Path) -> str:
    try:
        data = read_bytes(workspace / PARAMS)
    except FileNotFoundError:
        return ""
    parse_yaml(data, str(workspace / PARAMS))  # what it refuses nobody else has to expect
    return data.decode()


def _audits(text: str) -> list[str]:
    """Names of the audits of params.yaml.

    Raises:
        UsageError: when it is no YAML.
    """
    raw = parse_yaml(text.encode(), str(PARAMS))
    audits = raw.get("audits") if isinstance(raw, dict) else None
    return list(audits) if isinstance(audits, dict) else []


def _earlier(earlier: Sequence[Unfinished], options: Options, console: Console) -> Unfinished | None:
    """The unfinished run whose answers are offered: that of the name that is wanted, else the last one."""
    name = options.answers.get("name")
    found = next((one for one in earlier if name in (None, one.name)), None)
    if found is not None:
        console.print(f"an earlier run for {found.name} did not finish; its answers are offered", style="yellow")
    return found
