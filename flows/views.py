"""What people see in the terminal: tables and verdicts. It prints and computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.results import gate_word

if TYPE_CHECKING:
    from flows.compare import Comparison
    from flows.estimate import Estimate
    from flows.graph import Stage
    from flows.results import Verdict
    from flows.run_stage import StageResult
    from stages.landscape.intervals import Rate

_OUTCOME_STYLE = {"ran": "green", "restored": "cyan", "unchanged": "dim", "failed": "bold red", "waiting": "yellow"}
_PASSED_STYLE = {True: "green", False: "red", None: "yellow"}  # of a gate, and of a verdict on some
_REASONS = 3  # shown of each stage


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column in ("seconds", "probes", "model calls", "disk", "bound", "value")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def size(n_bytes: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def show_run(console: Console, results: Sequence[StageResult], total: float) -> None:
    """The summary of a run, stage by stage."""
    table = _table("stage", "outcome", "seconds")
    for r in results:
        style = _OUTCOME_STYLE.get(r.outcome, "dim")
        table.add_row(escape(r.stage), f"[{style}]{r.outcome}[/]", f"{r.seconds:.1f}" if r.seconds else "")
    table.add_section()
    table.add_row("total (wall)", "", f"{total:.1f}")
    console.print(table)


def show_verdict(console: Console, verdict: Verdict) -> None:
    """The verdict of an audit with its gates, and where its report lies."""
    if verdict.gates:
        table = _table("gate", "bound", "value", "95% interval", "passed")
        table.columns[0].no_wrap = True
        for gate in verdict.gates:
            low, high = gate.get("low"), gate.get("high")
            interval = f"{_number(low)} to {_number(high)}" if low is not None and high is not None else ""
            passed = f"[{_PASSED_STYLE[gate['passed']]}]{gate_word(gate['passed'])}[/]"
            table.add_row(escape(str(gate["gate"])), _number(gate["bound"]), _number(gate["value"]), interval, passed)
        console.print(table)
    console.print(_verdict_line(verdict), highlight=False)
    if verdict.statement:
        console.print(verdict.statement, markup=False, highlight=False)
    if verdict.report is not None:
        console.print(f"report: {verdict.report.resolve()}", markup=False, soft_wrap=True, highlight=False)


def _verdict_line(verdict: Verdict) -> str:
    decided = f" ({escape(verdict.decided)})" if verdict.decided else ""
    style = "bold" if verdict.passed is None and not verdict.gates else f"bold {_PASSED_STYLE[verdict.passed]}"
    return f"[{style}]{escape(verdict.audit)}: {verdict.word}[/]{decided}"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "" if value is None else str(value)


def show_plan(console: Console, estimate: Estimate) -> None:
    """What would run, why and at what cost."""
    if not estimate.stages:
        console.print("nothing to do: no stage is stale")
        return
    table = _table("stage", "why", "probes", "model calls", "seconds", "disk")
    for e in estimate.stages:
        why = _shorten(e.stage.reasons) if e.stage.reasons else "depends on a stale stage"
        table.add_row(
            escape(e.stage.name),
            escape(why) + (" [yellow](waits for a person's decision)[/]" if e.waits else ""),
            f"{e.probes:,}" if e.probes else "",
            f"{e.calls:,}" if e.calls else "",
            f"{e.seconds:.1f}" if e.seconds is not None else "?",
            size(e.size) if e.size is not None else "?",
        )
    console.print(table)
    console.print(f"{estimate.probes:,} unique probes at most; {estimate.time}", highlight=False)
    disk = sum(e.size or 0 for e in estimate.stages)
    about = f"about {size(disk)} of outputs by the last run" if disk else "size of outputs unknown before the first run"
    console.print(f"disk: {about}, {size(estimate.free)} free", highlight=False)


def _shorten(reasons: Sequence[str]) -> str:
    more = f" and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
    return ", ".join(reasons[:_REASONS]) + more


def show_status(console: Console, stages: Sequence[Stage], verdicts: Sequence[Verdict], running: int | None) -> None:
    """Every stage's state, and the last verdict of every audit."""
    if running is not None:
        console.print(f"[yellow]an audit is running (process {running}), so this changes[/]", highlight=False)
    table = _table("stage", "state", "why")
    behind: set[str] = set()
    for stage in stages:
        if stage.stale:
            state, why = "[yellow]stale[/]", escape(_shorten(stage.reasons))
            if all(reason.endswith("missing") for reason in stage.reasons):
                state = "[yellow]missing[/]"
        elif behind.intersection(stage.upstream):
            state, why = "[yellow]behind[/]", "depends on a stale stage"
        else:
            state, why = "[green]fresh[/]", ""
        if stage.stale or behind.intersection(stage.upstream):
            behind.add(stage.name)
        table.add_row(escape(stage.name), state, why)
    console.print(table)
    for verdict in verdicts:
        outdated = any(name.endswith(f"@{verdict.audit}") for name in behind)
        note = " [dim](of an earlier run: stages are stale)[/]" if verdict.found and outdated else ""
        console.print(_verdict_line(verdict) + note, highlight=False)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Two revisions side by side."""
    c = comparison
    table = _table("failure rate", c.rev_a, c.rev_b, title=f"{c.audit}: {c.rev_a} against {c.rev_b}")
    for row in c.rates:
        table.add_row(escape(row.what), _rate(row.a), _rate(row.b))
    console.print(table)
    for note in c.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    if c.paired is None:
        console.print("no common control probes, so nothing to pair")
        return
    d = c.paired.difference
    sure = "no difference shown" if d.low <= 0 <= d.high else "more failures" if d.low > 0 else "fewer failures"
    console.print(
        f"paired on {d.n:,} common control probes of {c.paired.items} items: {c.rev_b} minus {c.rev_a} "
        f"{d.value:+.4f} (95% interval {d.low:+.4f} to {d.high:+.4f}): {sure}",
        highlight=False,
        soft_wrap=True,
    )


def _rate(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"
