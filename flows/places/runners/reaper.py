"""Ends the remains of a cluster when the run that started it is killed: `python -m flows.places.runners.reaper FOLDER`.

Ray's own agents outlive the run. They change their command lines and environments, but all processes of a cluster keep
log files open in its folder, which has a random name.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from tempfile import mkdtemp

import psutil


@contextlib.contextmanager
def reaped_folder(prefix: str) -> Iterator[str]:
    """Make a temporary folder, and yield it.

    After the block, or when this process dies, all processes with open files in it are killed, and it is removed.
    """
    folder = os.path.realpath(mkdtemp(prefix=prefix))  # open files are listed by their real paths
    command = [sys.executable, "-m", "flows.places.runners.reaper", folder]
    # In its own session, so that Ctrl-C does not reach it. The kernel closes its stdin when this process ends.
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield folder
    finally:
        reaper.communicate()


def main() -> None:
    """Wait for the end of stdin, then clean up."""
    folder = sys.argv[1]
    sys.stdin.read()
    # While the run lives, it keeps the log of its own side of the cluster open.
    while found := [p for p in psutil.process_iter() if p.pid != os.getppid() and _holds(p, folder)]:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


def _holds(process: psutil.Process, folder: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return any(file.path.startswith(f"{folder}/") for file in process.open_files())
    return False


if __name__ == "__main__":
    main()
