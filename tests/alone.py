"""The load.py of a model's folder, run as its users run it: by a process that cannot import Faded."""

import contextlib
import multiprocessing
import os
import runpy
import sys
import traceback
from pathlib import Path

FADED = ("stages", "flows", "faded", "tests")


class _Refused:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in FADED:
            raise ImportError(f"{name} is a part of Faded")


def load_alone(folder: Path, *arguments: str | Path, code: str = "", cwd: Path) -> list[str]:
    """Run load.py of a folder with arguments, then code in its name space; return the lines it prints.

    A fork of this process, which has imported the libraries, spares the seconds they take.
    """
    output = cwd / "printed by load.py.txt"
    command = [str(argument) for argument in (folder / "load.py", *arguments)]
    child = multiprocessing.get_context("fork").Process(target=_run, args=(command, code, cwd, output))
    child.start()
    child.join()
    assert child.exitcode == 0, output.read_text()
    return output.read_text().splitlines()


def _run(command: list[str], code: str, cwd: Path, output: Path) -> None:
    import torch

    with output.open("w") as told, contextlib.redirect_stdout(told):
        try:
            torch.set_num_threads(1)  # those of the parent are not in the fork
            for name in [name for name in sys.modules if name.partition(".")[0] in FADED]:
                del sys.modules[name]
            sys.meta_path.insert(0, _Refused())  # type: ignore[arg-type]
            sys.argv = command
            os.chdir(cwd)
            exec(code, runpy.run_path(command[0], run_name="__main__"))
        except BaseException:
            traceback.print_exc(file=told)
            raise
