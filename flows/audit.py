"""The audit flow: DVC says what is stale, Prefect runs it, stage by stage, audits side by side."""

import logging
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.logging import get_run_logger
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task, exponential_backoff

from flows.graph import Graph, Stage
from flows.graph.intact import check_recorded
from flows.people.approval import settle
from flows.people.waiting import deployed_run, waiting_elsewhere
from flows.places.runners import Job, Runner, chosen_runner, open_runner
from flows.processes import aside, stopping, stopping_on_signals
from flows.recur.runs import superseded
from flows.request import GATED, how_to_decide, open_request, waits_for_person
from flows.run_stage import StageResult, level_of
from flows.start.engine import foreign_parameters
from flows.views import labels
from flows.workspace import exclusive
from stages.core.environment import set_defaults
from stages.core.errors import Exit, FadedError, InfrastructureError, UnavailableError
from stages.params import Params, load_params
from stages.params.file import RunnerConfig

# Lines that stages print, for any handler that shows them; each record has the stage's name as `stage`.
STAGE_LOG = logging.getLogger("faded.stages")
STAGE_LOG.setLevel(logging.INFO)
STAGE_LOG.propagate = False

# Set by a caller that holds the lock, has repaired the workspace and read the graph; otherwise the flow does this.
ALREADY_READ: ContextVar[tuple[Params, Graph] | None] = ContextVar("already_read", default=None)

RETRIES = 2  # of a stage, after the first try

Futures = dict[str, PrefectFuture[StageResult]]
Submit = Callable[[Stage, list[PrefectFuture[StageResult]]], PrefectFuture[StageResult]]


class AuditFailed(FadedError):
    """At least one stage or gate failed. `results` covers all stages."""

    def __init__(self, results: list[StageResult], told: str | None) -> None:
        self.results = results
        failed = [result for result in results if result.outcome == "failed"]
        # Bad input comes first, as the reader has to fix it. A failed gate comes last: it is a result, not an error.
        codes = {result.exit_code for result in failed} or {Exit.GATE_FAILED}
        self.exit_code = next(c for c in (Exit.USAGE, Exit.INFRASTRUCTURE, Exit.GATE_FAILED) if c in codes)
        super().__init__("\n".join(result.message for result in failed) or told)


def _worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry failures of the machine, not of the input or the user."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, InfrastructureError) and not isinstance(error, UnavailableError) and not stopping()


@task(
    name="stage",
    task_run_name="{stage}",
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_worth_a_retry,
    cache_policy=NO_CACHE,  # DVC owns the cache
    persist_result=False,
)
def reproduce(stage: str, what: Job | None, runner: Runner | None) -> State[Any]:
    """Bring one stage up to date; without a job (`what`), it is up to date and is only shown."""
    if what is None or runner is None:
        return labels.done(StageResult(stage=stage, outcome="unchanged"))
    logger = get_run_logger()
    context = TaskRunContext.get()
    if context is not None and (attempt := context.task_run.run_count) > 1:
        STAGE_LOG.warning(f"attempt {attempt} of {1 + RETRIES}", extra={"stage": stage})

    def say(line: str) -> None:
        level = level_of(line)
        logger.log(level, line)
        if not stopping():  # after Ctrl-C, stages' last lines only go to the log file
            STAGE_LOG.log(level, line, extra={"stage": stage})

    if stage.startswith("restructure@"):  # its training costs the most
        for line in _aside("flows.results.power:what_can_be_shown", load_params(), stage.partition("@")[2]):
            say(line)
    try:
        result = _whole(runner(what, say), what, runner, say)
    except UnavailableError as error:
        _warn(stage, error)
        return labels.refused(error)
    except InfrastructureError as error:
        _warn(stage, error)
        raise
    except FadedError as error:
        return labels.refused(error)
    STAGE_LOG.info(f"{result.outcome} in {result.seconds:.1f} s", extra={"stage": stage, "result": result})
    return labels.done(result)


def _warn(stage: str, error: FadedError) -> None:
    if not stopping():
        STAGE_LOG.warning(str(error).splitlines()[0], extra={"stage": stage})


def _whole(result: StageResult, what: Job, runner: Runner, say: Callable[[str], None]) -> StageResult:
    """Check a stage's outputs before the next stage reads them, and run it again if they are damaged.

    DVC restores any bytes that its cache has under a hash. Without a record of all that dvc.yaml makes a stage read, no
    check is possible.
    """
    if result.outcome == "ran":
        check_recorded(what.stage)
    if result.outcome == "unchanged" or not (damaged := _mend(what.stage)):
        return result
    for line in damaged:
        say(line)
    again = runner(what, say)
    if damaged := _mend(what.stage):
        raise InfrastructureError(f"{what.stage} is damaged right after it ended: {damaged[0]}")
    return again


def _mend(stage: str) -> list[str]:
    damaged: list[str] = _aside("flows.graph.intact:mend", [stage])
    return damaged


def _aside(function: str, *given: object) -> Any:
    """Call a function; in a deployed run in a process of its own, as runs wait for hours (`flows.processes`)."""
    return aside(function, *given) if deployed_run() is not None else resolve_name(function)(*given)


@flow(name="audit", description=__doc__, flow_run_name=labels.current_run_name, persist_result=False)
def audit(audits: list[str], runner: str | None = None) -> State[Any]:
    """Run the stale stages of these audits, and publish the results.

    As a run of a deployment, it waits for the workspace, is suspended while a person has to decide, and ends in a state
    whose message reports how it ended. Raises AuditFailed if a stage or a gate failed; the other audits have continued
    as far as possible. The data of the returned state, none for a deployment's run, is one result per stage that was
    stale or depends on a stale one.

    Args:
        runner: where stages run, NAME or NAME=ADDRESS; by default as params.yaml says.
    """
    if (run := deployed_run()) is not None:
        return _unattended(audits, runner, run)
    # Inside the flow as well, where Prefect has installed its own SIGTERM handler, which stops no stage.
    with exclusive(), stopping_on_signals():
        params, graph = ALREADY_READ.get() or _read(audits)
        results = _run_stale(params, graph, audits, chosen_runner(params, runner), set())
        endings = [labels.how_it_ended(params, name, results) for name in audits]
    from flows.people.artifacts import artifacts_of

    for ending in endings:
        labels.publish(artifacts_of(params, ending, results))
    state = labels.last_state(endings)
    state.data = AuditFailed(results, state.message) if state.is_failed() else results
    return state


def _unattended(audits: list[str], runner: str | None, run: FlowRun) -> State[Any]:
    set_defaults()
    logger = get_run_logger()
    if (why := foreign_parameters(audits=audits, runner=runner)) is not None:
        return Failed(message=why)
    labels.tag_run(run, audits)
    try:
        with exclusive(logger.info):
            params, graph = _read(audits)
            for name in audits:
                for line in settle(params, name):
                    logger.info(line)
            if (told := superseded(run)) is not None:
                logger.warning(told)
                return labels.last_state([], [told])
            skipped = {name: told for name in audits if (told := _skipped(params, name, run)) is not None}
            for told in skipped.values():
                logger.warning(told)
            mine = [name for name in audits if name not in skipped]
            if not mine:
                return labels.last_state([], list(skipped.values()))
            results = _run_to_the_end(params, graph, mine, chosen_runner(params, runner), labels.shown_before(run))
            endings = [_conclude(params, name, results) for name in mine]
    except FadedError as error:
        endings, skipped = [labels.Ending(", ".join(audits), "broken", " ".join(str(error).split()))], {}
    except Exception as error:
        _tell(labels.Ending(", ".join(audits), "broken", f"{type(error).__name__}: {error}"))
        raise
    for ending in endings:
        _tell(ending)
    return labels.last_state(endings, list(skipped.values()))


def _skipped(params: Params, audit: str, run: FlowRun) -> str | None:
    """Why the audit is not run, if another run of it waits for a person."""
    if not _needs_decision(params, audit) or (other := waiting_elsewhere(audit, run)) is None:
        return None
    since = f"{other.state.timestamp:%Y-%m-%d %H:%M} UTC" if other.state is not None else "some time ago"
    return f"skipped: {audit} waits for a decision since {since} (flow run {other.name}): `faded review {audit}`"


def _run_to_the_end(
    params: Params, graph: Graph, audits: list[str], runner: RunnerConfig, shown: set[str]
) -> list[StageResult]:
    """Run these audits to their end; each is suspended at its gate until it is decided."""
    results: dict[str, StageResult] = {}
    while True:
        if graph.to_do(audits):
            _aside("flows.places.runners:check_stages", params, audits, runner)
        results |= {result.stage: result for result in _run_stale(params, graph, audits, runner, shown)}
        waiting = {r.stage.partition("@")[2] for r in results.values() if r.outcome == "waiting"}
        audits = [name for name in audits if name in waiting]
        if not audits:
            return list(results.values())
        # Only here, with all futures collected and outside any task runner: a resumed flow starts again from the top.
        from flows.people.suspend import wait_for_decision

        for name in audits:
            wait_for_decision(params, name)
        graph = _aside("flows.graph:read_graph")


def _conclude(params: Params, audit: str, results: list[StageResult]) -> labels.Ending:
    from flows.recur.notify import notify

    done: labels.Conclusion = _aside("flows.people.artifacts:conclusion_of", params, audit, results)
    labels.publish(done.artifacts)
    if done.problem is not None:
        get_run_logger().warning(done.problem)
    if done.evidence is not None:
        get_run_logger().info("evidence: %s", done.evidence.resolve())
    if done.drift is not None:
        notify("drift", audit, done.drift)
    return done.ending


def _tell(ending: labels.Ending) -> None:
    from flows.recur.notify import forget_notice, notify

    if ending.kind == "done":
        forget_notice(ending.audit)
    elif ending.kind != "waiting":
        notify(ending.kind, ending.audit, ending.text, ending.result)


def _run_stale(
    params: Params, graph: Graph, audits: list[str], runner: RunnerConfig, shown: set[str]
) -> list[StageResult]:
    """Run the stale stages of these audits; others are shown as cached, and added to `shown`, unless they are in it."""
    todo = graph.to_do(audits)
    stale = {stage.name for stage in todo}
    fresh = [stage for stage in graph.of(audits) if stage.name not in stale | shown]
    workspace = runner.workspace or str(Path.cwd())
    where = open_runner(runner, max(stage.gpus for stage in todo)) if todo else nullcontext()
    # Threads without limit, as they only wait: for stages before their own, or for its end.
    with where as place, ThreadPoolTaskRunner[Any]() as pool:

        def submit(stage: Stage, wait_for: list[PrefectFuture[StageResult]]) -> PrefectFuture[StageResult]:
            what = Job(stage.name, stage.gpus, workspace) if stage.name in stale else None
            task = reproduce.with_options(name=stage.name)  # its name until it starts
            return pool.submit(task, {"stage": stage.name, "what": what, "runner": place}, wait_for)

        cached: Futures = {}
        _submit(submit, fresh, cached)
        results = _run(params, graph, todo, submit, cached)
        for future in cached.values():
            future.wait()
    shown.update(cached, (result.stage for result in results if result.outcome in ("ran", "restored", "unchanged")))
    if any(result.outcome == "ran" for result in results):
        _aside("flows.results.estimate:record_run", params, todo, results)
    return results


def _read(audits: list[str]) -> tuple[Params, Graph]:
    lines, params, graph = _aside("flows.graph.intact:read_healed", audits)
    for line in lines:
        get_run_logger().warning(line)
    return params, graph


def gated(params: Params, graph: Graph, todo: Iterable[Stage]) -> dict[str, list[Stage]]:
    """Stages that may only be submitted once a person has decided, by audit."""
    todo = list(todo)
    gates = [stage for stage in todo if stage.kind == GATED and waits_for_person(params, stage.audit)]
    return {gate.audit: graph.downstream([gate.name], todo) for gate in gates}


def _run(params: Params, graph: Graph, todo: list[Stage], submit: Submit, cached: Futures) -> list[StageResult]:
    behind_gate = gated(params, graph, todo)
    held = {stage.name for stages in behind_gate.values() for stage in stages}
    futures = dict(cached)
    _submit(submit, (stage for stage in todo if stage.name not in held), futures)

    # Audits with a landscape are asked at once, the others as soon as theirs is there, in the order of completion.
    landscapes = {futures[name]: audit for audit in behind_gate if (name := f"summarize@{audit}") in futures}
    at_hand = [audit for audit in behind_gate if audit not in landscapes.values()]
    coming = (landscapes[future] for future in as_completed(list(landscapes)) if _is_complete(future))
    waiting: list[StageResult] = []
    for name in chain(at_hand, coming):
        if _needs_decision(params, name):
            open_request(params, name)
            told = how_to_decide(name)
            STAGE_LOG.warning(told, extra={"stage": f"{GATED}@{name}"})
            waiting += [StageResult(stage=stage.name, outcome="waiting", message=told) for stage in behind_gate[name]]
        else:
            _submit(submit, behind_gate[name], futures)
    results = {result.stage: result for result in [*_collect(futures), *waiting]}
    return [results.get(stage.name, StageResult(stage=stage.name, outcome="not reached")) for stage in todo]


def _needs_decision(params: Params, audit: str) -> bool:
    return waits_for_person(params, audit) and _aside("flows.request:needs_decision", params, audit) is not None


def _is_complete(future: PrefectFuture[StageResult]) -> bool:
    future.wait()  # then the future has the task's own state; the server's may lag behind
    return future.state.is_completed()


def _submit(submit: Submit, stages: Iterable[Stage], futures: Futures) -> None:
    for stage in stages:
        futures[stage.name] = submit(stage, [futures[name] for name in stage.upstream if name in futures])


def _collect(futures: Futures) -> list[StageResult]:
    results = []
    for name, future in futures.items():
        if _is_complete(future):
            results.append(future.result())
        elif future.state.is_pending():  # Prefect's NotReady: something upstream failed
            results.append(StageResult(stage=name, outcome="not reached"))
        else:
            error = future.result(raise_on_failure=False)
            code = error.exit_code if isinstance(error, FadedError) else Exit.INFRASTRUCTURE
            results.append(StageResult(stage=name, outcome="failed", message=str(error), exit_code=code))
    return results
