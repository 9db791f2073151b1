"""The `faded` command. It only wires: every command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console

from stages.errors import Exit, FadedError

if TYPE_CHECKING:
    from stages.params import Params

app = typer.Typer(
    name="faded",
    help="Audit a pre-trained model before deployment: find its failures, show them, repair it, prove the repair.",
    epilog="Exit codes: 0 pass, 1 a gate failed, 2 bad input, 3 infrastructure (a retry may help).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Audits = Annotated[
    Optional[list[str]],  # noqa: UP045  # typer reads this at run time
    typer.Argument(metavar="[AUDIT]...", help="Names under audits: in params.yaml; the first one by default."),
]
All = Annotated[bool, typer.Option("--all", help="All audits of params.yaml.")]
Audit = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="[AUDIT]", help="A name under audits: in params.yaml; the first one by default."),
]
Preset = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="NAME", help="A variant of the audit: the audit AUDIT-NAME of params.yaml, say news-quick."),
]


def main() -> None:
    """Run the command and turn what goes wrong into a message and an exit code."""
    try:
        app()
    except FadedError as error:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(int(error.exit_code)) from None
    except Exception:
        traceback.print_exc()
        errors.print("[bold red]this is a bug in faded[/], please report it with the lines above")
        raise SystemExit(int(Exit.INFRASTRUCTURE)) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"faded {version('faded')}", highlight=False)
        raise typer.Exit


@app.callback()
def faded(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the workspace upward from here; see the commands below."""


@app.command(
    epilog="Examples:  [cyan]faded audit[/]   [cyan]faded audit imagenet[/]   [cyan]faded audit --all[/]"
    "   [cyan]faded audit news --preset quick[/]"
)
def audit(
    audits: Audits = None,
    all_: All = False,
    preset: Preset = None,
    runner: Annotated[
        str, typer.Option("--runner", envvar="FADED_RUNNER", help="Where stages run: threads (of this machine).")
    ] = "threads",
) -> None:
    """Run what is stale of an audit, and end with its verdict and the path of its report.

    Whatever was interrupted goes on where it was; what did not change is not run again. A Prefect server is used
    when PREFECT_API_URL names one, else a local one lives as long as the command.
    """
    from flows.run import run_audits

    params, names = _open(audits, all_, preset)
    try:
        code = run_audits(params, names, runner, console)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    raise typer.Exit(int(code))


@app.command(epilog="Examples:  [cyan]faded plan[/]   [cyan]faded plan --all[/]")
def plan(audits: Audits = None, all_: All = False, preset: Preset = None) -> None:
    """Say what an audit would run, why, and what it would cost, before anything runs."""
    from flows.estimate import estimate
    from flows.graph import read_graph
    from flows.screen import read_screening
    from flows.views import show_last_screening, show_plan
    from stages.check import check_audits

    params, names = _open(audits, all_, preset)
    with _working("checking params.yaml and asking DVC what is stale"):
        check_audits(params, names)
        graph = read_graph()
    show_plan(console, estimate(params, graph, names))
    for name in names:
        if (last := read_screening(params, graph, name)) is not None:
            show_last_screening(console, name, *last)


@app.command(epilog="Examples:  [cyan]faded screen mnist[/]   [cyan]faded screen mnist --probes 1000 --write[/]")
def screen(
    audit: Audit = None,
    probes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--probes", help="Unique probes to spend at most.", show_default="600"),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the proposed levels to params.yaml.")] = False,
) -> None:
    """Say in a few hundred probes which concepts show no effect, and with which levels 15 to 30% of probes fail.

    Only the levels of the audit's concepts are ever written, and only with --write. The same command again, or after
    a kill, is answered from what was asked before.
    """
    from flows.screen import screen_audit

    params, [name] = _open([audit] if audit else None, False)
    try:
        screen_audit(params, name, probes, write, console)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None


@app.command(epilog="Examples:  [cyan]faded status[/]   [cyan]faded status mnist[/]")
def status(audits: Audits = None) -> None:
    """Say of every stage whether it is fresh, and of every audit what its last verdict was."""
    from flows.graph import read_graph
    from flows.results import read_verdict
    from flows.views import show_status
    from flows.workspace import running_audit

    params, names = _open(audits, not audits)
    with _working("asking DVC what is stale"):
        graph = read_graph()
    show_status(console, graph.of(names), [read_verdict(params, name) for name in names], running_audit())


@app.command(epilog="Example:  [cyan]faded review mnist[/]")
def review(audit: Audit = None, preset: Preset = None) -> None:
    """Ask which failure modes to repair, and write the decision file on which the repair depends.

    The decision is bound to the landscape that is shown; it is written to data/AUDIT/decisions, which belongs in git.
    """
    from flows.review import review_landscape

    params, [name] = _open([audit] if audit else None, False, preset)
    review_landscape(params, name, console)


@app.command(epilog="Examples:  [cyan]faded report[/]   [cyan]faded report imagenet --no-open[/]")
def report(
    audit: Audit = None,
    preset: Preset = None,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in the browser, or only print its path.")
    ] = True,
) -> None:
    """Open the report of an audit."""
    from flows.results import read_verdict
    from stages.errors import UsageError

    params, [name] = _open([audit] if audit else None, False, preset)
    path = read_verdict(params, name).report
    if path is None:
        raise UsageError(f"audit {name!r} has no report yet: run `faded audit {name}`")
    console.print(str(path.resolve()), soft_wrap=True, highlight=False)
    if open_:
        typer.launch(path.resolve().as_uri())


@app.command(epilog="Examples:  [cyan]faded compare HEAD~1 HEAD[/]   [cyan]faded compare v1 workspace imagenet[/]")
def compare(
    rev_a: Annotated[str, typer.Argument(metavar="REV_A", help="A git revision, or `workspace`.")],
    rev_b: Annotated[str, typer.Argument(metavar="REV_B", help="Another one.")],
    audit: Audit = None,
) -> None:
    """Compare the landscapes of two revisions; refuses runs that are not alike, and says in what they differ."""
    from flows.compare import compare_revisions
    from flows.views import show_comparison

    _params, [name] = _open([audit] if audit else None, False)
    show_comparison(console, compare_revisions(rev_a, rev_b, name))


@app.command(epilog="Examples:  [cyan]faded study[/]   [cyan]faded study ppo model_based[/]")
def study(
    explorers: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[EXPLORER]...", help="Only these, where they are stale; all by default."),
    ] = None,
) -> None:
    """Compare all explorers on landscapes whose truth is known, and write docs/study.md.

    Every explorer gets the same budgets and seeds. Results are DVC's (benchmarks/study/dvc.yaml): only what is stale
    runs, and a run that was stopped goes on.
    """
    from flows.study import run_study
    from flows.workspace import enter_workspace

    enter_workspace()
    try:
        run_study(explorers or [], console)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None


def _open(audits: list[str] | None, all_: bool, preset: str | None = None) -> tuple[Params, list[str]]:
    """Enter the workspace, check params.yaml and the names of audits; each becomes that of its preset if one is named.

    Raises:
        UsageError: when there is no such audit or preset, or a preset is wanted of all audits.
    """
    from flows.workspace import enter_workspace
    from stages.errors import UsageError
    from stages.params import load_params

    enter_workspace()
    params = load_params(Path("params.yaml"))
    if all_ and preset is not None:
        raise UsageError("--all takes every audit of params.yaml, presets among them: name audits for --preset")
    names = list(params.audits) if all_ else list(dict.fromkeys(audits or list(params.audits)[:1]))
    for name in names:
        params.audit(name)
    return params, names if preset is None else [_preset(params, name, preset) for name in names]


def _preset(params: Params, name: str, preset: str) -> str:
    """The audit that is this preset of another."""
    from stages.errors import UsageError

    if (wanted := f"{name}-{preset}") not in params.audits:
        known = [other.removeprefix(f"{name}-") for other in params.audits if other.startswith(f"{name}-")]
        found = ", ".join(known) or "none"
        raise UsageError(f"audit {name!r} has no preset {preset!r} ({wanted} in params.yaml), found: {found}")
    return wanted


@contextlib.contextmanager
def _working(what: str) -> Iterator[None]:
    with console.status(f"{what} ..."):
        yield


if __name__ == "__main__":
    main()
