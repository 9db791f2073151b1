"""The command `faded init`: ask, inspect, write, sweep. It changes params.yaml twice, each time atomically.

First the whole audit is written, with levels that nobody has measured. `prepare` runs on it as in any audit, so that
nothing is done twice. Then what the sweep found replaces them. The state in between is kept under .faded/init: the
same command resumes from there, and other answers replace what was written.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.choosing.screen import show_sweep, sweep_concepts
from flows.init.answers import Questions, ask_questions
from flows.init.files import place, refuse_taken
from flows.init.propose import BUDGETS, SEARCH_SECONDS, Wanted, measured, propose_audit, refuse_idle_numbers, tried
from flows.init.unfinished import RECORDS, Unfinished, unfinished, written_blocks
from flows.results.estimate import duration, supports_no_claim
from flows.terminal import new_table, print_plain
from flows.workspace import enter_workspace, exclusive, has_audits
from flows.workspace.new import AuditDraft, add_folders, check_folder, with_draft, write_workspace
from stages.core.errors import UsageError
from stages.core.files import replace_file, write_state
from stages.core.git import git_root
from stages.params import load_params, parse_yaml, read_bytes
from stages.tasks.init import Answer, Trial
from stages.tasks.load import task_context

PARAMS = Path("params.yaml")
_PATHS = ("model", "data", "templates", "judge")  # answers that may be paths


@dataclass(frozen=True)
class Options:
    """The command line; budget and probes are derived from the duration of a probe unless given."""

    answers: Mapping[str, Answer | None]
    copy: bool = False
    budget: int | None = None
    probes: int | None = None
    yes: bool = False


def init_audit(folder: Path, options: Options, console: Console, *, asks: bool) -> None:
    """Ask, inspect, write an audit, and sweep its concepts.

    Raises a UsageError if an answer is missing or unusable; params.yaml is unchanged then. If the model cannot be
    prepared for another reason, the same command resumes from there.

    Args:
        folder: a folder in a git repository; if it, or one above it, has audits, the new one is added there.
    """
    workspace = _workspace(folder)
    check_folder(workspace)
    before = _text(workspace)
    earlier = list(unfinished(workspace, before))
    offered = next((one for one in earlier if _is_of(one, options.answers)), Unfinished(""))  # the last one first
    if offered.name:
        console.print(f"an earlier run for {offered.name} did not finish; its answers are offered", style="yellow")
        options = replace(options, budget=options.budget or offered.budget, probes=options.probes or offered.probes)
    questions = Questions(console, options.answers, asks=asks, yes=options.yes, before=offered.answers)
    raw = parse_yaml(before.encode(), str(PARAMS))
    audits = raw.get("audits") if isinstance(raw, dict) else None
    again = {one.name for one in earlier if one.written}
    taken = [name for name in (audits if isinstance(audits, dict) else ()) if name not in again]
    wanted = ask_questions(questions, workspace, taken, options.budget)
    # The command may be resumed in another folder.
    questions.answers.update({key: _found(questions.answers[key]) for key in _PATHS if key in questions.answers})
    draft = propose_audit(wanted)
    refuse_idle_numbers(draft, options.budget, options.probes)
    refuse_taken(workspace, draft.name, wanted.placed, copy=options.copy)
    with_draft(before, draft)  # refuses a layout that nothing can be added to
    show_seen(console, wanted.seen.said, draft, workspace)
    if not wanted.absent:
        costs = wanted.init.trial_of_service if "endpoint" in wanted.model else ""
        if costs and not questions.go_on(f"Query the service about {costs}"):
            raise UsageError("stopped: nothing was queried or written")
        wanted = _tried(wanted, draft, questions, workspace, console)
        draft = propose_audit(wanted)
    if not questions.go_on("Write this audit and measure each concept"):
        raise UsageError("stopped: nothing was written")
    print_plain(console, *(f"wrote {path}" for path in write_workspace(workspace)))
    os.chdir(workspace)
    enter_workspace()
    with exclusive():
        print_plain(console, *place(Path(), draft.name, wanted.placed, copy=options.copy))
        add_folders(Path(), draft.name, repair=draft.repair is not None)
        _write_and_sweep(draft, questions, options, console, absent=wanted.absent)


def init_bare(folder: Path, options: Options, console: Console) -> None:
    """Make a folder in a git repository a workspace without an audit; existing audits are kept.

    Raises a UsageError if an audit is described, or the folder cannot become a workspace.
    """
    given = {**options.answers, "budget": options.budget, "probes": options.probes}
    if idle := [f"--{name}" for name, answer in given.items() if answer is not None]:
        raise UsageError(f"--bare creates a workspace without an audit: leave out {', '.join(idle)}")
    written = write_workspace(folder)
    print_plain(console, *(f"wrote {path}" for path in written))
    told = "an audit is yours to write into" if written else "it is already a workspace; audits are in"
    print_plain(console, f"{told} {folder / PARAMS}; `faded plan` checks it")


def _is_of(one: Unfinished, given: Mapping[str, Answer | None]) -> bool:
    """Whether an earlier run was for the audit that options describe."""
    said = {key: given[key] for key in ("name", "kind", "model", "data") if given.get(key) is not None}
    return all(one.answers.get(key, answer) in (answer, _found(answer)) for key, answer in said.items())


def _found(answer: object) -> str:
    """The absolute path of a file that an answer names; other answers as they are."""
    path = Path(str(answer)).expanduser()
    return str(path.absolute()) if path.exists() else str(answer)


def _write_and_sweep(
    draft: AuditDraft, questions: Questions, options: Options, console: Console, *, absent: bool
) -> None:
    here, name = Path(), draft.name
    text = _text(here)
    old, first = written_blocks(text, name), with_draft(text, draft)
    if old != (None, None) and not any(one.name == name and one.written for one in unfinished(here, text)):
        raise UsageError(f"audits.{name} was changed in {PARAMS} meanwhile, so it was not replaced")
    written = written_blocks(first, name)
    versions = (written,) if old == (None, None) else (old, written)
    write_state(RECORDS / f"{name}.json", Unfinished(name, questions.answers, versions, options.budget, options.probes))
    if first != text:
        replace_file(PARAMS, first)
    if absent:
        console.print(
            f"{name} is written to params.yaml, but not measured: not everything it needs is here", style="yellow"
        )
        console.print(f"next: [bold]faded prefetch {name}[/]   download it, on a machine with a network")
        console.print("      then run this command again, which continues")
        return
    found, seconds = sweep_concepts(load_params(PARAMS), name, options.probes, console)
    final = measured(draft, found, seconds, budget=options.budget)
    text = _text(here)
    if written_blocks(text, name) != written:
        raise UsageError(f"audits.{name} was changed in {PARAMS} meanwhile, so its levels were not written")
    replace_file(PARAMS, with_draft(text, final))
    for one in [name, *(one.name for one in unfinished(here, text) if not one.written)]:
        (RECORDS / f"{one}.json").unlink(missing_ok=True)
    show_sweep(console, name, found, RECORDS / f"{name}.html")
    usual = f"as many as take about {duration(SEARCH_SECONDS)}, from {BUDGETS[0]:,} to {BUDGETS[1]:,}"
    aim = usual if options.budget is None else "as you said"
    each = f"{final.audit['discover']['budget']:,} probes for each explorer"
    print_plain(console, f"search: {each} ({aim}): {final.notes['discover']}")
    asks = ", and repair its worst modes; feedback: {policy: wait} asks you first" if final.repair else ""
    console.print(f"\nnext: [bold]faded plan {name}[/]    what it would run, and how long it takes")
    console.print(f"      [bold]faded audit {name}[/]   run it{asks}")
    console.print("      git add --all && git commit   commit what was written", style="dim")


def _tried(wanted: Wanted, draft: AuditDraft, questions: Questions, workspace: Path, console: Console) -> Wanted:
    """Try the audit before anything is written; return what is wanted, with changes to the model by the trial."""
    init = wanted.init
    with tried(draft, wanted.placed, workspace) as params:
        if init.trying:
            console.print(f"trying the model on {init.trying}", style="dim")
        trial = init.trial(task_context(draft.name, params.audit(draft.name)), wanted.seen)
    if trial is None:
        return wanted
    show_trial(console, trial)
    if not trial.doubt:
        return wanted
    if not questions.asked(trial.option) and questions.said(trial.option) is None:
        raise UsageError(f"{trial.doubt}. {trial.advice}")
    print_plain(console, trial.doubt, style="yellow")
    if not trial.question or not questions.confirm(trial.option, trial.question, trial.likely):
        return wanted
    questions.answers.update(trial.answers)
    return replace(wanted, model={**wanted.model, **trial.model})


def _workspace(folder: Path) -> Path:
    """The folder itself, or the workspace that it is in."""
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
    parse_yaml(data, str(workspace / PARAMS))  # refuses what other readers need not handle then
    return data.decode()


def show_seen(console: Console, said: Sequence[str], draft: AuditDraft, workspace: Path) -> None:
    """Print what was recognised about the model and the data, and how many items the audit takes."""
    print_plain(console, *said)
    items = ", ".join(f"{n:,} {split}" for split, n in draft.audit["prepare"]["items"].items())
    console.print(f"items: {items}")
    if (few := supports_no_claim(draft.audit["prepare"])) is not None:
        print_plain(console, few, style="yellow")
    print_plain(console, f"audit: {draft.name}, in {workspace}")


def show_trial(console: Console, trial: Trial) -> None:
    """Print what the model does on unchanged items, with numbers right-aligned."""
    head, *rows = trial.rows
    columns = zip(head, zip(*rows, strict=True), strict=True) if rows else ()
    right = tuple(name for name, cells in columns if all(c.replace(",", "").rstrip("%").isdigit() for c in cells))
    shown = new_table(*head, title=trial.title, right=right)
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
    print_plain(console, *trial.told)
