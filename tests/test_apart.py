"""What no default audit needs stands apart: a newcomer can leave it aside, and no change of it makes a result stale."""

from __future__ import annotations

from stages.code import STAGE, Code, read_stages
from stages.params import load_params
from tests.workspace import ROOT

APART = (  # files, and folders with all that is in them
    "stages/mining/",
    "stages/proposing/",
    "stages/screening/",
    "stages/usage/",
    "stages/ratings/fit.py",
    "stages/concepts/corruptions.py",
    "stages/concepts/rows.py",
    "stages/tasks/classification/corrupted.py",
    "stages/tasks/classification/init/",
    "stages/tasks/functions/",
    "stages/tasks/tabular/",
    *(f"stages/explorers/{rival}.py" for rival in ("agents", "rivals")),
)


def test_no_stage_of_a_default_audit_reaches_what_stands_apart() -> None:
    code, params = Code(), load_params(ROOT / "params.yaml")
    for name, audit in params.audits.items():
        for stage in (stage for stage in read_stages() if stage != STAGE):
            reached = code.reached(audit, stage)
            assert len(reached) > 20, "the walk follows imports"
            assert not [file for file in reached if file.startswith(APART)], f"{stage}@{name}"
    assert all((ROOT / file).exists() for file in APART)
