"""Workspaces with finished audits, made in this process: six stages as subprocesses would take a minute."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from stages.decisions import Decision, landscape_hash, record_decision, standing
from stages.files import read_json, stage_dir
from stages.params import load_params
from tests.workspace import STAGES, Workspace, audit_params, make_workspace, repair_params

SEARCH = {"explorer": "random", "control": "random", "budget": 160, "microscopic": {"method": "none"}}
GATES = {"target_failure_rate": {"change_max": -0.01}, "clean_quality": {"change_min": -0.3}}


def quick_audit(**changes: Any) -> dict[str, Any]:
    """An audit that takes a second or two."""
    return audit_params(**{"discover": SEARCH, **changes})


def quick_repair(**changes: Any) -> dict[str, Any]:
    """Its repair, on which two people decide, with a control."""
    wait = {"policy": "wait", "reviewers": 2}
    restructure = {"method": "planted", "control": "uniform"}
    return repair_params(**{"feedback": wait, "restructure": restructure, "gates": GATES, **changes})


@contextlib.contextmanager
def inside(workspace: Workspace) -> Iterator[None]:
    """Work in a workspace, with its own `planted` module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        patch.setattr(sys, "path", [str(workspace.path), *sys.path])
        patch.delitem(sys.modules, "planted", raising=False)
        yield
    sys.modules.pop("planted", None)


def decide(audit: str, reviewer: str, *, approve: bool = True, revise: bool = False, severity: float = 1.0) -> None:
    """Record a decision that repairs the first mode."""
    modes = [mode["id"] for mode in read_json(stage_dir(audit, "summarize") / "landscape.json")["modes"]]
    actions = [
        {"id": m, "action": "ignore" if i else "repair", "severity": severity, "reason": f"{reviewer} on {m}"}
        for i, m in enumerate(modes)
    ]
    decision = Decision(
        landscape=landscape_hash(audit), reviewer=reviewer, reason="seen", approve=approve, modes=actions
    )
    record_decision(load_params(), audit, decision, "command", revise=revise)


def run_stages(workspace: Workspace, audit: str, kinds: Sequence[str] = STAGES) -> None:
    """Run stages of an audit in this process, and have DVC take what they wrote as theirs.

    Where nobody has decided on the landscape yet, Ada and Bob do; then Ada changes her mind.
    """
    with inside(workspace):
        params = load_params()
        kinds = [kind for kind in kinds if audit in params.repairs or kind in STAGES[:3]]
        for kind in kinds:
            if kind == "collect_feedback" and params.repairs[audit].feedback.policy == "wait":
                decide_first(audit)
            importlib.import_module(f"stages.{kind}").main(audit)
    done = workspace.run(["dvc", "commit", "--force", *(f"{kind}@{audit}" for kind in kinds)])
    assert done.returncode == 0, done.stdout


def decide_first(audit: str) -> None:
    """Decide on a landscape that nobody has decided on."""
    if not standing(load_params(), audit).complete:
        decide(audit, "Ada", severity=2.0)
        decide(audit, "Bob")
        decide(audit, "Ada", revise=True)


def commit(workspace: Workspace, message: str) -> None:
    """Commit all that git tracks, and tag it."""
    for command in (["add", "--all"], ["commit", "--quiet", "--message", message], ["tag", message]):
        done = workspace.run(["git", *command])
        assert done.returncode == 0, done.stdout


@cache
def finished_audits() -> Workspace:
    """One workspace for the whole session, to be copied: "tiny" with its repair, "other" that ends with its landscape.

    Committed as `first`.
    """
    gated = {"modes": 2, "examples": 1, "gates": {"max_failure_rate": 0.9}}
    audits = {"tiny": quick_audit(), "other": quick_audit(summarize=gated)}
    home = Path(mkdtemp(prefix="faded-finished-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    workspace = make_workspace(home / "ws", audits, {"tiny": quick_repair()})
    for audit in audits:
        run_stages(workspace, audit)
    commit(workspace, "first")
    return workspace
