"""Results of an audit for people: its current verdict, its report, and how long its stages took."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from math import isnan, nan
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from flows.graph.intact import CacheFolder
from flows.graph.lock import LOCK, Hashes, locked_stages, md5_in, read_lock
from flows.run_stage import StageResult
from stages.core.environment import WORK
from stages.core.errors import FadedError, UsageError
from stages.core.files import read_state, stage_dir, write_state
from stages.core.git import file_at, git
from stages.core.intervals import NO_RATE, Rate
from stages.decisions import NO_HUMAN
from stages.params import Params
from stages.records import Gate, RepairVerdict, audit_folder
from stages.records import Verdict as Record
from stages.records.base import FlatMetrics

NO_GATES = "no gates set"
WORKSPACE = "workspace"  # in place of a revision
HEADLINE = "headline.json"  # the only output that is in git
_HEADLINES = ("report", "conclude")  # stages with one
TIMINGS = WORK / "timings.json"
REFERENCE = Path(__file__).parent / "data/timings.json"  # of the default audits, by benchmarks/audit_time.py


class Took(BaseModel):
    """How long a stage took when it last ran, when that was, and how much it had to do (probes, or training)."""

    seconds: float
    when: str = ""
    work: float | None = None


@dataclass(frozen=True)
class LastVerdict:
    """The last verdict of an audit, here or at a revision."""

    audit: str
    passed: bool | None  # None if no gate is set, none failed but some could not be judged, or there is no verdict
    gates: list[Gate]
    report: Path | None  # of this verdict, if it exists
    found: bool
    decided: str | None = None  # by whom, in words; None if there was nothing to decide
    statement: str | None = None
    light: str | None = None  # whether a careful person would deploy: green, amber or red; None if nobody said
    concerns: tuple[str, ...] = ()  # what speaks against it although no gate failed, in sentences
    revision: str | None = None  # the commit with the audit's last numbers, or `WORKSPACE`; None if there are none
    when: datetime | None = None  # when they were committed, or made if they are not; None if there are none
    rejected: str | None = None  # by whom the landscape was, in words, so that no repair was made
    whole: bool = True  # whether more than its headline is known, which says nothing of gates and who decided

    @property
    def word(self) -> str:
        """The verdict in a word or two, or who rejected the landscape."""
        if self.rejected:
            return self.rejected
        if not self.found:
            return "no verdict yet"
        unknown = "not judged" if self.gates else NO_GATES if self.whole else "no verdict"
        return {True: "pass", False: "FAIL", None: unknown}[self.passed]

    @property
    def decider(self) -> str:
        """Who decided, without the words before it; empty if there was nothing to decide, or nobody knows."""
        return (self.decided or "").removeprefix("decided by ")

    @property
    def refuses(self) -> bool:
        """Whether the audit must not count as passed: a gate failed, or one was set that could not be judged."""
        return self.passed is False or (self.passed is None and bool(self.gates))


def last_stage(params: Params, audit: str) -> str:
    """The stage with the audit's verdict."""
    return "conclude" if audit in params.repairs else "report"


def read_verdict(params: Params, audit: str) -> LastVerdict:
    """Read the audit's current verdict, with its date: all commands have it from here.

    It is the one that dvc.lock names, as long as its bytes are here or in DVC's cache, so that one left by another run
    does not count; otherwise the headline in the workspace or in git says whether the audit passed. Before its last
    stage ran, it has the report of the landscape.
    """
    here, stage = audit_folder(audit), last_stage(params, audit)
    last = here.conclude if stage == "conclude" else here.report
    report = next((part.where("page") for part in (last, here.report) if part.has("page")), None)
    revision, when = next(revisions(audit, 1), (None, None))
    verdict = verdict_at(audit, revision or WORKSPACE, stage, lock_at(WORKSPACE), current=True)
    if verdict.found and when is None:
        when = _made(stage_dir(audit, stage) / "verdict.json")
    return replace(verdict, report=report, revision=revision, when=when)


def verdict_at(audit: str, revision: str, stage: str, lock: Mapping[str, Any], *, current: bool = False) -> LastVerdict:
    """The verdict of a revision that a stage wrote, or else its headline.

    Args:
        lock: the stages in the revision's dvc.lock, which names the bytes.
        current: whether it is the current one: then the file in the workspace counts if dvc.lock names none.
    """
    path = stage_dir(audit, stage) / "verdict.json"
    named, hashes = md5_in(lock, "outs", path.as_posix()), Hashes()
    of = RepairVerdict if stage == "conclude" else Record
    with suppress(FadedError, OSError):
        data = None
        if path.exists() and ((named is None and current) or hashes.md5(path) == named):
            data = path.read_bytes()
        elif named is not None and (kept := CacheFolder.of_workspace()).holds(named, hashes):
            data = kept.path(named).read_bytes()
        if data is not None:
            return verdict_of(audit, of.parse(data, str(path)))
    headline = headline_at(revision, audit, stage)
    passed = headline.passed if headline is not None else None
    return LastVerdict(audit, passed, [], None, headline is not None, whole=False)


def revisions(audit: str, most: int) -> Iterator[tuple[str, datetime]]:
    """Revisions at which the headlines of an audit changed, newest first; `WORKSPACE` if they differ from HEAD's."""
    paths = [stage_dir(audit, stage) / HEADLINE for stage in _HEADLINES]
    here = [path for path in paths if path.exists()] if headline_at(WORKSPACE, audit, "report") is not None else []
    if any(file_at("HEAD", path) != path.read_bytes() for path in here):
        yield WORKSPACE, max(map(_made, here))
    names = [path.as_posix() for path in paths]
    for line in (git("log", f"--max-count={most}", "--format=%h %cI", "--", *names) or "").splitlines():
        commit, _, when = line.partition(" ")
        if headline_at(commit, audit, "report") is not None:  # otherwise the audit was removed
            yield commit, datetime.fromisoformat(when)


def headline_at(revision: str, audit: str, stage: str) -> FlatMetrics | None:
    """A stage's headline at a revision; None if there is none, or Faded did not write it."""
    path = stage_dir(audit, stage) / HEADLINE
    data = file_at(revision, path) if revision != WORKSPACE else path.read_bytes() if path.exists() else None
    with suppress(UsageError):
        return FlatMetrics.parse(data, HEADLINE) if data else None
    return None


def rate_in(headline: FlatMetrics) -> Rate:
    """The failure rate in a landscape's headline, to a tenth of a percent; the number of probes is not in it."""
    found = (headline.number(key) for key in ("failure_rate", "low", "high"))
    value, low, high = (nan if one is None else float(one) / 100 for one in found)
    return NO_RATE if isnan(value) else Rate(value, low, high, 1)


def target_change_in(headline: FlatMetrics | None) -> float | None:
    """The change of the failure rate in the target modes in a repair's headline; None without a repair."""
    change = None if headline is None else headline.number("targets")
    return None if change is None else change / 100


def lock_at(revision: str) -> dict[str, dict[str, Any]]:
    """The stages in a revision's dvc.lock."""
    return locked_stages() if revision == WORKSPACE else read_lock(file_at(revision, LOCK) or b"")


def _made(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone()


def verdict_of(audit: str, record: Record) -> LastVerdict:
    """The verdict in a verdict.json."""
    decided = statement = None
    if isinstance(record, RepairVerdict):
        decided = NO_HUMAN if record.decided_by == "policy" else f"decided by {record.reviewer}"
        statement = record.statement
    light, concerns = record.light, tuple(record.concerns)
    return LastVerdict(audit, record.passed, record.gates, None, True, decided, statement, light, concerns)


def gate_word(passed: bool | None) -> str:
    """Whether a gate passed, in words."""
    return {True: "yes", False: "no", None: "not judged"}[passed]


def read_took() -> dict[str, Took]:
    """How long each stage took when it last ran in this workspace."""
    return read_state(TIMINGS, dict[str, Took]) or {}


def read_reference() -> dict[str, Took]:
    """The same of the default audits on the machine of the benchmarks: a file of the package, which is not sealed."""
    try:
        return TypeAdapter(dict[str, Took]).validate_json(REFERENCE.read_bytes())
    except (OSError, ValidationError):
        return {}


def record_timings(results: Iterable[StageResult], work: Mapping[str, float] | None = None) -> None:
    """Store how long the stages that ran took, and how much each had to do (`flows.results.estimate.work_of`)."""
    when, known, took = time.strftime("%Y-%m-%dT%H:%M:%S"), work or {}, read_took()
    for one in results:
        if one.outcome == "ran":
            took[one.stage] = Took(seconds=round(one.seconds, 2), when=when, work=known.get(one.stage))
    write_state(TIMINGS, took)
