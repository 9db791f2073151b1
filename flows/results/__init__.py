"""Results of an audit for people: its verdict, its report, and how long its stages took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from flows.run_stage import StageResult
from stages.core.environment import WORK
from stages.core.files import read_state, write_state
from stages.decisions import NO_HUMAN
from stages.params import Params
from stages.records import Gate, RepairVerdict, audit_folder
from stages.records import Verdict as Record

NO_GATES = "no gates set"
TIMINGS = WORK / "timings.json"
REFERENCE = Path("benchmarks/timings.json")  # for the default audits, written by benchmarks/audit_time.py


class Took(BaseModel):
    """How long a stage took when it last ran, when that was, and how much it had to do (probes, or training)."""

    seconds: float
    when: str = ""
    work: float | None = None


@dataclass(frozen=True)
class LastVerdict:
    """The last verdict of an audit.

    Args:
        passed: None if no gate is set, none failed but some could not be judged, or there is no verdict.
        report: the report of this verdict, if it exists.
        found: whether there is a verdict at all.
        decided: who decided what was repaired, in words; None if there was nothing to decide.
        statement: the verdict in sentences, if its stage wrote any.
    """

    audit: str
    passed: bool | None
    gates: list[Gate]
    report: Path | None
    found: bool
    decided: str | None = None
    statement: str | None = None

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        if not self.found:
            return "no verdict yet"
        return {True: "pass", False: "FAIL", None: "not judged" if self.gates else NO_GATES}[self.passed]

    @property
    def refuses(self) -> bool:
        """Whether the audit must not count as passed: a gate failed, or one was set that could not be judged."""
        return self.passed is False or (self.passed is None and bool(self.gates))


def last_stage(params: Params, audit: str) -> str:
    """The stage with the audit's verdict."""
    return "conclude" if audit in params.repairs else "report"


def read_verdict(params: Params, audit: str) -> LastVerdict:
    """Read the audit's last verdict; before its last stage ran, with the report of the landscape."""
    here = audit_folder(audit)
    last = here.conclude if audit in params.repairs else here.report
    report = next((part.where("page") for part in (last, here.report) if part.has("page")), None)
    if not last.has("verdict"):
        return LastVerdict(audit, None, [], report, found=False)
    return verdict_of(audit, last.verdict, report)


def verdict_of(audit: str, record: Record, report: Path | None = None) -> LastVerdict:
    """The verdict in a verdict.json."""
    decided = statement = None
    if isinstance(record, RepairVerdict):
        decided = NO_HUMAN if record.decided_by == "policy" else f"decided by {record.reviewer}"
        statement = record.statement
    return LastVerdict(audit, record.passed, record.gates, report, True, decided, statement)


def gate_word(passed: bool | None) -> str:
    """Whether a gate passed, in words."""
    return {True: "yes", False: "no", None: "not judged"}[passed]


def read_timings(path: Path = TIMINGS) -> dict[str, float]:
    """Seconds that each stage took when it last ran in this workspace, or on the machine of the benchmarks."""
    return {stage: took.seconds for stage, took in read_took(path).items()}


def read_took(path: Path = TIMINGS) -> dict[str, Took]:
    """The same, with when it ran and how much it had to do."""
    return (_read_reference() if path == REFERENCE else read_state(path, dict[str, Took])) or {}


def _read_reference() -> dict[str, Took] | None:
    """The timings in the repository, which are not sealed, as anybody may write them."""
    try:
        return TypeAdapter(dict[str, Took]).validate_json(REFERENCE.read_bytes())
    except (OSError, ValidationError):
        return None


def record_timings(results: Iterable[StageResult], work: Mapping[str, float] | None = None) -> None:
    """Store how long the stages that ran took.

    Args:
        work: how much each stage had to do, from `flows.results.estimate.work_of`.
    """
    when, known = time.strftime("%Y-%m-%dT%H:%M:%S"), work or {}
    ran = {
        r.stage: Took(seconds=round(r.seconds, 2), when=when, work=known.get(r.stage))
        for r in results
        if r.outcome == "ran"
    }
    write_state(TIMINGS, (read_state(TIMINGS, dict[str, Took]) or {}) | ran)
