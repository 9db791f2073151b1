"""The review in the terminal: several reviewers, revised decisions, and bias of a model that draws.

Its questions about examples are in test_rated_examples.py.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from flows.people import approval
from flows.people.review import terminal
from flows.people.review.terminal import review_landscape
from flows.request import open_request
from stages.core.errors import UsageError
from stages.core.files import stage_dir, write_json
from stages.decisions import AlreadyDecided, RecordedDecision, read_chain, read_draft
from stages.params import load_params
from tests.landscapes import landscape_file
from tests.review_samples import change_landscape, make_review, review

TALLIED = """
from tests.planted import PlantedTask


class Drawing(PlantedTask):
    def tallies(self, split):
        return []
"""


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


def ask(task: str = "Learner", **feedback: object) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["repairs"]["x"]["feedback"] = {"policy": "wait", **feedback}
    params["audits"]["x"]["task"] = f"review_task:{task}"
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def kept() -> list[RecordedDecision]:
    return [k.decision for k in read_chain("x")]


MODE = ("repair", "", "seen", "n")  # action, severity, why, rate its examples


def test_it_says_where_the_decision_lies_and_what_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = review(monkeypatch, *MODE, "Ada", "", "y", "y")
    assert f"Commit {read_chain('x')[0].path}: it belongs in git." in told and "`faded audit x` continues" in told
    monkeypatch.setattr(approval, "wake", lambda *_args: ["flow run 7 goes on"])
    told = review(monkeypatch, *MODE, "Ada", "", "n", "y", revise=True)
    assert "Flow run 7 goes on." in told
    assert [(d.via, d.approve) for d in kept()] == [("terminal", True), ("terminal", False)]


def test_a_second_reviewer_is_told_of_the_first_and_both_count(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(reviewers=2, timeout_hours=5)
    open_request(load_params(), "x")
    told = review(monkeypatch, *MODE, "Ada", "", "y", "y")
    assert "2 reviewers are needed, 2 more to decide" in told and "x needs 1 more reviewer" in told
    assert "silence is recorded as a rejection" in told
    told = review(monkeypatch, *MODE, "Grace", "", "y", "y")
    assert "Ada approved it on" in told and "1 more to decide" in told
    assert [d.reviewer for d in kept()] == ["Ada", "Grace"]
    with pytest.raises(AlreadyDecided, match=r"Ada, Grace decided .*`faded review x --revise`"):
        review(monkeypatch)


def test_one_person_counts_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(reviewers=2)
    review(monkeypatch, *MODE, "Ada", "", "y", "y")
    with pytest.raises(AlreadyDecided, match="Ada approved"):
        review(monkeypatch, *MODE, " ada ", "", "y", "y")
    assert len(kept()) == 1


def test_answers_outlive_somebody_who_was_quicker(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = terminal.record

    def late(*args: object, **more: object) -> object:
        monkeypatch.setattr(terminal, "record", real)
        review(monkeypatch, *MODE, "Grace", "", "y", "y")
        monkeypatch.setattr("builtins.input", lambda *_args: "")
        return real(*args, **more)

    monkeypatch.setattr(terminal, "record", late)
    out = io.StringIO()
    answers = iter(("accept", "seen in the field", "n", "Ada", "mine", "y", "y"))
    monkeypatch.setattr("builtins.input", lambda *_args: next(answers))
    with pytest.raises(AlreadyDecided, match="Grace approved"):
        review_landscape(load_params(), "x", Console(file=out, width=200))
    assert "`faded review x --from .faded/draft-x.yaml --revise` records them all the same" in out.getvalue()
    draft = read_draft(Path(".faded/draft-x.yaml"))
    assert (draft.reviewer, draft.reason, draft.modes[0].action) == ("Ada", "mine", "accept")
    terminal.record(load_params(), "x", draft, "file", revise=True)
    assert [d.reviewer for d in kept()] == ["Grace", "Ada"]


def test_answers_outlive_a_landscape_that_changed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(("accept", "seen in the field", "n", "Ada", "mine", "y", "y"))

    def answer(*_args: str) -> str:
        if (said := next(answers)) == "mine":
            change_landscape()
        return said

    out = io.StringIO()
    monkeypatch.setattr("builtins.input", answer)
    with pytest.raises(UsageError, match="the current landscape"):
        review_landscape(load_params(), "x", Console(file=out, width=200))
    assert "your answers are kept in .faded/draft-x.yaml\n" in out.getvalue()
    assert read_draft(Path(".faded/draft-x.yaml")).modes[0].reason == "seen in the field"
    assert kept() == []


def test_a_revision_takes_the_place_of_what_was_shown_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = terminal.record

    def late(*args: object, **more: object) -> object:
        monkeypatch.setattr(terminal, "record", real)
        review(monkeypatch, *MODE, "Cy", "", "n", "y", revise=True)
        return real(*args, **more)

    review(monkeypatch, *MODE, "Ada", "", "y", "y")
    monkeypatch.setattr(terminal, "record", late)
    with pytest.raises(AlreadyDecided, match="Cy rejected"):
        review(monkeypatch, *MODE, "Bob", "", "y", "y", revise=True)
    assert [d.reviewer for d in kept()] == ["Ada", "Cy"]


def test_bias_is_asked_for_where_a_model_draws(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "review_task.py").write_text(TALLIED)
    ask("Drawing")
    told = review(monkeypatch, "repair", "", "seen", "y", "3", "11", "9", "Ada", "", "y", "y")
    assert "its bias, 1 (none) to 10 (extremely biased)" in told
    assert [(e.rating, e.bias, e.corrected) for e in kept()[0].examples] == [(3, 9, None)]


def test_a_review_that_is_broken_off_writes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="was cancelled; no decision was written"):
        review(monkeypatch, *MODE, "Ada")
    assert "nothing written" in review(monkeypatch, *MODE, "Ada", "", "y", "n")
    assert kept() == []
