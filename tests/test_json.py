"""`--json`: the facts of a command as one documented document on standard output, errors too, with the same codes."""

import json
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import flows.cli
from flows.graph import Stage
from flows.results.estimate import Estimate, Note, StageEstimate
from flows.run import EndedRun
from flows.run_stage import ShipmentResult, StageResult
from flows.terminal import VERSIONS, as_json
from stages.core.errors import FadedError, InfrastructureError
from tests.finished import commit, inside
from tests.workspace import FADED, ROOT, Workspace

PAGE = (ROOT / "docs/commands.md").read_text().partition("## JSON for programs\n")[2].partition("<!--")[0]
DOCUMENTED = set(re.findall(r"`([a-z_]+)`", PAGE))
# Names that belong to the audit, not to the schema: numbers of a repair, audits and versions by name.
OPEN = {"evidence", "machine", "published"}


def told(workspace: Workspace, *command: object) -> tuple[int, dict[str, Any], str]:
    """The exit code of a command with --json, its document, which is all of standard output, and standard error."""
    with inside(workspace):
        done = CliRunner().invoke(flows.cli.app, [*map(str, command), "--json"])
    code = int(done.exception.exit_code) if isinstance(done.exception, FadedError) else done.exit_code
    document = json.loads(done.stdout)
    name = "error" if "kind" in document else command[0]
    assert document["schema"] == f"faded/{name}/{VERSIONS[str(name)]}"
    assert keys(document) <= DOCUMENTED, keys(document) - DOCUMENTED
    return code, document, done.stderr


def keys(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if not isinstance(value, dict):
        return set()
    return {*value, *(key for name, one in value.items() if name not in OPEN for key in keys(one))}


def test_status_and_history_have_the_same_verdict(workspace):
    code, status, _ = told(workspace, "status", "--stages")
    [tiny, other] = status["audits"]
    assert code == 0 and tiny["verdict"]["word"] == "pass" and tiny["verdict"]["decider"] == "Bob, Ada"
    assert {one["state"] for one in status["stages"]} == {"fresh"} and tiny["next"] == ""
    assert 0 < other["failure_rate"]["low"] < other["failure_rate"]["value"] < 1
    _, history, _ = told(workspace, "history")
    for row, of in zip(status["audits"], history["audits"], strict=True):
        assert of["results"][0]["verdict"] == row["verdict"]
        assert datetime.fromisoformat(row["verdict"]["when"]).tzinfo is not None


def test_a_plan_and_an_audit_with_nothing_to_do(workspace):
    code, plan, _ = told(workspace, "plan", "tiny")
    assert (code, plan["stages"], plan["probes"], plan["time"]) == (0, [], 0, "nothing to run") and plan["free"] > 0
    code, audit, _ = told(workspace, "audit", "--all")
    assert code == audit["exit_code"] == 0 and audit["stages"] == [] and audit["error"] is None
    assert [verdict["word"] for verdict in audit["verdicts"]] == ["pass", "pass"]
    assert all(Path(path).is_file() for path in audit["evidence"].values()) and len(audit["evidence"]) == 2


def test_a_run_and_an_estimate_have_only_documented_fields():
    stage = Stage("discover@tiny", "discover", "tiny", 0, ("prepare@tiny",), None, ("code changed",))
    estimate = Estimate([StageEstimate(stage, 100, 4, None, None, None, False)], 5, (Note("few", warning=True),))
    made = ShipmentResult.model_construct(host="there")
    failed = StageResult(stage="discover@tiny", outcome="failed", made=made)
    ended = EndedRun([failed], failure=InfrastructureError("no"))
    for command, found in (("plan", estimate), ("audit", ended)):
        document = json.loads(as_json(command, found))
        assert keys(document) <= DOCUMENTED, keys(document) - DOCUMENTED
    assert document["exit_code"] == 3 and document["error"] == "no" and "made" not in document["stages"][0]


def test_the_gate_and_its_junit_say_the_same(workspace, tmp_path):
    out = tmp_path / "gate.xml"
    code, gate, _ = told(workspace, "gate", "tiny", "--against", "first", "--junit", out)
    assert code == 0 and gate["passed"] and len(gate["rows"]) == 3 and gate["then"]["word"] == "pass"
    suite = ElementTree.parse(out).getroot()[0]
    assert suite.get("tests") == str(len(gate["rows"]) + len(gate["now"]["gates"]) + 1) == str(len(suite))
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    code, error, text = told(workspace, "gate", "tiny", "--against", "nosuch", "--junit", out)
    assert code == error["exit_code"] == 2 and error["kind"] == "usage" and error["command"] == "gate"
    suite = ElementTree.parse(out).getroot()[0]
    assert suite.get("errors") == "1" and suite[0][0].get("message") == error["message"].replace("\n", " ")
    assert text == ""  # it is for `main` to print


def test_a_bundle_that_does_not_hold_and_one_that_is_none(workspace, tmp_path):
    [bundle] = (workspace.path / "data/tiny/evidence").glob("*.zip")
    code, verified, _ = told(workspace, "verify", bundle)
    assert code == 0 and verified["holds"] and len(verified["checks"]) > 10
    code, verified, _ = told(workspace, "verify", bundle, "--max-age", "0", "--require-signed")
    assert code == 1 and not verified["holds"] and any(check["problems"] for check in verified["checks"])
    (tmp_path / "x.zip").write_text("no bundle")
    assert told(workspace, "verify", tmp_path / "x.zip")[0] == 2


def test_comparisons_of_revisions_and_of_audits(workspace):
    _, two, _ = told(workspace, "compare", "first", "workspace", "tiny")
    assert two["names"] == ["first", "workspace"] and two["difference"]["difference"]["value"] == 0
    _, audits, _ = told(workspace, "compare", "tiny", "other")
    assert audits["revisions_of"] is None and Path(audits["page"]).is_file()
    assert {row["what"] for row in audits["rates"]} > {"overall"}


def test_an_unknown_option_is_an_error_of_usage(workspace):
    code, error, _ = told(workspace, "status", "--nosuch")
    assert code == error["exit_code"] == 2 and "--nosuch" in error["message"]


@pytest.mark.slow
def test_the_command_prints_the_error_for_people_on_standard_error(workspace, tmp_path):
    command = [FADED, "plan", "nosuch", "--json"]
    done = subprocess.run(command, cwd=workspace.path, env=workspace.env, capture_output=True, text=True, check=False)
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 2
    assert done.stderr.startswith("error: ") and "nosuch" in done.stderr


def test_a_name_does_not_control_a_terminal():
    printed = as_json("plan", {"text": "\x1b[2J\x9b"})
    assert printed.isascii() and "\x1b" not in printed


@pytest.mark.slow
def test_the_first_result_is_judged_by_its_own_gates(workspace, tmp_path):
    fresh = workspace.copy(tmp_path / "ws")
    for command in ("checkout --quiet --orphan new", "rm --quiet -r --cached .", "add params.yaml", "commit -m none"):
        fresh.run(["git", *command.split()])
    code, error, _ = told(fresh, "gate", "tiny")
    assert code == 2 and "faded gate tiny --first" in error["message"]
    code, gate, _ = told(fresh, "gate", "tiny", "--first")
    assert (code, gate["passed"], gate["against"], gate["then"], gate["rows"]) == (0, True, None, None, [])
    # What is named has to be there, and a gate of its own that fails still fails.
    assert told(fresh, "gate", "tiny", "--first", "--against", "nosuch")[0] == 2
    commit(fresh, "second")
    code, gate, _ = told(fresh, "gate", "tiny", "--first")
    assert code == 0 and gate["against"] is not None and len(gate["rows"]) == 3


@pytest.mark.slow
def test_bytes_that_a_named_revision_lacks_are_no_first_result(workspace, tmp_path):
    clone = workspace.copy(tmp_path / "ws")
    lock = clone.path / "dvc.lock"
    here = lock.read_text()
    lock.write_text(re.sub(r"md5: [0-9a-f]{32}", f"md5: {'deadbeef' * 4}", here))
    assert clone.run(["git", "commit", "--quiet", "--all", "--amend", "--no-edit"]).returncode == 0
    lock.write_text(here)  # as after an audit in a clone of a repository without a remote
    code, error, _ = told(clone, "gate", "tiny")
    assert code == 2 and "dvc push" in error["message"] and "--first" in error["message"]
    assert told(clone, "gate", "tiny", "--first", "--against", "HEAD")[0] == 2
    code, gate, _ = told(clone, "gate", "tiny", "--first")
    assert (code, gate["against"]) == (0, None) and gate["notes"]
