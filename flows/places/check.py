"""The check of stages in a process of its own, which takes the libraries of tasks with it when it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from flows.places.runners import check_stages
from flows.workspace import stage_environment
from stages.core.errors import Exit, InfrastructureError, UsageError
from stages.params import load_params
from stages.params.file import RunnerConfig


def check_in_a_process(audits: Sequence[str], config: RunnerConfig) -> None:
    """Refuse what a stage would refuse later, as `flows.places.runners.check_stages` does.

    Raises:
        UsageError: with one line per error.
        InfrastructureError: if the check itself breaks.
    """
    command = [sys.executable, "-P", "-m", "flows.places.check", config.model_dump_json(), *audits]
    done = subprocess.run(command, env=stage_environment(), capture_output=True, text=True, check=False)
    if done.returncode == Exit.USAGE:
        raise UsageError(done.stderr.strip())
    if done.returncode:
        raise InfrastructureError(f"the check of the audits broke:\n{done.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    try:
        check_stages(load_params(), sys.argv[2:], RunnerConfig.model_validate_json(sys.argv[1]))
    except UsageError as error:
        print(error, file=sys.stderr)
        raise SystemExit(Exit.USAGE) from None
