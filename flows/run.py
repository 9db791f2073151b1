"""`faded audit`: query what is stale, run the flow only if something is, and print how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flows.graph import Graph, Stage, read_graph
from flows.graph.heal import heal
from flows.graph.intact import mend, stages_of
from flows.people.approval import settle
from flows.places.runners import check_stages, chosen_runner
from flows.request import GATED, how_to_decide, needs_decision, open_request
from flows.results import read_verdict
from flows.results.estimate import estimate_cost, few_items
from flows.terminal import print_plain
from flows.views import show_run, show_verdict
from flows.views.endings import finished, keep_evidence
from flows.workspace import exclusive
from stages.check import check_api_keys
from stages.core.errors import Exit, FadedError, InfrastructureError
from stages.params import Params
from stages.params.network import ASK_NO_MODEL

if TYPE_CHECKING:
    from flows.run_stage import StageResult

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red")


def run_audits(params: Params, audits: list[str], runner: str | None, console: Console) -> Exit:
    """Bring audits up to date and print how they ended.

    Args:
        runner: where stages run, NAME or NAME=ADDRESS; by default as in params.yaml.

    Returns:
        PASS, or GATE_FAILED if a gate of any audit failed or could not be judged.

    Raises:
        FadedError: if a stage failed, after the summary was printed.
    """
    where = chosen_runner(params, runner)  # refuse a wrong one at once, not only when something is stale
    with exclusive():
        for line in [*heal(), *mend(stages_of(audits))]:
            console.print(f"healed: {line}", highlight=False)
        for audit in audits:
            print_plain(console, *settle(params, audit))
        graph = read_graph()
        todo = graph.to_do(audits)
        undecided = [audit for audit in audits if _only_waits(params, audit, todo)]
        active = [audit for audit in audits if audit not in undecided]
        if wanted := graph.to_do(active):
            if where.address is None:  # workers elsewhere have their own environment
                check_api_keys(params, [stage.audit for stage in wanted if stage.kind not in ASK_NO_MODEL])
            cost = estimate_cost(params, graph, audits)
            console.print(
                f"{len(cost.stages)} stage(s) to run, {cost.probes:,} unique probes at most; {cost.time}",
                highlight=False,
            )
            for audit in active:
                if (few := few_items(params.audits[audit].prepare.get("items"))) is not None:
                    print_plain(console, f"{audit}: {few}", style="yellow")
            return _run_flow(params, graph, audits, runner, console)
        for audit in undecided:
            open_request(params, audit)
            _show_waiting(how_to_decide(audit), console)
        if active:
            console.print("nothing to do: no stage is stale")
        return _conclude(params, active, console)


def _only_waits(params: Params, audit: str, todo: list[Stage]) -> bool:
    """Whether the audit's next step is a person's decision."""
    own = [stage.kind for stage in todo if stage.audit == audit]
    return own[:1] == [GATED] and needs_decision(params, audit) is not None


def _run_flow(params: Params, graph: Graph, audits: list[str], runner: str | None, console: Console) -> Exit:
    import httpx

    from flows.server import start_prefect_api

    started = time.monotonic()
    prefect_api = start_prefect_api()
    # While the server starts:
    from prefect import tags

    from flows.audit import ALREADY_READ, STAGE_LOG, AuditFailed, audit
    from flows.processes import stopping_on_signals
    from flows.views.labels import FROM_TERMINAL

    check_stages(params, audits, chosen_runner(params, runner))

    known = ALREADY_READ.set((params, graph))
    failure: FadedError | None = None
    with (
        prefect_api(),
        _display(STAGE_LOG, len(graph.to_do(audits)), console),
        stopping_on_signals(),
        tags("faded", *audits, FROM_TERMINAL),
    ):
        try:
            results = cast("list[StageResult]", audit(audits=audits, runner=runner))
        except AuditFailed as error:
            results, failure = error.results, error
        except httpx.TransportError as error:
            raise InfrastructureError(f"the Prefect server no longer answers: {error}") from None
        finally:
            ALREADY_READ.reset(known)
    show_run(console, results, time.monotonic() - started)
    code = _conclude(params, [audit for audit in audits if finished(audit, results)], console)
    for told in dict.fromkeys(r.message for r in results if r.outcome == "waiting"):
        _show_waiting(told, console)
    if failure is not None and any(r.outcome == "failed" for r in results):
        raise failure
    return code  # of a failed gate, whose verdict was printed


def _show_waiting(told: str, console: Console) -> None:
    console.print(f"[yellow]{escape(told)}, then this command again[/]", highlight=False, soft_wrap=True)


def _conclude(params: Params, audits: list[str], console: Console) -> Exit:
    """Print the verdicts of finished audits, and keep their evidence."""
    code = show_verdicts(params, audits, console)
    for audit in audits:
        bundle, problem = keep_evidence(params, audit)
        if problem is not None:
            console.print(f"[yellow]{escape(problem)}[/]", highlight=False, soft_wrap=True)
        if bundle is not None:
            print_plain(console, f"evidence: {bundle.resolve()}")
    return code


def show_verdicts(params: Params, audits: list[str], console: Console) -> Exit:
    """Print the verdicts on disk; return the exit code for them."""
    verdicts = [read_verdict(params, audit) for audit in audits]
    for verdict in verdicts:
        show_verdict(console, verdict)
    return Exit.GATE_FAILED if any(verdict.refuses for verdict in verdicts) else Exit.PASS


class _Lines(logging.Handler):
    """Prints the lines of stages, each after the name of its stage, above a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        super().__init__()
        self._progress = progress
        self._bar = progress.add_task("stages", total=total)
        self._colours: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        stage = getattr(record, "stage", "")
        colour = self._colours.setdefault(stage, _COLOURS[len(self._colours) % len(_COLOURS)])
        style = "bold" if hasattr(record, "result") else "yellow" if record.levelno >= logging.WARNING else "default"
        text = f"[{colour}]{escape(stage)}[/] [dim]|[/] [{style}]{escape(record.getMessage())}[/]"
        self._progress.console.print(text, highlight=False, soft_wrap=True)
        if hasattr(record, "result"):
            self._progress.advance(self._bar)


@contextmanager
def _display(log: logging.Logger, total: int, console: Console) -> Iterator[None]:
    columns = (TextColumn("[bold]stages[/]"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        handler = _Lines(progress, total)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
