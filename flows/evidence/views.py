"""What people see of evidence, its check, and the gate: tables only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from flows.evidence import Bundle, Check
    from flows.gate import GateResult


def show_bundle(console: Console, bundle: Bundle) -> None:
    """What a bundle holds, and where it lies."""
    table = Table("part", "files", "bytes", "SHA-256", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for part, files in bundle.manifest["parts"].items():
        total = sum(entry["size"] for entry in files.values())
        one = next(iter(files.values()))["sha256"][:16] + "..." if len(files) == 1 else ""
        table.add_row(escape(part), f"{len(files):,}", f"{total:,}", one)
    console.print(table)
    word = {True: "pass", False: "FAIL", None: "no verdict of gates"}[bundle.manifest["passed"]]
    signed = "signed" if "statement.dsse.json" in bundle.members else "not signed (--sign KEY.pem signs it)"
    told = f"{bundle.audit}: {word}, landscape {bundle.manifest['landscape']}, {signed}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
    console.print(f"evidence: {bundle.path.resolve()}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"check it anywhere: faded verify {bundle.path.name}", markup=False, highlight=False, soft_wrap=True)


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """Each check with what was found, and below them everything that does not match."""
    table = Table("check", "holds", "found", box=box.SIMPLE_HEAD, pad_edge=False)
    for check in checks:
        holds = "[green]yes[/]" if check.holds else "[red]NO[/]"
        table.add_row(escape(check.name), holds, escape(check.found or f"{len(check.problems)} problem(s), see below"))
    console.print(table)
    problems = [(check.name, problem) for check in checks for problem in check.problems]
    for name, problem in problems:
        console.print(f"[red]{escape(name)}:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if not problems:
        console.print("[bold green]all holds[/]")
    else:
        console.print(f"[bold red]{len(problems)} thing(s) do not match[/]")


def show_gate(console: Console, result: GateResult) -> None:
    """Each measure then and now, and whether it is shown to be no worse."""
    title = f"{result.audit}: the workspace against {result.against}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("measure", "then", "now", "worse by", "95% interval", "n", "no worse"):
        table.add_column(
            column, justify="left" if column in ("measure", "no worse") else "right", no_wrap=column != "measure"
        )
    for row in result.rows:
        worse, style = row.worse, "green" if row.passed else "red"
        known = worse is not None and worse.n > 0
        table.add_row(
            escape(row.what),
            *("" if value is None else f"{value:.1%}" for value in (row.then, row.now)),
            f"{100 * worse.value:+.2f}" if worse is not None and known else "",
            f"{100 * worse.low:+.2f} to {100 * worse.high:+.2f}" if worse is not None and known else "",
            f"{worse.n:,}" if worse is not None and known else "none",
            f"[{style}]{'yes' if row.passed else 'no'}[/]",
        )
    console.print(table)
    console.print(
        f"worse by: points; the whole interval has to lie below the tolerance of {100 * result.tolerance:g}",
        highlight=False,
    )
    own = "[green]passed[/]" if result.own else f"[red]{escape(result.own_word)}[/]"
    console.print(f"the workspace's own verdict: {own}", highlight=False)
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
