"""Run audits and show their results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands import All, Audit, Audits, Preset, app, console, open_workspace, say, working


@app.command(
    epilog="Examples:  [cyan]faded audit[/]   [cyan]faded audit imagenet[/]   [cyan]faded audit --all[/]"
    "   [cyan]faded audit news --preset quick[/]",
)
def audit(
    audits: Audits = None,
    all_: All = False,
    preset: Preset = None,
    runner: Annotated[
        str | None,
        typer.Option(
            "--runner",
            envvar="FADED_RUNNER",
            metavar="NAME[=ADDRESS]",
            help="Where stages run: threads, dask or ray; the latter two optionally at an address.",
            show_default="runner: of params.yaml",
        ),
    ] = None,
) -> None:
    """Run the stale stages of an audit, and print its verdict and the path of its report.

    An interrupted audit resumes where it stopped, and unchanged stages do not run again. Uses the Prefect server at
    PREFECT_API_URL if set; otherwise a local one runs as long as the command.
    """
    from flows.run import run_audits

    params, names = open_workspace(audits, all_, preset)
    raise typer.Exit(int(run_audits(params, names, runner, console)))


@app.command(epilog="Examples:  [cyan]faded plan[/]   [cyan]faded plan --all[/]")
def plan(audits: Audits = None, all_: All = False, preset: Preset = None) -> None:
    """Show what an audit would run, why, and what it would cost. Runs nothing.

    If there is a landscape, it also shows how large a change by a repair the test items could detect.
    """
    from flows.graph import read_graph
    from flows.places.runners import check_stages, chosen_runner
    from flows.results.estimate import backend_line, estimate_cost, few_items, processes_of, requests_line
    from flows.results.power import what_can_be_shown, what_gates_leave_open
    from flows.views import show_plan, show_processes

    params, names = open_workspace(audits, all_, preset)
    with working("checking params.yaml and the state of the stages"):
        runner = chosen_runner(params, None)
        graph = read_graph(looks=True)
        if graph.to_do(names):  # it imports what tasks need
            check_stages(params, names, runner)
    show_plan(console, estimate_cost(params, graph, names))
    for name in names:
        here = runner.kind == "threads"
        lines = (backend_line(params, graph, name, here=here), requests_line(params, graph, name))
        say(*filter(None, lines))
        if here and (processes := processes_of(params, graph, name)) is not None:
            show_processes(console, name, *processes)
        if (few := few_items(params.audits[name].prepare.get("items"))) is not None:
            say(f"{name}: {few}", style="yellow")
        say(*what_can_be_shown(params, name), *what_gates_leave_open(params, name))


@app.command(
    epilog="Examples:  [cyan]faded status[/]   [cyan]faded status mnist --stages[/]",
)
def status(
    audits: Audits = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Show every stage, whether it is stale, and why, instead.")
    ] = False,
) -> None:
    """Show the last verdict of every audit, its failure rate and date, and what to do next."""
    from flows.graph import read_graph
    from flows.init.state import unmeasured
    from flows.people.approval import expire
    from flows.request import how_to_decide, needs_decision
    from flows.results import read_verdict
    from flows.results.glance import glance
    from flows.views import show_glance, show_status, show_unmeasured
    from flows.workspace import running_audit

    params, names = open_workspace(audits, not audits)
    for name in names:
        expire(params, name)
    with working("checking the state of the stages"):
        graph = read_graph(looks=True)
    without = [name for name in unmeasured(Path()) if name in names]
    if stages:
        show_status(console, graph.of(names), [read_verdict(params, name) for name in names], running_audit())
    else:
        show_glance(console, *glance(params, graph, names, without), running_audit())
    show_unmeasured(console, without)
    for name in names:
        if needs_decision(params, name) is not None:
            say(how_to_decide(name), style="yellow")


@app.command(
    epilog="Examples:  [cyan]faded history[/]   [cyan]faded history mnist imagenet --last 10 --html[/]",
)
def history(
    audits: Audits = None,
    last: Annotated[int, typer.Option("--last", metavar="N", help="Number of results to show of each audit.")] = 5,
    html: Annotated[bool, typer.Option("--html", help="Also write a page with a chart: .faded/history.html.")] = False,
) -> None:
    """Show the last results of audits, what changed between them, and whether failure rates drift.

    Of all audits, unless some are named. Results are the commits in which the numbers of an audit changed, and the
    workspace where its numbers are not committed. Targets: the change by the repair in its target modes, in points.
    """
    from flows.views import show_history
    from flows.views.history import PAGE, read_history

    _, names = open_workspace(audits, not audits)
    histories = [read_history(name, last) for name in names]
    if never := [one.audit for one in histories if not one.results]:
        say(f"no results: {', '.join(never)}")
    if known := [one for one in histories if one.results]:
        show_history(console, known)
        if html:
            from flows.views.history import write_history_page

            write_history_page(PAGE, known)
            say(f"page: {PAGE.resolve()}")


@app.command(
    epilog="Examples:  [cyan]faded report[/]   [cyan]faded report imagenet --no-open[/]"
    "   [cyan]faded report mnist --pdf mnist.pdf[/]",
)
def report(
    audit: Audit = None,
    preset: Preset = None,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in the browser, or only print the path.")
    ] = True,
    pdf: Annotated[
        Path | None,
        typer.Option("--pdf", metavar="FILE", help="Write its first page as a PDF instead (needs Chromium or Chrome)."),
    ] = None,
) -> None:
    """Open the report of an audit."""
    from flows.results import read_verdict
    from stages.core.errors import UsageError
    from stages.records import audit_folder

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    path = read_verdict(params, name).report
    if path is None:
        raise UsageError(f"audit {name!r} has no report yet: run `faded audit {name}`")
    landscape = audit_folder(name).summarize
    if landscape.has("landscape") and (said := landscape.landscape.unchanged_said):
        say(f"{name}: {said}")
    if pdf is not None:
        from flows.views.pdf import print_summary

        print_summary(path, pdf)
        path = pdf
    console.print(str(path.resolve()), soft_wrap=True, highlight=False)
    if open_:
        typer.launch(path.resolve().as_uri())


@app.command(
    epilog="Examples:  [cyan]faded compare HEAD~1 HEAD[/]   [cyan]faded compare v1 workspace imagenet[/]"
    "   [cyan]faded compare mnist news imagenet[/]",
)
def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT...",
            help="Git revisions or `workspace` (the default), and audits in params.yaml (by default the first).",
        ),
    ],
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            metavar="FILE.html",
            help="Where to write the page with the curves.",
            show_default=".faded/compare.html",
        ),
    ] = None,
) -> None:
    """Compare results: every audit that is named, in every revision that is named.

    Two revisions of one audit are paired on common probes, and refused if they are not comparable. Other audits, or
    more results, are shown side by side: failures against probes, rates with their intervals, and what differs. Models
    that share a grid and a seed are compared head to head on their common probes: which fails least, where all fail,
    and whose failure modes are whose.
    """
    from flows.results.compare import check_alike, differences, paired_difference
    from flows.views import show_revisions, show_side_by_side
    from flows.views.side_by_side import PAGE, chosen_results, put_side_by_side, write_comparison_page

    here = Path.cwd()
    params, [default] = open_workspace(None, False)
    pairs = chosen_results(results, params.audits, default)
    together = put_side_by_side(pairs)
    if len(pairs) == 2 and len({audit for _, audit in pairs}) == 1:
        (one, name), (other, _) = pairs
        a, b = together.runs[one], together.runs[other]
        check_alike(a, b)
        paired = paired_difference(a.probes, b.probes, a.landscape.space)
        show_revisions(console, name, together, paired, differences(a, b))
    else:
        show_side_by_side(console, together)
    out = PAGE if page is None else here / page
    write_comparison_page(out, together)
    say(f"page: {out.resolve()}")
