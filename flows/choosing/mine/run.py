"""The command: bring the prepared model up to date, mine, print the results, and write the record and its page."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import stages.mining
from flows.choosing.mine.proposed import propose
from flows.choosing.ready import bring_up_to_date, healed_audit
from flows.graph import read_graph
from flows.processes import stopping_on_signals
from flows.workspace import exclusive
from stages.code import code_of
from stages.environment import WORK
from stages.errors import UsageError
from stages.files import replace_file, scratch, stage_dir
from stages.intervals import Rate
from stages.mining import MineSettings, Mining
from stages.params import AuditConfig, Params, validation_lines
from stages.progress import progress
from stages.provenance import prepared_files, run_key
from stages.tasks.load import task_class, task_context

RECORDS = WORK / "mine"
_CODE = Path(stages.mining.__file__).parent


class Record(BaseModel):
    """Mining results as stored in .faded/mine/AUDIT.json.

    Args:
        audit: name of the audit.
        when: seconds since 1970.
        proposed: lines of YAML that would add the findings to the audit; empty if nothing is proposed.
        mining: the results.
    """

    audit: str
    when: float
    proposed: str
    mining: Mining


def mine_audit(params: Params, name: str, probes: int | None, console: Console) -> Record:
    """Mine the items of an audit, and print and record the results.

    Raises:
        UsageError: if a setting is wrong, or the audit has no texts or too few items.
        FadedError: if the model under test cannot be prepared.
    """
    try:
        settings = MineSettings() if probes is None else MineSettings(probes=probes)
    except ValidationError as error:
        raise UsageError("; ".join(f"--{line}" for line in validation_lines(error, MineSettings))) from None
    with exclusive():
        audit = healed_audit(params, name, console)
        with stopping_on_signals():
            from flows.choosing.mine.catalogue import catalogue
            from stages.mining.asked import asked_as

            asked = asked_as(task_class(name, audit), name)  # before prepare, which may take long
            bring_up_to_date(read_graph(), f"prepare@{name}", console)
            console.print(f"mining {name}: {settings.probes:,} unique probes at most", highlight=False)
            mining = _mine(name, audit, settings, asked)
        path, page, items = (RECORDS / f"{name}.{kind}" for kind in ("json", "html", "jsonl"))
        proposed = propose(name, audit, mining, items)
        record = Record(audit=name, when=time.time(), proposed=proposed, mining=mining)
        replace_file(path, record.model_dump_json(indent=1).encode() + b"\n")
        replace_file(page, catalogue(name, audit, record.when, mining).encode())
        show_mining(console, name, mining)
        if record.proposed:
            console.print("\nto audit the findings, add to params.yaml:", highlight=False)
            console.print(record.proposed, markup=False, highlight=False, soft_wrap=True)
        console.print(f"record: {path}\npage: {page}", markup=False, highlight=False, soft_wrap=True)
    return record


def _mine(name: str, audit: AuditConfig, settings: MineSettings, asked: Any) -> Mining:
    from stages.mining.mine import mine

    prepared = stage_dir(name, "prepare")
    inputs = [*prepared_files(prepared), _CODE]
    key = run_key(audit, inputs, code_of(audit, "discover"), settings.model_dump())
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(name, "mine", key))
        tell = stack.enter_context(progress(f"mine@{name}", settings.probes))
        put = asked(task_class(name, audit), task_context(name, audit, prepared), prepared, folder, tell)
        return mine(put.texts(), put.concepts, put, settings, seed=audit.seed)


def show_mining(console: Console, audit: str, mining: Mining) -> None:
    """Print the findings of an audit as a table."""
    m = mining
    table = Table(title=f"Mined of {audit}", title_justify="left")
    for column in ("finding", "fails", "without", "p, adjusted", "items", "verdict"):
        table.add_column(column)
    for one in m.findings:
        told = "\n".join([one.told, *([f"({', '.join(one.replaced[:3])})"] if one.replaced else [])])
        style = "green" if one.verdict == "confirmed" else "dim"
        table.add_row(
            escape(told),
            _rate(one.fails) if one.fails else "",
            "\n".join(_rate(contrast.fails) for contrast in one.without),
            f"{one.adjusted:.2g}" if one.fails else "",
            str(one.items),
            f"[{style}]{one.verdict}[/]",
        )
    if m.findings:
        console.print(table)
    counted = f"{m.slices:,} sets of {m.facts:,} facts" + (" (more than may be counted)" if m.cut else "")
    console.print(
        f"{len(m.confirmed)} of {len(m.findings)} candidates confirmed; {counted}; {m.probes:,} of"
        f" {m.settings.probes:,} unique probes spent",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"{m.items[0]:,} items proposed, {m.items[1]:,} others confirmed; of these {_rate(m.now)} of {m.now.n} fail"
        " unchanged",
        highlight=False,
        soft_wrap=True,
    )
    for told in (
        "without: the same items with other words or levels, or else other items; a line for each part of a finding",
        "p, adjusted: of the weakest of these comparisons, for the number of candidates (Holm 1979)",
    ):
        console.print(f"[dim]{told}[/]", highlight=False, soft_wrap=True)


def _rate(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"
