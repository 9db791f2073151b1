"""The review in the terminal: several reviewers, revised decisions, and bias of a model that draws.

Its questions about examples are in test_rated_examples.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from flows.people import approval
from flows.people.review import terminal
from flows.people.review.terminal import review_landscape
from flows.request import open_request
from stages.core.errors import UsageError
from stages.core.files import stage_dir, write_json
from stages.decisions import AlreadyDecided, read_chain, read_draft
from stages.params import load_params
from tests.landscapes import landscape_file
from tests.review_samples import answered, change_landscape, change_params, kept, make_review, review


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A landscape of one mode with one failing example."""
    make_review(tmp_path, monkeypatch)
    example = {"id": "M1.1", "item": "discover-0001", "cell": [0], "output": "a nurse", "failed": True}
    mode = {"id": "M1", "text": "tilt = 1", "region": {"tilt": [1]}, "rate": 0.5, "low": 0.4, "high": 0.6, "probes": 9}
    mode |= {"share": 0.1, "examples": [{**example, "discrepancy": 0.5}]}
    concepts = [{"name": "tilt", "levels": [0, 1], "unit": "", "ordered": True, "neutral": 0}]
    write_json(stage_dir("x", "summarize") / "landscape.json", landscape_file([mode], concepts=concepts))
    return tmp_path


MODE = ("repair", "", "seen", "n")  # action, severity, why, rate its examples


def test_it_says_where_the_decision_lies_and_what_goes_on(place, monkeypatch):
    told = review(monkeypatch, *MODE, "Ada", "", "y", "y")
    assert f"Commit {read_chain('x')[0].path}: it belongs in git." in told and "`faded audit x` continues" in told
    monkeypatch.setattr(approval, "wake", lambda *_args: ["flow run 7 goes on"])
    told = review(monkeypatch, *MODE, "Ada", "", "n", "y", revise=True)
    assert "Flow run 7 goes on." in told
    assert [(d.via, d.approve) for d in kept()] == [("terminal", True), ("terminal", False)]


def test_a_second_reviewer_is_told_of_the_first_and_both_count(place, monkeypatch):
    change_params(policy="wait", reviewers=2, timeout_hours=5)
    open_request(load_params(), "x")
    told = review(monkeypatch, *MODE, "Ada", "", "y", "y")
    assert "2 reviewers are needed, 2 more to decide" in told and "x needs 1 more reviewer" in told
    assert "silence is recorded as a rejection" in told
    with pytest.raises(AlreadyDecided, match="Ada approved"):  # one person counts once
        review(monkeypatch, *MODE, " ada ", "", "y", "y")
    told = review(monkeypatch, *MODE, "Grace", "", "y", "y")
    assert "Ada approved it on" in told and "1 more to decide" in told
    assert [d.reviewer for d in kept()] == ["Ada", "Grace"]
    with pytest.raises(AlreadyDecided, match=r"approved by Ada, Grace; .*`faded review x --revise`"):
        review(monkeypatch)


def first(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen between the answers and their record."""
    real = terminal.decide

    def late(*args: object, **more: object) -> object:
        monkeypatch.setattr(terminal, "decide", real)
        happens()
        return real(*args, **more)

    monkeypatch.setattr(terminal, "decide", late)


ANSWERS = ("accept", "seen in the field", "n", "Ada", "mine", "y", "y")


@pytest.mark.parametrize("revised", [True, False])
def test_answers_outlive_somebody_who_was_quicker_or_changed_the_landscape(place, monkeypatch, capsys, revised):
    def another() -> object:
        return review(monkeypatch, *MODE, "Grace", "", "y", "y") if revised else change_landscape()

    first(monkeypatch, another)
    monkeypatch.setattr("builtins.input", answered(*ANSWERS))
    with pytest.raises(UsageError, match="Grace approved" if revised else "the current landscape"):
        review_landscape(load_params(), "x", Console(width=200))
    again = "; `faded review x --from .faded/draft-x.yaml --revise` records them all the same" if revised else ""
    assert f"your answers are kept in .faded/draft-x.yaml{again}\n" in capsys.readouterr().out
    draft = read_draft(Path(".faded/draft-x.yaml"))
    assert (draft.reviewer, draft.reason, draft.modes[0].action) == ("Ada", "mine", "accept")
    if revised:
        terminal.decide(load_params(), "x", draft, "file", revise=True)
    assert [d.reviewer for d in kept()] == ["Grace", "Ada"] * revised


def test_a_review_that_is_broken_off_writes_nothing(place, monkeypatch):
    with pytest.raises(UsageError, match="was cancelled; no decision was written"):
        review(monkeypatch, *MODE, "Ada")
    assert "nothing written" in review(monkeypatch, *MODE, "Ada", "", "y", "n")
    assert kept() == []
