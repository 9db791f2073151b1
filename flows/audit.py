"""The audit flow: DVC says what is stale, Prefect runs it, stage by stage, audits side by side."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextvars import ContextVar
from itertools import chain

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.logging import get_run_logger
from prefect.task_runners import TaskRunner
from prefect.tasks import Task, exponential_backoff

from flows.approval import GATED, how_to_decide, needs_decision, waits_for_person
from flows.artifacts import publish_artifacts
from flows.graph import Graph, Stage, read_graph
from flows.heal import heal
from flows.processes import stopping
from flows.results import record_timings
from flows.run_stage import StageResult, run_stage
from flows.runners import local_resources, make_runner, submit_with_resources
from flows.workspace import exclusive
from stages.errors import Exit, FadedError, InfrastructureError
from stages.params import Params, load_params

# What stages print, for whoever shows it: records carry the stage's name as `stage`.
STAGE_LOG = logging.getLogger("faded.stages")
STAGE_LOG.setLevel(logging.INFO)
STAGE_LOG.propagate = False

# Set by a caller that holds the workspace, has healed it and knows what is stale; else the flow does so itself.
ALREADY_READ: ContextVar[tuple[Params, Graph] | None] = ContextVar("already_read", default=None)

Futures = dict[str, PrefectFuture[StageResult]]


class AuditFailed(FadedError):
    """At least one stage failed. `results` tells of all of them."""

    def __init__(self, results: list[StageResult]) -> None:
        self.results = results
        failed = [result for result in results if result.outcome == "failed"]
        # Bad input comes first: it is what the reader has to mend. A rejection comes last: it is an answer.
        codes = {result.exit_code for result in failed}
        self.exit_code = next(c for c in (Exit.USAGE, Exit.INFRASTRUCTURE, Exit.GATE_FAILED) if c in codes)
        super().__init__("\n".join(result.message for result in failed))


def _worth_a_retry(_task: Task[..., StageResult], _run: TaskRun, state: State[StageResult]) -> bool:
    """Retry what the machine did, never what the input or the user did."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, InfrastructureError) and not stopping()


@task(
    name="stage",
    task_run_name="{stage}",
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=_worth_a_retry,
    cache_policy=NO_CACHE,  # DVC owns the cache
    persist_result=False,
)
def reproduce(stage: str, gpus: int) -> StageResult:
    """Bring one stage up to date.

    Args:
        stage: its name in dvc.yaml.
        gpus: how many it holds meanwhile.
    """
    logger = get_run_logger()

    def say(line: str) -> None:
        logger.info(line)
        if not stopping():  # after Ctrl-C nobody wants to read how stages take it; the log file has it
            STAGE_LOG.info(line, extra={"stage": stage})

    with local_resources(gpus) as env:
        if stopping():
            raise InfrastructureError(f"{stage} was not started: the run is being stopped")
        try:
            result = run_stage(stage, say, env)
        except InfrastructureError as error:
            if not stopping():
                STAGE_LOG.warning(str(error).splitlines()[0], extra={"stage": stage})
            raise
        STAGE_LOG.info(f"{result.outcome} in {result.seconds:.1f} s", extra={"stage": stage, "result": result})
        return result


@flow(name="audit", description=__doc__, persist_result=False)
def audit(audits: list[str], runner: str = "threads") -> list[StageResult]:
    """Run whatever is stale of these audits, and publish what came out.

    Args:
        audits: names under `audits:` in params.yaml.
        runner: the task runner, see flows/runners.py.

    Returns:
        One result a stage that was stale or depends on a stale one.

    Raises:
        AuditFailed: when a stage failed; the other audits have gone on as far as they could.
    """
    with exclusive():
        params, graph = ALREADY_READ.get() or _read()
        todo = graph.to_do(audits)
        with make_runner(runner, max((stage.gpus for stage in todo), default=0)) as task_runner:
            results = _run(params, graph, todo, task_runner)
        record_timings(results)
        for name in audits:
            publish_artifacts(params, name)
    if any(result.outcome == "failed" for result in results):
        raise AuditFailed(results)
    return results


def _read() -> tuple[Params, Graph]:
    for line in heal():
        get_run_logger().warning(line)
    return load_params(), read_graph()


def gated(params: Params, graph: Graph, todo: Iterable[Stage]) -> dict[str, list[Stage]]:
    """Stages that may only be submitted once a person has decided, by audit."""
    todo = list(todo)
    gates = [stage for stage in todo if stage.kind == GATED and waits_for_person(params, stage.audit)]
    return {gate.audit: graph.downstream([gate.name]).among(todo) for gate in gates}


def _run(params: Params, graph: Graph, todo: list[Stage], runner: TaskRunner) -> list[StageResult]:
    behind_gate = gated(params, graph, todo)
    held = {stage.name for stages in behind_gate.values() for stage in stages}
    futures: Futures = {}
    _submit(runner, (stage for stage in todo if stage.name not in held), futures)

    # An audit whose landscape is still to come is asked when it is there, whichever comes first.
    landscapes = {futures[name]: audit for audit in behind_gate if (name := f"summarize@{audit}") in futures}
    at_hand = [audit for audit in behind_gate if audit not in landscapes.values()]
    coming = (landscapes[future] for future in as_completed(list(landscapes)) if _is_complete(future))
    waiting: list[StageResult] = []
    for name in chain(at_hand, coming):
        if needs_decision(params, name):
            told = how_to_decide(name)
            STAGE_LOG.warning(told, extra={"stage": f"{GATED}@{name}"})
            waiting += [StageResult(stage=stage.name, outcome="waiting", message=told) for stage in behind_gate[name]]
        else:
            _submit(runner, behind_gate[name], futures)
    results = {result.stage: result for result in [*_collect(futures), *waiting]}
    return [results.get(stage.name, StageResult(stage=stage.name, outcome="not reached")) for stage in todo]


def _is_complete(future: PrefectFuture[StageResult]) -> bool:
    future.wait()  # makes the state the task's own; the server's record of it may lag behind
    return future.state.is_completed()


def _submit(runner: TaskRunner, stages: Iterable[Stage], futures: Futures) -> None:
    for stage in stages:
        futures[stage.name] = submit_with_resources(
            runner,
            reproduce,
            gpus=stage.gpus,
            parameters={"stage": stage.name},
            wait_for=[futures[name] for name in stage.upstream if name in futures],
        )


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
