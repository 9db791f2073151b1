"""`faded status`: one row per audit, from its verdict, its headline and git."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from math import nan
from pathlib import Path

import pytest
from rich.console import Console

from flows.graph import Graph, Stage
from flows.graph.lock import as_published
from flows.results import LastVerdict, read_verdict
from flows.results.glance import Glance, Status, read_status
from flows.views import show_status, show_verdict
from flows.views.history import read_history, write_board
from stages.core.git import git
from stages.core.intervals import NO_RATE, Rate
from stages.params import Params
from stages.records import Gate
from tests.workspace import audit_params

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
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
    assert git(*IDENTITY, "commit", "-m", "old") is not None
    put("mine", passed=True, rate=0.1)
    state = graph(old=(), mine=("code changed",), new=("never ran",), half=("never ran",))
    found = read_status(params, state, ["old", "mine", "new", "half"], ["half"])
    assert found.never_run == ["new"]
    old, mine, half = found.audits
    assert (old.next, mine.next, half.next) == ("faded report old", "faded audit mine", "faded init --name half")
    assert old.failure_rate[:3] == pytest.approx((0.2, 0.19, 0.21)) and half.failure_rate == NO_RATE
    assert (old.outdated, mine.outdated) == (False, True)
    cloned = graph(old=("data/old/prepare/items.parquet not in cache",))
    assert not read_status(params, cloned, ["old"], []).audits[0].outdated, "published, if not here"
    assert old.verdict.when == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert mine.verdict.when is not None and mine.verdict.when > old.verdict.when and half.verdict.when is None
    # A file changed after its commit has the date of the change.
    Path("data/old/report/headline.json").write_text("{}")
    [again] = read_status(params, state, ["old"], []).audits
    assert again.verdict.when is not None and again.verdict.when > old.verdict.when and again.failure_rate == NO_RATE


def test_status_and_history_name_the_same_verdict_wherever_its_files_are(params):
    git("init")

    def newest() -> LastVerdict:
        told = read_verdict(params, "old")
        assert read_history(params, "old", 1).results[0].verdict == told
        return told

    put("old", passed=True, rate=0.2)
    headline, verdict = (Path("data/old/report") / name for name in ("headline.json", "verdict.json"))
    headline.write_text(json.dumps({"passed": True, "failure_rate": 20}))
    assert (newest().word, newest().revision) == ("pass", "workspace")
    git("add", str(headline))
    git(*IDENTITY, "commit", "-m", "old")
    assert newest().revision not in ("workspace", None) and newest().whole
    # A clone has only what is in git; a failed stage has removed its headline, too.
    verdict.unlink()
    assert (newest().word, newest().whole, newest().found) == ("pass", False, True)
    committed = newest()
    headline.unlink()
    assert newest() == committed
    # Files of another run than dvc.lock names.
    git("checkout", ".")
    verdict.write_text(json.dumps({"schema": 1, "audit": "old", "passed": False, "gates": []}))
    out = {"path": str(verdict), "md5": "0" * 32}
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": {"report@old": {"outs": [out]}}}))
    assert newest() == committed


def test_results_are_as_published_only_if_every_stage_is(params):
    def locked(**outs: str) -> str:
        stages = {f"{kind}@old": {"outs": [{"path": f"{kind}.json", "md5": md5}]} for kind, md5 in outs.items()}
        return json.dumps({"schema": "2.0", "stages": stages})

    git("init")
    assert as_published("old") is None
    Path("dvc.lock").write_text(locked(prepare="0", discover="1"))
    git("add", "dvc.lock")
    git(*IDENTITY, "commit", "-m", "old")
    assert (as_published("old"), as_published("mine")) == ("yes", None)
    Path("dvc.lock").write_text(locked(prepare="0", discover="2"))
    assert as_published("old") == "no, discover.json is the first that differs"
    Path("dvc.lock").write_text(locked(prepare="0", discover="1", summarize="3"))
    assert as_published("old") is None, "nothing is published of summarize"


def test_it_fits_80_columns_without_breaking_a_word():
    said, when = "decided by policy, no human", datetime(2026, 11, 28)
    verdict = LastVerdict("images-scenes", True, [], None, True, said, when=when)
    nothing = LastVerdict("b", None, [], None, False)
    rows = [
        Glance(verdict, Rate(0.1234, 0.1, 0.15, 9), -0.261, True, None, "faded audit images-scenes"),
        Glance(nothing, NO_RATE, None, False, None, ""),
        Glance(replace(nothing, audit="e"), Rate(0.5, nan, nan, 1), None, False, None, "faded audit e"),
    ]
    console = Console(width=80, record=True)
    show_status(console, Status(None, rows, ["c", "d"], []))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("12.3% (10.0 to 15.0)  −26.1", "2026-11-28", "never run: c, d", "images-scenes", "policy, no"):
        assert whole in text
    assert "next: faded audit images-scenes e" in text and "50.0%" in text and "nan" not in text


def test_gates_are_shown_in_the_units_of_reports_one_a_line():
    longest = "target_failure_rate.minus_control_max"
    gates = [
        Gate(gate=longest, bound=0.02, value=0.00133, low=-0.278, high=0.241, passed=True),
        Gate(gate="failure_rate.max", bound=0.1, value=0.1234, low=0.11, high=0.14, passed=False),
    ]
    console = Console(width=80, record=True)
    show_verdict(console, LastVerdict("mine", False, gates, None, True))
    rows = [line.split() for line in console.export_text().splitlines() if "_max" in line or ".max" in line]
    assert rows == [
        [longest, "+2.0", "+0.1", "−27.8", "to", "+24.1", "yes"],
        ["failure_rate.max", "10.0%", "12.3%", "11.0–14.0%", "no"],
    ]


def test_what_speaks_against_a_pass_is_said_with_it():
    console, concern = Console(width=80, record=True), "Failing above the 20% allowed in use: region north."
    show_verdict(console, LastVerdict("mine", True, [], None, True, light="amber", concerns=(concern,)))
    assert console.export_text().splitlines() == ["mine: pass", f"but: {concern}"]


def test_a_page_shows_every_audit_with_its_light_trend_and_report(params, tmp_path):
    git("init")
    for rate in (0.1, 0.2):
        shutil.rmtree("data", ignore_errors=True)
        put("old", passed=True, rate=rate)
        put("mine", passed=False, rate=rate)
        verdict = Path("data/old/report/verdict.json")
        verdict.write_text(json.dumps(json.loads(verdict.read_text()) | {"light": "amber", "concerns": ["<b>"]}))
        Path("data/old/report/report.html").write_text("the report")
        git("add", "data")
        git(*IDENTITY, "commit", "-m", str(rate))
    state = graph(old=(), mine=("code changed",), new=("never ran",), half=())
    status = read_status(params, state, ["old", "mine", "new"])
    write_board(params, status, tmp_path / "pages" / "all.html")
    page = (tmp_path / "pages/all.html").read_text()
    assert "<script" not in page and "script-src 'none'" in page and len(page) < 100_000
    assert page.count("<polyline") == 2 and 'class="lamp amber"' in page and "faded audit mine" in page
    assert 'href="../data/old/report/report.html"' in page and "Never run: new" in page and "<b>" not in page
