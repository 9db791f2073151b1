"""Tables hold in 80 columns with the longest real names: no word is broken, and nothing is cut off."""

import io
from datetime import UTC, datetime

import yaml
from rich.console import Console

from flows.graph import Stage
from flows.results import LastVerdict
from flows.results.estimate import Estimate, StageEstimate
from flows.results.glance import StageState, Status
from flows.views import show_history, show_plan, show_status
from flows.views.history import Histories, History, RevisionResult
from stages.core.intervals import Rate
from tests.workspace import ROOT

LONGEST = max(yaml.safe_load((ROOT / "params.yaml").read_text())["audits"], key=len)
STAGE = f"collect_feedback@{LONGEST}"
GONE = f"data/{LONGEST}/summarize/landscape.parquet deleted"
WHY = (f"repairs.{LONGEST}.feedback modified", GONE, "code changed", "x")
LATE = datetime(2026, 11, 28, 23, 59, tzinfo=UTC)
SAID = "decided by Ada Lovelace"
VERDICT = LastVerdict(LONGEST, None, [], None, True, SAID, revision="workspace", when=LATE, whole=True)


def shown(show, found) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    show(console, found)
    text = console.export_text()
    tables = [line for line in text.splitlines() if not line.startswith(LONGEST)]
    assert max(map(len, tables)) <= 80 and "…" not in text
    return text


def test_a_plan_and_the_states_of_stages():
    stage = Stage(STAGE, "collect_feedback", LONGEST, 0, (), None, WHY)
    plan = Estimate([StageEstimate(stage, 1_234_567, 123_456, 12345.6, "here", 999_900_000, True)], 10**9)
    status = Status(None, [], [], [], [StageState(STAGE, "runs now", WHY)])
    for text in (shown(show_plan, plan), shown(show_status, status)):
        for whole in (STAGE, "feedback modified", "summarize/landscape.parquet deleted", "and 1 more"):
            assert whole in text, text
    assert "1,234,567" in shown(show_plan, plan) and "999.9 MB" in shown(show_plan, plan)


def test_a_history():
    result = RevisionResult(VERDICT, Rate(0.1234, 0.1012, 0.1543, 9), -0.248, ("model",), None)
    text = shown(show_history, Histories([History(LONGEST, [result], "one result")]))
    for whole in ("workspace", "2026-11-28", "no gates set", "12.3% (10.1 to 15.4)", "−24.8", "Lovelace", LONGEST):
        assert whole in text, text
