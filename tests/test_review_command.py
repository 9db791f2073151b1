"""The command `faded review`: it serves until a decision is recorded, or records one from a file."""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from html import unescape
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.people.review.links import RECORD, Served, one_time_link, running
from flows.people.review.server import serve_review
from stages.core.errors import UsageError
from stages.decisions import AlreadyDecided, Decision, landscape_hash, read_chain
from tests.review_samples import Loopback, also_review, form_of, kept


def faded(*arguments: str) -> Result:
    """`faded review x ARGUMENTS...` in this process."""
    return CliRunner().invoke(app, ["review", "x", *arguments])


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Future[Result]]:
    """`faded review x` in a thread, which has to end with the block."""
    with ThreadPoolExecutor(1) as pool:
        it = pool.submit(faded, "--no-open", "--port", "0", *arguments)
        while running() is None and not it.done():
            time.sleep(0.05)
        yield it
        it.result(timeout=60)


class Browser:
    """A browser that signed in by a link."""

    def __init__(self, link: str) -> None:
        base, _, rest = link.partition("/review/")
        self.path = f"/review/{rest.partition('?')[0]}"
        self.client = httpx.Client(transport=Loopback(), base_url=base, follow_redirects=True, timeout=60)
        self.fields = form_of(self.client.get(link).text)

    def decide(self, **said: str) -> None:
        answer = self.client.post(
            self.path, data=self.fields | said, headers={"Origin": str(self.client.base_url).rstrip("/")}
        )
        assert answer.status_code == 200 and "Recorded" in answer.text


def test_it_ends_by_a_decision_on_its_own_audit_when_nobody_decides_on_another(place):
    also_review()
    with serving() as it:
        second = faded("--no-open")  # makes the running server show it, and ends
        assert second.exit_code == 0 and f"process {os.getpid()}" in second.stdout, second.output
        other, own = Browser(one_time_link("other")), Browser(faded("--link").stdout.strip())
        own.decide(decision="approve")
        assert running() is not None and not it.done()
        other.decide(decision="reject")
    told, [made] = it.result(), read_chain("x")
    assert told.exit_code == 0 and str(made.path) in told.stdout and not RECORD.exists()
    assert re.search("approved the repair of x.*1 other browser has a page open.*repair of other", told.stdout, re.S)


def test_a_host_that_does_not_count_is_told(place):
    with serve_review(["x"], port=0) as server:
        for arguments in (("--host", "0.0.0.0"), ("--port", "1")):
            done = faded("--no-open", *arguments)
            assert f"it listens at {server.address}: --host and --port do not change that" in done.output
        assert "--host" not in faded("--no-open").output
    with pytest.raises(UsageError, match="cannot listen there"), serve_review(["x"], "192.0.2.1", 1):
        pass


def test_ctrl_c_ends_the_command_and_writes_nothing(place, monkeypatch):
    def interrupted(_self: Served) -> None:
        assert RECORD.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Served, "next_outcome", interrupted)
    done = faded("--no-open", "--port", "0")
    assert done.exit_code == 130 and "no decision on x was recorded" in done.output
    assert kept() == [] and not RECORD.exists()


def test_a_decision_written_by_hand_is_recorded(place):
    modes = [{"id": f"M{n}", "action": "accept", "reason": "known"} for n in (1, 2, 3)]
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


def test_over_ssh_the_questions_are_asked_in_the_terminal(place, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    asked: list[str] = []
    monkeypatch.setattr("flows.commands.decide._in_terminal", lambda _params, name, *_rest: asked.append(name))
    monkeypatch.setattr("flows.commands.decide._on_page", lambda *_args: asked.append("page"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("flows.commands.decide._interactive", lambda: True)
    assert "no browser can be opened here" in faded().stdout
    faded("--no-open")
    monkeypatch.setenv("DISPLAY", ":0")
    faded()
    faded("--terminal")
    assert asked == ["x", "page", "page", "x"]


def test_a_link_is_no_argument_of_a_browser(place, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("subprocess.Popen", lambda command, **_more: opened.append(str(command)))
    with serve_review(["x"], port=0) as server:
        told = faded("--open", "--revise")
    [uri] = opened
    assert uri == (place / ".faded/review-x.html").resolve().as_uri()
    link = re.search(r"http://\S+", told.stdout).group(0)
    port = server.address.rpartition(":")[2]
    assert re.fullmatch(rf"http://faded-[0-9a-f]{{32}}\.localhost:{port}/review/x\?token=\S+&again=yes", link)
    assert link in unescape((place / ".faded/review-x.html").read_text())
