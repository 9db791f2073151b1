"""Items that belong together, like prompts of one template: intervals are for new groups like these."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stages.concepts.space import Concept, ConceptSpace
from stages.core.intervals import Resampler, share, wilson
from stages.explorers.prober import Prober
from stages.tasks.classification.pool import Decoded, Pool, choose_items
from stages.tasks.contract import Items
from stages.tasks.sources import ItemCounts
from stages.tasks.text_to_image.items import FEWEST
from tests.planted import PlantedTask

RUNS, RATE, EFFECT = 200, 0.2, 0.12  # half of the groups fail at 32%, half at 8%


def coverage(groups: int, *, by_group: bool) -> float:
    """The share of simulated audits whose 95% interval contains the rate of all possible groups."""
    rng, held = np.random.default_rng(groups), 0
    items = np.repeat(np.arange(60), 5)  # five probes each
    of = items % groups
    for run in range(RUNS):
        rates = RATE + EFFECT * rng.choice([-1, 1], groups)
        failed = (rng.random(len(items)) < rates[of]).astype(float)
        found = Resampler(items, 500, run, of if by_group else None).mean(failed, np.ones(len(items)), (0, 1))
        held += found.low <= RATE <= found.high
    return held / RUNS


def test_intervals_hold_what_they_should_if_groups_are_resampled():
    assert coverage(FEWEST["test"], by_group=True) >= 0.93
    assert coverage(20, by_group=True) >= 0.93
    assert coverage(FEWEST["test"], by_group=False) < 0.88


def test_a_share_of_probes_resamples_groups_where_there_are_some():
    probes = pd.DataFrame({"item": [f"i{n}" for n in range(40)], "failed": np.repeat([True, False], [10, 30])})
    failed = probes["failed"].to_numpy()
    assert share(failed, probes) == wilson(10, 40)
    grouped = share(failed, probes.assign(group=np.repeat(list("abcd"), 10)))
    assert grouped.value == 0.25 and grouped.high - grouped.low > 0.4


def task(group: list[str] | None) -> PlantedTask:
    """Four items on a grid of six cells: the first two fail everywhere."""
    table = pd.DataFrame({"id": list("pqrs"), "split": "test", "label": ["x", "x", "y", "y"]})
    items = Items(table if group is None else table.assign(group=group))
    space = ConceptSpace((Concept("fog", (0, 1, 2)), Concept("rain", (0, 1))))
    return PlantedTask(items, space, {"regions": [{"label": ["x"]}], "noise": 0.0}, seed=0)


def whole(group: list[str] | None) -> pd.DataFrame:
    """All pairs of an item and a cell."""
    asked = task(group)
    prober = Prober(asked, list("pqrs"), 24)
    prober.ask(np.repeat(np.arange(4), 6), np.tile(asked.concepts.cells(), (4, 1)))
    return prober.table().assign(role="control")


def test_probes_say_to_which_group_their_item_belongs():
    table = whole(["g", "g", "h", "i"])
    assert table.groupby("item")["group"].first().tolist() == ["g", "g", "h", "i"]
    assert "group" not in whole(None)


def test_crops_of_a_photo_are_a_group():
    pictures = Decoded(np.zeros((6, 1, 4, 4), dtype=np.uint8))
    ids, photos = [f"{n}" for n in range(6)], ["a", "a", "b", "b", "c", "c"]
    counts = ItemCounts(discover=4)
    found = [
        choose_items(Pool(pictures, np.zeros(6, dtype=np.int64), ids, groups), counts, ["cat"], 0, (1, 4, 4))
        for groups in (photos, ids)
    ]
    assert found[0]["group"].value_counts().tolist() == [2, 2] and "group" not in found[1]
