"""Workspaces with finished audits, made in this process, as six stages as subprocesses would take a minute."""

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

import flows.cli
from flows.commands import console, errors
from flows.evidence.write import write_bundle
from flows.graph import read_graph
from flows.graph.lock import sha256
from stages.core.errors import FadedError
from stages.core.files import SCHEMA, read_json, stage_dir
from stages.decisions import Decision, decisions_dir, landscape_hash, record_decision, standing
from stages.params import DATA, load_params
from stages.provenance import scale_of
from stages.ratings.apply import Interval, Ratings
from tests.shared import once
from tests.workspace import STAGES, Workspace, audit_params, make_workspace, packed, repair_params

SEARCH = {"explorer": "random", "baseline": "random", "budget": 160, "microscopic": {"method": "none"}}
GATES = {"target_failure_rate": {"change_max": -0.01}, "clean_quality": {"change_min": -0.3}}


def quick_audit(**changes: Any) -> dict[str, Any]:
    """An audit that takes a second or two."""
    return audit_params(**{"discover": SEARCH, "usage": "uniform", **changes})


def quick_repair(**changes: Any) -> dict[str, Any]:
    """Its repair, which two people decide on, with a control."""
    wait = {"policy": "wait", "reviewers": 2}
    restructure = {"method": "planted", "control": "as_used"}
    return repair_params(**{"feedback": wait, "restructure": restructure, "gates": GATES, **changes})


@contextlib.contextmanager
def inside(workspace: Workspace) -> Iterator[None]:
    """Work in a workspace with its own modules; those of other workspaces are forgotten before, and these after."""
    own = {path.stem for path in workspace.path.glob("*.py")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.path)
        patch.setattr(sys, "path", [str(workspace.path), *sys.path])
        forget(own)
        yield
    forget(own)


def forget(modules: set[str]) -> None:
    """Drop imported modules, so that the next import finds the current workspace's."""
    for module in modules:
        sys.modules.pop(module, None)


def faded(workspace: Workspace, *arguments: object, stdin: str | None = None, **env: str) -> tuple[int, str]:
    """Run `faded ARGUMENTS...` in this process, as a new one takes seconds to start; return exit code and output."""
    with inside(workspace), pytest.MonkeyPatch.context() as patch:
        for one in (console, errors):
            patch.setattr(one, "width", 160)
        done = CliRunner().invoke(flows.cli.app, [str(argument) for argument in arguments], input=stdin, env=env)
    if isinstance(done.exception, FadedError):
        return int(done.exception.exit_code), f"{done.output}{done.exception}"
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output


@contextlib.contextmanager
def audit_running(workspace: Workspace) -> Iterator[int]:
    """Another process runs an audit there, as far as its lock tells; yields its id."""
    hold = "with exclusive(): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-P", "-c", f"import sys; from flows.workspace import exclusive\n{hold}"]
    with subprocess.Popen(command, cwd=workspace.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process.pid
        process.communicate()
    assert process.returncode == 0


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
    """Run stages of an audit in this process, and make DVC record their outputs.

    If nobody has decided on the landscape yet, Ada and Bob do; then Ada revises her decision.
    """
    with inside(workspace):
        params = load_params()
        kinds = [kind for kind in kinds if audit in params.repairs or kind in STAGES[:4]]
        for kind in kinds:
            if kind == "collect_feedback" and params.repairs[audit].feedback.policy == "wait":
                decide_first(audit)
            importlib.import_module(f"stages.{kind}").main(audit)
        read_graph()  # records the code that stages depend on
        dvc_commit([f"{kind}@{audit}" for kind in kinds])


def run_toys(workspace: Workspace) -> None:
    """Run all stages of a workspace of toys in order, and make DVC record their outputs.

    This takes a tenth of the time of `faded audit`, which runs DVC in a new process for each stage.
    """
    with inside(workspace):
        stages = [stage for stage in read_graph() if stage.stale]  # read_graph records their code
        for stage in stages:
            done = workspace.run([sys.executable, "-m", f"stages.{stage.kind}", stage.audit])
            assert done.returncode == 0, done.stdout
        dvc_commit([stage.name for stage in stages])


def finished_toys() -> Workspace:
    """One workspace of toys per session, to be copied: "tiny" with its repair, and "other"; all has run."""
    return Workspace(once("finished-toys", _finish_toys))


def _finish_toys(path: Path) -> None:
    audits = {"tiny": audit_params(), "other": audit_params()}
    workspace = make_workspace(path, audits, {"tiny": repair_params()}, toys=True)
    run_toys(workspace)
    assert len(workspace.executed()) == 13
    packed(workspace)


def dvc_commit(names: Sequence[str]) -> None:
    """`dvc commit --force` that reads and writes dvc.lock only once."""
    with Repo() as repo, repo.lock:
        stages = [stage for name in names for stage in repo.stage.collect(name)]
        for stage in stages:
            stage.save()
            stage.commit()
        stages[0].dvcfile.dump_stages(stages, update_pipeline=False)


def decide_first(audit: str) -> None:
    """Decide on a landscape that nobody has decided on."""
    if not standing(load_params(), audit).complete:
        decide(audit, "Ada", severity=2.0)
        decide(audit, "Bob")
        decide(audit, "Ada", revise=True)


def commit(workspace: Workspace, message: str) -> None:
    """Commit all files that git tracks, and tag the commit."""
    for command in (["add", "--all"], ["commit", "--quiet", "--message", message], ["tag", message]):
        done = workspace.run(["git", *command])
        assert done.returncode == 0, done.stdout


def finished_audits() -> Workspace:
    """One workspace per session, to be copied: "tiny" with its repair, and "other", which ends with its landscape.

    They are committed as `first`, and have their evidence.
    """
    return Workspace(once("finished", _finish_audits))


def _finish_audits(path: Path) -> None:
    audits = {"tiny": quick_audit(), "other": quick_audit(gates={"max_failure_rate": 0.9})}
    workspace = make_workspace(path, audits, {"tiny": quick_repair()})
    for audit in audits:
        run_stages(workspace, audit)
    commit(workspace, "first")
    packed(workspace)
    with inside(workspace):
        for audit in audits:
            assert write_bundle(load_params(), audit) is not None


def put_ratings_in_force(workspace: Workspace, audit: str) -> None:
    """Make an audit's decisions define its failures, and run the audit again."""
    with inside(workspace):
        config = load_params().audit(audit)
        zero = Interval(value=0.0, low=0.0, high=0.0)
        ratings = Ratings(
            target="quality",
            scale=scale_of(config),
            model="isotonic",
            x=[-1.0, 0.0, 1.0],
            y=[0.0, 0.5, 1.0],
            ratings=2,
            items=2,
            reviewers={"Ada": 1, "Bob": 1},
            decisions={p.name: sha256(p.read_bytes()) for p in sorted(decisions_dir(audit).glob("*.yaml"))},
            error=zero,
            constant=zero,
            gain=zero,
            points=[(-1.0, 10), (1.0, 1)],
        )
        path = DATA / audit / "ratings.json"
        path.write_text(json.dumps({"schema": SCHEMA, **ratings.model_dump(mode="json")}))
        params = workspace.params()
        named = {"file": path.as_posix(), "sha256": sha256(path.read_bytes()), "fails_below": 5}
        params["audits"][audit]["discrepancy"]["ratings"] = named
        workspace.write_params(params)
    run_stages(workspace, audit, STAGES[1:])
