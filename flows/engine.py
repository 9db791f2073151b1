"""Start of a deployed flow run: `python -m flows.engine` is `python -m prefect.engine` that dies with its worker.

A worker that is killed would leave it behind, and a second run of the same audit would start beside it.
"""

from __future__ import annotations

import runpy

from stages.environment import die_with_parent


def main() -> None:
    """Run the flow run that PREFECT__FLOW_RUN_ID names."""
    die_with_parent()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
