"""Functions called in a process of their own: the libraries they import end with it, and so does the data they read.

The process of a deployed run stays small in this way while it waits for its stages, and so does `faded serve`, which
shows pages for weeks. What is pickled goes through pipes between this process and the one it starts; nobody else can
write to them.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pkgutil import resolve_name
from typing import Any

from flows.workspace import stage_environment
from stages.core.errors import FadedError, InfrastructureError


def aside(function: str, *given: object) -> Any:
    """Call a function in another process, which dies with this one.

    Args:
        function: its name, "module:function", as importing the module would take the memory.
        given: its arguments; as its result, they are pickled.

    Raises:
        FadedError: as the function does.
        InfrastructureError: if it raises anything else, or the process is killed.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.child", str(os.getpid()), "flows.aside"],
        input=pickle.dumps((function, given)),
        env=stage_environment(),
        capture_output=True,
        check=False,
    )
    told = done.stderr.decode(errors="replace")
    if done.returncode:
        raise InfrastructureError(f"{function} broke (exit code {done.returncode}):\n{told.strip()[-2000:]}")
    sys.stderr.write(told)
    result = pickle.loads(done.stdout)
    if isinstance(result, FadedError):
        raise result
    return result


def main() -> None:
    """Call the function that stdin names, and write its result to stdout."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the function prints is not its result
    function, given = pickle.load(sys.stdin.buffer)
    try:
        result = resolve_name(function)(*given)
    except FadedError as error:
        result = error
    with answer:
        pickle.dump(result, answer)


if __name__ == "__main__":
    main()
