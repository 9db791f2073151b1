"""The load.py of a model's folder, run as its users run it: by a process that cannot import Faded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_WITHOUT_FADED = """
import runpy, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stages", "flows", "faded"):
            raise ImportError(f"{name} is a part of Faded")

sys.meta_path.insert(0, Refused())
code = sys.argv.pop(1)
sys.argv.pop(0)
own = runpy.run_path(sys.argv[0], run_name="__main__")
exec(code, own)
"""


def load_alone(folder: Path, *arguments: str | Path, code: str = "", cwd: Path) -> list[str]:
    """Run load.py of a folder with arguments, then code in its name space; return the lines it prints."""
    command = [sys.executable, "-P", "-c", _WITHOUT_FADED, code, folder / "load.py", *arguments]
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
