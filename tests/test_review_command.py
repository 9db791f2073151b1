"""`faded review` as a command: it serves until a decision is recorded, or records what was written elsewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.review.links import RECORD
from flows.review.recording import Outcome
from flows.review.server import ReviewServer, serve_review
from stages.decisions import Decision, landscape_hash, read_chain
from stages.errors import AlreadyDecided, UsageError
from tests.review_samples import form_of, make_review, reviewers
from tests.workspace import FADED, ROOT, Workspace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_review(tmp_path, monkeypatch)


def kept() -> list[Any]:
    return [k.decision for k in read_chain("x")]


def faded(*arguments: str) -> Result:
    """`faded review x ARGUMENTS...` in this process."""
    return CliRunner().invoke(app, ["review", "x", *arguments])


def test_the_command_ends_when_the_decision_is_recorded(place: Path) -> None:
    env = Workspace(place).env | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "400"}
    command = [FADED, "review", "x", "--no-open", "--port", "0"]
    it = subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        told = line = ""
        while "waiting for a decision" not in line and (line := it.stdout.readline()):
            told += line
        found = re.search(r"http://\S+token=\S+", told)
        assert found is not None, told
        second = faded("--no-open")  # has the one that runs show it, and is done
        assert second.exit_code == 0 and f"process {it.pid}" in second.stdout, second.output
        link = faded("--link").stdout.strip()
        assert link not in told and link.partition("?")[0] == found.group(0).partition("?")[0]
        base = link.partition("/review")[0]
        with httpx.Client(trust_env=False, base_url=base, follow_redirects=True, timeout=60) as client:
            fields = form_of(client.get(link).text) | {"decision": "approve"}
            answer = client.post("/review/x", data=fields, headers={"Origin": base})
        assert answer.status_code == 200 and "Recorded" in answer.text
        rest, _ = it.communicate(timeout=60)
    finally:
        it.kill()
    assert it.returncode == 0, rest
    [made] = read_chain("x")
    assert "approved the repair of x" in rest and "faded audit x" in rest and str(made.path) in rest
    assert not RECORD.exists()


def test_it_stays_while_another_browser_has_the_page_open(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter((1, 0))
    monkeypatch.setattr(ReviewServer, "undecided", lambda _self, _audit: next(left))
    outcomes = iter([Outcome("x", Path("1.yaml"), "Ada", True, []), Outcome("x", Path("2.yaml"), "Bo", False, [])])
    monkeypatch.setattr(ReviewServer, "next_outcome", lambda _self: next(outcomes))
    told = faded("--no-open", "--port", "0")
    assert told.exit_code == 0
    assert re.search("Ada approved.*1 other browser has the page open.*Bo rejected", told.stdout, re.S)


def test_browsers_that_were_answered_do_not_count_as_open(place: Path) -> None:
    ada, grace = reviewers(2)
    keys = ada.served.keys
    ada.served.link("x")
    assert keys.undecided("x") == 0
    fields = form_of(ada.enter()) | {"decision": "approve"}
    grace.enter()
    assert keys.undecided("x") == 2
    ada.send(fields)
    assert keys.undecided("x") == 1


def test_ctrl_c_ends_the_command_and_writes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: ReviewServer) -> None:
        assert RECORD.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(ReviewServer, "next_outcome", interrupted)
    done = faded("--no-open", "--port", "0")
    assert done.exit_code == 130 and "no decision was recorded" in done.output
    assert kept() == [] and not RECORD.exists()


def test_a_decision_written_by_hand_is_recorded(place: Path) -> None:
    modes = [{"id": f"M{n}", "action": "accept"} for n in (1, 2, 3)]
    draft = Decision(landscape=landscape_hash("x"), reviewer="Ada", approve=True, modes=modes)
    Path("draft.yaml").write_text(yaml.safe_dump({"schema": 2, **draft.model_dump(exclude_none=True)}))
    assert isinstance(faded("--from", "none.yaml").exception, UsageError)
    done = faded("--from", "draft.yaml")
    assert done.exit_code == 0 and "Ada approved" in done.stdout
    assert [(d.via, d.reviewer) for d in kept()] == [("file", "Ada")]
    for refused in (faded("--from", "draft.yaml"), faded("--no-open"), faded("--terminal")):
        assert isinstance(refused.exception, AlreadyDecided) and "--revise" in str(refused.exception)
    assert faded("--from", "draft.yaml", "--revise").exit_code == 0
    assert len(kept()) == 2


def test_over_ssh_the_questions_are_asked_in_the_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []
    monkeypatch.setattr("flows.commands.decide._in_terminal", lambda _params, name, _revise: asked.append(name))
    monkeypatch.setattr("flows.commands.decide._on_page", lambda *_args: asked.append("page"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("flows.commands.decide._interactive", lambda: True)
    assert "no screen here" in faded().stdout
    faded("--no-open")
    monkeypatch.setenv("DISPLAY", ":0")
    faded()
    faded("--terminal")
    assert asked == ["x", "page", "page", "x"]


def test_a_host_that_is_not_ours_is_told(place: Path) -> None:
    with pytest.raises(UsageError, match="cannot be listened on"), serve_review(["x"], "192.0.2.1", 1):
        pass
