"""One self-contained page: templates, figures, and plotly itself packed into the file.

The page must open from file:// with no network, years from now, and must not run anything that came in with a
model's output. So its content security policy allows two scripts by their hash, ours and plotly, and nothing else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from stages.pages import words
from stages.pages.scales import shade

TEMPLATES = Path(__file__).parent / "templates"


class Picture(NamedTuple):
    """A figure of the page.

    Args:
        alt: what a reader learns who cannot see it.
        variants: (label, figure) for each choice of the selector; one without a selector.
        height: in pixels.
        title: printed above it; empty for none.
        selector: name of the selector that switches it. Pictures that share it switch together.
    """

    alt: str
    variants: Sequence[tuple[str, go.Figure]]
    height: int = 320
    title: str = ""
    selector: str = ""

    @property
    def json(self) -> Markup:
        """The variants for a <script type="application/json">, in which no text can end the element."""
        figures = [json.loads(figure.to_json()) for _, figure in self.variants]
        for figure in figures:
            figure["layout"].pop("template", None)
        text = json.dumps(figures, ensure_ascii=False, separators=(",", ":"))
        return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def rate_style(rate: Any, top: float) -> str:
    """CSS for a table cell coloured like the pictures."""
    if not words.is_number(rate):
        return ""
    red, green, blue = shade(float(rate), top)
    ink = "#000" if rate / top > 0.6 else "#fff"
    return f"background:rgb({red},{green},{blue});color:{ink}"


def _source_hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js as base64 of its gzip, and its hash; the same bytes on every run."""
    source = get_plotlyjs()
    packed = gzip.compress(source.encode(), 9, mtime=0)
    return base64.b64encode(packed).decode("ascii"), _source_hash(source)


@cache
def environment() -> Environment:
    """The templates of this package, with the filters and functions they use."""
    env = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    env.filters |= {
        "pct": words.percent,
        "points": words.points,
        "number": words.number,
        "times": words.times,
        "words": words.words,
    }
    env.globals |= {
        "interval": words.interval,
        "points_interval": words.points_interval,
        "rate_style": rate_style,
        "is_number": words.is_number,
    }
    return env


def render(template: str, out: Path, **context: Any) -> None:
    """Render a template of this package with its scripts and write the page to `out`."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    packed, plotly_hash = _plotly()
    html = (
        environment()
        .get_template(template)
        .render(
            script=Markup(script),
            style=Markup(style),
            plotly=Markup(packed),
            script_hashes=Markup(f"{_source_hash(script)} {plotly_hash}"),
            **context,
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8", newline="\n")
