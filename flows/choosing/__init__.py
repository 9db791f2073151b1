"""An audit made ready for a command that probes its model: healed, valid, and prepared."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from flows.graph import read_graph
from flows.graph.intact import heal
from flows.processes import stopping_on_signals
from flows.results import record_timings
from flows.run_stage import level_of, run_stage
from flows.terminal import print_plain
from flows.workspace import exclusive
from flows.workspace.edit_params import edit_file
from stages.check import check_api_keys, check_audits
from stages.core.errors import UsageError
from stages.params import AuditConfig, Params, load_params

PARAMS = Path("params.yaml")


@contextmanager
def healed_audit(params: Params, name: str, console: Console) -> Iterator[AuditConfig]:
    """Lock and heal the workspace, and yield the audit, valid by all checks; Ctrl-C ends what the block runs.

    Raises a UsageError if params.yaml has errors that a stage would find later.
    """
    with exclusive(), stopping_on_signals():
        print_plain(console, *(f"healed: {line}" for line in heal()))
        check_audits(params, [name])
        check_api_keys(params, [name])
        yield params.audit(name)


def run_prepare(audit: str, console: Console) -> None:
    """Run `prepare` of an audit, and what it depends on, if they are stale."""
    graph, name = read_graph(), f"prepare@{audit}"
    if name not in graph.stages:
        raise UsageError(f"dvc.yaml has no stage {name}")
    wanted, errors = graph.upstream([name]), list[str]()

    def say(line: str) -> None:
        if errors or level_of(line) == logging.ERROR:  # the error that is raised says it
            errors.append(line)
        else:
            print_plain(console, line)

    for stage in graph.downstream([stage.name for stage in wanted if stage.stale], wanted):
        console.print(f"{stage.name} is not up to date, so it runs first")
        record_timings([run_stage(stage.name, say)])
        print_plain(console, *errors)


def write_params(name: str, audit: AuditConfig, change: Callable[[str], str], console: Console) -> None:
    """Change the text of params.yaml, print the changed lines, and what to do next.

    Raises a UsageError if the audit is no longer what was measured, or cannot be edited.
    """
    if load_params(PARAMS).audit(name) != audit:
        raise UsageError(
            f"nothing written: audits.{name} was changed in {PARAMS} meanwhile; run the same command again"
        )
    edit_file(PARAMS, change, console)
    console.print(f"written to {PARAMS}; see what is now stale with `faded plan {name}`")
