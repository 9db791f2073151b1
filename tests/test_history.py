"""`faded history`: results from git, changes between them by dvc.lock, and the drift of the failure rate."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.views import show_history
from flows.views.history import Histories, History, read_history, since, with_since, write_history_page
from stages.core.git import git
from stages.params import Params
from tests.workspace import audit_params

HOME = Path("data/tiny")


def history_of(audit: str, last: int) -> History:
    audits = {name: audit_params() for name in ("tiny", "other")}
    return read_history(Params.model_validate({"audits": audits}), audit, last)


def commit(rate: float | None = None, *, width: float | None = 0.01, passed: bool | None = None, **lock: Any) -> None:
    """Commit numbers of an audit, with a dvc.lock of what they were made from."""
    put(rate, width=width, passed=passed)
    made = {"model": "m1", "items": "i1", "code": "c1", "concepts": {"tilt": [0, 1]}, "usage": {}, "budget": 100}
    made |= lock
    outs = {"prepare/model": made["model"], "prepare/items.parquet": made["items"]}
    prepare = {"deps": [{"path": "data/tiny/inputs", "md5": "x"}], "outs": written(outs)}
    settings = {"concepts": made["concepts"], "discrepancy": {}, "discover": {"budget": made["budget"]}}
    named = {f"audits.tiny.{name}": value for name, value in settings.items()}
    discover = {"params": {"data/tiny/code.json": {"discover": made["code"]}, "params.yaml": named}}
    summarize = {"params": {"data/tiny/code.json": {"usage": made["usage"]}}}
    report = {"outs": written({"report/metrics.json": hashlib.md5(b"", usedforsecurity=False).hexdigest()})}
    stages = {"prepare@tiny": prepare, "discover@tiny": discover, "summarize@tiny": summarize, "report@tiny": report}
    stages["prepare@other"] = {"outs": []}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    git("add", "--all")
    git("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "-m", "a result")


def written(outs: dict[str, str]) -> list[dict[str, str]]:
    return [{"path": f"data/tiny/{name}", "md5": md5} for name, md5 in outs.items()]


def put(rate: float | None, *, width: float | None = 0.01, passed: bool | None = None) -> None:
    folder = HOME / "report"
    folder.mkdir(parents=True, exist_ok=True)
    bounds = rate is not None and width is not None
    numbers = {"low": 100 * (rate - width), "high": 100 * (rate + width)} if bounds else {}
    numbers |= {} if rate is None else {"failure_rate": 100 * rate}
    (folder / "headline.json").write_text(json.dumps(numbers | ({} if passed is None else {"passed": passed})))


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init")


def test_each_result_says_what_changed_before_it():
    commit(0.1, passed=True)
    commit(0.11, model="m2", passed=True)
    commit(0.12, model="m2", code="c2", budget=200, passed=False)
    Path("README.md").write_text("no result")
    commit(0.12, model="m2", code="c2", budget=200, passed=False)
    put(0.5)
    results = history_of("tiny", 5).results
    assert results[0].verdict.revision == "workspace" and len(results) == 4
    assert [one.verdict.word for one in results] == ["no verdict", "FAIL", "pass", "pass"]
    assert [one.failure_rate.value for one in results] == [0.5, 0.12, 0.11, 0.1]
    assert [one.changed for one in results[1:]] == [("params: discover.budget", "code: discover"), ("model",), None]
    assert history_of("other", 5).results == [] and len(history_of("tiny", 2).results) == 2
    # The result before the shown ones is still used.
    assert history_of("tiny", 3).results[-1].changed == ("model",)


def test_a_drift_is_told_by_its_interval_and_only_on_the_same_grid_and_data():
    commit(0.1)
    assert history_of("tiny", 5).drift == "one result"
    commit(0.105, model="m2")
    assert "+0.5 points (−1.1 to +2.1), the last result against the 1 before" in history_of("tiny", 5).drift
    assert history_of("tiny", 5).drift.endswith("no drift shown")
    commit(0.2, model="m3")
    assert history_of("tiny", 5).drift.endswith("more failures") and history_of("tiny", 5).shown == 1
    commit(0.05, model="m4")
    assert history_of("tiny", 5).drift.endswith("fewer failures") and history_of("tiny", 5).shown == -1
    assert history_of("tiny", 1).drift == history_of("tiny", 5).drift, "all results count, whatever is shown"
    commit(0.3, model="m4", concepts={"tilt": [0, 2]})
    assert "not comparable" in history_of("tiny", 5).drift
    commit(0.31, model="m4", concepts={"tilt": [0, 2]}, items="i2")
    assert "not comparable" in history_of("tiny", 5).drift
    commit(0.32, model="m4", concepts={"tilt": [0, 2]}, items="i2", usage={"changes": [1, 1]})
    found = history_of("tiny", 5)
    assert "not comparable" in found.drift and found.results[0].changed == ("params: usage",)
    commit(None)
    assert history_of("tiny", 5).drift == "no failure rate yet"


def test_a_table_and_a_page_show_all_audits(tmp_path):
    commit(0.1, passed=True)
    commit(0.2, model="m2", passed=False)
    histories = [history_of("tiny", 5)]
    console = Console(width=120, record=True)
    show_history(console, Histories(histories))
    text = console.export_text()
    assert "20.0% (19.0 to 21.0)" in text and "FAIL" in text and "tiny: +10.0 points" in text
    write_history_page(tmp_path / "h.html", histories)
    page = (tmp_path / "h.html").read_text()
    assert page.count('<th scope="row">tiny</th>') == 2 and "FAIL" in page


def test_a_report_says_what_changed_since_the_result_before(tmp_path):
    report = tmp_path / "data/tiny/report/report.html"
    report.parent.mkdir(parents=True)
    report.write_text('<h1>tiny</h1><p id="since" hidden></p>')
    commit(0.1, passed=True)
    assert re.fullmatch(r"Result of \d{4}-\d\d-\d\d, commit [0-9a-f]+\.", since(history_of("tiny", 2))), "the first"
    assert with_since(report, "") == report
    commit(0.3, budget=200, passed=False)
    said = since(history_of("tiny", 2))
    assert "pass." in said and "+20.0 points" in said and "Changed: params: discover.budget." in said
    copy = with_since(report, f"{said} <b>")
    assert copy != report and "hidden" in report.read_text()
    assert f'<p id="since">{said} &lt;b&gt;</p>' in copy.read_text()
