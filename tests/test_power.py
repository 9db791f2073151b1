"""Which changes test items can show, compared with the intervals of simulated repairs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.results.abilities import Abilities
from flows.results.power import what_can_be_shown
from stages.core.intervals import CHANGE, Rate, Resampler
from stages.decisions import landscape_hash
from stages.landscape.power import APART, CHURN, Power, alike
from stages.params import load_params
from stages.records import AuditFolder, Landscape, Plan, PlannedMode, RepairVerdict, audit_folder
from stages.records.landscape import Gate
from stages.records.tables import Embedded
from tests.landscapes import landscape_file, planted
from tests.workspace import Workspace, audit_params, repair_params

REPAIRS = 100
NOTHING = Abilities(False, False, False, [], False, None, None)


def change(power: Power, drop: float, seed: int) -> Rate:
    """The interval of a simulated repair, in which each item has its own chances of fixed and newly failing pairs."""
    rng, each = np.random.default_rng(seed), power.pairs // power.items
    spread = 1 / power.alike - 1
    fixed, newly = (rng.beta(p * spread, (1 - p) * spread, (power.items, 1)) for p in (drop + power.churn, power.churn))
    u = rng.random((power.items, each))
    values = np.where(u < fixed, -1.0, np.where(u > 1 - newly, 1.0, 0.0)).ravel()
    items = np.repeat(np.arange(power.items), each)
    return Resampler(items, 500, seed).mean(values, np.ones(len(values)), CHANGE)


@pytest.mark.parametrize("power", [Power(0.5, 60, 300, 0.3, churn=APART), Power(0.3, 100, 1000, 0.5)])
def test_the_least_drop_is_shown_in_four_of_five_repairs_and_half_of_it_is_not(power):
    drop = power.least_drop()
    shown = [np.mean([change(power, d, seed).high < 0 for seed in range(REPAIRS)]) for d in (drop, drop / 2)]
    assert 0.75 < shown[0] < 0.97 and shown[1] < 0.6
    bound = drop / 3
    assert power.least_drop(bound) > drop
    passed = [change(power, power.least_drop(bound), seed).high < -bound for seed in range(REPAIRS)]
    assert 0.75 < np.mean(passed) < 0.97


def test_a_rise_is_ruled_out_by_the_margin_where_nothing_changes():
    power = Power(0.2, 400, 1200, 0.5)
    assert 0.7 < np.mean([change(power, 0.0, seed).high <= power.margin(0) for seed in range(REPAIRS)]) < 0.95


def test_of_groups_few_are_enough_where_their_items_are_hardly_alike():
    power, rng, highs = Power(0.2, 60, 300, 0.05, groups=20), np.random.default_rng(0), []
    items = np.repeat(np.arange(60), 5)
    for seed in range(REPAIRS):
        fixed, newly = (rng.beta(CHURN * 19, (1 - CHURN) * 19, 20)[items % 20] for _ in range(2))
        u = rng.random(300)
        values = np.where(u < fixed, -1.0, np.where(u > 1 - newly, 1.0, 0.0))
        highs.append(Resampler(items, 500, seed, items % 20).mean(values, np.ones(300), CHANGE).high)
    assert 0.6 < np.mean(np.array(highs) <= power.margin(0)) < 0.97
    assert power.margin(0) < Power(0.2, 20, 300, 0.05).margin(0)


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """An audit with a landscape of two modes and 60 test items; returns the sentences for the gates of its repair."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.results.power.abilities_of", lambda *_: NOTHING)
    rng = np.random.default_rng(0)
    mode = {"rate": 0.4, "share": 0.2}
    modes = [{**mode, "id": f"M{k + 1}", "text": f"tilt = {k}", "region": {"tilt": [k]}} for k in (0, 1)]
    found = landscape_file(modes, concepts=planted().concepts.to_json())
    here = audit_folder("tiny")
    for part in (here.prepare, here.discover, here.summarize):
        part.path.mkdir(parents=True)
    items = pd.DataFrame({"split": ["discover"] * 50 + ["repair"] * 60 + ["test"] * 60})
    items.assign(id=[f"i{k}" for k in items.index]).to_parquet(here.prepare.path / "items.parquet")
    here.summarize.landscape = Landscape.from_json(found, "landscape.json")
    space = here.summarize.landscape.space
    ids = np.array([f"i{k}" for k in range(50)])
    probes = pd.DataFrame(space.sample(600, rng), columns=space.names)
    probes = probes.assign(role="control", explorer="random", order=range(600), item=np.resize(ids, 600), repeat=0)
    probes = probes.assign(discrepancy=0.0, failed=rng.random(600) < 0.1, output="")
    here.discover.probes = probes
    here.discover.embedded = Embedded(ids.tolist(), np.zeros((50, 2)), pd.DataFrame(index=range(50)))
    here.summarize.fresh = probes.head(200).assign(failed=rng.permutation(200) < 80, tilt=0, mode="M1")

    def said(policy: str = "top-k", control: str = "none", **gates: object) -> list[str]:
        feedback = {"policy": policy, **({"modes": 1} if policy == "top-k" else {})}
        restructure = {"method": "planted", "control": control}
        repairs = {"tiny": repair_params(feedback=feedback, restructure=restructure, gates=gates)}
        Workspace(Path()).write_params({"audits": {"tiny": audit_params()}, "repairs": repairs})
        return what_can_be_shown(load_params(), "tiny")

    return said


def test_what_lies_in_two_modes_counts_once(searched):
    here = audit_folder("tiny")
    modes = [
        {"id": "M1", "text": "", "region": {"tilt": [0]}, "share": 0.1, "rate": 1.0},
        {"id": "M2", "text": "", "region": {"tilt": [0, 1]}, "share": 0.2, "rate": 0.5},
    ]
    found = landscape_file(modes, concepts=planted().concepts.to_json())
    here.summarize.landscape = Landscape.from_json(found, "landscape.json")
    drawn = here.summarize.fresh.head(100)
    of_both = drawn.assign(tilt=np.resize([0, 1], 100), failed=np.resize([True, False], 100), mode="M2")
    here.summarize.fresh = pd.concat([drawn.assign(tilt=0, failed=True, mode="M1"), of_both])
    assert "in M1, M2, where 50.0% fail" in searched("wait")[0], "not the 66.7% of both modes one by one"
    here.summarize.fresh = drawn.head(0)
    here.discover.probes = here.discover.probes.assign(tilt=3)
    assert "in M1, M2, where 75.0% fail" in searched("wait")[0], "no probe lies in either"


def test_a_budget_of_harm_smaller_than_one_held_out_item_is_named(searched, monkeypatch):
    [_] = searched()  # a task that keeps no budget
    monkeypatch.setattr("flows.results.power.abilities_of", lambda *_: NOTHING._replace(budgeted=True))
    assert "12 held-out repair items: if none fails, up to 24% of others" in searched()[1]
    table = pd.read_parquet("data/tiny/prepare/items.parquet")
    table.assign(group=table.index % 10).to_parquet("data/tiny/prepare/items.parquet")
    assert "2 held-out groups of repair items" in searched()[1]
    more = [table.assign(id=table["id"] + str(k)) for k in range(9)]
    pd.concat(more).to_parquet("data/tiny/prepare/items.parquet")
    assert len(searched()) == 1


def test_gates_for_which_items_are_too_few_are_named(searched):
    [line] = searched()
    assert line.startswith("tiny: 60 test items can show a drop of 15.")
    assert " in M1, where 40.0% fail, and a rise of" in line
    assert " in M1, M2, where" in searched("wait")[0]
    _, target, other = searched(target_failure_rate={"change_max": -0.05}, other_failure_rate={"change_max": 0.01})
    assert "change_max -0.05 passes with a drop of 2" in target
    assert "other_failure_rate.change_max 0.01 is likely to fail unless failures drop there too" in other
    assert len(searched(other_failure_rate={"change_max": 0.2})) == 1
    for gate, bound, told in (
        ("target_failure_rate", -0.38, "is likely to fail even if every failure is repaired"),
        ("target_failure_rate", -0.5, "cannot pass: only 40.0% fail there"),
        ("other_failure_rate", 0.0, "nor would any number of them"),
    ):
        assert told in searched(**{gate: {"change_max": bound}})[1]


def test_margins_against_a_control_that_items_cannot_show_are_named(searched):
    def margin(most: float) -> dict[str, float]:
        return {"minus_control_max": most}

    [_, both] = searched(control="clean")
    assert "between repair and control" in both and " in M1, and one of " in both
    wide = dict.fromkeys(("other_failure_rate", "newly_failing"), margin(0.2))
    _, _, superior = searched(control="clean", target_failure_rate=margin(0), **wide)
    apart = re.search(r"a difference of [\d.]+ points", both)[0].removeprefix("a difference of ")
    assert "target_failure_rate.minus_control_max 0 passes" in superior and apart in superior
    close = {"other_failure_rate": margin(0.01), "newly_failing": margin(0.005)}
    _, _, other, newly = searched(control="clean", target_failure_rate=margin(0), **close)[1:]
    elsewhere = re.search(r"one of ([\d.]+ points)", both)[1]
    assert "other_failure_rate.minus_control_max 0.01 is likely to fail" in other and f"is {elsewhere} worse" in other
    assert "newly_failing.minus_control_max 0.005 is likely to fail" in newly and "; about " in newly
    for least in (-0.39, -0.5):
        assert "is likely to fail" in searched(control="clean", target_failure_rate=margin(least))[2]


def decided(here: AuditFolder, *actions: Any) -> None:
    here.collect_feedback.path.mkdir()
    here.summarize.where("cells").touch()
    chosen = [
        PlannedMode(id=m.id, text=m.text, region=m.region, action=action, severity=1.0, reason="")
        for m, action in zip(here.summarize.landscape.modes, actions, strict=True)
    ]
    here.collect_feedback.plan = Plan(
        landscape=landscape_hash("tiny"), decided_by="human", statement="", reviewer="Ada", reason="", modes=chosen
    )


def test_a_gate_that_has_passed_is_not_said_to_be_likely_to_fail(searched):
    here = audit_folder("tiny")
    gates = {"target_failure_rate": {"change_max": -0.38}, "other_failure_rate": {"change_max": 0.01}}
    assert len(searched(**gates)) == 3
    decided(here, "repair", "repair")
    gates_passed = [
        Gate(gate=f"{name}.change_max", bound=bound, value=at, low=at - 0.01, high=at + 0.01, passed=True)
        for name, bound, at in (("target_failure_rate", -0.38, -0.4), ("other_failure_rate", 0.02, 0.0))
    ]
    here.conclude.path.mkdir()
    here.conclude.verdict = RepairVerdict(
        audit="tiny", passed=True, gates=gates_passed, decided_by="policy", reviewer=None, reason=None, statement=""
    )
    [_, other] = searched(**gates)
    assert "other_failure_rate.change_max 0.01 is likely to fail" in other  # the one that passed had another bound


def test_as_many_items_as_are_said_to_be_needed_show_it():
    few = Power(0.3, 40, 80, 0.4)
    n = few.items_for(0.1, 0.05)
    assert n > few.items and few.least_drop(0.05) > 0.1
    enough, fewer = (Power(0.3, k, 2 * k, 0.4).least_drop(0.05) for k in (n, round(0.9 * n)))
    assert enough == pytest.approx(0.1, abs=0.002) and fewer > 0.102
    assert Power(0.1, 10, 20, 0.4).least_drop() is None


def test_items_are_as_alike_as_they_were_made():
    rng = np.random.default_rng(0)
    items = np.repeat(np.arange(500), 6)
    for rho in (0.1, 0.5):
        chance = rng.beta(0.3 * (1 / rho - 1), 0.7 * (1 / rho - 1), 500)
        assert alike(rng.random(3000) < chance[items], items) == pytest.approx(rho, abs=0.05)
    assert alike(rng.random(3000) < 0.3, items) < 0.03 and alike(np.repeat(rng.random(500) < 0.3, 6), items) == 1.0
    assert alike(np.zeros(3000, dtype=bool), items) == 0.0
    assert alike(np.array([True, False]), np.array(["a", "b"])) == 1.0


def test_planned_modes_are_meant_and_groups_are_named(searched):
    here = audit_folder("tiny")
    decided(here, "ignore", "repair")
    items = pd.DataFrame({"split": ["discover"] * 50 + ["test"] * 60, "group": [f"g{k % 20}" for k in range(110)]})
    items.to_parquet(here.prepare.path / "items.parquet")
    [line] = searched("wait")
    assert line.startswith("tiny: 60 test items in 20 groups can show") and " in M2, where" in line


def test_nothing_is_said_where_records_are_newer_torn_or_missing(searched):
    here = audit_folder("tiny")
    here.discover.probes = here.discover.probes.rename(columns={"tilt": "slant"})
    assert searched() == []
    (here.discover.path / "probes.parquet").write_bytes(b"PAR1")
    assert searched() == []
    here.summarize.where("landscape").unlink()
    assert searched() == []
