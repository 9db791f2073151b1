"""Start of a stage: `python -m flows.repro TURN ARGS...` is `dvc ARGS...` that waits for its turn, the stage started.

DVC and a stage import libraries for one to five seconds. So both are started while the stage before runs, and wait,
each at a pipe. What runs is what DVC would start, `python -m stages.NAME AUDIT`, only earlier. If that process has
died, or the command is another, DVC starts its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from typing import Any

from stages.core.environment import TURN

_OURS = re.compile(r"exec python (-P )?-m stages\.\w+ '[^'\n]*'( '[^'\n]*')?")  # any other command would not wait


def main() -> None:
    """Start the stage that the last argument names, and run DVC when a byte arrives at TURN; end if it is closed."""
    turn, *arguments = sys.argv[1:]
    started = _start(arguments[arguments.index("--cd") + 1], arguments[-1])
    if not os.read(int(turn), 1):
        return
    from dvc.cli import main as dvc
    from dvc.stage import run
    from dvc.utils.serialize import _yaml

    # dvc.lock has no comments to keep, and is written the same when it is read seven times as fast.
    _yaml.parse_yaml_for_update = _yaml.parse_yaml
    if started is not None:
        run.subprocess = started
    raise SystemExit(dvc(arguments))


class _Started:
    """The module `subprocess` for DVC, but a command that has been started already is not started again."""

    def __init__(self, command: list[str], **given: Any) -> None:
        waits, self._turn = os.pipe()
        given["env"] = {**given["env"], TURN: f"{waits} {time.time()}"}
        self._process = subprocess.Popen(command, pass_fds=[waits], **given)
        os.close(waits)

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, command: list[str], **given: Any) -> subprocess.Popen[bytes]:  # noqa: N802
        if command != self._process.args or self._process.poll() is not None:
            return subprocess.Popen(command, **given)
        with contextlib.suppress(BrokenPipeError):  # it has just died, as its exit code will tell
            os.write(self._turn, b".")
        return self._process


def _start(project: str, name: str) -> _Started | None:
    """Start a stage's command as DVC does; None if it is not one of ours."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from dvc.stage.run import _make_cmd, get_executable, prepare_kwargs

    with contextlib.suppress(DvcException):  # DVC will say so itself
        with Repo(project, _wait_for_lock=True) as repo, lock_repo(repo):
            [stage] = repo.stage.collect(name)
        if isinstance(stage.cmd, str) and _OURS.fullmatch(stage.cmd):
            return _Started(_make_cmd(get_executable(), stage.cmd), **prepare_kwargs(stage))
    return None


if __name__ == "__main__":
    main()
