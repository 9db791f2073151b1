"""A repair's training data, aimed at what people chose, and the number of its trainings."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages import prepare, restructure
from stages.check import check_audits
from stages.code import main as name_code
from stages.concepts import Region
from stages.core.errors import UsageError
from stages.core.files import write_json
from stages.landscape.harm import how_far
from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.classification import ImageClassification, repair
from stages.tasks.contract import Pair, RepairPlan, TargetMode
from stages.tasks.load import load_alone
from tests.images import image_context, stripes, write_images
from tests.workspace import Workspace, audit_params, repair_params


@pytest.fixture(scope="module")
def task():
    return ImageClassification.load(image_context(stripes() / "inputs"), stripes() / "prepare")


TARGET = TargetMode("M1", Region({"rotation": (2,), "darkening": (1, 2)}))
STEPS = {"epochs": 2, "batch_size": 30, "as_used": 0.0, "replay": 0.5}
SETTINGS = {"method": "all-layers", **STEPS}


def test_of_the_candidates_the_worst_is_learnt(task, tmp_path, monkeypatch):
    """Each slot of the batch gets the candidate with the highest loss under the current weights."""
    seen = []
    worst = repair.FineTuning._worst

    def watched(self, changed, rows):
        chosen = worst(self, changed, rows)
        losses = self._losses(self.model(changed), rows, True).detach().numpy()
        seen.append((chosen, losses.reshape(-1, self.changed)))
        return chosen

    monkeypatch.setattr(repair.FineTuning, "_worst", watched)
    settings = {**SETTINGS, "epochs": 1, "candidates": 3, "as_used": 0.2, "replay": 0.3}  # 15 aimed, 6 as used
    task.repair(RepairPlan([TARGET], settings, 1), tmp_path)
    assert len(seen) == 10
    for chosen, losses in seen:
        assert losses.shape == (3, 21) and np.array_equal(losses.reshape(-1)[chosen], losses.max(axis=0))
        assert len(set(chosen // 21)) > 1


def asked_of(task, monkeypatch, folder, control=None, must_pass=(), **settings):
    """The cells (steps, candidates, changed images, d) that a repair of one epoch draws."""
    asked, inputs = [], ImageClassification.inputs

    def watched(self, ids, cells, repeats=None):
        asked.append(cells)
        return inputs(self, ids, cells, repeats)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassification, "inputs", watched)
        plan = RepairPlan([TARGET], {**SETTINGS, "epochs": 1, "candidates": 2, **settings}, 1, control, draft=True)
        task.repair(replace(plan, must_pass=must_pass), folder)
    cells = np.array(asked)
    return cells.reshape(len(cells), 2, -1, cells.shape[-1])


def test_a_batch_has_its_shares_and_a_control_costs_as_much(task, tmp_path, monkeypatch):
    shares = {"as_used": 0.2, "replay": 0.5}  # of 30: 9 aimed, 6 as used, 15 clean
    drawn = {how: asked_of(task, monkeypatch, tmp_path, how, **shares) for how in (None, "as_used", "clean")}
    assert {cells.shape for cells in drawn.values()} == {(17, 2, 15, 3)}, "150 items, 9 a step"
    there = {how: TARGET.region.in_box(task.concepts, cells.reshape(-1, 3)) for how, cells in drawn.items()}
    there = {how: found.reshape(17, 2, 15).mean(axis=(0, 1)) for how, found in there.items()}
    usual = TARGET.region.share(task.concepts)
    assert (there[None][:9] == 1).all() and there[None][9:].mean() == pytest.approx(usual, abs=0.1)
    assert there["as_used"].mean() == pytest.approx(usual, abs=0.1)
    assert (drawn["clean"] == task.concepts.neutral).all()


@pytest.mark.parametrize("control", [None, "as_used"])
def test_pairs_that_must_pass_replace_those_as_used_and_no_other_draw(task, tmp_path, monkeypatch, control):
    shares = {"as_used": 0.2, "replay": 0.5}
    pairs = [Pair(item, [2, 2, 1]) for item in task.items.ids("repair")[:5]]
    drawn = [asked_of(task, monkeypatch, tmp_path, control, must, **shares) for must in ((), pairs[:1], pairs)]
    for n, cells in zip((0, 1, 4), drawn, strict=True):
        assert np.array_equal(cells[..., : 15 - n, :], drawn[0][..., : 15 - n, :])
        assert (cells[..., 15 - n :, :] == [2, 2, 1]).all(), "a quarter of 15 at most"


@pytest.mark.parametrize(("dose", "steps"), [(0.25, 5), (0.001, 1)])
def test_a_dose_is_a_share_of_the_steps(task, tmp_path, dose, steps):
    record = task.repair(RepairPlan([TARGET], SETTINGS, 1, dose=dose, draft=True), tmp_path)
    assert record.steps == len(record.curve) == steps
    assert record.details == {} and not (tmp_path / "README.md").exists(), "a draft has no card"


@pytest.mark.slow
def test_where_failures_are_rare_an_aimed_repair_beats_its_control_at_as_many_steps():
    """One level of 22 breaks the model in a grid of 1,152 cells: 7% fail."""
    grid = {"rotation": [0, 1, 2, 3, 4, 5, 6, 30], "darkening": [0, 0.05, 0.1, 0.15, 0.2, 0.25]}
    grid |= {"contrast": [1, 0.98, 0.96, 0.94], "noise": [0, 0.01, 0.02, 0.03]}
    context = image_context(stripes() / "inputs", concepts=grid)
    task = ImageClassification.load(context, stripes() / "prepare")
    target, rng = TargetMode("M1", Region({"rotation": (7,)})), np.random.default_rng(0)
    asked = rng.choice(task.items.ids("test"), 1000).tolist()
    everywhere, inside = task.concepts.sample(1000, rng), target.region.sample(task.concepts, 1000, rng)

    def failing(model):
        return np.array([model.probe(asked, cells).failed.mean() for cells in (inside, everywhere)])

    def after(**how):
        found = []
        for seed in (1, 2, 3):
            plan = RepairPlan([target], SETTINGS, seed, draft=True, **how)
            with tempfile.TemporaryDirectory() as folder:
                task.repair(plan, Path(folder))
                found.append(failing(ImageClassification.load(context, stripes() / "prepare", Path(folder))))
        return np.mean(found, axis=0)

    before, aimed, control = failing(task), after(), after(control="as_used")
    assert before[0] > 0.5 and before[1] < 0.1
    assert (aimed < control * 0.8).all(), (before, aimed, control)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A prepared audit of striped squares, and a decision on it."""
    place = tmp_path_factory.mktemp("workspace")
    context = image_context(place)
    task = "stages.tasks.classification:ImageClassification"
    audit = audit_params(task=task, prepare=context.config, concepts=context.concepts)
    Workspace(place).write_params({"audits": {"stripes": audit}, "repairs": {"stripes": block()}})
    folder = place / "data" / "stripes"
    write_images(folder / "inputs" / "images.parquet")
    mode = {"id": "M1", "text": "turned", "region": {"rotation": [2], "darkening": [1, 2]}, "action": "repair"}
    mode |= {"severity": 1.0, "reason": "seen"}
    plan = {"landscape": "abc", "decided_by": "human", "statement": "s", "reviewer": "Ada", "reason": "r"}
    write_json(folder / "collect_feedback" / "plan.json", {**plan, "modes": [mode]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        name_code("stripes")
        prepare.main("stripes")
    return place


@pytest.fixture
def place(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    yield workspace
    shutil.rmtree(workspace / "data" / "stripes" / "restructure", ignore_errors=True)


def block(**changes):
    return repair_params(restructure={"method": "all-layers", "control": "as_used", "settings": STEPS, **changes})


def run(place, **asked):
    Workspace(place).edit_params({"repairs.stripes": block(**asked)})
    restructure.main("stripes")
    folder = place / "data" / "stripes" / "restructure"
    return folder, json.loads((folder / "trainings.json").read_text())["models"]


@pytest.mark.slow
def test_trainings_differ_in_seed_and_steps(place):
    folder, models = run(place, trainings=2, harm=None)
    assert {m["folder"]: m["steps"] for m in models} == {
        "repaired": 20, "control": 20,
        "trainings/repaired-0.25-0": 5, "trainings/control-0.25-0": 5, "trainings/control-4-0": 80,
        "trainings/repaired-0.25-1": 5, "trainings/repaired-1-1": 20,
        "trainings/control-0.25-1": 5, "trainings/control-1-1": 20, "trainings/control-4-1": 80,
    }  # fmt: skip
    assert {m["training"] for m in models if m["folder"].endswith("-1")} == {1}
    weights = [(folder / "models" / m["folder"] / "model.safetensors").read_bytes() for m in models]
    assert len(set(weights)) == len(weights), "each is another model"


def test_what_a_method_cannot_do_is_refused_before_anything_runs(place, monkeypatch):
    def check(**changes):
        Workspace(place).edit_params({"repairs.stripes": block(**changes)})
        check_audits(load_params(), ["stripes"])

    check(trainings=3)
    monkeypatch.setattr(ImageClassification, "heeds_dose", ("last-layer",))
    with pytest.raises(UsageError, match="trainings: method all-layers of this task does not train in steps"):
        check(trainings=3)
    monkeypatch.setattr(ImageClassification, "movable", ("last-layer",))
    told = r"harm: method all-layers of this task cannot go part.* null, or method last-la"
    with pytest.raises(UsageError, match=told):
        check(harm={"newly_failing": 0.1})


@pytest.mark.parametrize("budget", [0.0, 0.99])
def test_repair_and_control_go_as_far_as_their_budget_of_harm(place, budget):
    folder, models = run(place, harm={"newly_failing": budget, "clean": budget, "pairs": 200})
    found, went = audit_folder("stripes").restructure.trainings, {"repaired": 1.0, "control": 1.0}
    assert found.movable and found.harm.keys() == went.keys()
    for copy, harm in found.harm.items():
        went[copy] = harm.share
        assert harm.items == 30, "a fifth of the repair items"
        assert harm.share == max((one.share for one in harm.tried if one.allowed), default=0.0)
        weights, before = (folder / f"{of}/model.safetensors" for of in (f"models/{copy}", "../prepare/model"))
        assert (weights.read_bytes() == before.read_bytes()) == (harm.share == 0)
        assert (folder / "models" / f"trainings/{copy}-1-0").exists() == (harm.share < 1)
        assert ("How much it breaks" in (folder / "models" / copy / "README.md").read_text()) == (0 < harm.share < 1)
    shares = {m["folder"]: m.get("share", 1.0) for m in models}
    assert {folder: share for folder, share in shares.items() if folder in went} == went
    assert [shares[one] for one in shares if one not in went] == [1.0] * sum(x < 1 for x in went.values())
    if budget:
        assert went == {"repaired": 1.0, "control": 1.0}


def test_a_share_that_holds_out_nothing_is_refused_before_training(place):
    with pytest.raises(UsageError, match=r"harm\.held_out: 0\.001 of 150 repair items is none"):
        run(place, harm={"held_out": 0.001})


@pytest.mark.slow
def test_pairs_that_a_repair_broke_pass_after_the_next_one_if_they_must(place):
    """The budget is no help: the pairs have to be learnt, or the repair goes only as far as they allow."""
    loose = {"harm": {"newly_failing": 0.99, "clean": 0.99, "pairs": 200}}
    folder, _ = run(place, **loose)
    prepared, rng = place / "data" / "stripes" / "prepare", np.random.default_rng(0)
    audit = load_params().audit("stripes")
    before = load_alone("stripes", audit, prepared)
    items = rng.choice(before.items.ids("test"), 2000)
    cells = before.concepts.sample(2000, rng)

    def failed(model):
        return load_alone("stripes", audit, prepared, model).probe(items.tolist(), cells).failed

    broken = np.flatnonzero(~failed(None) & failed(folder / "models" / "repaired"))[:8]
    own = np.flatnonzero(failed(None))[:2]
    assert len(broken) > 1 and len(own) == 2
    plan = folder.parent / "collect_feedback" / "plan.json"
    decided = plan.read_text()
    pairs = [{"item": str(items[row]), "cell": cells[row].tolist()} for row in (*broken, *own)]
    plan.write_text(json.dumps({**json.loads(decided), "must_pass": pairs}))
    try:
        folder, _ = run(place, **loose)
    finally:
        plan.write_text(decided)
    assert not failed(folder / "models" / "repaired")[broken].any()
    assert not failed(folder / "models" / "control")[broken].any()
    found = audit_folder("stripes").restructure.trainings
    assert {copy: (one.pairs + one.left_out, one.failing) for copy, one in found.must_pass.items()} == {
        "repaired": (len(pairs), 0), "control": (len(pairs), 0)}  # fmt: skip
    assert all(one.allowed == (one.must_pass.failing == 0) for harm in found.harm.values() for one in harm.tried)
    for copy, harm in found.harm.items():
        assert ("must pass fail" in how_far(copy, harm)) == (harm.share < 1)
