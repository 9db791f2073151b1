"""`faded status`: one row per audit, from its verdict, its headline and git."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.graph import Graph, Stage
from flows.results.glance import glance
from stages.core.git import git
from stages.core.intervals import NO_RATE
from stages.params import Params
from tests.workspace import audit_params

STAGES = ("prepare", "discover", "summarize", "report")


def graph(**reasons: tuple[str, ...]) -> Graph:
    """Stages of audits that are stale for these reasons, the same for all stages of an audit."""
    stages = [Stage(f"{kind}@{name}", kind, name, 0, (), None, why) for name, why in reasons.items() for kind in STAGES]
    return Graph({stage.name: stage for stage in stages})


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    monkeypatch.chdir(tmp_path)
    return Params.model_validate({"audits": {name: audit_params() for name in ("old", "mine", "new", "half")}})


def put(audit: str, passed: bool | None, rate: float | None) -> None:
    folder = Path("data") / audit / "report"
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(json.dumps({"schema": 1, "audit": audit, "passed": passed, "gates": []}))
    numbers = {"failure_rate": 100 * rate, "low": 100 * rate - 1, "high": 100 * rate + 1} if rate else {}
    (folder / "headline.json").write_text(json.dumps(numbers))


def test_a_row_has_verdict_rate_date_and_the_next_command(params, monkeypatch):
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2020-01-02T03:04:05+00:00")
    git("init")
    put("old", passed=False, rate=0.2)
    git("add", "data")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    assert git(*identity, "commit", "-m", "old") is not None
    put("mine", passed=True, rate=0.1)
    state = graph(old=(), mine=("code changed",), new=("never ran",), half=("never ran",))
    rows, never = glance(params, state, ["old", "mine", "new", "half"], ["half"])
    assert never == ["new"]
    old, mine, half = rows
    assert (old.next, mine.next, half.next) == ("faded report old", "faded audit mine", "faded init --name half")
    assert old.rate[:3] == pytest.approx((0.2, 0.19, 0.21)) and half.rate == NO_RATE
    assert (old.outdated, mine.outdated) == (False, True)
    assert old.when == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert mine.when is not None and mine.when > old.when and half.when is None
    # A file changed after its commit has the date of the change.
    Path("data/old/report/headline.json").write_text("{}")
    [again], _ = glance(params, state, ["old"], [])
    assert again.when is not None and again.when > old.when and again.rate == NO_RATE
