"""`faded gate`: whether the audited model is shown to be no worse than the one that passed before.

Absence of evidence fails, as in all gates of Faded: the whole 95% interval of "worse by" has to be below the tolerance.
Results measured under different conditions are not compared at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, isnan

import pandas as pd

from flows.evidence.write import proven_evidence
from flows.graph.lock import LOCK, md5_in, read_lock
from flows.results import NO_GATES, LastVerdict, last_stage, verdict_of
from flows.results.compare import (
    WORKSPACE,
    Evaluation,
    PairedFailures,
    Run,
    check_alike,
    differences,
    paired_difference,
    read_run,
)
from flows.results.glance import HEADLINE
from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.core.files import stage_dir
from stages.core.git import file_at, git
from stages.core.intervals import NO_RATE, Rate
from stages.params import Params
from stages.records import RateRecord
from stages.records.base import FlatMetrics


@dataclass(frozen=True)
class GateRow:
    """One measure, then and now.

    Args:
        what: its name in words.
        then: its value at the revision.
        now: its value in the workspace.
        worse: by how much it is worse now, with its 95% interval; without observations if there was nothing to pair.
        passed: whether the whole interval is below the tolerance.
    """

    what: str
    then: float | None
    now: float | None
    worse: Rate
    passed: bool


@dataclass(frozen=True)
class GateResult:
    """The result of the gate.

    Args:
        audit: its name.
        against: the revision.
        tolerance: how much worse still counts as no worse.
        then: the revision's own verdict.
        now: the workspace's own verdict.
        rows: the measures.
        notes: other differences between the runs.
    """

    audit: str
    against: str
    tolerance: float
    then: LastVerdict
    now: LastVerdict
    rows: list[GateRow]
    notes: list[str]

    @property
    def own(self) -> bool:
        """Whether the workspace's own verdict allows a pass: its gates passed, or neither side has gates."""
        return self.now.passed is True or self.now.word == self.then.word == NO_GATES

    @property
    def passed(self) -> bool:
        """Whether every measure is shown to be no worse, and the audit itself passed."""
        return self.own and all(row.passed for row in self.rows)


def run_gate(params: Params, audit: str, against: str | None, tolerance: float) -> GateResult:
    """Compare the workspace's result with that of a revision.

    Args:
        params: the workspace's parameters.
        audit: its name.
        against: a git revision at which the audit did not fail; None takes the newest commit in which it passed,
            whoever decided there.
        tolerance: for failure rates and clean quality, as a share.

    Raises:
        UsageError: if the workspace's result is stale, the revision has no result or failed, or the runs differ in more
            than the model.
        InfrastructureError: if outputs differ from what stages wrote, or the evidence does not hold.
    """
    proven_evidence(params, audit)
    notes: list[str] = []
    if against is None:
        against, same = last_passed(params, audit)
        notes += (
            [f"{against} is the last that passed, and has this same result; use --against for another"] if same else []
        )
    repaired = audit in params.repairs
    then, now = read_run(against, audit, repaired=repaired), read_run(WORKSPACE, audit, repaired=repaired)
    first, own = (verdict_of(audit, (run.evaluation or run).verdict) for run in (then, now))
    if first.refuses:
        raise UsageError(_no_baseline(params, audit, against, first))
    if NO_GATES in (first.word, own.word):
        notes.append(_without_gates(against, first, own))
    check_alike(then, now, more=("seed",))
    space = now.landscape.space
    rows = [_landscape(then, now, space, tolerance)]
    if then.evaluation and now.evaluation:
        rows += _evaluation(then.evaluation, now.evaluation, space, tolerance)
    notes += differences(then, now)
    return GateResult(audit, against, tolerance, first, own, rows, notes)


def _no_baseline(params: Params, audit: str, against: str, verdict: LastVerdict) -> str:
    """Why a revision cannot be the baseline, and which one can."""
    what = f"audit {audit!r} did not pass at {against} ({verdict.word}), so being at least as good as it means nothing"
    try:
        return f"{what}: the last before it that passed is --against {last_passed(params, audit, against)[0]}"
    except UsageError:
        return f"{what}: no commit before it passed either, so name another one: --against REV"


def _without_gates(against: str, then: LastVerdict, now: LastVerdict) -> str:
    if now.word != NO_GATES:
        return f"{against} sets no gates, so nothing says that it was good enough"
    if then.word != NO_GATES:
        return f"the workspace sets no gates, {against} did: what passed there has to pass here"
    return "no gates are set on either side, so nothing says that either is good enough: only the comparison was judged"


def last_passed(params: Params, audit: str, start: str = "HEAD") -> tuple[str, bool]:
    """Find the newest commit in which the audit passed, and whether its numbers are the workspace's own.

    Args:
        params: the workspace's parameters.
        audit: its name.
        start: the revision whose history is searched.

    Raises:
        UsageError: if there is none.
    """
    folder = stage_dir(audit, last_stage(params, audit))
    path, metrics = folder / HEADLINE, (folder / "metrics.json").as_posix()
    for commit in (git("log", "--format=%H", start, "--", path.as_posix()) or "").split():
        if _passed(file_at(commit, path)):
            then, now = (
                md5_in(read_lock(data or b""), "outs", metrics) for data in (file_at(commit, LOCK), LOCK.read_bytes())
            )
            return commit[:12], then == now
    raise UsageError(
        f"no commit has a {path} with `passed: true`, so there is no verdict to compare with: run `faded audit {audit}`"
        " with gates in params.yaml, and commit dvc.lock and data/*/*/headline.json (in a shallow clone, fetch the"
        " history first: `git fetch --unshallow`); or name a revision: --against REV"
    )


def _passed(headline: bytes | None) -> bool:
    try:
        return FlatMetrics.parse(headline or b"", HEADLINE).passed is True
    except UsageError:  # deleted in that commit, or not written by Faded
        return False


def _landscape(then: Run, now: Run, space: ConceptSpace, tolerance: float) -> GateRow:
    same = _same(then.provenance.model, now.provenance.model) and then.probes.equals(now.probes)
    paired = paired_difference(then.probes, now.probes, space)
    return _row("model under test: failures", paired, same, tolerance)


def _evaluation(then: Evaluation, now: Evaluation, space: ConceptSpace, tolerance: float) -> list[GateRow]:
    same = _same(then.provenance.repaired, now.provenance.repaired) and then.probes.equals(now.probes)
    paired = paired_difference(_search_of_the_repaired(then), _search_of_the_repaired(now), space)
    return [_row("repaired model: failures", paired, same, tolerance), _quality(then, now, same, tolerance)]


def _search_of_the_repaired(run: Evaluation) -> pd.DataFrame:
    """Probes of the search of the model after the repair; its control stands for use, by weights.

    The common pairs do not: half of them are drawn inside the targets, which differ between plans.
    """
    return run.probes[(run.probes["purpose"] == "search") & (run.probes["model"] == "after")]


def _same(then: str | None, now: str | None) -> bool:
    return then is not None and then == now


def _row(what: str, paired: PairedFailures | None, same: bool, tolerance: float) -> GateRow:
    if paired is None:
        return GateRow(what, None, None, NO_RATE, False)
    # The same model is no worse than itself, however few items it was probed on.
    worse = Rate(0.0, 0.0, 0.0, paired.difference.n) if same else paired.difference
    return GateRow(what, paired.a, paired.b, worse, worse.high < tolerance or (same and tolerance == 0))


def _quality(then: Evaluation, now: Evaluation, same: bool, tolerance: float) -> GateRow:
    """Clean quality of the repaired models. It is not paired, as only means with intervals were stored.

    The interval of the difference follows from those of the two means (Zou and Donner 2008, "Construction of confidence
    limits about effect measures"). Both were measured on the same items, so it is wider than a paired one.
    """
    was, now_is = (run.comparison.differences["clean_quality"] for run in (then, now))
    what = f"repaired model: {now_is.name or 'clean quality'}"
    a, b = (RateRecord(value=q.after, low=q.after_low, high=q.after_high, n=q.pairs).rate for q in (was, now_is))
    if any(map(isnan, (*a[:3], *b[:3]))):
        return GateRow(what, was.after, now_is.after, NO_RATE, False)
    value = a.value - b.value
    low = value - hypot(a.value - a.low, b.high - b.value)
    high = value + hypot(a.high - a.value, b.value - b.low)
    worse = Rate(0.0, 0.0, 0.0, b.n) if same else Rate(value, low, high, b.n)
    return GateRow(what, was.after, now_is.after, worse, worse.high < tolerance or (same and tolerance == 0))
