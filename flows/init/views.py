"""Output of `faded init` in the terminal; nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.init.propose import BUDGETS, SEARCH_SECONDS
from flows.results.estimate import duration, few_items
from flows.workspace.block import Draft
from stages.tasks.init import Trial


def show_seen(console: Console, said: Sequence[str], draft: Draft, workspace: Path) -> None:
    """Print what was recognised about the model and the data, and how many items the audit takes."""
    for line in said:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    items = ", ".join(f"{n:,} {split}" for split, n in draft.audit["prepare"]["items"].items())
    console.print(f"items: {items}", highlight=False)
    if (few := few_items(draft.audit["prepare"]["items"])) is not None:
        console.print(few, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"audit: {draft.name}, in {workspace}", markup=False, highlight=False, soft_wrap=True)


def show_trial(console: Console, trial: Trial) -> None:
    """Print what the model does on unchanged items, with numbers right-aligned."""
    head, *rows = trial.rows
    shown = Table(title=trial.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for n, column in enumerate(head):
        numbers = all(row[n].replace(",", "").rstrip("%").isdigit() for row in rows)
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown)
    for line in trial.told:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_search(console: Console, draft: Draft, *, aimed: bool) -> None:
    """Print the budget of the search; `aimed`: it was derived from the duration of a probe."""
    budget, low, high = draft.audit["discover"]["budget"], *BUDGETS
    aim = f"as many as take about {duration(SEARCH_SECONDS)}, from {low:,} to {high:,}" if aimed else "as you said"
    console.print(
        f"search: {budget:,} probes for each explorer ({aim}): {draft.notes['discover']}",
        highlight=False,
        soft_wrap=True,
    )


def show_absent(console: Console, name: str) -> None:
    """Print that nothing can be measured before the hub's model or data have been downloaded."""
    console.print(
        f"{name} is written to params.yaml, but not measured: not everything it needs is here", style="yellow"
    )
    console.print(f"next: [bold]faded prefetch {name}[/]   download it, on a machine with a network", highlight=False)
    console.print("      then run this command again, which continues", highlight=False)


def show_next(console: Console, draft: Draft) -> None:
    """Print what to do next."""
    name = draft.name
    console.print(f"\nnext: [bold]faded plan {name}[/]    what it would run, and how long it takes", highlight=False)
    console.print(f"      [bold]faded audit {name}[/]   run it", highlight=False)
    console.print("      git add --all && git commit   commit what was written", style="dim", highlight=False)
