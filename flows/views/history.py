"""The last results of audits and the changes between them, from git and DVC's cache, and two pages of them.

One is an audit's history, the other is over all audits: light, verdict, failure rate, trend, and what waits for whom.
"""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import cycle, pairwise, takewhile
from math import isnan
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from flows.evidence.bundle import md5
from flows.graph import SETTINGS
from flows.graph.lock import md5_in
from flows.results import (
    WORKSPACE,
    LastVerdict,
    headline_at,
    lock_at,
    rate_in,
    read_verdict,
    revisions,
    target_change_in,
    verdict_at,
)
from flows.results.glance import Glance, Status, drift_of
from stages.code import CODE
from stages.core.environment import WORK
from stages.core.errors import UsageError, first_of
from stages.core.files import replace_file, stage_dir
from stages.core.intervals import NO_RATE, Rate
from stages.pages.words import interval, percent, points, points_interval
from stages.params import DATA, Params

PAGE = WORK / "history.html"
REPORTS = WORK / "reports"
_YEAR = 53  # results with 52 looks
_FILES = (  # what changed if these did, in dvc.lock
    ("model", "outs", "prepare/model"),
    ("data", "outs", "prepare/items.parquet"),
    ("data", "deps", "inputs"),
    ("decision", "deps", "decisions"),
)
_GRID = ("concepts", "discrepancy")  # failure rates with other values of these are not comparable
LIMITS_OF_HISTORY = (
    "The failure rate is that of the model under test in use, as its audit states or assumes it, with its 95% "
    "interval. Audits with other concepts or usages have other rates: compare each audit with itself.",
    "The drift compares the last one, two or four results with all before, on the same grid, usage and data. Its "
    "interval holds at all looks together: over any number of them, at most 5% of audits without a drift show one.",
    "For two revisions `faded compare` says more, because it pairs their common probes.",
    "What changed is what dvc.lock of the two commits says: model, data, decision, settings, and the code of stages.",
    "A result is a commit in which the numbers of an audit changed; who decided is known if its verdict is "
    "in DVC's cache here.",
)


@dataclass(frozen=True)
class RevisionResult:
    """The result of an audit at one revision, which its verdict names with its date."""

    verdict: LastVerdict
    failure_rate: Rate  # of the model under test in use
    target_change: float | None  # of the failure rate in the target modes by the repair; None without a repair
    changed: tuple[str, ...] | None  # since the result before, in words; None for the first known result
    evidence: Path | None  # the bundle with this very result


@dataclass(frozen=True)
class History:
    """Results of an audit, newest first, and whether its failure rate drifts, in words and as `Drift.shown`."""

    audit: str
    results: list[RevisionResult]
    drift: str
    shown: int = 0


@dataclass(frozen=True)
class Histories:
    """Those of several audits, and the page of them, if it was asked for."""

    audits: list[History]
    page: Path | None = None


_Found = tuple[RevisionResult, Mapping[str, Any]]  # a result, and the part of dvc.lock that is about its audit


def read_history(params: Params, audit: str, last: int) -> History:
    """Read the last results of an audit; the newest is the one that `read_verdict` returns.

    For the drift a year of weekly results counts, however many are returned. Raises a UsageError if `last` is below 1.
    """
    if last < 1:
        raise UsageError(f"--last {last}: expected 1 or more results")
    bundles = _bundles(audit)
    found = [_read(audit, revision, when, bundles) for revision, when in revisions(audit, max(last + 1, _YEAR))]
    if found:
        newest, lock = found[0]
        found[0] = replace(newest, verdict=read_verdict(params, audit)), lock
    results = [result for result, _ in found[:last]]
    for k, ((result, lock), (_, before)) in enumerate(pairwise(found[: last + 1])):
        results[k] = replace(result, changed=tuple(_changes(audit, before, lock)))
    return History(audit, results, *_drift(audit, found))


def _read(audit: str, revision: str, when: datetime, bundles: Mapping[str, Path]) -> _Found:
    landscape, repair = (headline_at(revision, audit, stage) for stage in ("report", "conclude"))
    lock = lock_at(revision)
    last = "conclude" if repair else "report"
    verdict = replace(verdict_at(audit, revision, last, lock), revision=revision, when=when)
    rate = rate_in(landscape) if landscape else NO_RATE
    evidence = bundles.get(md5_in(lock, "outs", (stage_dir(audit, last) / "metrics.json").as_posix()) or "")
    result = RevisionResult(verdict, rate, target_change_in(repair), changed=None, evidence=evidence)
    return result, {name: entry for name, entry in lock.items() if name.partition("@")[2] == audit}


def _changes(audit: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """The differences between two results, by the entries of their stages in dvc.lock."""
    paths = [(what, key, (DATA / audit / path).as_posix()) for what, key, path in _FILES]
    yield from dict.fromkeys(what for what, key, path in paths if md5_in(a, key, path) != md5_in(b, key, path))
    settings = [dict(_settings(lock)) for lock in (a, b)]
    names = [key for key in dict.fromkeys([*settings[0], *settings[1]]) if settings[0].get(key) != settings[1].get(key)]
    code = [key for key in names if f".{audit}." not in key and key not in SETTINGS]
    if params := [key.partition(f".{audit}.")[2] or key for key in names if key not in code]:
        yield f"params: {first_of(params)}"
    if code:
        yield f"code: {first_of(code)}"


def _settings(lock: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Params that stages depend on, one per leaf of params.yaml, and the code of each stage by its name."""
    files = [found for stage in lock.values() for found in (stage.get("params") or {}).items()]
    for file, key, value in ((file, *pair) for file, values in files for pair in (values or {}).items()):
        if Path(file).name == CODE.name:
            yield key, value
        elif key.count(".") > 1:  # skip whole audits: other stages depend on their blocks
            yield from _leaves(key, value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _grid(audit: str, lock: Mapping[str, Any]) -> list[Any] | None:
    """What has to be equal for two failure rates to be comparable; None if dvc.lock does not have all of it."""
    files = lock.get(f"discover@{audit}", {}).get("params") or {}
    settings = {key: value for values in files.values() for key, value in (values or {}).items()}
    grid = [settings.get(f"audits.{audit}.{key}") for key in _GRID]
    grid.append(md5_in(lock, "outs", (DATA / audit / "prepare" / "items.parquet").as_posix()))
    summarized = lock.get(f"summarize@{audit}", {}).get("params") or {}
    return None if None in grid else [*grid, [(values or {}).get("usage") for values in summarized.values()]]


def _drift(audit: str, found: Sequence[_Found]) -> tuple[str, int]:
    """How the failure rate moved over results with the same grid, usage and data, in words and as `Drift.shown`."""
    if not found or not found[0][0].failure_rate.n:
        return "no failure rate yet", 0
    if len(found) == 1:
        return "one result", 0
    grids = [_grid(audit, lock) for _, lock in found]
    if None in grids[:2]:
        return "dvc.lock does not say the grid and data of this result or of the one before: not comparable", 0
    pairs = zip([result for result, _ in found], grids, strict=True)
    alike = [one for one, _ in takewhile(lambda pair: pair[1] == grids[0] and pair[0].failure_rate.n > 0, pairs)]
    if len(alike) == 1:
        return "grid, usage or data changed since the result before: not comparable", 0
    drift = drift_of([result.failure_rate for result in reversed(alike)])
    change, oldest = drift.change, alike[-1].verdict
    last = "the last result" if drift.last == 1 else f"the last {drift.last} results"
    moved = f"{points(change.value)} points"
    since = f"{last} against the {len(alike) - drift.last} before, since {oldest.revision} of {oldest.when:%Y-%m-%d}"
    if isnan(change.low + change.high):
        return f"{moved}, {since}, but a result has no interval: no drift known", 0
    sure = ("no drift shown", "more failures", "fewer failures")[drift.shown]
    return f"{moved} ({points_interval(change.low, change.high)}), {since}: {sure}", drift.shown


def _bundles(audit: str) -> dict[str, Path]:
    """The evidence bundles here, by the MD5 of the last metrics in them."""
    found = {}
    for path in sorted((DATA / audit / "evidence").glob("*.zip")):
        with suppress(OSError, KeyError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(path) as bundle:
            names = [(stage_dir(audit, stage) / "metrics.json").as_posix() for stage in ("conclude", "report")]
            inside = next(name for name in names if name in bundle.namelist())
            found[md5(bundle.read(inside))] = path
    return found


def since(history: History) -> str:
    """When the result was made, and what changed since the one before, in sentences; empty if there is no result."""
    if not history.results:
        return ""
    now = history.results[0]
    at = "not committed" if now.verdict.revision == WORKSPACE else f"commit {now.verdict.revision}"
    dated = f"Result of {now.verdict.when:%Y-%m-%d}, {at}."
    if len(history.results) < 2:
        return dated
    then = history.results[1]
    verdict = then.verdict
    decided = f" ({verdict.decided})" if verdict.decided else ""
    targets = [result.target_change for result in (then, now)]
    moved = [] if None in targets else [" → ".join(map(points, targets))]
    sentences = [
        dated,
        f"Result before: {verdict.revision} of {verdict.when:%Y-%m-%d}, {verdict.word}{decided}.",
        f"Failure rate of the model: {history.drift}.",
        *(f"Change by the repair in its target modes: {change} points." for change in moved),
        f"Changed: {'; '.join(now.changed or ()) or 'nothing that dvc.lock names'}.",
    ]
    return " ".join(sentences)


def with_since(page: Path, said: str) -> Path:
    """A copy of a report that also says `since`, if that says anything: its stage knows neither dates nor git."""
    place, text = '<p id="since" hidden></p>', page.read_text(encoding="utf-8")
    if not said or place not in text:
        return page
    copy = REPORTS / page.parts[-3] / page.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    replace_file(copy, text.replace(place, f'<p id="since">{escape(said)}</p>', 1).encode())
    return copy


def write_history_page(out: Path, histories: Sequence[History]) -> None:
    """Write the histories as one self-contained page, with the failure rates of all audits in one chart."""
    from stages.pages.page import Picture, render

    newest = "; ".join(f"{one.audit}: {percent(one.results[0].failure_rate.value)}" for one in histories)
    picture = Picture(f"Failure rates by date, the last ones: {newest}.", _chart(histories))
    more: dict[str, Any] = {"skipped": [], "provenance": [], "limits": LIMITS_OF_HISTORY}
    render("history.html.j2", out, lines=histories, picture=picture, **more)


def _chart(histories: Sequence[History]) -> Markup:
    from stages.pages.figures import VALUE_COLOURS, WIDE, ChartAxis, Line, Point, chart, shares_axis

    def point(result: RevisionResult) -> Point:
        rate, verdict = result.failure_rate, result.verdict
        said = f"{verdict.revision} of {verdict.when:%Y-%m-%d}, {verdict.word}:"
        said = f"{said} {percent(rate.value)} fail ({interval(rate.low, rate.high)})"
        at = verdict.when.timestamp() if verdict.when else 0.0
        return Point(at, rate.value, said, rate.low, rate.high, hollow=verdict.passed is False)

    lines = [
        Line(one.audit, colour, [point(result) for result in reversed(one.results) if result.failure_rate.n])
        for one, colour in zip(histories, cycle(VALUE_COLOURS), strict=False)
    ]
    shown = [point for line in lines for point in line.points]
    dates = sorted({point.x for point in shown})
    first, last = (dates[0], dates[-1]) if dates else (0.0, 0.0)
    ticks = [(at, f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}") for at in (first, (first + last) / 2, last)]
    edge = 0.06 * (last - first) or 1.0
    x = ChartAxis("", first - edge, last + edge, ticks if first < last else ticks[:1])
    return chart(lines, x, shares_axis("failure rate", [point.high for point in shown]), 2 * WIDE, 220)


_WIDTH, _HEIGHT, _EDGE = 120, 36, 4  # of a trend, in its own units
_RESULTS = 10  # of a trend
LIMITS = (
    "The light is that of the last verdict; it says nothing about stages that became stale since.",
    "The failure rate is that of the model under test in use, before any repair, with its 95% interval. A trend has the"
    " last results in git: one that changed grid, usage or data is not comparable with the one before.",
)


def board_html(
    params: Params, status: Status, links: Callable[[Glance], list[tuple[str, str]]], title: str = "Audits"
) -> str:
    """The page, with `links` to an audit's report and whatever waits; it needs no script and loads nothing."""
    from stages.pages.page import html_of

    histories = [read_history(params, row.verdict.audit, _RESULTS) for row in status.audits]
    rows = [(one, past, trend_of(past), links(one)) for one, past in zip(status.audits, histories, strict=True)]
    return html_of(
        "board.html.j2", scripts=False, title=title, rows=rows, status=status, size=(_WIDTH, _HEIGHT), limits=LIMITS,
        skipped=[], provenance=[],
    )  # fmt: skip


def write_board(params: Params, status: Status, out: Path) -> None:
    """Write the page, with addresses relative to it."""
    from stages.pages.page import save

    def links(glance: Glance) -> list[tuple[str, str]]:
        if (report := glance.verdict.report) is None:
            return []
        return [("report", quote(Path(os.path.relpath(report, out.parent)).as_posix()))]

    save(out, board_html(params, status, links, Path.cwd().name))


def trend_of(history: History) -> list[tuple[float, float, float, float]]:
    """The failure rates of an audit from its oldest result to its newest, on a scale that begins at zero.

    Each is (x, y, top, bottom) of the drawing: its place, and the ends of its interval.
    """
    rates = [result.failure_rate for result in reversed(history.results) if result.failure_rate.n]
    top = max((rate.value if isnan(rate.high) else rate.high for rate in rates), default=0.0) or 1.0
    trend = []
    for k, rate in enumerate(rates):
        ends = (rate.value if isnan(one) else one for one in (rate.value, rate.low, rate.high))
        y, low, high = (round(_HEIGHT - _EDGE - one / top * (_HEIGHT - 2 * _EDGE), 1) for one in ends)
        x = _EDGE + k / max(1, len(rates) - 1) * (_WIDTH - 2 * _EDGE)
        trend.append((round(x, 1), y, high, low))
    return trend
