"""Workspaces for tests: a fresh git and DVC repository with this repository's stages and dvc.yaml, and tiny audits.

The audits use `tests/planted.py`, so a whole one takes seconds. With `toys=True` the stage modules are replaced by
`tests/toy_stage.py`, which needs no torch and follows `toy.json` (fail, be killed, sleep): for tests of the graph and
the flow, in which the stages do not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from dvc.repo import Repo

from tests.shared import once, spare_migrations

ROOT = Path(__file__).parents[1]
FADED = str(Path(sys.executable).parent / "faded")
STAGES = (
    *("prepare", "discover", "summarize", "report"),
    *("collect_feedback", "restructure", "re_evaluate", "compare", "conclude"),
)
# Personal settings that must not affect tests: a configured server, a proxy, another home of Prefect.
_FOREIGN = (
    *("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "DVC_STAGE", "DVC_ROOT", "FADED_RUNNER"),
    "PYTHONDONTWRITEBYTECODE",  # users' Python writes byte code into folders that stages depend on
)


# For repairs that may go part of the way: what few held-out items do not have is sought for in 200 rounds per model.
FEW_PAIRS = {"pairs": 40}


def audit_params(**changes: Any) -> dict[str, Any]:
    """Parameters of one tiny audit: two concepts of four levels, failures planted in one corner."""
    return {
        "seed": 3,
        "task": "planted:PlantedTask",
        "compute": {"device": "cpu", "threads": 1, "batch_size": 32, "gpus": 0},
        "prepare": {
            "items": {"discover": 20, "repair": 20, "test": 20},
            "regions": [{"tilt": [2, 3], "fog": [2, 3]}],
            "noise": 0.02,
            "file": "regions.json",
        },
        "discrepancy": {"threshold": 0.0},
        "concepts": {"tilt": [0, 1, 2, 3], "fog": [0, 1, 2, 3]},
        "discover": {"explorer": "ppo", "baseline": "random", "budget": 200},
        "summarize": {"modes": 2, "examples": 1},
        **changes,
    }


def repair_params(**changes: Any) -> dict[str, Any]:
    """Parameters of its repair."""
    return {
        "gpus": 0,
        "feedback": {"policy": "top-k", "modes": 1},
        "restructure": {"method": "planted", "control": "none"},
        "re_evaluate": {"paired_probes": 100, "bootstrap": 200},
        "gates": {"target_failure_rate": {"change_max": -0.01}},
        **changes,
    }


@dataclass(frozen=True)
class Workspace:
    """A workspace on disk, used as people would: by running commands in it."""

    path: Path

    @property
    def env(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
        return env | {"COLUMNS": "160", "NO_COLOR": "1", "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}

    def faded(self, *arguments: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `faded ARGUMENTS...`; stdout and stderr are returned together as `stdout`."""
        if needs_server(arguments, env):
            spare_migrations(self.path)
        return self.run([FADED, *arguments], stdin=stdin, **env)

    def run(self, command: list[str], stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.path,
            env=self.env | env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=500,
        )

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start `faded ARGUMENTS...` in its own session, so that it can be killed."""
        if needs_server(arguments, env):
            spare_migrations(self.path)
        log = (self.path / ".faded-test.log").open("ab")
        return subprocess.Popen(
            [FADED, *arguments],
            cwd=self.path,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def copy(self, path: Path) -> Workspace:
        """A copy of the workspace, with its history and DVC's cache."""
        shutil.copytree(self.path, path, symlinks=True)
        return Workspace(path)

    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / "params.yaml").read_text())

    def write_params(self, params: dict[str, Any]) -> None:
        (self.path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def edit_params(self, changes: Mapping[str, Any]) -> None:
        """Set values in params.yaml by their paths: {"audits.tiny.seed": 4}."""
        params = self.params()
        for path, value in changes.items():
            *above, last = path.split(".")
            reduce(getitem, above, params)[last] = value
        self.write_params(params)

    def toy(self, **behaviour: Any) -> None:
        """Set the behaviour of toy stages, with __ for the @ of a stage's name: discover__tiny={"exit": 2}."""
        told = {name.replace("__", "@"): value for name, value in behaviour.items()}
        (self.path / "toy.json").write_text(json.dumps(told))

    def executed(self) -> list[str]:
        """Names of the toy stages that were executed since the last call, in order.

        A report runs in parallel with the stages of a repair, so it is always listed right after its landscape.
        """
        path = self.path / "executed.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        for name in [name for name in names if name.startswith("report@")]:
            landscape = name.replace("report", "summarize")
            if landscape in names[: (at := names.index(name))]:
                names.insert(names.index(landscape) + 1, names.pop(at))
        return names

    def digests(self, *patterns: str) -> dict[str, str]:
        """SHA-256 of every matching file under data/."""
        files = sorted(p for pattern in patterns for p in (self.path / "data").glob(pattern) if p.is_file())
        return {str(p.relative_to(self.path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def call(function: str, *given: object) -> Any:
    """Stand in for `flows.processes.aside`, whose process takes a second to start: call the function in this one."""
    return resolve_name(function)(*given)


def needs_server(arguments: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether `faded ARGUMENTS...` starts its own Prefect server, with a database under .faded."""
    elsewhere = {"PREFECT_API_URL", "PREFECT_API_DATABASE_CONNECTION_URL"} & env.keys()
    return arguments[0] in ("audit", "serve") and not elsewhere


def make_workspace(
    path: Path, audits: dict[str, Any] | None = None, repairs: dict[str, Any] | None = None, *, toys: bool = False
) -> Workspace:
    """Make a workspace with these audits and repairs; by default one audit, "tiny", with its repair."""
    audits = {"tiny": audit_params()} if audits is None else audits
    repairs = {"tiny": repair_params()} if repairs is None else repairs
    shutil.copytree(once("empty", _init_repository), path, symlinks=True, dirs_exist_ok=True)
    # Including byte code, which records the time of its source: compiling costs seconds per workspace.
    for name in ("faded", "stages"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    shutil.copy(ROOT / "tests" / "planted.py", path / "planted.py")
    for name in ("dvc.yaml", "faded.json", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, path / name)
    if toys:
        for stage in STAGES:
            shutil.copy(ROOT / "tests" / "toy_stage.py", path / "stages" / f"{stage}.py")
    workspace = Workspace(path)
    workspace.write_params({"audits": audits, "repairs": repairs})
    for audit in audits:
        inputs = path / "data" / audit / "inputs"
        inputs.mkdir(parents=True)
        (inputs / "regions.json").write_text("[]")
        shards = path / "data" / audit / "shards"
        shards.mkdir()
        (shards / ".gitignore").write_text("*\n!.gitignore\n")
        decisions = path / "data" / audit / "decisions"
        decisions.mkdir()
        (decisions / "README.md").write_text("Decisions on landscapes, one file each.\n")
    _run_all(workspace, ["git", "add", "--all"], ["git", "commit", "--quiet", "--message", "start"])
    return workspace


def packed(workspace: Workspace) -> None:
    """Make git pack its objects into one file, so that a workspace that many tests copy has half as many files."""
    _run_all(workspace, ["git", "gc", "--quiet"])


def _init_repository(path: Path) -> None:
    """Make a git and DVC repository without a commit."""
    path.mkdir()
    _run_all(
        Workspace(path),
        ["git", "init", "--quiet", "--initial-branch=main"],
        ["git", "config", "user.name", "Ada Tester"],
        ["git", "config", "user.email", "ada@example.org"],
    )
    Repo.init(str(path)).close()


def _run_all(workspace: Workspace, *commands: list[str]) -> None:
    for command in commands:
        done = workspace.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}"


def repair_verdict(audit: str) -> dict[str, Any]:
    """The result of a repair in the current workspace: the comparison and the verdict together."""
    from stages.records import audit_folder  # imports numpy, which conftest.py has to come before

    here = audit_folder(audit)
    return here.compare.comparison.to_json() | here.conclude.verdict.to_json()
