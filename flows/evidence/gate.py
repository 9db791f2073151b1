"""`faded gate`: whether the audited model is shown to be no worse than the one that passed before.

Absence of evidence fails, as in all gates of Faded: the whole 95% interval of "worse by" has to be below the tolerance.
Results measured under different conditions are not compared at all. CI systems show the result as JUnit XML, with a
test case for each gate and each measure.

Also the tables of the gate, of a bundle and its checks for the terminal.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import hypot, isnan
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape

from flows.evidence.bundle import ENVELOPE, Bundle
from flows.evidence.formats import at_end_of
from flows.evidence.verify import UNKNOWN_KEY, UNSIGNED
from flows.evidence.write import proven_evidence
from flows.graph.lock import md5_in
from flows.results import HEADLINE, NO_GATES, WORKSPACE, LastVerdict, headline_at, last_stage, lock_at, verdict_of
from flows.results.compare import (
    Evaluation,
    NoResults,
    PairedFailures,
    Run,
    check_alike,
    differences,
    paired_difference,
    read_run,
)
from flows.results.glance import spent
from flows.terminal import narrow_table, new_table, print_plain
from stages.core.errors import FadedError, UsageError, escape_controls
from stages.core.files import replace_file, stage_dir
from stages.core.git import file_at, git
from stages.core.intervals import LEVEL, NO_RATE, Rate
from stages.params import Params

if TYPE_CHECKING:
    from flows.evidence.checks import Check
    from flows.evidence.reproduce import Reproduced


@dataclass(frozen=True)
class GateRow:
    """One measure, then and now; `worse` has no observations if there was nothing to pair."""

    what: str
    then: float | None
    now: float | None
    worse: Rate
    passed: bool


@dataclass(frozen=True)
class GateResult:
    """The result of the gate.

    Args:
        against: the revision; None if there is nothing to compare with, and none was required.
        tolerance: how much worse still counts as no worse.
        notes: other differences between the runs.
        looks: how many results since the revision have been compared with it, with this one.
    """

    audit: str
    against: str | None
    tolerance: float
    then: LastVerdict | None
    now: LastVerdict
    rows: list[GateRow]
    notes: list[str]
    looks: int = 1

    @property
    def own(self) -> bool:
        """Whether the workspace's own verdict allows a pass: its gates passed, or neither side has gates."""
        before = NO_GATES if self.then is None else self.then.word
        return self.now.passed is True or self.now.word == before == NO_GATES

    @property
    def passed(self) -> bool:
        """Whether every measure is shown to be no worse, and the audit itself passed."""
        return self.own and all(row.passed for row in self.rows)

    @property
    def claim(self) -> str:
        """What a pass says of the model."""
        return f"at least as good as {self.against}" if self.against else "good enough by its own gates"


def run_gate(params: Params, audit: str, against: str | None, tolerance: float, *, first: bool = False) -> GateResult:
    """Compare the workspace's result with that of a revision.

    Raises NoResults if there is nothing to compare with, unless `first`; a UsageError if the workspace's result is
    stale, the revision failed, or the runs differ in more than the model; an InfrastructureError if outputs differ from
    what stages wrote, or the evidence does not hold.

    Args:
        against: a git revision at which the audit did not fail; None takes the newest commit in which it passed.
        first: whether only the workspace's own verdict counts if there is nothing to compare with. A revision that is
            named and whose dvc.lock names results is something, even where their bytes are missing.
    """
    proven_evidence(params, audit)
    notes: list[str] = []
    repaired, named = audit in params.repairs, against is not None
    now = read_run(WORKSPACE, audit, repaired=repaired)
    own = verdict_of(audit, (now.evaluation or now).verdict)
    try:
        if against is None:
            against, same = last_passed(params, audit)
            told = f"{against} is the last that passed, and has this same result; use --against for another"
            notes += [told] if same else []
        then = read_run(against, audit, repaired=repaired)
    except NoResults as none:
        if not first or (named and none.named):
            raise NoResults(
                f"{none}\nIf this is the first result here, commit dvc.lock, data/*/code.json and"
                " data/*/*/headline.json, and run `dvc push`: later results are compared with it. By its own gates"
                f" alone it is judged by `faded gate {audit} --first`",
                named=none.named,
            ) from None
        gates = "no gates are set, so nothing was judged" if own.word == NO_GATES else "only its own gates were judged"
        return GateResult(audit, None, tolerance, None, own, [], [f"nothing to compare with, {gates}: {none}"])
    before = verdict_of(audit, (then.evaluation or then).verdict)
    if before.refuses:
        raise UsageError(_no_baseline(params, audit, against, before))
    if NO_GATES in (before.word, own.word):
        notes.append(_without_gates(against, before, own))
    check_alike(then, now, more=("seed",))
    rows = list(_rows(then, now, tolerance))
    notes += differences(then, now)
    if (looks := looks_since(params, audit, against)) > 1:
        level = 1 - 2 * (1 - LEVEL) * spent(looks)
        rows = [_widened(row, level, tolerance) for row in rows]
        notes.append(
            f"result {looks} since {against}, so intervals are those of {level:.2%}: over any number of tries, a model"
            " that is worse by the tolerance passes with at most 5%"
        )
    return GateResult(audit, against, tolerance, before, own, rows, notes, looks)


def _widened(row: GateRow, level: float, tolerance: float) -> GateRow:
    """The same measure at another level than 95%, by the normal distribution: resamples do not reach that far."""
    by = NormalDist().inv_cdf((1 + level) / 2) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    value, low, high, n = row.worse
    worse = Rate(value, value - by * (value - low), value + by * (high - value), n)
    return replace(row, worse=worse, passed=row.passed and (worse.high < tolerance or low == high == 0))


def looks_since(params: Params, audit: str, against: str) -> int:
    """Count the results of an audit since a revision, with the workspace's own: each is another try to pass."""
    path = stage_dir(audit, last_stage(params, audit)) / HEADLINE
    commits = (git("log", "--format=%H", f"{against}..HEAD", "--", path.as_posix()) or "").split()
    return max(1, len(commits) + (path.exists() and file_at("HEAD", path) != path.read_bytes()))


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

    Raises NoResults if there is none.
    """
    stage = last_stage(params, audit)
    path, metrics = (stage_dir(audit, stage) / name for name in (HEADLINE, "metrics.json"))
    commits = (git("log", "--format=%H", start, "--", path.as_posix()) or "").split()
    newest = [git("rev-parse", f"{start}^{{commit}}") or ""] if commits else []  # a fresh clone has its outputs alone
    for commit in [*newest, *commits]:
        headline = headline_at(commit, audit, stage)
        if headline is not None and headline.passed is True:
            then, now = (md5_in(lock_at(one), "outs", metrics.as_posix()) for one in (commit, WORKSPACE))
            return commit[:12], then == now
    raise NoResults(
        f"no commit has a {path} with `passed: true`, so there is no verdict to compare with: name a revision with"
        " --against; or in a shallow clone, fetch the history first: `git fetch --unshallow`",
        named=False,
    )


def _rows(then: Run, now: Run, tolerance: float) -> Iterator[GateRow]:
    space = now.landscape.space
    model = now.provenance.model
    same = model is not None and model == then.provenance.model and then.probes.equals(now.probes)
    yield _row("model under test: failures", paired_difference(then.probes, now.probes, space), same, tolerance)
    if (was := then.evaluation) and (repaired := now.evaluation):
        model = repaired.provenance.repaired
        same = model is not None and model == was.provenance.repaired and was.probes.equals(repaired.probes)
        # Not the common pairs: half of them are drawn inside the targets, which differ between plans.
        each = (one.probes for one in (was, repaired))
        before, after = (probes[(probes["purpose"] == "search") & (probes["model"] == "after")] for probes in each)
        paired = paired_difference(before, after, space)  # the search's control stands for use, by weights
        yield _row("repaired model: failures", paired, same, tolerance)
        yield _quality(was, repaired, same, tolerance)


def _row(what: str, paired: PairedFailures | None, same: bool, tolerance: float) -> GateRow:
    if paired is None:
        return GateRow(what, None, None, NO_RATE, False)
    return _judged(what, paired.a, paired.b, paired.difference, same, tolerance)


def _judged(what: str, then: float | None, now: float | None, worse: Rate, same: bool, tolerance: float) -> GateRow:
    """The same model is no worse than itself, however few items it was probed on."""
    worse = Rate(0.0, 0.0, 0.0, worse.n) if same else worse
    return GateRow(what, then, now, worse, worse.high < tolerance or (same and tolerance == 0))


def _quality(then: Evaluation, now: Evaluation, same: bool, tolerance: float) -> GateRow:
    """Clean quality of the repaired models. It is not paired, as only means with intervals were stored.

    The interval of the difference follows from those of the two means (Zou and Donner 2008, "Construction of confidence
    limits about effect measures"). Both were measured on the same items, so it is wider than a paired one.
    """
    was, now_is = (run.comparison.differences["clean_quality"] for run in (then, now))
    what = f"repaired model: {now_is.name or 'clean quality'}"
    a, b = at_end_of(was).rate, at_end_of(now_is).rate
    if any(map(isnan, (*a[:3], *b[:3]))):
        return GateRow(what, was.after, now_is.after, NO_RATE, False)
    value = a.value - b.value
    low = value - hypot(a.value - a.low, b.high - b.value)
    high = value + hypot(a.high - a.value, b.value - b.low)
    return _judged(what, was.after, now_is.after, Rate(value, low, high, b.n), same, tolerance)


def write_junit(path: Path, audit: str, outcome: GateResult | FadedError) -> None:
    """Write what the gate found; after an error one test case with its message."""
    if isinstance(outcome, FadedError):
        cases = [_case(audit, "the gate", "error", outcome.exit_code.name.lower(), str(outcome))]
    else:
        cases = _cases(outcome)
    kinds = [case[0].tag for case in cases if len(case)]
    counts = {"tests": len(cases), "failures": kinds.count("failure"), "errors": kinds.count("error")}
    suite = ElementTree.Element("testsuite", {"name": f"faded gate {audit}", **{k: str(n) for k, n in counts.items()}})
    suite.extend(cases)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    replace_file(path, ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True) + b"\n")


def _cases(result: GateResult) -> list[ElementTree.Element]:
    """The gates of the audit itself, its verdict, and each measure against the earlier result."""
    own = f"{result.audit}.gates"
    cases = []
    for gate in result.now.gates:
        kind = {True: "", False: "missed", None: "not judged"}[gate.passed]
        said = f"bound {gate.bound}, found {gate.value} (95% interval {gate.low} to {gate.high})"
        cases.append(_case(own, gate.named, "failure", kind, said))
    verdict = "" if result.own else "refused"
    cases.append(_case(own, "verdict", "failure", verdict, f"the audit's own verdict: {result.now.word}"))
    for row in result.rows:
        told = (
            f"worse by {100 * row.worse.value:.2f} points (95% interval {100 * row.worse.low:.2f} to"
            f" {100 * row.worse.high:.2f}, n {row.worse.n}); below {100 * result.tolerance:g} expected"
            if row.worse.n
            else "nothing in common to compare"
        )
        name, kind = f"{row.what} against {result.against}", "" if row.passed else "not shown to be no worse"
        cases.append(_case(f"{result.audit}.no worse", name, "failure", kind, told))
    return cases


def _case(group: str, name: str, tag: str, kind: str, message: str) -> ElementTree.Element:
    """A test case; without a `kind` of failure or error it passed."""
    case = ElementTree.Element("testcase", classname=escape_controls(group), name=escape_controls(name))
    if kind:
        text = escape_controls(message.replace("\n", " "))
        ElementTree.SubElement(case, tag, type=kind, message=text).text = text
    return case


def _shown(text: str) -> str:
    """The text with terminal codes removed and rich's markup escaped."""
    return escape(escape_controls(text))


def show_bundle(console: Console, bundle: Bundle) -> None:
    """Print the contents of a bundle, and where it is."""
    table = new_table("part", "files", "bytes", "SHA-256", right=("files", "bytes"))
    for part, files in bundle.manifest["parts"].items():
        total = sum(entry["size"] for entry in files.values())
        one = next(iter(files.values())).get("sha256", "")[:16] if len(files) == 1 else ""
        table.add_row(_shown(part), f"{len(files):,}", f"{total:,}", one)
    console.print(table)
    word = {True: "pass", False: "FAIL", None: "no verdict of gates"}[bundle.manifest["passed"]]
    signed = "signed" if ENVELOPE in bundle.members else "UNSIGNED"
    print_plain(
        console,
        escape_controls(f"{bundle.audit}: {word}, landscape {bundle.manifest['landscape']}, {signed}"),
        f"evidence: {bundle.path.resolve()}",
        f"check it on any machine: faded verify {bundle.path.name}",
    )


def show_checks(console: Console, checks: "Sequence[Check]") -> None:
    """Print each check with what was found, then the mismatches, or how far the result can be trusted."""
    table = new_table("check", "holds", "found")
    for check in checks:
        style, word = ("red", "NO") if not check.holds else ("green" if check.word == "yes" else "yellow", check.word)
        found = check.found or f"{len(check.problems)} problem(s), see below"
        table.add_row(_shown(check.name), f"[{style}]{word}[/]", _shown(found))
    console.print(table)
    problems = [(check.name, problem) for check in checks for problem in check.problems]
    for name, problem in problems:
        console.print(f"[red]{_shown(name)}:[/] {_shown(problem)}", soft_wrap=True)
    if problems:
        console.print(f"[bold red]{len(problems)} thing(s) do not match[/]")
        return
    words = [check.word for check in checks]
    unchecked = [check.name for check in checks if check.word == "not checked"]
    summary = "[bold green]all holds[/]"
    for word, caution in ((UNKNOWN_KEY, _UNKNOWN_KEY), (UNSIGNED, _UNSIGNED)):
        summary = f"[bold yellow]{caution}[/]" if word in words else summary
    rest = f"; not checked: {', '.join(unchecked)}" if unchecked else ""
    console.print(f"{summary}{rest}", soft_wrap=True)


def show_reproduction(console: Console, found: "Reproduced") -> None:
    """Print every number that is not the same, and how the whole compares."""
    if found.deviations:
        table = new_table(
            "number", "bundle", "here", "may differ by", "agrees", right=("bundle", "here", "may differ by")
        )
        for one in sorted(found.deviations, key=lambda one: not one.beyond)[:_MOST_ROWS]:
            ours, theirs, noise = (_number(x) for x in (one.ours, one.theirs, one.noise))
            table.add_row(_shown(one.where), ours, theirs, noise, "[red]NO[/]" if one.beyond else "[green]yes[/]")
        console.print(table)
    word = "[bold green]agrees[/]" if found.reproduction.agrees else "[bold red]differs by more than noise explains[/]"
    console.print(f"{word}: {_shown(found.reproduction.summary)}", soft_wrap=True)
    for what, path in (("signed statement", found.statement), ("the new results", found.results)):
        if path is not None:
            print_plain(console, f"{what}: {path.absolute()}")


_MOST_ROWS = 40


def _number(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else _shown(str(value))


_UNSIGNED = "UNSIGNED: it is consistent, but anybody can make such a file, with any verdict"
_UNKNOWN_KEY = (
    "it is consistent, but none of the keys known here signed it, and anybody can make a key:"
    " ask the signer for the public key, and check with --key PUBLIC.pem"
)


def show_gate(console: Console, result: GateResult) -> None:
    """Print each measure then and now, and whether it is shown to be no worse."""
    for whose, verdict in (("the workspace's", result.now), (f"{result.against}'s", result.then)):
        if verdict is not None:
            style = "yellow" if verdict.word == NO_GATES else "green" if verdict.passed is True else "red"
            decided = _shown(verdict.decided or "no decision needed: it ends with its landscape")
            console.print(f"{_shown(whose)} own verdict: [{style}]{verdict.word}[/]; {decided}", soft_wrap=True)
    if result.rows:
        _show_measures(console, result)
    for note in result.notes:
        console.print(f"[yellow]note:[/] {_shown(note)}", soft_wrap=True)
    if result.passed and result.now.word != NO_GATES:
        console.print(f"[bold green]{_shown(result.audit)}: {_shown(result.claim)}[/]")


def _show_measures(console: Console, result: GateResult) -> None:
    right = ("then", "now", "worse by", "95% interval", "n")
    title = _shown(f"{result.audit}: the workspace against {result.against}")
    table = narrow_table("measure", *right, "no worse", title=title, whole=right, right=right)
    for row in result.rows:
        worse, style = row.worse, "green" if row.passed else "red"
        numbers = ["", "", "none"]
        if worse.n > 0:
            interval = f"{100 * worse.low:+.2f} to {100 * worse.high:+.2f}"
            numbers = [f"{100 * worse.value:+.2f}", interval, f"{worse.n:,}"]
        rates = ("" if value is None else f"{value:.1%}" for value in (row.then, row.now))
        table.add_row(_shown(row.what), *rates, *numbers, f"[{style}]{'yes' if row.passed else 'no'}[/]")
    console.print(table)
    console.print(
        f"worse by: in points; the whole interval has to lie below the tolerance of {100 * result.tolerance:g}"
    )
