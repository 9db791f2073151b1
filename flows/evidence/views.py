"""Tables of a bundle, its checks, and the gate for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from flows.evidence.bundle import ENVELOPE
from flows.evidence.verify import UNKNOWN_KEY, UNSIGNED
from flows.results import NO_GATES
from flows.terminal import narrow_table, new_table, print_plain
from stages.core.errors import escape_controls

if TYPE_CHECKING:
    from flows.evidence import Bundle, Check
    from flows.evidence.gate import GateResult
    from flows.evidence.reproduce import Reproduced

UNDECIDED = "no decision needed: it ends with its landscape"


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


def show_checks(console: Console, checks: Sequence[Check]) -> None:
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


def show_reproduction(console: Console, found: Reproduced) -> None:
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
            told = f"[{style}]{verdict.word}[/]; {_shown(verdict.decided or UNDECIDED)}"
            console.print(f"{_shown(whose)} own verdict: {told}", soft_wrap=True)
    if result.rows:
        _show_measures(console, result)
    for note in result.notes:
        console.print(f"[yellow]note:[/] {_shown(note)}", soft_wrap=True)


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
