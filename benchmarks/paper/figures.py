"""Figures like those of the paper, and a table, from finished audits.

The paper shows the landscape of a model over its concepts, how failures change with the repair, and the levels at which
the model fails. Here a landscape is a failure rate, not the probability that an agent chooses an action.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stages.concepts import Concept
from stages.pages.figures import AFTER, BEFORE, RATE_SCALE, Dumbbell, dumbbells, nice_ceiling, plotly_text, rounded
from stages.pages.maps import marginal, shown_concepts
from stages.pages.words import interval, percent, points, points_interval
from stages.records import Comparison, Difference, Landscape, audit_folder

_CONFIG = {"displayModeBar": False, "responsive": True}  # plotly's buttons offer an upload
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "th,td{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #ddd}"
)


class Result(NamedTuple):
    """The results of an audit that are shown.

    Args:
        name: name of the audit.
        model: the model, as params.yaml names it.
        landscape: of the model under test.
        rates: one row per cell: the concepts, `use`, `before`, and `after` if it was repaired.
        comparison: before and after; None if nothing was repaired, for lack of a repair or of failure modes.
    """

    name: str
    model: str
    landscape: Landscape
    rates: pd.DataFrame
    comparison: Comparison | None

    @property
    def sides(self) -> list[str]:
        """The available landscapes: "before" and possibly "after"."""
        return [side for side in ("before", "after") if side in self.rates]


def read_results(folder: Path, audits: Mapping[str, Any]) -> list[Result]:
    """Read the results of the audits that have any.

    Args:
        folder: the workspace.
        audits: by name, as in params.yaml.
    """
    found = []
    for name, audit in audits.items():
        records = audit_folder(name, folder)
        if not records.summarize.has("landscape"):
            continue
        landscape, comparison = records.summarize.landscape, None
        rates = records.summarize.cells.rename(columns={"rate": "before"})
        made = records.compare.comparison if records.compare.has("comparison") else None
        if made is not None and made.differences["target_failure_rate"].pairs:
            comparison = made
            rates = records.compare.cells.rename(columns={"rate_before": "before", "rate_after": "after"})
        kept = [*landscape.space.names, "use", *(side for side in ("before", "after") if side in rates)]
        model = str(next(iter(audit["prepare"]["model"].values())))
        found.append(Result(name, model, landscape, rates[kept], comparison))
    return found


def _rows(results: Iterable[Result]) -> Iterator[list[str]]:
    """Yield the header of the table, then a row for each audit."""
    yield [
        *("audit", "model", "grid fails", "failures found by the agent", "by uniform draws", "failure modes"),
        *("target modes, before", "after", "change", "control", "elsewhere, change"),
    ]
    for result in results:
        landscape, roles = result.landscape, result.landscape.search.roles
        said = [f"{one.failures:,} of {one.probes:,}" for one in (roles.get("agent"), roles.get("control")) if one]
        overall = landscape.overall
        rate = f"{percent(overall.value)} ({interval(overall.low, overall.high)})"
        row = [
            result.name,
            result.model,
            rate,
            *(said if len(said) == 2 else [percent(None), *said]),
            str(len(landscape.modes)),
        ]
        differences = result.comparison.differences if result.comparison else {}
        target, other = (differences.get(f"{part}_failure_rate") for part in ("target", "other"))
        control = target.control.after if target and target.control else None
        yield [
            *row,
            *(percent(getattr(target, side, None)) for side in ("before", "after")),
            *(_change(target), percent(control), _change(other)),
        ]


def _change(difference: Difference | None) -> str:
    return (
        f"{points(difference.change)} ({points_interval(difference.low, difference.high)})"
        if difference
        else percent(None)
    )


def table_of(results: Sequence[Result]) -> str:
    """Format the table as Markdown."""
    head, *rows = _rows(results)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def surfaces(result: Result) -> go.Figure:
    """Draw the landscape over the two concepts that change it most: a surface, or a map if levels have no order."""
    space, sides = result.landscape.space, result.sides
    spread = {name: _spread(marginal(result.rates, space, [name])["before"]) for name in space.names}
    names = sorted(sorted(space.names, key=spread.__getitem__)[-2:], key=space.names.index)
    concepts = [space.concepts[space.names.index(name)] for name in names]
    table = marginal(result.rates, space, names)
    top = nice_ceiling(table[sides].to_numpy())
    ordered = all(concept.ordered for concept in concepts)
    kind = "scene" if ordered else "xy"
    figure = make_subplots(1, len(sides), specs=[[{"type": kind}] * len(sides)], subplot_titles=sides)
    rows, columns = (_ticks(concept) for concept in concepts)
    for at, side in enumerate(sides, start=1):
        grid = [rounded(part) for part in table[side].to_numpy().reshape(len(concepts[0]), len(concepts[1]))]
        colours = {"colorscale": RATE_SCALE, "showscale": at == len(sides), "colorbar": {"tickformat": ".0%"}}
        if ordered:
            figure.add_trace(go.Surface(z=grid, cmin=0, cmax=top, **colours), 1, at)
            upright = {"title": {"text": "fails"}, "tickformat": ".0%", "range": [0, top]}
            figure.update_scenes({"xaxis": columns, "yaxis": rows, "zaxis": upright}, row=1, col=at)
        else:
            figure.add_trace(go.Heatmap(z=grid, zmin=0, zmax=top, **colours), 1, at)
            figure.update_xaxes(columns, row=1, col=at).update_yaxes(rows, row=1, col=at)
    return figure.update_layout(height=460, margin={"t": 40, "b": 40})


def _spread(rates: pd.Series) -> float:
    return float(rates.max() - rates.min())


def _ticks(concept: Concept) -> dict[str, Any]:
    labels = [plotly_text(concept.label(level), 24) or "unsaid" for level in range(len(concept))]
    return {"title": {"text": plotly_text(concept.name)}, "tickvals": list(range(len(concept))), "ticktext": labels}


def by_concept(result: Result) -> go.Figure:
    """Draw the failure rate at each level of every concept, averaged over the others, before and after."""
    space = result.landscape.space
    names = shown_concepts(result.rates, space, "before")
    figure = make_subplots(1, len(names), shared_yaxes=True)
    for at, name in enumerate(names, start=1):
        table = marginal(result.rates, space, [name])
        for side in result.sides:
            colour = {"before": BEFORE, "after": AFTER}[side]
            line = go.Scatter(
                x=table[name], y=rounded(table[side]), name=side, marker_color=colour, showlegend=at == 1,
            )  # fmt: skip
            figure.add_trace(line, 1, at)
        figure.update_xaxes(_ticks(space.concepts[space.names.index(name)]), row=1, col=at)
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero").update_layout(height=340, margin={"t": 20})


def before_and_after(results: Iterable[Result]) -> go.Figure | None:
    """Draw failure rates in the target modes and elsewhere, before and after; None if nothing was repaired."""
    rows = []
    for result in results:
        for part, said in (("target", "target modes"), ("other", "elsewhere")):
            rate = result.comparison.differences.get(f"{part}_failure_rate") if result.comparison else None
            if rate is not None:
                control = rate.control.after if rate.control else None
                name = f"{result.name}, {said}"
                rows.append(Dumbbell(name, name, rate.before, rate.after, control))
    return dumbbells(rows).update_layout(height=120 + 40 * len(rows)) if rows else None


def write_page(out: Path, results: Sequence[Result], *, stand_in: bool) -> None:
    """Write the table and all figures as one self-contained file.

    Args:
        out: the page.
        results: at least one.
        stand_in: whether models and data are stand-ins for the paper's, which the page then states.
    """
    figures: list[tuple[str, go.Figure]] = []
    if (repairs := before_and_after(results)) is not None:
        figures.append(("Failures before and after the repair", repairs))
    for result in results:
        figures.append((f"{result.name} ({result.model}): the landscape", surfaces(result)))
        figures.append((f"{result.name} ({result.model}): by concept", by_concept(result)))
    whose = "Models and data are stand-ins, not the paper's." if stand_in else "Models and data: docs/research.md."
    parts = [f"<h1>The paper's experiments as audits</h1><p>{whose}</p>", _html_table(results)]
    for at, (title, figure) in enumerate(figures):
        drawn = figure.to_html(full_html=False, include_plotlyjs=at == 0, config=_CONFIG)
        parts.append(f"<h2>{html.escape(title)}</h2>{drawn}")
    head = f'<meta charset="utf-8"><title>The paper\'s experiments</title><style>{_STYLE}</style>'
    out.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>', "utf-8")


def _html_table(results: Sequence[Result]) -> str:
    head, *rows = _rows(results)
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
