"""The overview of audits: the current verdict of each, the failure rate behind it, and what to do next.

It says whether a recurring audit drifts, without a false alarm because one looks again each week. 52 comparisons at 95%
find a drift in six of ten audits that have none. So look k spends 5% / (k (k + 1)) of the chance of a false alarm,
which sums to 5% over any number of looks (alpha spending: Lan and DeMets 1983). It compares the last 1, 2 and 4 results
with all before: a drift that stays is seen even if no single result shows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, sqrt
from pathlib import Path
from statistics import NormalDist, fmean
from typing import NamedTuple

from flows.graph import FIRST_STAGES, RUNS_NOW, Graph, Stage
from flows.request import current_standing, decided_so_far, how_to_decide
from flows.results import WORKSPACE, LastVerdict, headline_at, rate_in, read_verdict, target_change_in
from stages.core.intervals import LEVEL, NO_RATE, Rate
from stages.params import Params

WINDOWS = (1, 2, 4)  # numbers of the last results that are compared with all before


class Drift(NamedTuple):
    """How the last results differ from those before."""

    change: Rate  # of the failure rate, with an interval that holds at all looks together; `n` is the number of results
    last: int  # how many of the last results it is of: those that differ most clearly

    @property
    def shown(self) -> int:
        """1 for more failures, -1 for fewer, 0 if no drift is shown."""
        return int(self.change.low > 0) - int(self.change.high < 0)


def spent(look: int) -> float:
    """The share of all error that a look may spend: they sum to 1 over any number of looks."""
    return 1 / (look * (look + 1))


def drift_of(rates: Sequence[Rate]) -> Drift:
    """Compare the last of at least two rates with those before, all with their 95% intervals, oldest first.

    They count as independent and equally precise; audits that probe the same pairs are closer to each other, so false
    alarms are rarer. The interval is NaN if a rate has none.
    """
    look = len(rates) - 1
    windows = [last for last in WINDOWS if last <= look]
    of_95 = NormalDist().inv_cdf((1 + LEVEL) / 2)
    half_widths = [(rate.high - rate.low) / 2 for rate in rates]
    deviation = sqrt(fmean(half**2 for half in half_widths)) / of_95
    tail = (1 - LEVEL) * spent(look) / len(windows) / 2
    found = []
    for last in windows:
        value = fmean(rate.value for rate in rates[-last:]) - fmean(rate.value for rate in rates[:-last])
        scale = deviation * sqrt(1 / last + 1 / (len(rates) - last))
        spread = -NormalDist().inv_cdf(tail) * scale
        found.append((-abs(value) / scale if scale > 0 else 0.0, last, value, spread))
    _, last, value, spread = min(found, key=lambda one: (isnan(one[0]), *one[:2]))
    return Drift(Rate(value, value - spread, value + spread, len(rates)), last)


@dataclass(frozen=True)
class Glance:
    """The overview of one audit."""

    verdict: LastVerdict
    failure_rate: Rate  # of the model under test in use; without observations if there is no landscape
    target_change: float | None  # of the failure rate in the target modes by the repair; None without a repair
    outdated: bool  # whether stages are stale, not only missing, so that the verdict is from an earlier run
    waits: str | None  # who has to decide, and by when, in words; None if nothing waits for a person
    next: str  # the command to run next; empty if there is nothing to do


@dataclass(frozen=True)
class StageState:
    """A stage, and whether it is fresh, stale, missing, behind (after a stale one) or at work (`RUNS_NOW`), and why."""

    stage: str
    state: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """What `faded status` found."""

    running: int | None  # the process of a running audit, so that all this will change
    audits: list[Glance]  # with a result, or with something to do
    never_run: list[str]  # the names of the others
    unmeasured: list[str]  # audits that `faded init` wrote but has not measured yet
    stages: list[StageState] | None = None  # those of all audits, if they were asked for
    page: Path | None = None  # the page of all this, if it was asked for


def read_status(
    params: Params,
    graph: Graph | None,
    audits: Sequence[str],
    unmeasured: Sequence[str] = (),
    running: int | None = None,
) -> Status:
    """The overview of audits, without stages; without a graph nothing is said of what is stale."""
    rows, never = [], []
    for name in audits:
        stages = [stage for stage in graph.of([name]) if stage.audit == name] if graph is not None else []
        headlines = (
            headline_at(WORKSPACE, name, stage) or headline_at("HEAD", name, stage) for stage in ("report", "conclude")
        )
        landscape, repair = headlines
        verdict, rate = read_verdict(params, name), NO_RATE if landscape is None else rate_in(landscape)
        ran = graph is None or any(stage.size or not stage.stale for stage in stages)
        if not (verdict.found or rate.n or name in unmeasured or ran):
            never.append(name)
            continue
        now = current_standing(params, name)
        waits = how_to_decide(name) if now is not None and not now.complete else None
        outdated = verdict.found and any(one.state == "stale" for one in states_of(stages))
        change = target_change_in(repair)
        measured = not any(stage.stale and stage.kind in FIRST_STAGES for stage in stages)
        if now is not None and now.rejection is not None and measured:  # what it came to before counts no more
            no, v = decided_so_far(now), verdict
            verdict = LastVerdict(name, False, [], v.report, v.found, revision=v.revision, when=v.when, rejected=no)
            outdated, change = False, None
        next_ = f"faded init --name {name}" if name in unmeasured else _next(verdict, stages, waits)
        rows.append(Glance(verdict, rate, change, outdated, waits, next_))
    return Status(running, rows, never, list(unmeasured))


def states_of(stages: Sequence[Stage]) -> Iterator[StageState]:
    """The state of each of these stages, which are in the order of the graph."""
    behind: set[str] = set()
    for stage in stages:
        after = bool(behind.intersection(stage.upstream))
        if stage.stale or after:
            behind.add(stage.name)
        if stage.reasons == (RUNS_NOW,):
            yield StageState(stage.name, RUNS_NOW, ())
        elif stage.stale:
            missing = all(reason.endswith(("missing", "deleted", "not in cache")) for reason in stage.reasons)
            yield StageState(stage.name, "missing" if missing else "stale", stage.reasons)
        else:
            yield StageState(stage.name, "behind" if after else "fresh", ("depends on a stale stage",) * after)


def _next(verdict: LastVerdict, stages: Sequence[Stage], waits: str | None) -> str:
    name = verdict.audit
    if any(stage.reasons == (RUNS_NOW,) for stage in stages):
        return RUNS_NOW
    if waits is not None:
        return f"faded review {name}"
    if verdict.rejected:
        return f"faded review {name} --revise"
    if any(stage.stale for stage in stages):
        return f"faded audit {name}"
    return f"faded report {name}" if verdict.refuses else ""
