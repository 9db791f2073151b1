"""A second revision of the finished audit "other", whose model fails more."""

from pathlib import Path

from tests.finished import commit, faded, finished_audits, run_stages
from tests.shared import once
from tests.workspace import Workspace

MORE_FAILURES = ("failed = inside |", "failed = inside | (cells[:, 0] <= 1) |")  # an edit of planted.py


def worse_audits() -> Workspace:
    """The finished audits, with "other" run again on a worse model; committed as `second`, made once per session."""
    return Workspace(once("worse", _make))


def spoil(workspace: Workspace) -> None:
    """Make the model fail more."""
    code = workspace.path / "planted.py"
    assert MORE_FAILURES[0] in code.read_text()
    code.write_text(code.read_text().replace(*MORE_FAILURES))


def _make(path: Path) -> None:
    workspace = finished_audits().copy(path)
    spoil(workspace)
    assert "code changed" in faded(workspace, "plan", "other")[1]
    run_stages(workspace, "other")
    commit(workspace, "second")
