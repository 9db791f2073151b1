"""A fault at every change of the disk by a stage or Faded's state: the same command then ends as without it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import build
from tests.finished import SEARCH, quick_audit, quick_repair
from tests.workspace import ROOT, make_workspace


def disturbed(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The output of tests/faults.py for a small audit."""
    if (library := build(folder)) is None:
        pytest.skip("no C compiler, or not Linux: nothing can be preloaded")
    repair = quick_repair(feedback={"policy": "top-k", "modes": 1})
    make_workspace(folder / "ws", {"tiny": quick_audit(discover={**SEARCH, "budget": 100})}, {"tiny": repair})
    env = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.faults", str(folder / "ws"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "cases", [pytest.param("2", marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.nightly)]
)
def test_after_a_fault_in_any_stage_the_same_command_ends_the_same(tmp_path: Path, cases: str) -> None:
    told = disturbed(tmp_path, "--cases", cases)
    assert [one for one in told if "problems" in one] == []
    assert all(one["points"] > 10 for one in told)
