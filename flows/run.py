"""`faded audit`: query what is stale, run the flow only if something is, and tell how it ended."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flows.graph import Graph, read_graph
from flows.graph.intact import heal, mend, stages_of
from flows.graph.lock import as_published
from flows.people.approval import settle
from flows.places.runners import check_stages, chosen_runner
from flows.processes import stopping_on_signals
from flows.request import GATED, how_to_decide, needs_decision, open_request
from flows.results import LastVerdict, read_verdict
from flows.results.estimate import estimate_cost, warnings_of
from flows.run_stage import StageResult, finished
from flows.terminal import TEXT_ONLY, print_plain
from flows.views import show_run, show_verdict
from flows.workspace import exclusive
from stages.core.errors import Exit, FadedError, InfrastructureError
from stages.core.files import stage_dir
from stages.params import Params
from stages.params.network import ASK_NO_MODEL

_PrefectApi = Callable[[], AbstractContextManager[Any]]

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_red")


@dataclass(frozen=True)
class EndedRun:
    """How audits ended.

    Args:
        results: how each stage ended; empty if none was stale.
        published: whether their results are those of git's last commit, by audit: "yes", or what differs first.
        problems: what is wrong with evidence, in sentences.
        waiting: what audits wait for, in sentences.
    """

    results: list[StageResult] = field(default_factory=list, metadata=TEXT_ONLY)
    seconds: float = 0.0
    verdicts: list[LastVerdict] = field(default_factory=list)
    evidence: dict[str, Path] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    failure: FadedError | None = field(default=None, metadata=TEXT_ONLY)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """How each stage ended, without what only matters between machines."""
        return [result.model_dump(mode="json", exclude={"made"}) for result in self.results]

    @property
    def error(self) -> str | None:
        return None if self.failure is None else str(self.failure)

    @property
    def exit_code(self) -> Exit:
        """That of a failure; GATE_FAILED if a gate of any audit failed or could not be judged."""
        if self.failure is not None:
            return self.failure.exit_code
        return Exit.GATE_FAILED if any(verdict.refuses for verdict in self.verdicts) else Exit.PASS


def run_audits(params: Params, audits: list[str], runner: str | None, console: Console) -> EndedRun:
    """Bring audits up to date on a runner, NAME or NAME=ADDRESS, and print the lines of their stages meanwhile."""
    where = chosen_runner(params, runner)  # refuse a wrong one at once, not only when something is stale
    with exclusive():
        print_plain(console, *(f"healed: {line}" for line in [*heal(), *mend(stages_of(audits))]))
        # A first run certainly needs the API, and a server takes as long to start as the graph takes to read.
        from flows.server import start_prefect_api

        started = None if all(stage_dir(audit, "prepare").exists() for audit in audits) else start_prefect_api()
        for audit in audits:
            print_plain(console, *settle(params, audit))
            print_plain(console, *warnings_of(audit, params.audits[audit]), style="yellow")
        graph = read_graph()
        first = {stage.audit: stage.kind for stage in reversed(graph.to_do(audits))}
        waits = [audit for audit in audits if first.get(audit) == GATED]  # the next step is a person's decision
        undecided = [audit for audit in waits if needs_decision(params, audit) is not None]
        active = [audit for audit in audits if audit not in undecided]
        if wanted := graph.to_do(active):
            from stages.check import check_api_keys

            if where.address is None:  # workers elsewhere have their own environment
                check_api_keys(params, [stage.audit for stage in wanted if stage.kind not in ASK_NO_MODEL])
            started = started or start_prefect_api()
            check_stages(params, audits, where)  # it imports what tasks need, while the server starts
            cost = estimate_cost(params, graph, audits)
            console.print(f"{len(cost.stages)} stage(s) to run, {cost.probes:,} unique probes at most; {cost.time}")
            return _run_flow(params, graph, audits, runner, console, started)
        for audit in undecided:
            open_request(params, audit)
        return _conclude(params, active, EndedRun(waiting=list(map(how_to_decide, undecided))))


def _run_flow(
    params: Params, graph: Graph, audits: list[str], runner: str | None, console: Console, prefect_api: _PrefectApi
) -> EndedRun:
    import httpx
    from prefect import tags

    from flows.audit import ALREADY_READ, STAGE_LOG, AuditFailed, audit
    from flows.views.labels import FROM_TERMINAL

    started = time.monotonic()
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
    waiting = list(dict.fromkeys(r.message for r in results if r.outcome == "waiting"))
    broken = failure if any(r.outcome == "failed" for r in results) else None  # otherwise it is a failed gate
    ended = EndedRun(results, time.monotonic() - started, waiting=waiting, failure=broken)
    return _conclude(params, [audit for audit in audits if finished(audit, results)], ended)


def _conclude(params: Params, audits: list[str], ended: EndedRun) -> EndedRun:
    """Add the verdicts of finished audits, and keep their evidence."""
    from flows.evidence.write import keep_evidence

    kept = {audit: keep_evidence(params, audit) for audit in audits}
    return replace(
        ended,
        verdicts=[read_verdict(params, audit) for audit in audits],
        evidence={audit: bundle for audit, (bundle, _) in kept.items() if bundle is not None},
        published={audit: told for audit in audits if (told := as_published(audit)) is not None},
        problems=[problem for _, problem in kept.values() if problem is not None],
    )


def show_audits(console: Console, ended: EndedRun) -> None:
    """Print how audits ended."""
    if ended.results:
        show_run(console, ended.results, ended.seconds)
    elif ended.verdicts:
        console.print("nothing to do: no stage is stale")
    for verdict in ended.verdicts:
        show_verdict(console, verdict)
        if told := ended.published.get(verdict.audit):
            why = "" if told == "yes" else "; docs/results.md says what may explain it"
            print_plain(console, f"same results as published: {told}{why}")
    print_plain(console, *ended.problems, style="yellow")
    print_plain(console, *(f"evidence: {bundle.resolve()}" for bundle in ended.evidence.values()))
    print_plain(console, *(f"{told}, then this command again" for told in ended.waiting), style="yellow")


class _Lines(logging.Handler):
    """Prints the lines of stages, each after the name of its stage, above a progress bar."""

    def __init__(self, progress: Progress, total: int) -> None:
        super().__init__()
        self._progress = progress
        self._bar = progress.add_task("stages", total=total)
        self._colours: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        stage, ended = getattr(record, "stage", ""), hasattr(record, "result")
        colour = self._colours.setdefault(stage, _COLOURS[len(self._colours) % len(_COLOURS)])
        style = "bold" if ended else "yellow" if record.levelno >= logging.WARNING else "default"
        text = f"[{colour}]{escape(stage)}[/] [dim]|[/] [{style}]{escape(record.getMessage())}[/]"
        self._progress.console.print(text, soft_wrap=True)
        self._progress.advance(self._bar, int(ended))


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
