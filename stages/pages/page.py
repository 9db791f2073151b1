"""A self-contained page: templates, pictures, and one script, without which all of it can be read and printed.

The page must open from file:// without a network, years from now, and must not run anything contained in a model's
output. So its content security policy allows only our script, by its hash.

The card of a repaired model is one too: the README of the repair, followed by its evaluation before and after.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.concepts import ConceptSpace
from stages.pages import words
from stages.pages.words import decided_by, gate_view, verdict_text
from stages.records import Comparison, Plan, RepairVerdict
from stages.records.slices import others_than

if TYPE_CHECKING:
    import pandas as pd


TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 5_000_000  # of a whole page
_CONTENTS = '<nav aria-label="Contents">'
_SECTION = re.compile(r'<section id="(\w+)"[^>]*>(?:<details><summary>)?\n?<h2>(.*?)</h2>')
_FORMULA = r"^(?=[=+\-@\t\r])"  # cells that a spreadsheet would evaluate


class Picture(NamedTuple):
    """A chart: a description for readers who cannot see it, the drawing, its title, and what is said below it."""

    alt: str
    svg: Markup
    title: str = ""
    said: str = ""


@cache
def environment() -> Environment:
    """Return the templates of this package, with the filters and functions they use."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    env.filters |= {
        "pct": words.percent,
        "rate": words.with_interval,
        "points": words.points,
        "number": words.number,
        "score": words.score,
        "p_value": words.p_value,
        "listed": words.listed,
        "times": words.times,
        "words": words.words,
        "marked": words.marked,
        "flatten": words.flatten,
        "decided_by": decided_by,
        "gate_view": gate_view,
        "verdict_text": verdict_text,
        "with_contents": _with_contents,
    }
    env.globals |= {
        "interval": words.interval,
        "points_interval": words.points_interval,
        "score_digits": words.score_digits,
        "is_number": words.is_number,
        "others_than": others_than,
        "glossary": {words.anchor(word): (word, meaning) for word, meaning in words.GLOSSARY.items()},
        "term": words.term,
    }
    return env


def _with_contents(page: str) -> Markup:
    """Fill a page's table of contents, if it has one, with links to its sections; texts in it are escaped by now."""
    links = "".join(f'<a href="#{section}">{title}</a>' for section, title in _SECTION.findall(page))
    return Markup(str(page).replace(_CONTENTS, f"{_CONTENTS}{links}", 1))


def html_of(template: str, *, scripts: bool = True, **context: Any) -> str:
    """Render a template of this package as a page; without `scripts` it runs nothing."""
    names = ("report.js", "explorer.js") if scripts else ()
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        environment()
        .get_template(template)
        .render(
            script=Markup(script),
            style=Markup(style),
            script_hash=Markup(f"'sha256-{digest}'" if scripts else "'none'"),
            **context,
        )
    )


def render(template: str, out: Path, **context: Any) -> None:
    """Write a page from a template of this package to `out`."""
    save(out, html_of(template, **context))


def save(out: Path, html: str) -> None:
    """Write a page."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8", newline="\n")


def json_block(data: Any) -> Markup:
    """Return data for a <script type="application/json">, escaped so that no text can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def packed(data: bytes) -> str:
    """Return the base64 of the gzip; the same bytes on every run."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


class PackedTable(NamedTuple):
    """A CSV file inside a page: the compressed data, the number of rows included, and the total."""

    data: str
    rows: int
    of: int


def not_computed(table: pd.DataFrame, texts: Iterable[str]) -> pd.DataFrame:
    """Return a table of which no spreadsheet computes a text: what begins like a formula has an apostrophe in front."""
    quoted = {name: table[name].astype(str).str.replace(_FORMULA, "'", regex=True) for name in texts}
    return table.assign(**quoted).rename(columns=lambda name: re.sub(_FORMULA, "'", name))


def pack_probes(probes: pd.DataFrame, space: ConceptSpace, room: int) -> PackedTable:
    """Pack all probes with readable levels, or a random sample of them if not all fit.

    Args:
        probes: as in discover's probes.parquet.
        room: bytes available in the page.
    """
    before = [name for name in ("role", "item", "repeat") if name in probes]
    after = [name for name in ("output", "discrepancy", "failed", "valid") if name in probes]
    table = probes[[*before, *space.names, *after]].copy()
    for concept in space.concepts:
        table[concept.name] = table[concept.name].map(dict(enumerate(map(concept.label, range(len(concept))))))
    table = not_computed(table, table.columns.difference(["repeat", "discrepancy", "failed", "valid"]))
    table["discrepancy"] = table["discrepancy"].round(4)
    kept, data = table, packed(table.to_csv(index=False).encode())
    while len(data) > room:
        kept = table.sample(int(0.95 * len(kept) * room / len(data)), random_state=0).sort_index()
        data = packed(kept.to_csv(index=False).encode())
    return PackedTable(data, len(kept), len(table))


_NAMES = {
    "target_failure_rate": "failures in the target modes",
    "other_failure_rate": "failures in all other cells",
    "failure_rate": "failures overall",
    "target_not_passing": "failing or invalid in the target modes",
    "other_not_passing": "failing or invalid in all other cells",
    "newly_failing": "newly failing (passed before, fails now)",
    "fixed": "fixed (failed before, passes now)",
}


def model_card(
    readme: str | None, comparison: Comparison, verdict: RepairVerdict, plan: Plan, loader: str | None = None
) -> str:
    """Return the whole card.

    Args:
        readme: the README of the repair, which for an adapter names its base model; None if there is none.
        loader: load.py of the repaired model's folder; None if there is none.
    """
    text = readme.rstrip() if readme else f"# Repaired model of the audit {verdict.audit}"
    # What was measured comes before what the training says of itself.
    head, *rest = re.split(r"\n(?=## )", text, maxsplit=1)
    parts = [head, evaluation_section(comparison, verdict, plan), *rest]
    if loader:
        parts.append(f"## How to load it\n\n`load.py` in this folder:\n\n```python\n{loader.rstrip()}\n```")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def evaluation_section(comparison: Comparison, verdict: RepairVerdict, plan: Plan) -> str:
    """Return the comparison as Markdown: the table, the gates, who decided on which landscape, and the limits."""
    markdown = environment().overlay(autoescape=False)
    markdown.filters = markdown.filters | {"line": _line}
    template = markdown.get_template("model_card.md.j2")
    return template.render(comparison=comparison, verdict=verdict, plan=plan, names=_NAMES).lstrip() + "\n"


def _line(text: str) -> str:
    """Put a user's text on one line of a table and escape it, so that none of its Markdown or HTML takes effect."""
    plain = " ".join(str(text).split()).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`\[\]*_])", r"\\\1", plain)
