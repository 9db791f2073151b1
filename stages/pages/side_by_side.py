"""The page of `faded compare`: the searches of several results in one picture, and their rates in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from stages.intervals import Rate
from stages.landscape.head_to_head import HeadToHead
from stages.pages.page import render
from stages.pages.searches import searches_of
from stages.records import Searches

LIMITS = (
    "An agent looks for failures: how many it finds says how good the search is, not how often the model fails.",
    "Failure rates are those in use, as each audit states or assumes it: the control's probes, weighted.",
    "Intervals are 95% intervals of each result by itself. Overlapping intervals do not show that results are alike: "
    "models that share a grid are paired on their common probes instead, where there are any.",
    "The rate of a level is averaged over all other concepts of its own grid, as they occur in use.",
)


def write_side_by_side(
    out: Path,
    *,
    results: Mapping[str, tuple[pd.DataFrame, Searches]],
    found: Sequence[tuple[str, Sequence[int | str | None]]],
    rates: Sequence[tuple[str, Sequence[Rate]]],
    differs: Sequence[tuple[str, Sequence[int | str | None]]],
    paired: HeadToHead | None,
    notes: Sequence[str],
) -> None:
    """Write several results side by side as one self-contained page.

    Args:
        out: the page.
        results: by name, the probes of a result, as in discover's probes.parquet, and the numbers of its search.
        found: rows of the table on the searches, with a value for each result.
        rates: the same for rates.
        differs: the same for the settings in which the results differ.
        paired: the models on their common probes; None if there is no such comparison.
        notes: caveats.
    """
    render(
        "side_by_side.html.j2",
        out,
        names=list(results),
        search=searches_of(results),
        found=found,
        rates=rates,
        differs=differs,
        paired=paired,
        notes=[f"{note[0].upper()}{note[1:]}." for note in notes],
        skipped=[],
        provenance=[],
        limits=LIMITS,
    )
