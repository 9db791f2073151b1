"""A newcomer can leave aside what no default audit needs, and follows a probe through few files."""

import sys
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from stages.audit_run import AuditRun
from stages.code import STAGE, Code, read_stages
from stages.explorers.prober import Prober
from stages.params import load_params
from tests.finished import finished_audits
from tests.workspace import ROOT

APART = (  # files, and folders with all that is in them
    *(f"stages/{part}/" for part in ("mining", "proposing", "screening", "usage", "tasks/functions")),
    *(f"stages/tasks/classification/{part}" for part in ("corrupted.py", "init/")),
    *(f"stages/{part}.py" for part in ("ratings/fit", "concepts/corruptions", "explorers/agents", "explorers/rivals")),
)


def test_no_stage_of_a_default_audit_reaches_what_stands_apart() -> None:
    code, params = Code(), load_params(ROOT / "params.yaml")
    for name, audit in params.audits.items():
        for stage in (stage for stage in read_stages() if stage != STAGE):
            reached = code.reached(audit, stage)
            assert len(reached) > 20, "the walk follows imports"
            assert not [file for file in reached if file.startswith(APART)], f"{stage}@{name}"
    assert all((ROOT / file).exists() for file in APART)


def test_one_probe_is_followed_through_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of which a function runs, from params.yaml to the probe's answer."""
    monkeypatch.chdir(finished_audits().copy(tmp_path / "ws").path)
    passed = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        path, named = Path(frame.f_code.co_filename), frame.f_code.co_name[0] != "<"
        if event == "call" and named and path.is_relative_to(ROOT / "stages"):
            passed.add(path.relative_to(ROOT).as_posix())

    with AuditRun("tiny", "discover") as run:
        run.judged_task()  # imports what it needs, which takes three times as long while it is followed
    sys.setprofile(note)
    try:
        with AuditRun("tiny", "discover") as run:
            task = run.judged_task()
            prober = Prober(task, task.items.ids("discover"), 1, run.ledger(run.scratch()), run.compute)
            prober.ask(np.array([0]), task.concepts.neutral[None])
    finally:
        sys.setprofile(None)
    assert len(prober.table()) == 1
    assert 10 < len(passed) <= 25, sorted(passed)
