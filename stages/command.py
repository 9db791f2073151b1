"""What all stages have in common as commands: `python -m stages.NAME AUDIT`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from stages.errors import Exit, run_as_command
from stages.files import die_with_parent

# An audit tells nobody that it runs, and CUDA sums in a fixed order only if told before it starts.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def stage_main(run: Callable[[str], None]) -> None:
    """Run a stage for the audit named on the command line, and end with one of the exit codes of `stages.errors`.

    Args:
        run: the stage; it is given the audit's name.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    die_with_parent()
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(f"usage: python -m stages.{Path(sys.argv[0]).stem} AUDIT", file=sys.stderr)
        raise SystemExit(int(Exit.USAGE))
    run_as_command(lambda: run(sys.argv[1]))
