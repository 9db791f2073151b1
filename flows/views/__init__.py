"""Output in the terminal: tables and verdicts. Nothing is computed here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isnan
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.filesize import decimal
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flows.graph import RUNS_NOW, audit_of
from flows.terminal import narrow_table, new_table, print_plain
from stages.core.errors import Exit, first_of

if TYPE_CHECKING:
    from flows.results import LastVerdict
    from flows.results.estimate import Estimate
    from flows.results.glance import Status
    from flows.run_stage import StageResult
    from flows.views.history import Histories
    from flows.views.side_by_side import SideBySide
    from stages.concepts import Concept
    from stages.core.intervals import Rate
    from stages.landscape.head_to_head import HeadToHead
    from stages.usage.estimate import MeasuredUsage, UsageInForce

_OUTCOME_STYLE = {"ran": "green", "restored": "cyan", "unchanged": "dim", "failed": "bold red", "waiting": "yellow"}
_PASSED_STYLE = {True: "green", False: "red", None: "yellow"}  # of a gate, and of a verdict with gates
_LEAST = 0.0005  # share of inputs that is shown


def show_run(console: Console, results: Sequence[StageResult], total: float) -> None:
    """Print the summary of a run, stage by stage."""
    table = new_table("stage", "outcome", "seconds", right=("seconds",))
    for r in results:
        style = _OUTCOME_STYLE.get(r.outcome, "dim")
        said = "rejected" if r.exit_code == Exit.GATE_FAILED else r.outcome  # by a person, which is no failure
        table.add_row(escape(r.stage), f"[{style}]{said}[/]", f"{r.seconds:.1f}" if r.seconds else "")
    table.add_section()
    table.add_row("total (wall)", "", f"{total:.1f}")
    console.print(table)


def show_verdict(console: Console, verdict: LastVerdict) -> None:
    """Print the verdict of an audit with its gates, and where its report is."""
    from flows.results import gate_word
    from stages.pages.words import gate_view

    if verdict.gates:
        table = new_table("gate", "bound", "value", "95% interval", "holds", right=("bound", "value"))
        for gate in verdict.gates:
            shown, holds = gate_view(gate), f"[{_PASSED_STYLE[gate.passed]}]{gate_word(gate.passed)}[/]"
            # Without the sign and unit, which name and footnote say: more would not fit 80 columns.
            _, bound, *_ = shown.bound.split()
            value, *_ = shown.value.split()
            table.add_row(escape(gate.named), bound, value, shown.interval, holds)
        console.print(table)
        console.print("numbers without % are in points")
    console.print(_verdict_line(verdict))
    if verdict.passed:  # all that has a bound is within it; the light of the report is amber all the same
        print_plain(console, *(f"but: {concern}" for concern in verdict.concerns), style="yellow")
    if verdict.statement:
        console.print(verdict.statement, markup=False)
    if verdict.report is not None:
        print_plain(console, f"report: {verdict.report.resolve()}")


def _verdict_line(verdict: LastVerdict) -> str:
    decided = f" ({escape(verdict.decided)})" if verdict.decided else ""
    return f"{_styled_word(verdict, f'{verdict.audit}: ')}{decided}"


def _styled_word(verdict: LastVerdict, before: str = "") -> str:
    style = "bold" if verdict.passed is None and not verdict.gates else f"bold {_PASSED_STYLE[verdict.passed]}"
    return f"[{style}]{escape(before + verdict.word)}[/]"


def show_plan(console: Console, plan: Estimate) -> None:
    """Print what would run, why and at what cost."""
    if plan.stages:
        numbers = ("probes", "calls", "seconds", "disk")
        table = narrow_table("stage, and why it runs", *numbers, whole=numbers, right=numbers)
        for e in plan.stages:
            waits = "waits for a person's decision" if e.waits else ""
            table.add_row(
                _with_reasons(e.stage.name, e.stage.reasons or ("depends on a stale stage",), waits),
                f"{e.probes:,}" if e.probes else "",
                f"{e.calls:,}" if e.calls else "",
                f"{e.seconds:.1f}" if e.seconds is not None else "?",
                decimal(e.size) if e.size is not None else "?",
            )
        console.print(table)
        console.print(f"{plan.probes:,} unique probes at most; {plan.time}")
        disk = sum(e.size or 0 for e in plan.stages)
        known = f"about {decimal(disk)} of outputs, as in the last run"
        unknown = "size of outputs unknown before the first run"
        console.print(f"disk: {known if disk else unknown}, {decimal(plan.free)} free")
    else:
        console.print("nothing to do: no stage is stale")
    for note in plan.notes:
        print_plain(console, note.text, style="yellow" if note.warning else None)


def _with_reasons(stage: str, reasons: Sequence[str], more: str = "") -> Group:
    """A stage, and below it why it has to run, without the name of its audit: beside it there would be no room."""
    audit = audit_of(stage)
    short = [re.sub(rf"^(data/|audits\.|repairs\.){re.escape(audit)}[/.]", "", reason) for reason in reasons]
    said = [Padding(Text(text, "dim"), (0, 0, 0, 2)) for text in (first_of(short), more) if text]
    return Group(Text(stage), *said)


_STATE_STYLE = {"fresh": "green", RUNS_NOW: "cyan"}


def show_status(console: Console, status: Status) -> None:
    """Print one row per audit, or the state of every stage if asked for, and what to do next."""
    if status.running is not None:
        console.print(f"[yellow]an audit is running (process {status.running}), so this will change[/]")
    if status.stages is not None:
        table = narrow_table("stage", "state", whole=("state",))
        for one in status.stages:
            style = _STATE_STYLE.get(one.state, "yellow")
            table.add_row(_with_reasons(one.stage, one.why), f"[{style}]{one.state}[/]")
        console.print(table)
    elif status.audits:
        whole = ("failure rate", "targets", "date")
        table = narrow_table("audit", "failure rate", "targets", "verdict", "date", "decided by", whole=whole)
        for row in status.audits:
            v, now = row.verdict, f" [cyan]({RUNS_NOW})[/]" if row.next == RUNS_NOW else ""
            table.add_row(
                escape(v.audit),
                short_rate(row.failure_rate),
                _points(row.target_change),
                _styled_word(v) + (f", {v.light}" if v.light else "") + (now or (" [dim](outdated)[/]" * row.outdated)),
                f"{v.when:%Y-%m-%d}" if v.found and v.when else "",
                escape(v.decider),
            )
        console.print(table)
        if any(row.target_change is not None for row in status.audits):
            print_plain(console, "failure rate: before a repair; targets: what it changed, in points", style="dim")
    if status.stages is not None:
        for row in status.audits:
            note = " [dim](from an earlier run: stages are stale)[/]" if row.outdated else ""
            console.print(_verdict_line(row.verdict) + note)
    for name in status.unmeasured:
        line = f"{name}: its levels are not measured yet; `faded init --name {name}` resumes"
        print_plain(console, line, style="yellow")
    print_plain(console, *(row.waits for row in status.audits if row.waits is not None), style="yellow")
    told = [row.next for row in status.audits if row.waits is None and row.verdict.audit not in status.unmeasured]
    stale = [command.removeprefix("faded audit ") for command in told if command.startswith("faded audit ")]
    again = [f"faded audit {' '.join(stale)}"] if stale else []
    others = [command for command in told if command.startswith(("faded review ", "faded report "))]
    print_plain(console, *(f"next: {command}" for command in again + others))
    if status.never_run:
        print_plain(console, f"never run: {', '.join(status.never_run)}; `faded audit NAME` runs one")
    if status.page is not None:
        print_plain(console, f"page: {status.page.resolve()}")


def show_history(console: Console, found: Histories) -> None:
    """Print the last results of audits, each with its drift and what changed before each result."""
    if never := [one.audit for one in found.audits if not one.results]:
        print_plain(console, f"no results: {', '.join(never)}")
    for history in found.audits:
        if not history.results:
            continue
        console.print(f"[bold]{escape(history.audit)}[/]: {history.drift}", soft_wrap=True)
        whole = ("result", "date", "failure rate", "targets", "verdict")
        table = narrow_table(*whole, "decided by", whole=whole)
        for result in history.results:
            v = result.verdict
            table.add_row(
                v.revision,
                f"{v.when:%Y-%m-%d}",
                short_rate(result.failure_rate),
                _points(result.target_change),
                _styled_word(v),
                escape(v.decider),
            )
        console.print(table)
        changed = ((one.verdict.revision, one.changed) for one in history.results if one.changed)
        print_plain(console, *(f"{revision} changed {'; '.join(what)}" for revision, what in changed))
    if found.page is not None:
        print_plain(console, f"page: {found.page.resolve()}")


def show_comparison(console: Console, together: SideBySide) -> None:
    """Print several results, and where the page with their curves is."""
    (_show_side_by_side if together.revisions_of is None else _show_revisions)(console, together)
    if together.page is not None:
        print_plain(console, f"page: {together.page.resolve()}")


def _show_revisions(console: Console, together: SideBySide) -> None:
    one, other = together.names
    table = new_table("failure rate", one, other, title=f"{together.revisions_of}: {one} against {other}")
    for what, rates in together.rates:
        if what != "worst failure mode":
            table.add_row(escape(what), short_rate(rates[0]), short_rate(rates[-1]))
    console.print(table)
    _show_notes(console, together.notes)
    if (paired := together.difference) is None:
        console.print("no common control probes, so nothing to pair")
        return
    d = paired.difference
    sure = "no difference shown" if d.low <= 0 <= d.high else "more failures" if d.low > 0 else "fewer failures"
    pairs = f"paired on {d.n:,} common control probes of {paired.items} items"
    print_plain(console, f"{pairs}: {other} minus {one} {_difference(d)}: {sure}")


def _show_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _show_side_by_side(console: Console, together: SideBySide) -> None:
    table = new_table("", *map(escape, together.names))
    for what, found in together.found:
        table.add_row(escape(what), *map(_value, found))
    table.add_section()
    for what, rates in together.rates:
        table.add_row(escape(f"failure rate, {what}"), *(short_rate(rate) or "-" for rate in rates))
    table.add_section()
    for what, made_with in together.differs:
        table.add_row(escape(f"differs: {what.replace('_', ' ')}"), *map(_value, made_with))
    console.print(table)
    if together.paired is not None:
        _show_head_to_head(console, together.names, together.paired)
    _show_notes(console, together.notes)


def _show_head_to_head(console: Console, names: list[str], paired: HeadToHead) -> None:
    table = new_table(f"on {paired.probes:,} common probes of {paired.items:,} items", *map(escape, names))
    table.add_row("fails", *map(short_rate, paired.rates))
    behind = ("best" if more is None else _difference(more) for more in paired.behind)
    table.add_row("fails more often than the best by", *behind)
    table.add_row("passes where it and another differ", *map(short_rate, paired.wins))
    table.add_row("fails alone", *map(short_rate, paired.alone))
    table.add_section()
    for mode in paired.modes:
        table.add_row(
            escape(f"{', '.join(mode.models)}: {mode.text}"), *(short_rate(rate) or "-" for rate in mode.rates)
        )
    console.print(table)
    independent = f"if their failures were independent, it would be {short_rate(paired.independent)}"
    print_plain(console, f"all fail on {short_rate(paired.all_fail)} of these; {independent}")


def _value(value: int | str | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else escape(value)


def short_rate(rate: Rate) -> str:
    """A rate in few characters, with its interval if it has one; empty if there is no rate."""
    if not rate.n:
        return ""
    interval = "" if isnan(rate.low + rate.high) else f" ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
    return f"{100 * rate.value:.1f}%{interval}"


def _points(change: float | None) -> str:
    from stages.pages.words import points

    return "" if change is None else points(change)


def _difference(rate: Rate) -> str:
    from stages.pages.words import points

    return f"{points(rate.value)} points ({points(rate.low)} to {points(rate.high)})"


def show_usage(console: Console, u: UsageInForce) -> None:
    """Print how often changes occur in use: how many at once, and how common each level is."""
    table = new_table("concept", "level", "share of inputs", title=f"Usage of {u.audit}")
    for concept in u.space.concepts:
        _add_levels(table, concept, [[f"{u.share(concept.name, i):.1%}"] for i in range(len(concept))])
    console.print(table)
    counts = ", ".join(f"{n} in {share:.1%}" for n, share in enumerate(u.changes) if share >= _LEAST)
    print_plain(
        console,
        u.said,
        f"concepts changed at once: {counts} of inputs",
        f"to {'change it, edit' if u.stated else 'state it, write'} usage: under audits.{u.audit} in params.yaml"
        f" (docs/usage.md); to measure it on your production inputs: faded usage {u.audit} --from PATH",
    )


def show_measured_usage(console: Console, m: MeasuredUsage, *, written: bool) -> None:
    """Print how common levels are in production inputs, beside what was in force."""
    u = m.in_force
    table = new_table("concept", "level", "share", "95% interval", "so far", title=f"Usage of {u.audit} in {m.source}")
    for one in m.concepts:
        cells = [
            [f"{share:.1%}", f"{low:.1%} to {high:.1%}", f"{u.share(one.concept, i):.1%}"]
            for i, (share, low, high) in enumerate(zip(one.shares, one.low, one.high, strict=True))
        ]
        _add_levels(table, u.space.concepts[u.space.names.index(one.concept)], cells)
    console.print(table)
    told = [f"{m.inputs:,} inputs of {m.source}; so far: {u.said}"]
    if m.left_out:
        told.append(f"left out: {len(m.left_out):,}, the first: {m.left_out[0]}")
    told += [
        f"{one.concept}: {one.unlike:,} inputs are like no level of it, and were not counted"
        for one in m.concepts
        if one.unlike
    ]
    if unseen := [name for name in u.space.names if name not in {one.concept for one in m.concepts}]:
        told.append(f"no measure, so these keep what is stated or assumed: {', '.join(unseen)}")
    if unsure := [one.concept for one in m.concepts if not one.known]:
        told.append(f"too uncertain, so these keep what is stated or assumed: {', '.join(unsure)}")
    told.append("shares hold if the inputs, apart from changes, are like the audit's items (docs/usage.md)")
    if not written:
        told.append("to use these shares, run the same command with --write")
    print_plain(console, *told)


def _add_levels(table: Table, concept: Concept, cells: Sequence[Sequence[str]]) -> None:
    for i, more in enumerate(cells):
        unchanged = " (unchanged)" if concept.levels[i] == concept.neutral else ""
        table.add_row(escape(concept.name) if i == 0 else "", escape(f"{concept.label(i)}{unchanged}"), *more)
