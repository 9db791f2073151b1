"""Start of a deployed flow run: `python -m flows.engine` is `python -m prefect.engine` that dies with its worker.

A worker that is killed would leave it behind, and a second run of the same audit would start beside it.
"""

from __future__ import annotations

import json
import os
import runpy

import psutil

from flows.processes import TOKEN
from stages.environment import die_with_parent

ALLOWED = "FADED_PARAMETERS"  # in the environment of a flow run: those it may have, see flows/worker.py


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    parent = os.getppid()
    die_with_parent(parent)
    # A worker that was killed while Python started here is no parent any more, and whoever adopted us lives on.
    if (token := os.environ.get(TOKEN)) is not None and not _carries(parent, token):
        raise SystemExit("the worker is gone")
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def foreign_parameters(**given: object) -> str | None:
    """Why a flow run may not have the parameters it was given, if so: `runner` names machines that are believed.

    A server may have been told other ones since the worker looked at the run.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if (allowed := os.environ.get(ALLOWED)) is None or given in json.loads(allowed):
        return None
    return f"refused: the parameters {given!r:.200} are not those of the deployment in prefect.yaml"


def _carries(process: int, token: str) -> bool:
    """Whether a process belongs to the same `faded serve` by its environment, as a worker of it does."""
    try:
        return psutil.Process(process).environ().get(TOKEN) == token
    except psutil.Error:
        return False


if __name__ == "__main__":
    main()
