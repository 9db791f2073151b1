"""Failures by attribute: rates, their test, gates, what distinguishes items, and where the rates are shown."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from scipy.stats import fisher_exact

import faded
from stages.concepts import Concept, ConceptSpace, Region
from stages.core import intervals
from stages.core.errors import UsageError
from stages.core.intervals import holm, share, wilson
from stages.landscape import slices
from stages.landscape.gates import landscape_gates, repair_gates
from stages.landscape.slices import compare_slices, measure_slices, worse_values
from stages.pages.first_page import ABOUT_NOTHING, landscape_page
from stages.pages.gallery import Shrinker
from stages.pages.sections import risen_slices, worse_slices
from stages.params import Gates, LandscapeGates, Params
from stages.records import Comparison, Landscape, Verdict
from stages.records.tables import Embedded, read_embedded, write_embedded
from stages.tasks.attributes import META, attributes_of, check_attributes, detail_columns, details, ranges_of
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.classification import pictures
from stages.tasks.classification.own_data import JsonLines
from stages.tasks.contract import Items
from stages.tasks.language import articles
from stages.tasks.sources import ItemCounts
from stages.tasks.summarization.probes import SummarizerProbes
from tests.landscapes import landscape_file, planted
from tests.workspace import audit_params, repair_params

SPACE = ConceptSpace((Concept("tilt", (0, 1, 2), neutral=0), Concept("fog", (0, 1, 2), neutral=0)))
ITEMS = [f"i{k:03d}" for k in range(100)]
LABELS = [str(k % 10) for k in range(100)]


def probes(rate: np.ndarray, n: int = 2000, seed: int = 0, role: str = "control") -> pd.DataFrame:
    """Uniform probes; item k fails with probability rate[k] in any cell, and is then classified as the next label."""
    rng = np.random.default_rng(seed)
    item, cells = rng.integers(0, len(rate), n), SPACE.sample(n, rng)
    failed = rng.random(n) < rate[item]
    came = [f"{(int(LABELS[i]) + f) % 10} (83%)" for i, f in zip(item, failed, strict=True)]
    table = pd.DataFrame(cells, columns=SPACE.names)
    return table.assign(role=role, item=np.array(ITEMS)[item], failed=failed, valid=True, output=came)


def none_fresh(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[:0].assign(mode="")


def measured(table: pd.DataFrame, attributes: Any = None, *, fresh: Any = None, exact: bool = False, **modes: Region):
    told = pd.DataFrame({"label": LABELS} if attributes is None else attributes, dtype=object)
    fresh = none_fresh(table) if fresh is None else fresh
    return measure_slices(table, ITEMS, told, SPACE, fresh, modes, exact=exact, seed=0)


NINE = np.where(np.array(LABELS) == "9", 0.5, 0.1)  # the planted class that fails


@pytest.fixture(scope="module")
def nine():
    return measured(pd.concat([probes(NINE), probes(np.ones(100), role="agent")]), M1=Region({"tilt": (2,)}))


def test_a_planted_class_that_fails_is_named_with_its_rate(nine):
    [by_label] = nine.attributes
    worst, second, *_ = by_label.values
    assert (by_label.attribute, worst.value, worst.items, len(by_label.values)) == ("label", "9", 10, 10)
    assert worst.worse and worst.p < 0.05 and not second.worse
    assert worst.low < 0.5 < worst.high, "the planted rate"
    assert worst.rate == worst.failures / worst.probes and worst.rest == pytest.approx(0.1, abs=0.03)
    assert nine.worst == ("label", worst) and [value for _, value in nine.worse] == [worst]
    assert sum(one.probes for one in by_label.values) == 2000, "the agent's probes look for failures: none counts"
    table = probes(NINE)
    for one in by_label.values:  # the joint intervals are those of Bonferroni
        own = table[table["item"].isin(np.array(ITEMS)[np.array(LABELS) == one.value])]
        failed = own["failed"].to_numpy()
        assert (one.low, one.high) == share(failed, own)[1:3]
        assert (one.joint.low, one.joint.high) == share(failed, own, 0.995)[1:3]
        assert one.joint.low < one.low < one.high < one.joint.high


def test_a_group_by_label_is_compared_with_the_others_of_its_label():
    # Half of the items are of label "high", which fails more often than "low"; group a fails more often than b in both.
    label, group = np.array(["high", "low"])[np.arange(100) % 2], np.array(["a", "b"])[np.arange(100) // 2 % 2]
    rate = np.where(label == "high", 0.5, 0.1) + np.where(group == "a", 0.1, -0.1)
    both = [f"{one}, {of}" for one, of in zip(group, label, strict=True)]
    found = measured(probes(rate, 6000), {"label": label, "group and label": both, "group again": both})
    by_name = {of.attribute: {one.value: one for one in of.values} for of in found.attributes}
    within, among_all = by_name["group and label"], by_name["group again"]
    assert {value for value, one in within.items() if one.worse} == {"a, high", "a, low"}
    assert within["a, low"].rest == pytest.approx(0, abs=0.01)
    assert within["a, high"].rest == pytest.approx(0.4, abs=0.05)
    assert not among_all["a, low"].worse and within["a, low"].rate == among_all["a, low"].rate
    said = worse_slices(Landscape.from_json(landscape_file([], slices=found.to_json(), concepts=SPACE.to_json()), ""))
    assert "; group again a, high; label high and group and label a, low fail" in said
    assert said.endswith("significantly more often than all others, or all others with its label.")


def test_rates_inside_modes_are_of_probes_there(nine):
    [inside], table = nine.modes["M1"], probes(NINE)
    there = table[table["tilt"] == 2]
    assert sum(one.probes for one in inside.values) == len(there)
    [worst] = [one for one in inside.values if one.value == "9"]
    assert worst.failures == there["failed"][there["item"].isin(ITEMS[9::10])].sum()
    more = probes(NINE, 300, seed=1, role="measure").assign(mode="M1", tilt=2)
    found = measured(table, fresh=pd.concat([more, more.assign(mode="M2")]), M1=Region({"tilt": (2,)}))
    assert sum(one.probes for one in found.modes["M1"][0].values) == len(there) + len(more)


def test_items_that_differ_make_no_label_worse(monkeypatch):
    """Items fail with rates of 0 to 1 and labels are random: probes of an item are not independent evidence."""
    monkeypatch.setattr(slices, "DRAWS", 999)
    marked = by_probes = 0
    for seed in range(40):
        table = probes(np.random.default_rng(1000 + seed).beta(0.3, 0.9, 40), n=400, seed=seed)
        labels = np.arange(40) % 5
        told = pd.DataFrame({"label": labels.astype(str)})
        found = measure_slices(table, ITEMS[:40], told, SPACE, none_fresh(table), {}, exact=False, seed=seed)
        marked += bool(found.worse)
        of, failed = labels[pd.Index(ITEMS).get_indexer(table["item"])], table["failed"].to_numpy()
        by_probes += holm(np.array([_fisher(failed, of == label) for label in range(5)])).min() < 0.05
    assert marked <= 3
    assert by_probes > 13, "else items do not differ enough: Fisher's test on probes is fooled by such items"


def _fisher(failed: np.ndarray, inside: np.ndarray) -> float:
    """The result of a test on single probes."""
    counts = [[(failed & side).sum(), (~failed & side).sum()] for side in (inside, ~inside)]
    return float(fisher_exact(counts, alternative="greater").pvalue)


def test_an_enumerated_grid_is_exact_and_its_intervals_are_of_items():
    cells = SPACE.cells()
    rng = np.random.default_rng(0)
    table = pd.DataFrame(np.tile(cells, (100, 1)), columns=SPACE.names)
    item = np.repeat(np.arange(100), len(cells))
    all_or_nothing = rng.random(100) < NINE  # an item fails everywhere or nowhere
    table = table.assign(role="control", item=np.array(ITEMS)[item], failed=all_or_nothing[item], output="x")
    found = measured(table, exact=True)
    for one in found.attributes[0].values:
        assert one.rate == int(all_or_nothing[int(one.value) :: 10].sum()) / 10
        assert one.high - one.low > 2.5 * (wilson(one.failures, one.probes).high - one.rate), "ten items, not 90 probes"
        assert one.joint.low <= one.low <= one.rate <= one.high <= one.joint.high


def test_items_without_a_value_belong_to_no_slice_and_to_the_rest():
    found = measured(probes(NINE), {"topic": [None if k % 2 else LABELS[k] for k in range(100)]})
    [topic] = found.attributes
    assert (topic.missing, {one.value for one in topic.values}) == (50, set("02468"))
    assert found.confusions is None, "topics are not labels"
    one = topic.values[0]
    assert one.rest == (probes(NINE)["failed"].sum() - one.failures) / (2000 - one.probes)


def test_confusions_are_counted_worst_first(nine):
    first, (_, worst) = nine.confusions[0], nine.worst
    assert (first.label, first.output, first.count) == ("9", "0", worst.failures)
    assert (first.of_failures, first.of_probes) == (1, worst.rate)
    assert all(int(one.output) == (int(one.label) + 1) % 10 for one in nine.confusions)
    counts = [one.count for one in nine.confusions]
    assert counts == sorted(counts, reverse=True)
    table, mode = probes(NINE), Region({"tilt": (2,)})
    exact = measured(table, exact=True, M1=mode)
    assert sum(one.count for one in exact.mode_confusions["M1"]) == table.loc[table["tilt"] == 2, "failed"].sum()
    record = landscape(nine)
    assert Landscape.parse(record.dump(), "x") == record and record.slices == nine


def compared(before: np.ndarray, after: np.ndarray, control: np.ndarray | None = None, seed: int = 0):
    """400 items of ten labels, 10 cells each, that fail with these probabilities by label; answers are paired."""
    items, chance = np.repeat(np.arange(400), 10), np.random.default_rng(seed).random(4000)
    models = {"before": before, "after": after} | ({} if control is None else {"control": control})
    failed = {name: chance < rates[items % 10] for name, rates in models.items()}
    inside, ids = np.arange(4000) % 10 < 5, np.array([f"t{k:03d}" for k in range(400)])
    [found] = compare_slices(
        pd.DataFrame({"label": [str(k % 10) for k in range(400)]}), ids.tolist(), ids[items],
        np.zeros((4000, 2), dtype=np.int64), inside, np.full(400, 0.25), failed, resamples=200, seed=0,
    )  # fmt: skip
    return {one.value: one for one in found.values}, failed, inside, items


def test_before_and_after_are_weighed_as_in_the_grid_and_paired():
    after = np.full(10, 0.2)
    after[3] = 0.5
    found, failed, inside, items = compared(np.full(10, 0.3), after, control=np.full(10, 0.3))
    mine = items % 10 == 3
    rate = 0.25 * failed["after"][mine & inside].mean() + 0.75 * failed["after"][mine & ~inside].mean()
    three = found["3"]
    assert three.after == pytest.approx(rate) and three.change > 0.1 and three.worse
    assert three.joint_change.low < three.low < three.change < three.high < three.joint_change.high
    assert three.joint_after.high > three.after_high and three.control.change == 0
    assert three.control.repair_minus_control.value == pytest.approx(three.change)
    assert [value for value, one in found.items() if one.worse] == ["3"] and found["4"].change < 0


def test_what_did_not_change_is_not_worse(monkeypatch):
    """In many audits one of ten values has risen by chance, so the number of tests must be accounted for."""
    monkeypatch.setattr(intervals, "IN_TAIL", 5)
    marked = above = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        before, anew, ids = rng.random(2000) < 0.3, rng.random(2000) < 0.3, np.array([f"t{k}" for k in range(2000)])
        after = np.where(rng.random(2000) < 0.5, anew, before)  # different answers, wrong as often
        [found] = compare_slices(
            pd.DataFrame({"label": [str(k % 10) for k in range(2000)]}), ids.tolist(), ids,
            np.zeros((2000, 2), dtype=np.int64), np.arange(2000) % 4 < 2, np.full(2000, 0.5),
            {"before": before, "after": after}, resamples=200, seed=seed,
        )  # fmt: skip
        marked += sum(one.worse for one in found.values)
        above += sum(one.low > 0 for one in found.values)
    assert marked == 0
    assert above > 1, "else no test had anything to allow for"


def landscape(found, modes: Sequence[dict[str, Any]] = ()) -> Landscape:
    return Landscape.from_json(landscape_file(modes, slices=found.to_json()), "landscape.json")


def of_gates(found, **gates: float) -> Any:
    [gate] = landscape_gates(LandscapeGates.model_validate({"slices": {"label": gates}}), landscape(found))
    return gate


def test_a_gate_by_slice_holds_for_every_value_by_the_joint_interval(nine):
    (_, worst), over = nine.worst, of_gates(nine, max=0.3)
    assert (over.gate, over.passed, over.slice, over.value) == ("slices.label.max", False, "9", worst.rate)
    assert over.named == "slices.label.max (9)" and (over.low, over.high) == (worst.joint.low, worst.joint.high)
    assert of_gates(nine, max=0.8).passed
    between = (worst.high + worst.joint.high) / 2
    assert not of_gates(nine, max=between).passed, "the 95% interval would pass, the joint one reaches across"


def test_a_gate_by_slice_is_not_judged_if_a_value_was_not_probed():
    table = probes(NINE)
    found = measured(table[~table["item"].isin(ITEMS[0::10])])
    gate = of_gates(found, max=0.8)
    assert (gate.passed, gate.value, gate.slice) == (None, None, "0")
    assert of_gates(found, max=0.3).passed is False, "a failure stays one"


def test_gates_of_a_repair_judge_value_and_change():
    after = np.full(10, 0.2)
    after[3] = 0.5
    values = list(compared(np.full(10, 0.3), after)[0].values())
    comparison = Comparison.model_construct(
        audit="x", differences={}, bias=None,
        slices=[SimpleNamespace(attribute="label", missing=0, values=values)],
    )  # fmt: skip

    def judged(**bounds: float) -> dict[str, tuple[bool | None, str | None]]:
        gates = Gates.model_validate({"slices": {"label": bounds}})
        return {gate.gate: (gate.passed, gate.slice) for gate in repair_gates(gates, comparison)}

    both = ("slices.label.max", "slices.label.change_max")
    assert judged(max=0.4, change_max=0.02) == dict.fromkeys(both, (False, "3"))
    assert judged(max=0.9, change_max=0.9) == dict.fromkeys(both, (True, "3"))
    assert risen_slices(comparison).startswith("Failures have risen significantly for label 3, by +")


def table_of(n: int = 60, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: list(itertools.islice(itertools.cycle(c), n)) for name, c in columns.items()})


def test_what_tells_items_apart():
    for column, values in (
        (["a", "b", "c"], {"a", "b", "c"}),
        ([1.0, 2.5, None], {"1", "2.5", None}),
        ([True, False], {"yes", "no"}),
        (range(60), {"0 to 14", "15 to 29", "30 to 44", "45 to 59"}),
    ):
        assert {v if pd.notna(v) else None for v in attributes_of(table_of(x=column))["x"]} == values
    for column in ([f"id-{k}" for k in range(60)], [b"a", b"b"], ["a" * 81, "b"], [7.0]):
        assert attributes_of(table_of(x=column)).empty


def test_ranges_hold_about_as_many_and_do_not_overlap():
    numbers = np.random.default_rng(0).lognormal(3, 1, 400)
    counts = pd.Series(ranges_of(numbers.tolist(), "words")).value_counts()
    assert counts.tolist() == [100] * 4
    ends = sorted(tuple(map(float, name.removesuffix(" words").split(" to "))) for name in counts.index)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
    assert ranges_of([1.0, np.nan, 1.0]) == ["1", None, "1"]


def test_attributes_of_a_users_task_are_checked():
    for found, told in (
        ({"a": ["x"]}, "found 1 rows, expected a DataFrame with a row for each of 2 items"),
        ({"fog": ["x", "y"]}, "'fog' is the name of a concept or of a column"),
        ({7: ["x", "y"]}, "column named 7"),
    ):
        with pytest.raises(UsageError, match=rf"Own\.attributes: .*{told}"):
            check_attributes(pd.DataFrame(found), 2, ["fog"], "Own")
    own = planted(items=2)
    own.attributes = lambda item_ids: pd.DataFrame({"a": ["x", np.nan]})
    assert known_attributes(own, ["i000", "i001"])["a"].tolist() == ["x", None]


def test_attributes_come_back_with_embeddings_and_need_not_be_there(tmp_path: Path):
    told = pd.DataFrame({"label": ["a", None, "b"], "length": ["1 to 2", "3", None]})
    seen = np.eye(3, dtype=np.float32)
    write_embedded(tmp_path / "new", Embedded(["x", "y", "z"], seen, told))
    back = read_embedded(tmp_path / "new", "")
    assert back.attributes.to_dict("list") == told.to_dict("list")
    pd.DataFrame({"item": ["x", "y", "z"], "embedding": list(seen)}).to_parquet(tmp_path / "old", index=False)
    old = read_embedded(tmp_path / "old", "")
    assert (old.item_ids, list(old.attributes)) == (["x", "y", "z"], []) and (old.vectors == back.vectors).all()


def test_the_report_begins_with_who_fails_most(nine):
    verdict = Verdict(audit="x", passed=None, gates=[])

    def said(found):
        known = landscape_file([], slices=found.to_json(), concepts=planted().concepts.to_json())
        page = landscape_page(Landscape.from_json(known, ""), verdict, ABOUT_NOTHING, {}, {}, Shrinker([]))
        return [tile.text for tile in page.tiles if tile.text.startswith("of items with label")]

    [told] = said(nine)
    assert told.startswith("of items with label 9 fail (") and told.endswith(
        f", {nine.worst[1].rest:.1%} of all others"
    )
    assert said(measured(probes(np.full(100, 0.2)))) == []


def test_an_audit_from_python_says_whose_failures_they_are(tmp_path: Path):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=60), "site": ["north", "south", "west"] * 20})
    frame["truth"] = ["high", "low"] * 30

    @faded.concept([0, 1, 2])
    def shift(row, level):
        row["x"] = level
        return row

    def model(rows):
        return np.where((rows["x"] == 2) & (rows["truth"] == "low"), "high", rows["truth"])

    result = faded.audit(model, frame, concepts=[shift], budget=150, expected=frame["truth"].tolist())
    assert result.slices.iloc[0][["attribute", "value", "worse"]].tolist() == ["label", "low", True]
    assert set(result.slices["attribute"]) == {"x", "site", "label"}, "the truth says the same as the label"
    (mode,) = result.landscape.modes
    assert mode.text == "label is low and shift = 2"
    page = result.report(tmp_path / "page.html").read_text()
    said = f"label low answered as high: {mode.failures} of {mode.failures} failures (100%)"
    assert f"Most often: {said}." in page and "of items with label low fail (" in page
    assert '<section id="slices">' in page and '<a href="#slices">Which items fail</a>' in page


def test_where_each_item_is_asked_once_the_test_is_fishers():
    failed = np.array([1] * 8 + [0] * 4 + [1] * 6 + [0] * 42, dtype=bool)
    [p_values] = worse_values(failed, np.arange(60), [np.array([0] * 12 + [1] * 48)], seed=0)
    exact = [fisher_exact([[8, 4], [6, 42]], "greater").pvalue, fisher_exact([[6, 42], [8, 4]], "greater").pvalue]
    assert p_values == pytest.approx(exact, abs=0.003)


def test_of_very_many_items_some_are_drawn_and_sums_of_many_are_normal(monkeypatch):
    rng = np.random.default_rng(0)
    row, codes = rng.integers(0, 800, 3000), np.repeat([0, 1, 2, -1], [20, 300, 400, 80])
    failed = rng.random(3000) < np.where(np.arange(800) < 320, 0.24, 0.2)[row]
    [dealt] = worse_values(failed, row, [codes], seed=0)
    monkeypatch.setattr(slices, "MOST_DEALT", 100)
    [drawn] = worse_values(failed, row, [codes], seed=0)
    assert drawn != pytest.approx(dealt, abs=1e-6) and drawn == pytest.approx(dealt, abs=0.02)
    assert dealt.max() - dealt.min() > 0.5, "else agreeing means little"


def test_confusions_of_a_mode_are_of_the_probes_behind_its_rate():
    table, region = probes(NINE), {"M1": Region({"tilt": (2,)})}
    own = [probes(NINE, 300, seed, role).assign(mode="M1", tilt=2) for seed, role in enumerate(("test", "measure"))]
    found = measured(table, fresh=pd.concat(own), **region)
    of_nine = own[1][own[1]["item"].isin(ITEMS[9::10])]
    first = found.mode_confusions["M1"][0]
    assert (first.label, first.output, first.count) == ("9", "0", of_nine["failed"].sum())
    assert (first.of_failures, first.of_probes) == (1, of_nine["failed"].mean())
    failures = int(own[1]["failed"].sum())
    assert sum(one.count for one in found.mode_confusions["M1"]) == failures
    known = landscape(found, [{"id": "M1", "region": {"tilt": [2]}, "text": "tilt = 2", "failures": failures}])
    said = f"label 9 answered as 0: {first.count} of {failures} failures ({first.count / failures:.0%})"
    assert known.confused(known.modes[0], 1) == said
    assert known.confused(known.modes[0], 2).startswith(f"{said}; label ")
    assert landscape(measured(table.assign(output="right"))).confused(known.modes[0], 3) == ""


def test_outputs_that_name_no_label_make_no_confusions():
    found = measured(probes(NINE).assign(output="a summary (of 10%) in words"), M1=Region({"tilt": (2,)}))
    assert found.confusions is None and found.mode_confusions is None


def test_nothing_is_told_of_items_of_which_nothing_is_known():
    assert measured(probes(NINE), {}) is None and measured(probes(NINE)[:0]) is None
    constant = measured(probes(NINE), {"label": ["a"] * 100}).attributes[0].values[0]
    assert (constant.rest, constant.p, constant.worse) == (None, None, False)


def test_a_gate_that_cannot_be_one_is_refused():
    for gates, told in (({"label": {}}, "expected max; found none"), ({"label": {"change_max": 0.1}}, "change_max")):
        with pytest.raises(ValidationError, match=told):
            LandscapeGates.model_validate({"slices": gates})


def test_discover_refuses_gates_on_unknown_attributes_before_it_asks():
    gates = {"slices": {"topic": {"max": 0.3}}}
    blocks = {"audits": {"tiny": audit_params(gates=gates)}, "repairs": {"tiny": repair_params(gates=gates)}}
    params = Params.model_validate(blocks)
    with pytest.raises(UsageError) as error:
        params.check_slices("tiny", ["label", "length"])
    assert str(error.value).splitlines() == [
        f"{block}.tiny.gates.slices.topic: the items have no attribute of this name; they have label, length"
        for block in ("audits", "repairs")
    ]
    params.check_slices("tiny", ["label", "topic"])


def test_a_column_that_says_the_same_twice_is_left_out_and_names_are_free():
    table = table_of(**{"label": "abc", "target": [0, 1, 2], "noise": "xyxyx", "item": "pq", META + "topic": "uuv"})
    assert list(attributes_of(table, ["noise"])) == ["label", "noise of the item", "item of the item", "topic"]
    assert next(iter(attributes_of(table.drop(columns="label")))) == "target"
    assert list(attributes_of(table_of(**{META + "topic": "uuv"}))) == ["topic"]


def test_splits_have_the_same_ranges():
    task = planted(items=60)
    task.items.table["split"] = ["discover", "test"] * 30
    task.items.table["age"] = range(60)
    first, other = (task.attributes(task.items.ids(split)) for split in ("discover", "test"))
    assert list(first) == ["age"], "all have one label"
    assert set(first["age"]) == set(other["age"]) == {"0 to 14", "15 to 29", "30 to 44", "45 to 59"}


def test_values_of_attributes_are_lines_of_text_whatever_the_data_holds():
    hostile = pd.DataFrame({"a": ["x\n\x1b[2Jy", "\u0645\u06cc\u200c\u062e", None, " z "]}, dtype=object)
    assert check_attributes(hostile, 4, [], "T")["a"].tolist() == ["x [2Jy", "\u0645\u06cc\u200c\u062e", None, "z"]


def test_details_of_the_users_data_become_columns():
    first = {"text": "an article", "topic": "sport", "year": 2001, "vip": True, "mixed": 1}
    rows = [
        {**first, "url": "x" * 100, "tags": ["a"]},
        {"text": "an article", "topic": None, "year": 2002.5, "vip": False, "mixed": "b", "nan": float("nan")},
    ]
    told = {"topic": ["sport", None], "year": [2001, 2002.5], "vip": [True, False], "mixed": ["1", "b"]}
    assert detail_columns([details(row, {"text"}) for row in rows]) == {META + name: told[name] for name in told}


def test_fields_of_lists_of_pictures_reach_the_items(tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    lines = []
    for k in range(8):
        image.new("L", (8, 8), k).save(tmp_path / f"{k}.png")
        row = {"image": f"{k}.png", "label": "ab"[k % 2], "group": "xy"[k // 4], "scanner": "GE" if k % 4 else None}
        lines.append(json.dumps({**row, "age": 30 + k, "note": "n" * 100}))
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    pool = JsonLines(jsonl="all.jsonl").load(tmp_path)
    counts, view = ItemCounts(discover=4, repair=0, test=4), pictures.View(resize=8)
    items = pictures.choose_items(pool, counts, ["a", "b"], 0, (1, 8, 8), view)
    assert {name for name in items if name.startswith(META)} == {"meta:group", "meta:scanner", "meta:age"}
    of = items.set_index("id")
    assert of.loc["5.png", ["label", "meta:group", "meta:scanner", "meta:age"]].tolist() == ["b", "y", "GE", 35]
    assert pd.isna(of.loc["4.png", "meta:scanner"])
    assert list(attributes_of(items.drop(columns=["id", "split"]))) == ["label", "group", "age"], "one scanner alone"


def test_fields_of_articles_reach_the_items_and_their_length_tells_them_apart():
    rows = [{"body": " ".join(["word"] * n) + ".", "topic": "sport" if n % 2 else "news"} for n in range(10, 50)]
    read = [articles._article(f"a{k}", row, "body", None, None, "") for k, row in enumerate(rows)]
    items = articles.choose_items(read, ItemCounts(discover=30, repair=0, test=10), 0)
    task = SimpleNamespace(items=Items(items), concepts=SPACE, _articles=items["article"].tolist())
    task._told_apart = lambda about, ids: LoadedTask._told_apart(task, about, ids)
    found = SummarizerProbes.attributes(task, ["a0", "a39", "a20"])
    assert found.to_dict("list") == {
        "topic": ["news", "sport", "news"],
        "length": ["10 to 19 words", "40 to 49 words", "30 to 39 words"],
    }
