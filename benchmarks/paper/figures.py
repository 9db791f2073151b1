"""Figures like those of the paper, and a table, from finished audits.

The paper shows the landscape of a model over its concepts, how failures change with the repair, and the levels at which
the model fails. Here a landscape is a failure rate, not the probability that an agent chooses an action.
"""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from stages.pages.figures import AFTER, BEFORE, SMALL, Line, Point, chart, levels_axis, shares_axis
from stages.pages.maps import marginal, rate_maps, shown_concepts, top_rate
from stages.pages.page import Picture
from stages.pages.words import interval, percent, points, points_interval
from stages.records import Comparison, Difference, Landscape, audit_folder

_STYLE = (
    ":root{--line:#dfe1e4}svg{width:20rem;font:12px system-ui}figure{display:inline-block;margin:.5rem}"
    ".line{stroke:var(--line)}body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "th,td{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #ddd}"
)


class Result(NamedTuple):
    """The results of an audit that are shown.

    Args:
        name: name of the audit.
        model: the model, as params.yaml names it.
        landscape: of the model under test.
        rates: one row per cell: the concepts, `use`, rate_before with low and high, and the same after a repair.
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
        return [side for side in ("before", "after") if f"rate_{side}" in self.rates]


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
        rates = records.summarize.cells.rename(columns={one: f"{one}_before" for one in ("rate", "low", "high")})
        made = records.compare.comparison if records.compare.has("comparison") else None
        if made is not None and made.differences["target_failure_rate"].pairs:
            comparison = made
            rates = records.compare.cells
        model = str(next(iter(audit["prepare"]["model"].values())))
        found.append(Result(name, model, landscape, rates, comparison))
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


def surfaces(result: Result) -> list[Picture]:
    """Draw the landscape over the two concepts that change it most, before and after."""
    space = result.landscape.space
    spread = {name: _spread(marginal(result.rates, space, [name])["rate_before"]) for name in space.names}
    names = sorted(sorted(space.names, key=spread.__getitem__)[-2:], key=space.names.index)
    columns = [f"rate_{side}" for side in result.sides]
    top = top_rate(result.rates, space, names, columns)
    return rate_maps(result.rates, space, names, top, {f"_{side}": side for side in result.sides}, {})[0]


def _spread(rates: pd.Series) -> float:
    return float(rates.max() - rates.min())


def by_concept(result: Result) -> list[Picture]:
    """Draw the failure rate at each level of every concept, averaged over the others, before and after."""
    space, pictures = result.landscape.space, []
    for name in shown_concepts(result.rates, space, "rate_before"):
        table, lines = marginal(result.rates, space, [name]), []
        for side, colour in zip(result.sides, (BEFORE, AFTER), strict=False):
            rates = enumerate(table[f"rate_{side}"].tolist())
            lines.append(Line(side, colour, [Point(level, rate) for level, rate in rates if rate == rate]))  # noqa: PLR0124
        concept = space.concepts[space.names.index(name)]
        y = shares_axis("fails", [point.y for line in lines for point in line.points])
        pictures.append(Picture(f"Failure rate by {name}", chart(lines, levels_axis(concept), y, SMALL), name))
    return pictures


def write_page(out: Path, results: Sequence[Result], *, stand_in: bool) -> None:
    """Write the table and all figures as one self-contained file.

    Args:
        out: the page.
        results: at least one.
        stand_in: whether models and data are stand-ins for the paper's, which the page then states.
    """
    whose = "Models and data are stand-ins, not the paper's." if stand_in else "Models and data: docs/research.md."
    parts = [f"<h1>The paper's experiments as audits</h1><p>{whose}</p>", _html_table(results)]
    for result in results:
        for what, pictures in (("the landscape", surfaces(result)), ("by concept", by_concept(result))):
            parts.append(f"<h2>{html.escape(f'{result.name} ({result.model}): {what}')}</h2>")
            drawn = (f"<figure><figcaption>{html.escape(one.title)}</figcaption>{one.svg}</figure>" for one in pictures)
            parts += drawn
    head = f'<meta charset="utf-8"><title>The paper\'s experiments</title><style>{_STYLE}</style>'
    out.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>', "utf-8")


def _html_table(results: Sequence[Result]) -> str:
    head, *rows = _rows(results)
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
