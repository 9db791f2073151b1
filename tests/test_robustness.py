"""Smallest failing changes in words: shares, directions, and the report's section."""

from __future__ import annotations

import pandas as pd

from stages.concepts import Region
from stages.landscape.robustness import reached, summarize_robustness
from stages.records.landscape import Minimal
from stages.records.search import Walks
from tests.test_microscopic import SPACE


def hand_made() -> pd.DataFrame:
    """Two items fail by tilt alone, one by tilt and fog, one unchanged, and one not within four steps."""
    rows = [
        ("i0", "found", 2, 3, 2, 0, 0), ("i1", "found", 3, 3, 3, 0, 0), ("i2", "found", 5, 3, 3, 2, 0),
        ("i3", "fails unchanged", 0, 0, 0, 0, 0), ("i4", "not found", None, 4, None, None, None),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["item", "status", "radius", "searched", *SPACE.names])
    table["at_least"] = [2, 1, 1, 0, 2]
    table["tried_alone"] = [True, True, True, False, True]
    return table.assign(alone_tilt=[2, 3, None, None, None], alone_fog=None, alone_dust=None).astype(
        dict.fromkeys(("radius", *SPACE.names, "alone_tilt", "alone_fog", "alone_dust"), "Int64")
    )


def test_shares_go_as_far_as_all_items_were_searched() -> None:
    summary = summarize_robustness(hand_made(), SPACE, Walks(method="beam", probes=77, items=5))
    assert summary is not None
    assert [entry.value for entry in summary.within] == [0.2, 0.2, 0.4, 0.6, 0.6]  # i4 is unknown from 5 on
    assert summary.median_radius == 3 and summary.proven == 1
    tilt, fog, dust = summary.directions
    assert (tilt.concept, tilt.used, tilt.mean_steps, tilt.alone_median_steps) == ("tilt", 3, 8 / 3, 2.5)
    assert (tilt.alone.value, tilt.alone.n) == (0.5, 4)  # among those that pass unchanged
    assert (fog.used, fog.mean_steps, dust.used, dust.mean_steps) == (1, 2, 0, None)
    assert [(e.concepts, e.items) for e in summary.together] == [(["tilt"], 2), (["tilt", "fog"], 1)]


def test_modes_are_told_what_ends_in_them() -> None:
    strong = Region({"tilt": (3, 4, 5)})
    assert reached(hand_made(), SPACE, strong) == Minimal(reached=2, of=3, median_radius=4.0)
    assert reached(hand_made(), SPACE, Region({"dust": (5,)})) == Minimal(reached=0, of=3, median_radius=None)
