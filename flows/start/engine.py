"""Start of a deployed flow run: `python -m flows.start.engine` is `python -m prefect.engine` that dies with its worker.

Otherwise the run would outlive a killed worker, and a second run of the same audit would start beside it.
"""

import json
import os
import runpy

from flows.processes import TOKEN
from stages.core.environment import die_with_parent

ALLOWED = "FADED_PARAMETERS"  # environment variable with the parameters a flow run may have, see flows/worker.py


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    if TOKEN not in os.environ:  # one of ours does already, since before it became this process (flows/worker.py)
        die_with_parent()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def foreign_parameters(**given: object) -> str | None:
    """Why a flow run's parameters are refused, None if they are allowed. `runner` names machines that are trusted.

    The server may have changed them since the worker checked the run.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if (allowed := os.environ.get(ALLOWED)) is None or given in json.loads(allowed):
        return None
    return f"refused: the parameters {given!r:.200} are not those of the deployment in prefect.yaml"


if __name__ == "__main__":
    main()
