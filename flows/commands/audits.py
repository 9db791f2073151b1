"""Run audits and show their results."""

import contextlib
import threading
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import All, Audit, Audits, Json, Preset, command, console, flag, open_workspace, say, tell, value
from stages.core.errors import UsageError

if TYPE_CHECKING:
    from stages.params import Params


@command("faded audit", "faded audit imagenet", "faded audit --all", "faded audit news --preset quick")
def audit(
    audits: Audits = None,
    all_: All = False,
    preset: Preset = None,
    runner: Annotated[
        str | None,
        value(
            "NAME[=ADDRESS]",
            "Where stages run: threads, dask or ray; the latter two optionally at an address.",
            envvar="FADED_RUNNER",
            show_default="runner: of params.yaml",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run the stale stages of an audit, and print its verdict and the path of its report.

    An interrupted audit resumes where it stopped, and unchanged stages do not run again. Uses the Prefect server at
    PREFECT_API_URL if set; otherwise a local one runs as long as the command.
    """
    from flows.run import run_audits, show_audits

    params, names = open_workspace(audits, all_, preset, to_run=True)
    ended = run_audits(params, names, runner, console)
    tell("audit", ended, show_audits)
    if ended.failure is not None and not json:
        raise ended.failure
    raise typer.Exit(int(ended.exit_code))


@command("faded plan", "faded plan --all")
def plan(audits: Audits = None, all_: All = False, preset: Preset = None, json: Json = False) -> None:
    """Show what an audit would run, why, and what it would cost. Runs nothing.

    If there is a landscape, it also shows how large a change by a repair the test items could detect.
    """
    from flows.graph import read_graph
    from flows.places.runners import check_stages, chosen_runner
    from flows.results.estimate import plan_run
    from flows.views import show_plan

    params, names = open_workspace(audits, all_, preset, to_run=True)
    with console.status("checking params.yaml and the state of the stages ..."):
        runner = chosen_runner(params, None)
        graph = read_graph(looks=True)
        if graph.to_do(names):  # it imports what tasks need
            check_stages(params, names, runner)
        found = plan_run(params, graph, names, here=runner.kind == "threads")
    tell("plan", found, show_plan)


@command("faded status", "faded status mnist --stages", "faded status --html audits.html")
def status(
    audits: Audits = None,
    stages: Annotated[bool, flag("--stages", "Show every stage, whether it is stale, and why, instead.")] = False,
    html: Annotated[Path | None, value("FILE", "Also write it as a page, with trends and links.")] = None,
    json: Json = False,
) -> None:
    """Show the current verdict of every audit, its failure rate and date, and what to do next."""
    from flows.graph import read_graph
    from flows.init.unfinished import unmeasured
    from flows.people.approval import expire
    from flows.results.glance import read_status, states_of
    from flows.views import show_status
    from flows.views.history import write_board
    from flows.workspace import running_audit

    out = html and Path.cwd() / html
    params, names = open_workspace(audits, not audits)
    for name in names:
        expire(params, name)
    with console.status("checking the state of the stages ..."):
        graph = read_graph(looks=True)
        without = [name for name in unmeasured(Path()) if name in names]
        found = read_status(params, graph, names, without, running_audit())
    if stages:
        found = replace(found, stages=list(states_of(graph.of(names))))
    if out is not None:
        write_board(params, found := replace(found, page=out), out)
    tell("status", found, show_status)


@command("faded history", "faded history mnist imagenet --last 10 --html")
def history(
    audits: Audits = None,
    last: Annotated[int, value("N", "Number of results to show of each audit.")] = 5,
    html: Annotated[bool, flag("--html", "Also write a page with a chart: .faded/history.html.")] = False,
    json: Json = False,
) -> None:
    """Show the last results of audits, what changed between them, and whether failure rates drift.

    Of all audits, unless some are named. Results are the commits in which the numbers of an audit changed, and the
    workspace where its numbers are not committed. Targets: the change by the repair in its target modes, in points.
    """
    from flows.views import show_history
    from flows.views.history import PAGE, Histories, read_history, write_history_page

    params, names = open_workspace(audits, not audits)
    histories = [read_history(params, name, last) for name in names]
    page = None
    if html and (known := [one for one in histories if one.results]):
        write_history_page(page := PAGE, known)
    tell("history", Histories(histories, page), show_history)


@command(
    "faded report",
    "faded report imagenet --no-open",
    "faded report mnist --pdf mnist.pdf",
    "faded report mnist --browse",
)
def report(
    audit: Audit = None,
    preset: Preset = None,
    open_: Annotated[
        bool, flag("--open/--no-open", "Open it in the browser, or only print the path; a PDF is not opened.")
    ] = True,
    pdf: Annotated[
        Path | None, value("FILE", "Write its first page as a PDF instead (needs Chromium or Chrome).")
    ] = None,
    browse: Annotated[
        bool, flag("--browse", "Page through every probe instead, on a local server, until Ctrl-C.")
    ] = False,
) -> None:
    """Open the report of an audit, and say when its result was made and what changed since the one before.

    What opens is a copy in .faded/reports whose first page says so, too. The report itself has no date, so that the
    same results are the same bytes.

    With --browse: what the model was given in each probe of the audit's searches, before and after a repair, what was
    expected, and what it answered; to be filtered and sorted. It queries no model, and opens from a link that works
    once.
    """
    from flows.results import read_verdict
    from flows.views.history import read_history, since, with_since
    from stages.records import audit_folder

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    if browse:
        _browse(params, name, open_)
        return
    path = read_verdict(params, name).report
    if path is None:
        raise UsageError(f"audit {name!r} has no report yet: run `faded audit {name}`")
    landscape = audit_folder(name).summarize
    if landscape.has("landscape") and (said := landscape.landscape.unchanged_said):
        say(f"{name}: {said}")
    if changed := since(read_history(params, name, 2)):
        say(f"{name}: {changed}")
    path = with_since(path, changed)
    if pdf is not None:
        from flows.views.pdf import print_summary

        print_summary(path, pdf)
        path = pdf
    say(str(path.resolve()))
    if open_ and pdf is None:
        webbrowser.open(path.resolve().as_uri())


def _browse(params: "Params", name: str, open_: bool) -> None:
    with console.status("reading the probes, and loading what changes their inputs ..."):
        from flows.people.browse import ShownProbes, serve_probes
        from flows.people.review.links import write_way_in

        shown = ShownProbes(params, name)
    with contextlib.suppress(KeyboardInterrupt), serve_probes(shown) as link:
        say(f"open this link, it works once: {link}", "Ctrl-C ends it")
        if open_:
            webbrowser.open(write_way_in(name, link).as_uri())
        threading.Event().wait()


@command("faded compare HEAD~1 HEAD", "faded compare v1 workspace imagenet", "faded compare mnist news imagenet")
def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT...",
            help="Git revisions or `workspace` (the default), and audits in params.yaml (by default the first).",
        ),
    ],
    page: Annotated[
        Path | None, value("FILE.html", "Where to write the page with the curves.", show_default=".faded/compare.html")
    ] = None,
    json: Json = False,
) -> None:
    """Compare results: every audit that is named, in every revision that is named.

    Two revisions of one audit are paired on common probes, and refused if they are not comparable. Other audits, or
    more results, are shown side by side: failures against probes, rates with their intervals, and what differs. Models
    that share a grid and a seed are compared head to head on their common probes: which fails least, where all fail,
    and whose failure modes are whose.
    """
    from flows.views import show_comparison
    from flows.views.side_by_side import PAGE, chosen_results, put_side_by_side, write_comparison_page

    here = Path.cwd()
    params, [default] = open_workspace(None, False)
    with console.status("reading the results ..."):
        together = put_side_by_side(chosen_results(results, params.audits, default))
        out = PAGE if page is None else here / page
        write_comparison_page(out, together)
    tell("compare", replace(together, page=out), show_comparison)
