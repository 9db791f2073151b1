"""Changes that add mined findings to an audit: lines of params.yaml and a file of items they refer to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.files import read_table, replace_file, stage_dir
from stages.mining import Finding, Mining
from stages.params import AuditConfig

_BY = "faded mine"
_FIELDS = ("id", "split", "question", "context", "answers", "pattern", "article", "reference")  # of an item


def propose(name: str, audit: AuditConfig, mining: Mining, path: Path) -> str:
    """Return lines of params.yaml that would add the findings to an audit; empty if there are none.

    Args:
        name: name of the audit.
        audit: its block of params.yaml.
        mining: the results.
        path: where to write the file of items, if the lines refer to one; removed if they do not.
    """
    items = read_table(stage_dir(name, "prepare") / "items.parquet")
    path.unlink(missing_ok=True)
    if "template" in items:
        return _prompts(name, audit, mining.confirmed)
    if not (found := [one for one in mining.confirmed if one.text_facts]):
        return ""
    lines = _lines(items, found)
    told = [json.dumps(line, ensure_ascii=False, default=lambda value: value.tolist()) for line in lines]
    replace_file(path, ("\n".join(told) + "\n").encode())
    fields = {"jsonl": f"{name}-mined.jsonl"}
    if "article" in items:
        fields |= {"text": "article", "split": "split"}
        fields |= {"summary": "reference"} if (items["reference"] != "").all() else {}
    count = sum(line["split"] == "discover" for line in lines)
    return (
        f"cp {path} data/{name}/inputs/{fields['jsonl']}\n\naudits:\n  {name}:\n    prepare:\n"
        f"      data: {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}   # proposed by {_BY}\n"
        f"      items: {{discover: {count}}}\n{_marks({one.told: _BY for one in found})}"
    )


def _marks(told: Mapping[str, str]) -> str:
    """Return the line that marks these fields or slots as proposed, for reports."""
    return f"    proposed: {json.dumps(told, ensure_ascii=False)}"


def _lines(items: pd.DataFrame, found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return all items and the failed changed texts as lines of a data file, with one field for each finding."""
    kept = [name for name in _FIELDS if name in items]
    rows = {row["id"]: {k: v for k, v in row.items() if len(v)} for row in items[kept].to_dict("records")}
    lines = [
        row
        | ({one.told: "yes" if item in one.said_by else "no" for one in found} if row["split"] == "discover" else {})
        for item, row in rows.items()
    ]
    column = "question" if "question" in items else "article"
    for one in found:
        for example in one.examples if one.replaced else []:
            changed = {"id": f"{example.item} {one.told}", column: example.text}
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
