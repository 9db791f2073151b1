"""Failure modes for some items only: found, confirmed against all others, repaired and measured."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks.planted_shapes import ToldApart, judged
from benchmarks.study.landscapes import normal_noise
from stages.concepts import Concept, ConceptSpace, Region
from stages.core.errors import UsageError
from stages.landscape.confirm import Fresh, confirm
from stages.landscape.describe import name_modes
from stages.landscape.estimate import estimate_landscape
from stages.landscape.kinds import Kind, Rates, _learn, rates_of
from stages.landscape.modes import _merge, find_regions
from stages.landscape.pairs import covered_shares, draw_pairs
from stages.landscape.slices import measure_slices
from stages.landscape.summary import conditions
from stages.params import SummarizeConfig
from stages.records import audit_folder
from stages.records.landscape import RegionRecord
from stages.tasks.contract import TargetMode
from stages.tasks.training import PairSampler
from tests.test_re_evaluate import audited, repaired

SPACE = ConceptSpace((Concept("tilt", tuple(range(5)), neutral=0), Concept("fog", tuple(range(5)), neutral=0)))
IDS = [f"i{k:02d}" for k in range(40)]
LABELS = pd.DataFrame({"label": [str(k % 4) for k in range(40)]}, index=IDS)
CORNER = Region({"tilt": (3, 4), "fog": (3, 4)}, {"label": ("2",)})


def known(rates: np.ndarray) -> Rates:
    """Rates of four labels, (labels, cells), each of a quarter of the items."""
    having = np.stack([(LABELS["label"] == value).to_numpy() for value in "0123"])
    everything = Kind((), [()], np.ones((1, 40), dtype=bool), rates.mean(axis=0)[None])
    labels = Kind(("label",), [(value,) for value in "0123"], having, rates)
    cells = SPACE.cells()
    return Rates(SPACE, cells, SPACE.density(cells), LABELS, (everything, labels))


def failing(region: Region, high: float = 0.9, low: float = 0.1) -> np.ndarray:
    """Rates of labels, (labels, cells): high inside the region."""
    inside = region.in_box(SPACE, SPACE.cells())
    about = [not region.items or value in region.items["label"] for value in "0123"]
    return np.where(np.outer(about, inside), high, low)


def test_a_region_holds_some_items_in_some_cells():
    cells = SPACE.cells()
    assert CORNER.about(LABELS).sum() == 10 and CORNER.in_box(SPACE, cells).sum() == 4
    of_items = LABELS.iloc[[2, 3, 2]]
    assert CORNER.contains(SPACE, np.array([[4, 4], [4, 4], [0, 4]]), of_items).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="about items by label"):
        CORNER.contains(SPACE, cells)
    assert CORNER.describe(SPACE) == "label is 2 and tilt >= 3 and fog >= 3"
    assert CORNER.to_json() == {"tilt": [3, 4], "fog": [3, 4], "label": ["2"]}
    assert Region.from_json(CORNER.to_json()) == CORNER
    told = {"id": "M1", "region": CORNER.to_json(), "text": "", "probes": 1, "failures": 1, "estimate": 1, "share": 0.1}
    assert RegionRecord.model_validate(told).cells == CORNER


def test_what_fails_is_named_with_whose_it_is():
    for cells, *labels in (({"tilt": (2, 3, 4)}, "0"), ({}, "3"), ({"tilt": (3, 4)},), ({"fog": (4,)}, "1", "2")):
        region = Region(cells, {"label": tuple(labels)} if labels else {})
        assert find_regions(known(failing(region)), SummarizeConfig()) == [region]
    assert find_regions(known(failing(CORNER)), SummarizeConfig()) == [CORNER]


@pytest.mark.parametrize("times", [1.1, 1.4])
def test_a_label_has_to_earn_its_place(times):
    """One label fails more often in the corner, but all do: its own level is higher, so the label explains less."""
    rates = failing(Region(CORNER.allowed), high=0.6)
    rates[2] = np.clip(rates[2] * times, 0, 1)
    assert find_regions(known(rates), SummarizeConfig()) == [Region(CORNER.allowed)]


def test_a_condition_on_some_items_has_to_raise_the_quality_by_more_than_noise_does():
    """One level of fog is slightly below what supports the region."""
    region = Region({"tilt": (3, 4)}, {"label": ("2",)})
    rates = failing(region, high=0.8)
    rates[2, region.in_box(SPACE, SPACE.cells()) & (SPACE.cells()[:, 1] == 0)] = 0.33
    assert find_regions(known(rates), SummarizeConfig()) == [region]


def test_a_label_is_not_merged_into_a_place_where_all_others_fail_less():
    regions = [CORNER, Region(CORNER.allowed)]
    assert _merge(known(failing(CORNER)), regions) == regions
    assert _merge(known(failing(Region(CORNER.allowed))), regions) == regions[1:]


def test_a_label_that_fails_alone_moves_no_edge_of_what_all_fail_on():
    """By the label's own level, the weaker half of the corner would be assigned to some labels only."""
    rates = failing(Region({"tilt": (3, 4)}), high=0.4)
    rates[:, SPACE.cells()[:, 0] == 4] = 0.6
    rates[2, SPACE.cells()[:, 1] == 0] = 1.0
    assert Region({"tilt": (3, 4)}) in find_regions(known(rates), SummarizeConfig())


def test_a_class_in_a_corner_is_cut_out_of_what_fails_a_little_around_it():
    """All fail at 12% and the label at 22% of the rest; by its level alone the whole label would be named."""
    rates = failing(CORNER, high=0.7, low=0.12)
    rates[2] = np.where(rates[2] < 0.5, 0.22, rates[2])
    assert CORNER in find_regions(known(rates), SummarizeConfig())


def crossed(fails: Callable[[pd.DataFrame], pd.Series]) -> Rates:
    """Rates learnt from 5 probes of each of 240 items, which have a region, an age and a colour."""
    rng, ids = np.random.default_rng(0), [f"i{k:03d}" for k in range(240)]
    values = {"region": ["north", "south", "east", "west"], "age": ["old", "young", "child"], "colour": ["red", "blue"]}
    attributes = pd.DataFrame({name: rng.choice(some, 240) for name, some in values.items()}, index=ids)
    probes = pd.DataFrame(SPACE.sample(1200, rng), columns=SPACE.names).assign(item=ids * 5, repeat=0, role="control")
    probes["failed"] = rng.random(1200) < fails(attributes.loc[probes["item"]]).to_numpy()
    probes["discrepancy"] = np.where(probes["failed"], 0.5, -0.5)
    landscape = estimate_landscape(probes, ids, rng.normal(size=(240, 2)), SPACE, threshold=0.0, seed=0)
    return rates_of(landscape, SPACE, probes, attributes)


def test_two_attributes_that_fail_together_are_named_together():
    """The old fail at 29% and the north at 22%: neither is as bad as the old of the north."""
    rates = crossed(lambda of: 0.1 + 0.6 * ((of["region"] == "north") & (of["age"] == "old")))
    pair = Region({}, {"region": ("north",), "age": ("old",)})
    assert find_regions(rates, SummarizeConfig())[0] == pair
    assert rates.rate(pair) == pytest.approx(0.7, abs=0.1) and rates.rate(Region({}, {"age": ("old",)})) < 0.4
    unknown = Region({}, {"region": ("north",), "age": ("old", "nobody")})
    assert rates.rate(unknown) == pytest.approx(rates.rate(pair)), "nobody has the other value"


def test_an_attribute_that_fails_whatever_the_others_are_is_not_searched_with_them():
    rates = crossed(lambda of: 0.1 + 0.5 * (of["region"] == "north"))
    assert [kind.attributes for kind in rates.kinds] == [(), ("region",), ("age",), ("colour",)]


def test_more_kinds_than_trees_can_tell_apart_without_an_order_are_learnt_all_the_same():
    rng, kinds = np.random.default_rng(0), 300
    of = np.repeat(np.arange(kinds), 10)
    probes = pd.DataFrame(SPACE.sample(len(of), rng), columns=SPACE.names).assign(item=of.astype(str), failed=of < 60)
    rates = _learn(probes, of, kinds, SPACE, SPACE.cells()).mean(axis=1)
    assert rates[:50].min() > 0.5 > rates[70:].max()


def asked(rate: float, others: float):
    """The result of `confirm` for a corner where the label, and all others in the same cells, fail with these rates."""
    rng = np.random.default_rng(0)

    def ask(items: np.ndarray, cells: np.ndarray) -> pd.DataFrame:
        mine = LABELS["label"].to_numpy()[items] == "2"
        table = pd.DataFrame(cells, columns=SPACE.names).assign(item=np.array(IDS)[items])
        return table.assign(failed=rng.random(len(items)) < np.where(mine, rate, others))

    control = pd.DataFrame({"item": np.arange(1000), "failed": np.arange(1000) < 150})
    return confirm(known(failing(CORNER)), [CORNER], control, Fresh(200, ask), seed=0)


def test_it_has_to_fail_more_often_than_the_grid_and_than_all_other_items():
    ((mode,), fresh) = asked(0.8, 0.1)
    assert mode.confirmed and mode.share == pytest.approx(0.25 * 4 / 25)
    roles = fresh.groupby("role")["item"].agg(["size", lambda ids: set(LABELS.loc[ids, "label"])])
    assert roles.loc["test"].tolist() == [40, {"2"}], "all pairs there are"
    assert roles.loc["others"].tolist() == [66, {"0", "1", "3"}]
    assert roles.loc["measure"].tolist()[1] == {"2"} and mode.rate.n == roles.loc["measure"].tolist()[0]
    ((alike,), _) = asked(0.8, 0.8)
    assert not alike.confirmed, "all fail there: whose failures they are is not known"
    ((harmless,), _) = asked(0.15, 0.15)
    assert not harmless.confirmed


def test_other_items_asked_there_are_not_counted_in_the_mode():
    (_, fresh) = asked(0.8, 0.1)
    few = {"item": IDS, "tilt": 0, "fog": 0, "failed": False, "valid": True, "output": "", "role": "control"}
    modes = {"S1": CORNER, "M1": CORNER}
    found = measure_slices(pd.DataFrame(few), IDS, LABELS, SPACE, fresh, modes, exact=False, seed=0)
    own = {one.value: one.probes for one in found.modes["M1"][0].values}
    assert own["2"] == (fresh["role"] != "others").sum() and sum(own.values()) == own["2"]


def test_of_an_enumerated_grid_the_items_are_compared_with_all_others():
    ids = [f"i{k:02d}" for k in range(80)]
    labels = pd.concat([LABELS, LABELS]).set_axis(ids)
    items, cells = np.repeat(np.arange(80), 25), np.tile(SPACE.cells(), (80, 1))
    inside = CORNER.contains(SPACE, cells, labels.iloc[items])
    failed = np.random.default_rng(0).random(len(items)) < np.where(inside, 0.9, 0.05)
    probes = pd.DataFrame(cells, columns=SPACE.names).assign(
        item=np.array(ids)[items], repeat=0, role="control", failed=failed, discrepancy=np.where(failed, 0.5, -0.5)
    )
    evidence, how = (probes, ids, np.eye(80), SPACE), {"threshold": 0.0, "seed": 0}
    landscape = estimate_landscape(*evidence, **how)
    limits, none_kept = SummarizeConfig(), Fresh(0, lambda *_: pd.DataFrame())
    modes, _ = name_modes(landscape, *evidence, limits, **how, fresh=none_kept, attributes=labels)
    (mode,) = [mode for mode in modes if mode.confirmed]
    assert mode.region == CORNER and (mode.rate.n, mode.failures) == (80, failed[inside].sum())


class OneClass(ToldApart):
    """A model that fails on 60 to 80% of one class in a corner of two concepts, and on some 12% of everything else.

    If not `planted`, the corner fails for all classes alike.
    """

    def __init__(self, seed: int, *, planted: bool = True) -> None:
        rng = np.random.default_rng([77, seed])
        levels, concepts = 7, [f"c{j}" for j in range(5)]
        space = ConceptSpace(tuple(Concept(name, tuple(range(levels)), neutral=0) for name in concepts))
        labels = np.repeat(np.arange(10), 10)
        centres = 1.5 * rng.normal(size=(10, 8))
        super().__init__(space, centres[labels] + rng.normal(size=(len(labels), 8)), len(labels))
        weak = str(rng.integers(10))
        corner = {
            concepts[j]: tuple(range(int(levels - rng.integers(2, 4)), levels))
            for j in rng.choice(len(concepts), 2, replace=False)
        }
        self.attributes = pd.DataFrame({"label": labels.astype(str)}, index=self.items.table["id"])
        self.region = Region(corner, {"label": (weak,)} if planted else {})
        self._slopes, self._taste = rng.normal(0, 0.25, len(concepts)), rng.normal(0, 0.12, len(labels))

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        inside = self.region.contains(self.concepts, cells, self.attributes.iloc[items])
        mean = (cells / 6 - 0.5) @ self._slopes + self._taste[items] - 1.25 + 1.75 * inside
        return np.clip(0.3 * (mean + normal_noise(self.concepts, items, cells)), -1.0, 1.0).astype(np.float32)

    def named(self) -> set[str]:
        """The classes that failure modes are about."""
        _, modes = judged(self, 8, 700)
        return {value for mode in modes if mode.confirmed for value in mode.region.items.get("label", ())}


@pytest.mark.slow
def test_a_planted_class_is_named_and_none_where_all_fail_alike():
    task = OneClass(8)
    assert task.named() == set(task.region.items["label"])
    assert not OneClass(8, planted=False).named()


def test_common_pairs_lie_on_the_right_side_and_strata_are_weighed_by_items():
    wide = Region({"tilt": (4,)})
    items, cells = draw_pairs(SPACE, LABELS, [CORNER, wide], 30, seed=0)
    inside = CORNER.contains(SPACE, cells, LABELS.iloc[items]) | wide.contains(SPACE, cells)
    assert inside.tolist() == [True] * 30 + [False] * 30
    shares = covered_shares(SPACE, [CORNER, wide], LABELS, seed=0)
    assert shares.tolist() == [(5 + 2 * (k % 4 == 2)) / 25 for k in range(40)]


def test_a_repair_learns_from_the_items_a_mode_is_about():
    rng = np.random.default_rng(0)
    targets = [TargetMode("M1", CORNER, 3.0), TargetMode("M2", Region({"fog": (0,)}))]
    rows, cells = PairSampler(SPACE, targets, LABELS).draw(400, rng)
    first = cells[:, 1] > 0
    assert first.mean() == pytest.approx(0.75, abs=0.06)
    about = LABELS["label"].to_numpy()[rows] == "2"
    assert about[first].mean() == pytest.approx(0.5, abs=0.01), "as many others, or the label alone were learnt"
    assert set(rows) == set(rows[~first]) == set(range(40))
    with pytest.raises(UsageError, match="about none of the 40 items"):
        PairSampler(SPACE, [TargetMode("M1", Region({}, {"label": ("7",)}))], LABELS)


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    """An audit of a model that fails on one label of three if it is tilted; its repair has not run yet."""
    with pytest.MonkeyPatch.context() as patch:
        items = {"discover": 60, "repair": 30, "test": 90}
        planted = {"tilt": [3, 4], "label": ["1"]}
        place, task = tmp_path_factory.mktemp("audit"), "planted:PlantedTask"
        yield audited(place, patch, task, regions=[planted], items=items, budget=1500)
    sys.modules.pop("planted", None)


@pytest.mark.slow
def test_from_search_to_verdict_a_mode_keeps_whose_failures_it_is(audit):
    (mode,) = audit_folder("tiny").summarize.landscape.modes
    assert (mode.text, mode.region) == ("label is 1 and tilt >= 3", {"tilt": [3, 4], "label": ["1"]})
    in_use = 1.1 / 4 * 2 / 4 / 3  # 1.1 of 4 concepts change in use, to each of 4 levels alike; a third of items are 1
    assert mode.rate > 0.95 and mode.share == pytest.approx(in_use)
    probed = audit_folder("tiny").discover.embedded.told_apart["label"]
    assert {probed[example.item] for example in mode.examples} == {"1"}
    assert "label is 1 and tilt &gt;= 3" in (audit / "data/tiny/report/report.html").read_text()
    verdict = repaired([], control=[mode.region])
    rates = verdict["differences"]["target_failure_rate"]
    assert rates["before"] > 0.95 and rates["after"] < 0.1 and rates["control"]["repair_minus_control"]["value"] < -0.8
    overall = verdict["differences"]["failure_rate"]["before"]
    assert overall == pytest.approx(in_use + 0.03, abs=0.02), "weighed by use and items"
    pairs = pd.read_parquet(audit / "data/tiny/re_evaluate/probes.parquet")
    pairs = pairs[(pairs["purpose"] == "paired") & (pairs["model"] == "before")]
    label = audit_folder("tiny").re_evaluate.embedded.told_apart.loc[pairs["item"], "label"].to_numpy()
    inside = (pairs["tilt"].to_numpy() >= 3) & (label == "1")
    assert (inside.sum(), (~inside).sum()) == (400, 400)


def test_no_mode_is_about_what_items_of_another_split_do_not_have():
    labels = {"discover": ["a", "b", "c"], "repair": ["a", "b"], "test": ["a", "c"]}
    task = SimpleNamespace(items=SimpleNamespace(ids=lambda split: labels[split]), concepts=SPACE, attributes=table)
    task.automatic_task, task.kinds = task, None
    assert conditions(task, table(labels["discover"]))["kind"].tolist() == ["a", None, None]
    labels["repair"] = labels["test"] = []
    assert conditions(task, table(labels["discover"]))["kind"].tolist() == ["a", "b", "c"], "no repair, no other split"


def table(values: list[str]) -> pd.DataFrame:
    """Items with a distinguishing column."""
    return pd.DataFrame({"kind": values}, dtype=object)
