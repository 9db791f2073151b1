"""`faded mine`: find words, attributes and small sets of them at which a model fails, though no concept names them."""

import json
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from inspect import getfile
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import ChoiceLoader, FileSystemLoader
from markupsafe import Markup
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape

from flows.choosing import healed_audit, run_prepare
from flows.terminal import new_table, print_plain
from stages.code import code_of
from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.core.files import read_table, replace_file, scratch, stage_dir
from stages.core.intervals import Rate
from stages.core.progress import progress
from stages.mining import texts
from stages.mining.mine import mine
from stages.mining.record import Finding, MinedExample, MineSettings, Mining
from stages.pages import page
from stages.pages.gallery import HEAD, ExhibitView, Shrinker, excerpt, mark_changes
from stages.params import AuditConfig, Params, validation_lines
from stages.provenance import prepared_files, run_key
from stages.tasks.choosing import MinedTexts
from stages.tasks.contract import Exhibit
from stages.tasks.load import task_class, task_context

RECORDS = WORK / "mine"
_CODE = Path(texts.__file__).parent
_BY = "faded mine"
TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 3  # per candidate
LIMITS = (
    "Only items of the split discover were used. Rates are measured on confirming items, which had no part in "
    "proposing candidates. Other data may have other words and other rates.",
    "Words were replaced by a dictionary that does not know the context. If a text no longer reads well, its failure "
    "says little about the word: read the examples.",
    "Words and levels were changed in the same items, so the change caused the failures. An attribute cannot be "
    "changed without rewriting the text, so it is compared with other items: the model fails more often where it "
    "holds, possibly because of something else that such texts share.",
    "The chance that any of the tested candidates is confirmed by mistake is at most {level:.0%}. A candidate that was "
    "not confirmed may still be a weakness that too few items could show.",
    "No person judged these answers: failures are defined by the measure of the audit.",
)


class MiningRecord(BaseModel):
    """.faded/mine/AUDIT.json: what was mined, when in seconds since 1970, and lines of YAML that add the findings."""

    audit: str
    when: float
    proposed: str
    mining: Mining


def mine_audit(params: Params, name: str, probes: int | None, console: Console) -> None:
    """Mine the items of an audit, and print and record the results.

    Raises a UsageError if a setting is wrong, or the audit has no texts or too few items; a FadedError if the model
    under test cannot be prepared.
    """
    try:
        settings = MineSettings() if probes is None else MineSettings(probes=probes)
    except ValidationError as error:
        raise UsageError("; ".join(f"--{line}" for line in validation_lines(error, MineSettings))) from None
    with healed_audit(params, name, console) as audit:
        form = texts.texts_of(task_class(name, audit), name)  # before prepare, which may take long
        run_prepare(name, console)
        console.print(f"mining {name}: {settings.probes:,} unique probes at most")
        mining = _mine(name, audit, settings, form)
        path, page, items = (RECORDS / f"{name}.{kind}" for kind in ("json", "html", "jsonl"))
        proposed = proposed_lines(name, audit, mining, form, items)
        record = MiningRecord(audit=name, when=time.time(), proposed=proposed, mining=mining)
        replace_file(path, record.model_dump_json(indent=1).encode() + b"\n")
        replace_file(page, catalogue(name, audit, record.when, mining).encode())
        show_mining(console, name, mining)
        if record.proposed:
            console.print("\nto audit the findings, add to params.yaml:")
            print_plain(console, record.proposed)
        print_plain(console, f"record: {path}\npage: {page}")


def _mine(name: str, audit: AuditConfig, settings: MineSettings, form: MinedTexts) -> Mining:
    prepared = stage_dir(name, "prepare")
    inputs = [*prepared_files(prepared), _CODE, *(Path(getfile(cls)) for cls in (MinedTexts, type(form)))]
    key = run_key(audit, inputs, code_of(audit, "discover"), settings.model_dump())
    with scratch(name, "mine", key) as folder, progress(f"mine@{name}", settings.probes) as tell:
        task, context = task_class(name, audit), task_context(name, audit, prepared)
        prober = texts.TextProber(form, task, context, prepared, folder, tell)
        return mine(prober.texts(), prober.concepts, prober, settings, seed=audit.seed)


def show_mining(console: Console, audit: str, mining: Mining) -> None:
    """Print the findings of an audit as a table."""
    columns = ("finding", "fails", "without", "p, adjusted", "items", "verdict")
    table = new_table(*columns, title=f"Mined of {audit}")
    for one in mining.findings:
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
    if mining.findings:
        console.print(table)
    counted = f"{mining.slices:,} sets of {mining.facts:,} facts" + " (more than may be counted)" * mining.cut
    print_plain(
        console,
        f"{len(mining.confirmed)} of {len(mining.findings)} candidates confirmed; {counted}; {mining.probes:,} of"
        f" {mining.settings.probes:,} unique probes spent",
        f"{mining.items[0]:,} items proposed, {mining.items[1]:,} others confirmed; of these {_rate(mining.now)} of"
        f" {mining.now.n} fail unchanged",
    )
    print_plain(
        console,
        "without: the same items with other words or levels, or else other items; a line for each part of a finding",
        "p, adjusted: of the weakest of these comparisons, for the number of candidates (Holm 1979)",
        style="dim",
    )


def _rate(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"


def proposed_lines(name: str, audit: AuditConfig, mining: Mining, form: MinedTexts, path: Path) -> str:
    """Return lines of params.yaml that would add the findings to an audit; empty if there are none.

    Args:
        path: where to write the file of items, if the lines refer to one; removed if they do not.
    """
    items = read_table(stage_dir(name, "prepare") / "items.parquet")
    path.unlink(missing_ok=True)
    if form.templates:
        return _prompts(name, audit, mining.confirmed)
    if not (found := [one for one in mining.confirmed if one.text_facts]):
        return ""
    lines = _lines(items, form, found)
    told = [json.dumps(line, ensure_ascii=False, default=lambda value: value.tolist()) for line in lines]
    replace_file(path, ("\n".join(told) + "\n").encode())
    fields = {"jsonl": f"{name}-mined.jsonl", **form.source(items)}
    count = sum(line["split"] == "discover" for line in lines)
    return (
        f"cp {path} data/{name}/inputs/{fields['jsonl']}\n\naudits:\n  {name}:\n    prepare:\n"
        f"      data: {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}   # proposed by {_BY}\n"
        f"      items: {{discover: {count}}}\n{_marks({one.told: _BY for one in found})}"
    )


def _marks(told: Mapping[str, str]) -> str:
    return f"    proposed: {json.dumps(told, ensure_ascii=False)}"


def _lines(items: pd.DataFrame, form: MinedTexts, found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return all items and the failed changed texts as lines of a data file, with one field for each finding."""
    kept = [name for name in ("id", "split", *form.fields) if name in items]
    rows = {row["id"]: {k: v for k, v in row.items() if len(v)} for row in items[kept].to_dict("records")}
    lines = [
        row
        | ({one.told: "yes" if item in one.said_by else "no" for one in found} if row["split"] == "discover" else {})
        for item, row in rows.items()
    ]
    for one in found:
        for example in one.examples if one.replaced else []:
            changed = {"id": f"{example.item} {one.told}", form.column: example.text}
            fields = {other.told: "yes" if other.text_facts <= set(example.holds) else "no" for other in found}
            lines.append(rows[example.item] | changed | fields)
    return lines


def _prompts(name: str, audit: AuditConfig, found: Sequence[Finding]) -> str:
    """Return the lines with new templates and new levels; empty if there are none."""
    new = dict.fromkeys((example.text, one.told) for one in found if one.replaced for example in one.examples)
    lines = [f"        - {json.dumps(text)}   # proposed by {_BY}: {told}" for text, told in new]
    if lines:
        lines = ["    prepare:", "      templates:   # beside those there are", *lines]
    facts = list(dict.fromkeys(fact for one in found for fact in one.facts))
    slots, marks = [], {}
    for slot, own in audit.concepts.items():
        said = [fact.removeprefix(f"{slot} is ") for fact in facts if fact.startswith(f"{slot} is ")]
        if levels := [level for level in said if level not in (*own, "unsaid")]:
            quoted = ", ".join(json.dumps(str(level)) for level in (*own, *levels))
            slots.append(f"      {slot}: [{quoted}]")
            marks[slot] = f"{_BY}: {', '.join(levels)}"
    lines += ["    concepts:", *slots, _marks(marks)] if slots else []
    return "\n".join(["audits:", f"  {name}:", *lines]) if lines else ""


def catalogue(name: str, audit: AuditConfig, when: float, mining: Mining) -> str:
    """Render the results, mined `when` seconds after 1970, as one self-contained page that needs no network."""
    settings = mining.settings
    shrinker = Shrinker(_exhibit(example) for one in mining.findings for example in one.examples[:EXAMPLES])
    candidates = [
        (f"C{n}", one, [_shown(example, shrinker) for example in one.examples[:EXAMPLES]])
        for n, one in enumerate(mining.findings, 1)
    ]
    scripts = (page.TEMPLATES / "report.js", page.TEMPLATES / "explorer.js", TEMPLATES / "catalogue.js")
    script = "".join(path.read_text(encoding="utf-8") for path in scripts)
    told = {
        "task": audit.task,
        "model": audit.prepare.get("model"),
        "seed": audit.seed,
        "mined": f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M} UTC",
        **{about.description or name: getattr(settings, name) for name, about in type(settings).model_fields.items()},
    }
    loader = ChoiceLoader([FileSystemLoader(TEMPLATES), FileSystemLoader(page.TEMPLATES)])
    return (
        page.environment()
        .overlay(loader=loader)
        .get_template("catalogue.html.j2")
        .render(
            audit=name,
            mining=mining,
            candidates=candidates,
            verdicts=list(dict.fromkeys(one.verdict for one in mining.findings)),
            limits=[line.format(level=settings.level) for line in LIMITS],
            skipped=[],
            provenance=told,
            style=Markup((page.TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=Markup(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode('ascii')}'"),
        )
    )


def _exhibit(example: MinedExample) -> Exhibit:
    answers = {"expected": example.expected, "answered": example.answered}
    return Exhibit(f"item {example.item}", text=example.given, original=example.original, answers=answers)


def _shown(example: MinedExample, shrinker: Shrinker) -> ExhibitView:
    """Return an example for the page; of a long text, show the changed part, which may be far from its beginning."""
    shown = shrinker.show(_exhibit(example))
    if not (shown.text and shown.text.tail) or shown.beside:
        return shown
    return shown._replace(text=excerpt(mark_changes(example.original, example.given).pieces, HEAD))
