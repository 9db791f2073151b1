"""The cells of a landscape that fail most and least; a file of its own, as the report needs it and nothing heavier."""

from __future__ import annotations

import pandas as pd

from stages.concepts import ConceptSpace

EXTREME_CELLS = 4  # shown of the best, and of the worst
NEAREST, KINDS, UNCHANGED = "nearest", "kinds", "unchanged"  # of extremes.parquet, beside "worst" and "best"


def extreme_cells(space: ConceptSpace, cells: pd.DataFrame, probes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The cells with the highest and the lowest estimated rate, with an item that was asked there if there is one.

    Of cells with the same rate those probed most come first. A bad cell is shown failing if it was seen to, a good one
    passing.

    Returns:
        "worst" and "best", each the most extreme cell first: columns of the concepts, `rate`, `low`, `high`, `item`. No
        cell is in both.
    """
    names, n = space.names, min(EXTREME_CELLS, len(cells) // 2)
    probes = probes[probes["valid"]] if "valid" in probes else probes
    sides = {}
    for side, falling in (("worst", True), ("best", False)):
        rows = cells.sort_values(["rate", "probes"], ascending=[not falling, False], kind="stable").head(n)
        cells = cells.drop(index=rows.index)
        asked = probes.sort_values("failed", ascending=not falling, kind="stable").drop_duplicates(names)
        sides[side] = rows[[*names, "rate", "low", "high"]].merge(asked[[*names, "item"]], on=names, how="left")
    return sides
