"""Start of a deployed flow run: `python -m flows.engine` is `python -m prefect.engine` that dies with its worker.

A worker that is killed would leave it behind, and a second run of the same audit would start beside it.
"""

from __future__ import annotations

import os
import runpy

import psutil

from flows.processes import TOKEN
from stages.environment import die_with_parent


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    parent = os.getppid()
    die_with_parent(parent)
    # A worker that was killed while Python started here is no parent any more, and whoever adopted us lives on.
    if (token := os.environ.get(TOKEN)) is not None and not _carries(parent, token):
        raise SystemExit("the worker is gone")
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _carries(process: int, token: str) -> bool:
    """Whether a process belongs to the same `faded serve` by its environment, as a worker of it does."""
    try:
        return psutil.Process(process).environ().get(TOKEN) == token
    except psutil.Error:
        return False


if __name__ == "__main__":
    main()
