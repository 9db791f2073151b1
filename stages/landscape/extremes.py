"""The cells of a landscape that fail most and least; a separate file, because the report must not import more."""

import pandas as pd

from stages.concepts import ConceptSpace

EXTREME_CELLS = 4  # shown on each side
NEAREST, KINDS, UNCHANGED = "nearest", "kinds", "unchanged"  # in extremes.parquet, beside "worst" and "best"


def extreme_cells(space: ConceptSpace, cells: pd.DataFrame, probes: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the cells with the highest and the lowest estimated rate, with an item probed there if there is one.

    Cells with equal rates are ordered by their probes, most first. A bad cell shows a failing item if possible, a good
    one a passing item.

    Returns:
        "worst" and "best", each with the most extreme cell first, and columns for the concepts, `rate`, `low`, `high`,
        `item`. No cell is in both.
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
