"""The verdict on a repair: gates, paired differences, moved failures, and the items they are based on."""

import importlib
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from stages import collect_feedback, compare, conclude, discover, prepare, re_evaluate, report, summarize
from stages.concepts import Concept, ConceptSpace, Region
from stages.core.errors import UsageError
from stages.core.files import read_json, stage_dir, write_json
from stages.core.intervals import Rate
from stages.landscape import estimators
from stages.landscape.compare import PairedAnswers, compare_quality, risen, targeting
from stages.landscape.gates import all_passed, cheapest, judge, judge_landscape, judge_repair
from stages.landscape.pairs import draw_pairs
from stages.params import Gates, LandscapeGates
from stages.records import Comparison, Difference, Gate, audit_folder
from stages.records.repair import Checkpoint, Training, Trainings
from tests.landscapes import planted
from tests.workspace import ROOT, Workspace, audit_params, repair_params, repair_verdict

TARGET = {"tilt": [3, 4], "fog": [3, 4]}
ELSEWHERE = {"dust": [0, 1], "rain": [0, 1]}
LEVELS, CONCEPTS = [0, 1, 2, 3, 4], ("tilt", "fog", "dust", "rain")
STAGES = ("re_evaluate", "compare", "conclude")


@pytest.mark.parametrize(
    ("rate", "passed"),
    [
        (Rate(0.02, 0.01, 0.04, 100), True),
        (Rate(0.04, 0.03, 0.06, 100), False),  # the value is below, but the interval straddles the bound
        (Rate(0.10, 0.08, 0.12, 100), False),
        (Rate(np.nan, np.nan, np.nan, 0), None),
        (None, None),
    ],
)
def test_a_gate_needs_the_whole_interval(rate, passed):
    assert judge("newly_failing.max", 0.05, rate, upper=True).passed is passed
    if rate is not None:
        mirrored = Rate(-rate.value, -rate.high, -rate.low, rate.n)
        assert judge("clean_quality.min", -0.05, mirrored, upper=False).passed is passed


def test_gates_on_values_changes_and_the_control():
    gates = {
        "target_failure_rate": {"max": 0.4, "change_max": -0.1},
        "other_failure_rate": {"change_max": 0.02, "minus_control_max": 0.01},
        "newly_failing": {"minus_control_max": 0.01},
        "clean_quality": {"change_min": -0.02, "minus_control_min": -0.005},
    }
    elsewhere = {"": Rate(0.3, 0.2, 0.4, 9), "change": Rate(0.0, -0.01, 0.01, 9)}
    measured = {
        "other_failure_rate": {**elsewhere, "minus_control": Rate(0.005, -0.01, 0.01, 9)},
        "target_failure_rate": {"": Rate(0.3, 0.25, 0.35, 9), "change": Rate(-0.2, -0.3, -0.05, 9)},
        "newly_failing": {"": Rate(0.0, 0.0, 0.01, 9), "change": Rate(0.0, 0.0, 0.01, 9)},
        "clean_quality": {"change": Rate(-0.01, -0.015, 0.0, 9), "minus_control": Rate(0.0, -0.006, 0.006, 9)},
    }
    entries = {e.gate: e.passed for e in judge_repair(Gates.model_validate(gates), measured)}
    assert entries == {
        "target_failure_rate.max": True,
        "target_failure_rate.change_max": False,
        "other_failure_rate.change_max": True,
        "other_failure_rate.minus_control_max": True,
        "newly_failing.minus_control_max": None,  # there was no control
        "clean_quality.change_min": True,
        "clean_quality.minus_control_min": False,
    }
    assert all_passed([]) is None


def test_a_gate_against_the_control_proposes_no_checkpoint_which_has_none():
    fewer = Checkpoint(folder="f", steps=5, differences={"failure_rate": Difference.measured(Rate(0.1, 0.0, 0.2, 9))})
    comparison = Comparison.model_construct(checkpoints=[fewer])

    def proposed(**bounds: float) -> bool:
        return cheapest(Gates.model_validate({"failure_rate": bounds}), comparison) is not None

    assert proposed(max=0.3) and not proposed(max=0.3, minus_control_max=0.5)


@pytest.mark.parametrize(
    ("results", "passed"),
    [([True, True], True), ([True, None], None), ([None], None), ([False, None], False), ([False, True], False)],
)
def test_a_gate_that_was_not_judged_makes_no_pass(results, passed):
    gates = [Gate(gate="g", bound=1, value=None, low=None, high=None, passed=result) for result in results]
    assert all_passed(gates) is passed


def test_gates_on_the_landscape_itself():
    overall, worst = Rate(0.2, 0.18, 0.22, 900), Rate(0.7, 0.6, 0.8, 90)
    gates = LandscapeGates(max_failure_rate=0.3, max_mode_rate=0.5)
    assert [e.passed for e in judge_landscape(gates, overall, [worst])] == [True, False]
    assert [e.passed for e in judge_landscape(gates, overall, [Rate(0.3, 0.2, 0.4, 90), worst])] == [True, False]
    assert [e.passed for e in judge_landscape(gates, overall, [])] == [True, True]
    assert judge_landscape(None, overall, [worst]) == []


def items_of(n: int) -> pd.DataFrame:
    """N items without attributes."""
    return pd.DataFrame(index=range(n))


def test_pairs_are_common_unique_and_on_the_right_side():
    space, target = planted().concepts, Region.from_json(TARGET)
    items, cells = draw_pairs(space, items_of(40), [target], 300, seed=1)
    inside = target.contains(space, cells)
    assert (inside.sum(), (~inside).sum()) == (300, 300)
    assert len(set(zip(items.tolist(), space.flat(cells).tolist(), strict=True))) == 600
    none, _ = draw_pairs(space, items_of(40), [], 300, seed=1)
    assert len(none) == 300
    corner = Region(dict.fromkeys(CONCEPTS, (4,)))
    few, _ = draw_pairs(space, items_of(2), [corner], 100, seed=1)
    assert len(few) == 102, "a side with fewer pairs gives what it has"


def test_strata_are_weighed_as_in_the_grid():
    """Half of the pairs are drawn inside a region that is a tenth of the grid."""
    inside = np.arange(200) < 100

    def answers(after):
        failed = {"before": inside, "after": after}
        return PairedAnswers(np.arange(200) % 20, np.zeros((200, 1)), inside, 0.1, failed, resamples=200, seed=0)

    paired = answers(np.zeros(200, dtype=bool))
    assert paired.rate("before").value == pytest.approx(0.1) and paired.change(inside).value == -1.0
    assert [paired.differences()[which].after for which in ("fixed", "newly_failing")] == [1.0, 0.0]
    # Newly failing are probes that passed before: of these, none; of all, a tenth of the grid.
    stays = answers(inside)
    assert [stays.differences()[which].after for which in ("fixed", "newly_failing")] == [0.0, 0.0]


def test_what_newly_fails_is_compared_with_the_control_on_the_same_pairs():
    """Of 90 pairs that passed, the repair newly fails 9 and the control 18; of 10 that failed, both fix other ones."""
    at = np.arange(100)
    failed = {"before": at < 10, "after": (at >= 5) & (at < 19), "control": ((at < 8) | (at >= 10)) & (at < 28)}
    found = PairedAnswers(at, at[:, None], at < 10, 0.1, failed, resamples=400, seed=0).differences()
    for measure, repair, control, n in (("newly_failing", 0.1, 0.2, 90), ("fixed", 0.5, 0.2, 10)):
        entry = found[measure]
        minus = entry.control.repair_minus_control
        assert (entry.after, entry.control.after) == pytest.approx((repair, control))
        assert minus.value == pytest.approx(repair - control) and minus.n == n
        assert minus.low < minus.value < minus.high
    newly, apart = found["newly_failing"].control, found["newly_failing"].control.repair_minus_control
    assert apart.high < 0 and apart.high - apart.low < newly.high - newly.low, "paired: what both fail does not count"


def test_targeting_is_claimed_only_beyond_chance():
    rng = np.random.default_rng(0)
    before = rng.random(600) < 0.7
    fails = {"before": before, "after": before & (rng.random(600) < 0.5), "control": before & (rng.random(600) < 0.5)}
    arguments = (np.arange(600) % 30, np.zeros((600, 1)), np.ones(600, dtype=bool), 1.0)
    same = targeting(PairedAnswers(*arguments, fails, resamples=300, seed=0).difference())
    assert not same.helped and "improved in general" in same.statement
    better = targeting(PairedAnswers(*arguments, {**fails, "control": before}, resamples=300, seed=0).difference())
    assert better.helped
    assert targeting(Difference.measured(Rate(0.1, 0.0, 0.2, 9))) is None


def test_of_many_regions_one_rises_by_chance():
    """Six items of twenty fail newly in a region: significant for the only one tested, not for the best of twenty."""
    space = ConceptSpace((Concept("x", tuple(range(20))),))
    cells, items = np.repeat(np.arange(20), 20)[:, None], np.tile(np.arange(20), 20)
    after = (items < 6) & (cells[:, 0] == 0)
    fails = {"before": np.zeros(400, dtype=bool), "after": after}
    paired = PairedAnswers(items, cells, np.zeros(400, dtype=bool), 0.0, fails, resamples=2000, seed=0)
    regions = [Region({"x": (k,)}) for k in range(20)]
    assert [region.region for region in risen(paired, space, regions[:1])] == [{"x": [0]}]
    assert risen(paired, space, regions) == []


GATES = {"target_failure_rate": {"change_max": -0.3}, "other_failure_rate": {"change_max": 0.05}}
GATES |= {"newly_failing": {"max": 0.1}, "clean_quality": {"change_min": -0.05}}


def audited(path, patch, task, *, concepts=CONCEPTS, budget=800, control="as_used", clusters=0, **settings):
    """Make a workspace and run its stages up to collect_feedback in this process."""
    module = task.partition(":")[0]
    items = {"discover": 20, "repair": 5, "test": 100}
    audit = audit_params(
        task=task,
        compute={"device": "cpu", "threads": 1, "batch_size": 512, "gpus": 0},
        discrepancy={},
        prepare={"items": items, "regions": [TARGET], "noise": 0.03, **settings},
        concepts=dict.fromkeys(concepts, LEVELS),
        discover={"explorer": "random", "budget": budget},
        summarize={"modes": 2, "examples": 2, "clusters": clusters},
    )
    measured = {"paired_probes": 400, "bootstrap": 300}
    restructure = {"method": "planted", "control": control}
    repair = repair_params(restructure=restructure, re_evaluate=measured, gates=GATES)
    (path / "data" / "tiny" / "inputs").mkdir(parents=True)
    Workspace(path).write_params({"audits": {"tiny": audit}, "repairs": {"tiny": repair}})
    (path / f"{module}.py").write_text((ROOT / "tests" / f"{module}.py").read_text())
    patch.chdir(path)
    patch.syspath_prepend(str(path))
    patch.delitem(sys.modules, module, raising=False)
    patch.setitem(estimators.TREES, "max_iter", 30)  # a third of the time, and the modes are clear
    patch.setattr("stages.landscape.before_after.SPLITS", 2)
    for run in (prepare.main, discover.main, summarize.main, report.main, collect_feedback.main):
        run("tiny")
    return path


@pytest.fixture(scope="module")
def audit_dir(tmp_path_factory):
    """One target mode; models made by `repaired` fail in one region elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        yield audited(tmp_path_factory.mktemp("audit"), patch, "planted:PlantedTask")
    sys.modules.pop("planted", None)


def repaired(regions, *, control=None):
    """Write a repaired model that fails in these regions, run the stage, return its verdict."""
    models = stage_dir("tiny", "restructure") / "models"
    shutil.rmtree(models / "control", ignore_errors=True)
    wanted = {"repaired": regions} | ({} if control is None else {"control": control})
    for name, kept in wanted.items():
        (models / name).mkdir(parents=True, exist_ok=True)
        (models / name / "config.json").write_text(json.dumps({"regions": kept, "noise": 0.03}))
    audit_folder("tiny").restructure.trainings = Trainings(
        models=[Training(folder=copy, copy_of=copy, training=0, dose=1.0, steps=1) for copy in wanted]
    )
    for stage in (re_evaluate, compare, conclude):
        stage.main("tiny")
    return repair_verdict("tiny")


def test_an_improvement_is_named(audit_dir):
    verdict = repaired([], control=[TARGET])
    assert verdict["passed"], verdict["gates"]
    assert verdict["differences"]["target_failure_rate"]["change"] < -0.8 and verdict["targeting"]["helped"]
    assert not verdict["failures_moved"]["found"] and verdict["shift"]["beyond_noise"]
    assert verdict["reduced_failures"]["holds"] and verdict["decided_by"] == "policy"
    assert verdict["statement"].startswith("Decided by policy, no human.")
    probes = pd.read_parquet(stage_dir("tiny", "re_evaluate") / "probes.parquet")
    assert set(probes["model"]) == {"before", "after", "control"}
    assert probes["item"].str.startswith("test-").all(), "claims rest on test items only"
    cells = pd.read_parquet(stage_dir("tiny", "compare") / "landscapes.parquet")
    assert len(cells) == 369, "with up to three changes"
    shown, names = audit_folder("tiny").re_evaluate.examples, audit_folder("tiny").compare.comparison.space.names
    assert all(one.before != one.after for one in shown["fixed"])
    assert {one.item for one in shown["unchanged"]} == {one.item for one in shown["fixed"] + shown["newly_failing"]}
    assert {one.cell for one in shown["unchanged"]} == {(0, 0, 0, 0)}
    at = probes.drop_duplicates(["model", "item", *names]).set_index(["model", "item", *names])["failed"]
    for one in shown["fixed"]:
        assert at[("before", one.item, *one.cell)] and not at[("after", one.item, *one.cell)]
    page = (stage_dir("tiny", "conclude") / "report.html").read_text()
    assert "policy" not in verdict and 'id="policy"' not in page and len(page) > 10_000, "random draws learn no policy"


@pytest.mark.slow
def test_a_failure_moved_elsewhere_is_named_with_the_same_bytes_each_time(audit_dir):
    for late in ("PIL", "ot"):  # provenance names what its process has imported, here that of all stages
        importlib.import_module(late)
    verdict = repaired([ELSEWHERE])
    files = [file for stage in STAGES for file in sorted(stage_dir("tiny", stage).iterdir())]
    before = [file.read_bytes() for file in files]
    assert len(files) == 22 and not verdict["passed"] and verdict["targeting"] is None
    failed = {gate["gate"] for gate in verdict["gates"] if not gate["passed"]}
    assert {"newly_failing.max", "other_failure_rate.change_max"} <= failed
    space, moved = planted().concepts, verdict["failures_moved"]["regions"][0]["region"]
    found, true = (Region.from_json(region).contains(space, space.cells()) for region in (moved, ELSEWHERE))
    assert (found & true).sum() / found.sum() > 0.8
    repaired([ELSEWHERE])
    assert before == [file.read_bytes() for file in files]


@pytest.mark.slow
def test_gates_by_slice_judge_the_audit_and_its_repair(audit_dir):
    """Unknown attributes are refused as soon as possible; a verdict names the value that decided."""
    path = audit_dir / "params.yaml"
    before, params = path.read_text(), yaml.safe_load(path.read_text())

    def set_gates(attribute):
        params["audits"]["tiny"]["gates"] = {"slices": {attribute: {"max": 0.9}}}
        params["repairs"]["tiny"]["gates"] = {"slices": {attribute: {"max": 0.05, "change_max": 0.5}}}
        path.write_text(yaml.safe_dump(params))

    try:
        set_gates("topic")
        for stage in (discover, report):
            with pytest.raises(UsageError, match=r"audits\.tiny\.gates\.slices\.topic: .*they have label"):
                stage.main("tiny")
        set_gates("label")
        report.main("tiny")
        [gate] = read_json(stage_dir("tiny", "report") / "verdict.json")["gates"]
        assert (gate["gate"], gate["passed"]) == ("slices.label.max", True)
        verdict = repaired([TARGET])
    finally:
        path.write_text(before)
        report.main("tiny")
    [by_label] = verdict["slices"]
    assert {one["value"]: one["change"] for one in by_label["values"]} == {"0": 0.0, "1": 0.0, "2": 0.0}
    highest = max(by_label["values"], key=lambda one: one["joint_after"]["high"])["value"]
    worst, moved = verdict["gates"]
    assert (worst["gate"], worst["passed"], worst["slice"]) == ("slices.label.max", False, highest)
    assert (moved["gate"], moved["passed"]) == ("slices.label.change_max", True)
    assert f"Failed: slices.label.max ({highest})." in verdict["statement"]
    page = (stage_dir("tiny", "conclude") / "report.html").read_text()
    assert '<section id="slices">' in page and f"failure rate of every label ({highest} decides)" in page


@pytest.mark.slow
def test_without_modes_to_repair_the_verdict_says_so(audit_dir):
    path = stage_dir("tiny", "collect_feedback") / "plan.json"
    plan = read_json(path)
    try:
        write_json(path, {**plan, "modes": [{**mode, "action": "accept"} for mode in plan["modes"]]})
        verdict = repaired([TARGET])
    finally:
        write_json(path, plan)
    assert "repairs no mode" in verdict["statement"]
    assert "Not judged, because there was nothing to measure: target_failure_rate.change_max" in verdict["statement"]
    assert verdict["passed"] is not True and verdict["differences"]["target_failure_rate"]["after"] is None
    assert verdict["differences"]["failure_rate"]["change"] == 0.0
    assert verdict["modes"][0]["change"] == 0.0, "accepted modes are watched too"


def test_summarize_names_the_target_and_uses_discover_items_only(audit_dir):
    summary = read_json(stage_dir("tiny", "summarize") / "landscape.json")
    assert summary["modes"][0]["region"] == TARGET
    assert len(summary["modes"]) == 1 and summary["modes"][0]["low"] > summary["overall"]["high"]
    fresh = pd.read_parquet(stage_dir("tiny", "summarize") / "fresh.parquet")
    assert fresh["item"].str.startswith("discover-").all()
    measured = fresh[(fresh["mode"] == "M1") & (fresh["role"] == "measure")]
    assert len(measured) == summary["modes"][0]["probes"] > 50 and summary["items"] == 20
    [by_label] = summary["slices"]["attributes"]
    assert {one["value"]: one["items"] for one in by_label["values"]} == {"0": 7, "1": 7, "2": 6}
    probes = pd.read_parquet(stage_dir("tiny", "discover") / "probes.parquet")
    assert probes["item"].str.startswith("discover-").all()
    assert read_json(stage_dir("tiny", "report") / "verdict.json")["passed"] is None


def test_graded_qualities_are_bounded_by_what_was_observed():
    """A similarity of 50 items that changes by hundredths does not get the interval of 50 binary answers."""
    rng = np.random.default_rng(0)
    before = rng.uniform(0.6, 0.8, 50)
    values = {"before": before, "after": before + rng.normal(0, 0.02, 50)}
    ids = [str(i) for i in range(50)]
    change = compare_quality(values, ids, resamples=1000, seed=0)[2]
    assert -0.02 < change.low < change.value < change.high < 0.02
    unchanged = compare_quality({"before": before, "after": before}, ids, resamples=1000, seed=0)[2]
    assert -0.01 < unchanged.low < 0 < unchanged.high < 0.01  # no observed change does not prove that there is none
    other = {"before": before, "after": before, "control": np.where(np.arange(50) == 7, 0.0, before)}
    assert compare_quality(other, ids, resamples=1000, seed=0)[2] == unchanged  # a broken control does not matter
    always_right = {"before": np.ones(50), "after": np.ones(50)}
    assert compare_quality(always_right, ids, resamples=1000, seed=0)[2].low < -0.05  # the rule of three
