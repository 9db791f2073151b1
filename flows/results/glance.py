"""The overview of audits: the last verdict of each, the failure rate behind it, its date, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import isnan, nan
from pathlib import Path

from flows.graph import RUNS_NOW, Graph, Stage
from flows.request import needs_decision
from flows.results import LastVerdict, last_stage, read_verdict
from stages.core.errors import UsageError
from stages.core.files import stage_dir
from stages.core.git import git
from stages.core.intervals import NO_RATE, Rate
from stages.params import DATA, Params
from stages.records import audit_folder
from stages.records.base import FlatMetrics

HEADLINE = "headline.json"  # the only output that is in git


@dataclass(frozen=True)
class Glance:
    """The overview of one audit.

    Args:
        rate: failure rate of the model under test in use; without observations if there is no landscape.
        when: when the verdict was committed, or made if it is not committed; None if there is none.
        outdated: whether stages are stale, so that the verdict is from an earlier run.
        next: the command to run next; empty if there is nothing to do.
    """

    verdict: LastVerdict
    rate: Rate
    when: datetime | None
    outdated: bool
    next: str


def glance(
    params: Params, graph: Graph, audits: Sequence[str], unmeasured: Sequence[str]
) -> tuple[list[Glance], list[str]]:
    """The overview of audits, and the names of those that never ran.

    Args:
        unmeasured: audits that `faded init` wrote but has not measured yet.
    """
    committed, rows, never = _committed(), [], []
    for name in audits:
        stages = [stage for stage in graph.of([name]) if stage.audit == name]
        verdict, rate = read_verdict(params, name), read_rate(name)
        if not verdict.found and not rate.n and name not in unmeasured and _never_ran(stages):
            never.append(name)
            continue
        when = _when(stage_dir(name, last_stage(params, name)) / HEADLINE, committed)
        stale = any(stage.stale for stage in stages)
        next_ = f"faded init --name {name}" if name in unmeasured else _next(params, verdict, stages)
        rows.append(Glance(verdict, rate, when if verdict.found else None, stale, next_))
    return rows, never


def read_rate(audit: str) -> Rate:
    """Failure rate of the model under test, from the headline of its last landscape here."""
    report = audit_folder(audit).report
    with suppress(UsageError):  # commands that need more of it report what is wrong
        return rate_in(report.headline)
    return NO_RATE


def rate_in(headline: FlatMetrics) -> Rate:
    """The failure rate in a landscape's headline, to a tenth of a percent; the number of probes is not in it."""
    found = (headline.number(key) for key in ("failure_rate", "low", "high"))
    value, low, high = (nan if one is None else float(one) / 100 for one in found)
    return NO_RATE if isnan(value) else Rate(value, low, high, 1)


def _never_ran(stages: Sequence[Stage]) -> bool:
    return all(stage.stale for stage in stages) and not any(stage.size for stage in stages)


def _next(params: Params, verdict: LastVerdict, stages: Sequence[Stage]) -> str:
    name = verdict.audit
    if any(stage.reasons == (RUNS_NOW,) for stage in stages):
        return RUNS_NOW
    if needs_decision(params, name) is not None:
        return f"faded review {name}"
    if any(stage.stale for stage in stages):
        return f"faded audit {name}"
    return f"faded report {name}" if verdict.refuses else ""


def _when(path: Path, committed: Mapping[str, datetime]) -> datetime | None:
    with suppress(FileNotFoundError):
        made = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        return committed.get(path.as_posix(), made)
    return None


def _committed() -> dict[str, datetime]:
    """When headlines that are unchanged in the workspace were committed, by path."""
    paths = f":(glob){DATA}/*/*/{HEADLINE}"
    said = git("-c", "core.quotePath=false", "log", "--format=%x00%cI", "--name-only", "--relative", "--", paths) or ""
    changed = git("-c", "core.quotePath=false", "diff", "HEAD", "--name-only", "--relative", "--", paths) or ""
    found: dict[str, datetime] = {}
    for commit in said.split("\0")[1:]:  # newest first
        date, *names = commit.split("\n")
        for name in filter(None, names):
            found.setdefault(name, datetime.fromisoformat(date))
    return {name: date for name, date in found.items() if name not in changed.splitlines()}
