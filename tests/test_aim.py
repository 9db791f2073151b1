"""A repair's training data: what the search's policy draws, besides people's choices; and the number of trainings."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import prepare, restructure
from stages.check import check_audits
from stages.code import main as name_code
from stages.concepts import Concept, ConceptSpace, Region
from stages.core.errors import UsageError
from stages.core.files import write_json
from stages.explorers.policy import save_policy
from stages.explorers.prober import Prober
from stages.explorers.registry import make_explorer
from stages.params import Params
from stages.records import audit_folder
from stages.tasks.cells import FOCUS, PairSampler, PolicySampler, sampler
from stages.tasks.classification import ImageClassification, repair
from stages.tasks.contract import RepairPlan, TargetMode
from tests.images import image_context, write_images
from tests.workspace import audit_params, repair_params

SPACE = ConceptSpace(tuple(Concept(name, (0, 1, 2, 3), neutral=0) for name in "abcd"))
ITEMS = pd.DataFrame({"label": ["9" if k % 10 == 9 else str(k % 9) for k in range(50)]})


class Looks:
    """A policy that draws for each item from its own cells: (items, k, concepts)."""

    def __init__(self, cells):
        self.cells = cells

    def sample(self, embedding, k, seed):
        rng = np.random.default_rng(seed)
        return np.stack([own[rng.integers(len(own), size=k)] for own in self.cells])


def looks_at(region, share, seed=0):
    """Draws for 50 items of which this share is in the region."""
    rng = np.random.default_rng(seed)
    inside, outside = region.sample(SPACE, 20, rng), SPACE.sample(400, rng)
    outside = outside[~region.in_box(SPACE, outside)]
    mixed = [inside[rng.integers(20)] if n < 64 * share else outside[n] for n in range(64)]
    return np.stack([np.array(mixed)] * 50)


def inside(target, rows, cells):
    return target.region.contains(SPACE, cells, ITEMS.iloc[rows])


def test_what_the_policy_draws_for_an_item_is_learnt_with_this_item():
    drawn = np.zeros((50, 8, 4), dtype=np.int64)
    drawn[:, :, 0], drawn[:, :, 1] = (np.arange(50) % 4)[:, None], np.arange(8) % 4
    pairs = PolicySampler(PairSampler(SPACE, [TargetMode("M1", Region({"a": (1,)}))], ITEMS), drawn)
    rows, cells = pairs.draw(400, np.random.default_rng(0))
    assert np.array_equal(cells[:, 0], rows % 4)
    assert set(np.unique(cells[:, 1])) == {0, 1, 2, 3}
    assert np.ptp(np.bincount(rows)) <= 1, "every item as often as any other"


@pytest.mark.parametrize(("own", "wanted"), [(0.5, 0.5), (0.125, FOCUS), (0.0, FOCUS)])
def test_a_target_where_the_policy_looks_seldom_still_gets_its_share(own, wanted):
    target = TargetMode("M1", Region({"a": (3,), "b": (3,)}))
    pairs = PolicySampler(PairSampler(SPACE, [target], ITEMS), looks_at(target.region, own))
    share = inside(target, *pairs.draw(4000, np.random.default_rng(1))).mean()
    # The aimed share is in addition to the rest's own draws inside.
    rest = 1 - max(0.0, FOCUS - own)
    assert share == pytest.approx(max(0.0, FOCUS - own) + rest * own, abs=0.03)
    assert share > wanted - 0.04


def test_of_several_targets_the_severe_one_gets_more():
    targets = [TargetMode("M1", Region({"a": (3,)}), 3.0), TargetMode("M2", Region({"b": (3,)}))]
    drawn = np.zeros((50, 8, 4), dtype=np.int64)  # the policy draws neither
    _, cells = PolicySampler(PairSampler(SPACE, targets, ITEMS), drawn).draw(4000, np.random.default_rng(1))
    first, second = ((cells[:, k] == 3).mean() for k in (0, 1))
    assert first == pytest.approx(FOCUS * (0.75 + 0.25 / 4), abs=0.03)
    assert second == pytest.approx(FOCUS * (0.25 + 0.75 / 4), abs=0.03)
    assert (cells == 0).all(axis=1).mean() == pytest.approx(1 - FOCUS, abs=0.03)


def test_what_people_spared_is_not_learnt_but_where_a_target_overlaps_it():
    target, spared = TargetMode("M1", Region({"a": (3,), "b": (3,)})), Region({"b": (3,)})
    rng = np.random.default_rng(0)
    drawn = np.stack([SPACE.sample(64, rng) for _ in range(50)])
    drawn[:, :32, 1] = 3  # the policy mostly draws what was left out
    rows, cells = PolicySampler(PairSampler(SPACE, [target], ITEMS), drawn, [spared]).draw(4000, rng)
    there = spared.in_box(SPACE, cells)
    assert there.any() and inside(target, rows, cells)[there].all()
    assert inside(target, rows, cells).mean() > FOCUS - 0.03
    assert set(np.unique(cells[~there][:, 1])) == {0, 1, 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("stripes")
    write_images(home / "inputs" / "images.parquet")
    (home / "prepare").mkdir()
    ImageClassification.prepare(image_context(home / "inputs"), home / "prepare")
    return home


@pytest.fixture(scope="module")
def task(home):
    return ImageClassification.load(image_context(home / "inputs"), home / "prepare")


TARGET = TargetMode("M1", Region({"rotation": (2,), "darkening": (1, 2)}))
SETTINGS = {"method": "all-layers", "epochs": 2, "batch_size": 30, "as_used": 0.0, "replay": 0.5}


def test_a_plan_with_a_policy_draws_by_it(task):
    items = task.items.ids("repair")
    policy = Looks([np.array([[n % 3, 0, 0]]) for n in range(len(items))])
    pairs = sampler(task, RepairPlan([TARGET], SETTINGS, 1, policy=policy), items)
    assert isinstance(pairs, PolicySampler)
    rows, cells = pairs.draw(600, np.random.default_rng(0))
    assert (cells[cells[:, 1] == 0, 0] == rows[cells[:, 1] == 0] % 3).all()
    assert isinstance(sampler(task, RepairPlan([TARGET], SETTINGS, 1), items), PairSampler)


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
        assert losses.shape == (3, 21)
        assert np.array_equal(losses.reshape(-1)[chosen], losses.max(axis=0))
        assert len(set(chosen // 21)) > 1


def asked_of(task, monkeypatch, folder, control=None, **settings):
    """The cells (steps, candidates, changed images, d) that a repair of one epoch draws."""
    asked, inputs = [], ImageClassification.inputs

    def watched(self, ids, cells, repeats=None):
        asked.append(cells)
        return inputs(self, ids, cells, repeats)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassification, "inputs", watched)
        plan = RepairPlan([TARGET], {**SETTINGS, "epochs": 1, "candidates": 2, **settings}, 1, control, draft=True)
        task.repair(plan, folder)
    cells = np.array(asked)
    return cells.reshape(len(cells), 2, -1, cells.shape[-1])


def test_a_batch_has_its_shares_and_a_control_costs_as_much(task, tmp_path, monkeypatch):
    shares = {"as_used": 0.2, "replay": 0.5}  # of 30: 9 aimed, 6 as used, 15 clean
    drawn = {how: asked_of(task, monkeypatch, tmp_path, how, **shares) for how in (None, "as_used", "clean")}
    assert {cells.shape for cells in drawn.values()} == {(17, 2, 15, 3)}, "150 items, 9 a step"
    there = {how: TARGET.region.in_box(task.concepts, cells.reshape(-1, 3)) for how, cells in drawn.items()}
    there = {how: found.reshape(17, 2, 15).mean(axis=(0, 1)) for how, found in there.items()}
    usual = TARGET.region.share(task.concepts)
    assert (there[None][:9] == 1).all()
    assert there[None][9:].mean() == pytest.approx(usual, abs=0.1)
    assert there["as_used"].mean() == pytest.approx(usual, abs=0.1)
    assert (drawn["clean"] == task.concepts.neutral).all()


@pytest.mark.parametrize(("dose", "steps"), [(0.25, 5), (0.001, 1)])
def test_a_dose_is_a_share_of_the_steps(task, tmp_path, dose, steps):
    record = task.repair(RepairPlan([TARGET], SETTINGS, 1, dose=dose, draft=True), tmp_path)
    assert record.steps == len(record.curve) == steps
    assert record.details == {} and not (tmp_path / "README.md").exists(), "a draft has no card"


@pytest.mark.slow
def test_where_failures_are_rare_a_repair_aimed_by_a_search_beats_its_control_at_as_many_steps(home):
    """One level of 22 breaks the model in a grid of 1,152 cells: 7% fail. The policy is from 400 probes."""
    grid = {"rotation": [0, 1, 2, 3, 4, 5, 6, 30], "darkening": [0, 0.05, 0.1, 0.15, 0.2, 0.25]}
    grid |= {"contrast": [1, 0.98, 0.96, 0.94], "noise": [0, 0.01, 0.02, 0.03]}
    context = image_context(home / "inputs", concepts=grid)
    task = ImageClassification.load(context, home / "prepare")
    policy = make_explorer("model_based", {}).explore(Prober(task, task.items.ids("discover"), 400), 1).policy
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
                found.append(failing(ImageClassification.load(context, home / "prepare", Path(folder))))
        return np.mean(found, axis=0)

    before, aimed, control = failing(task), after(policy=policy), after(control="as_used")
    assert before[0] > 0.5 and before[1] < 0.1
    assert (aimed < control * 0.8).all(), (before, aimed, control)


# The stage


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A prepared audit of striped squares, a decision on it, and a search without a policy."""
    place = tmp_path_factory.mktemp("workspace")
    context = image_context(place)
    audit = audit_params(
        task="stages.tasks.classification:ImageClassification", prepare=context.config, concepts=context.concepts
    )
    (place / "params.yaml").write_text(json.dumps({"audits": {"stripes": audit}, "repairs": {"stripes": block()}}))
    folder = place / "data" / "stripes"
    write_images(folder / "inputs" / "images.parquet")
    mode = {"id": "M1", "text": "turned", "region": {"rotation": [2], "darkening": [1, 2]}, "action": "repair"}
    mode |= {"severity": 1.0, "reason": "seen"}
    plan = {"landscape": "abc", "decided_by": "human", "statement": "s", "reviewer": "Ada", "reason": "r"}
    write_json(folder / "collect_feedback" / "plan.json", {**plan, "modes": [mode]})
    save_policy(None, folder / "discover" / "policy")
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


def block(**restructure):
    return repair_params(restructure={"method": "all-layers", "control": "as_used", "settings": {
        "epochs": 2, "batch_size": 30, "as_used": 0.0, "replay": 0.5}, **restructure})  # fmt: skip


def run(place, **asked):
    params = json.loads((place / "params.yaml").read_text())
    params["repairs"]["stripes"] = block(**asked)
    (place / "params.yaml").write_text(json.dumps(params))
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


@pytest.mark.slow
def test_the_policy_reaches_the_repair_if_asked_for_and_no_control_that_draws_as_used(place, monkeypatch):
    looks, asked = Looks([np.array([[2, 1, 0]])] * 150), set()

    def watched(self, plan, out):
        asked.add((plan.control, plan.policy is looks))
        return task_repair(self, plan, out)

    monkeypatch.setattr("stages.explorers.policy.load_policy", lambda folder: looks)
    monkeypatch.setattr(ImageClassification, "repair", watched)
    run(place, harm=None)
    assert asked == {(None, False), ("as_used", False)}
    asked.clear()
    run(place, aim="policy", trainings=2, harm=None)
    assert asked == {(None, True), ("as_used", False)}
    asked.clear()
    run(place, aim="policy", control="clean", harm=None)
    assert asked == {(None, True), ("clean", True)}, "it may learn of the same items"


task_repair = ImageClassification.repair


def test_a_policy_for_a_method_that_follows_none_is_refused_before_anything_runs(place, monkeypatch):
    params = json.loads((place / "params.yaml").read_text())
    params["repairs"]["stripes"] = block(aim="policy")

    check_audits(Params.model_validate(params), ["stripes"])
    monkeypatch.setattr(ImageClassification, "heeds_dose", ("last-layer",))
    params["repairs"]["stripes"] = block(trainings=3)
    with pytest.raises(UsageError, match="trainings: method all-layers of this task does not train in steps"):
        check_audits(Params.model_validate(params), ["stripes"])
    monkeypatch.setattr(ImageClassification, "movable", ("last-layer",))
    params["repairs"]["stripes"] = block(harm={"newly_failing": 0.1})
    with pytest.raises(
        UsageError, match=r"harm: method all-layers of this task cannot go part.* null, or method last-la"
    ):
        check_audits(Params.model_validate(params), ["stripes"])
    params["repairs"]["stripes"] = block(aim="policy")
    monkeypatch.setattr(ImageClassification, "follows_policy", ("last-layer",))
    with pytest.raises(UsageError, match="all-layers of this task follows no policy; expected last-layer"):
        check_audits(Params.model_validate(params), ["stripes"])


def test_a_target_about_some_items_is_learnt_of_these_where_the_policy_looks_there():
    target = TargetMode("M1", Region({"a": (3,)}, {"label": ("9",)}))
    drawn = np.zeros((50, 64, 4), dtype=np.int64)
    drawn[:, 0, 0] = 3  # one draw in 64, for every item
    rows, cells = PolicySampler(PairSampler(SPACE, [target], ITEMS), drawn).draw(4000, np.random.default_rng(1))
    there = inside(target, rows, cells)
    assert there.mean() == pytest.approx(FOCUS, abs=0.03)
    nines = ITEMS["label"].to_numpy()[rows] == "9"
    assert (cells[~nines, 0] == 3).mean() < 0.05, "the others are learnt where the policy looks for them"


@pytest.mark.parametrize("budget", [0.0, 0.99])
def test_repair_and_control_go_as_far_as_their_budget_of_harm(place, budget):
    folder, models = run(place, harm={"newly_failing": budget, "clean": budget, "pairs": 200})
    found, went = audit_folder("stripes").restructure.trainings, {"repaired": 1.0, "control": 1.0}
    assert found.movable and found.harm.keys() == went.keys()
    for copy, harm in found.harm.items():
        went[copy] = harm.share
        assert harm.items == 30, "a fifth of the repair items"
        assert harm.share == max((one.share for one in harm.tried if one.allowed), default=0.0)
        weights = (folder / "models" / copy / "model.safetensors").read_bytes()
        assert (weights == (place / "data" / "stripes" / "prepare/model/model.safetensors").read_bytes()) == (
            harm.share == 0
        )
        assert (folder / "models" / f"trainings/{copy}-1-0").exists() == (harm.share < 1)
        assert ("How much it breaks" in (folder / "models" / copy / "README.md").read_text()) == (0 < harm.share < 1)
    assert {m["folder"]: m.get("share", 1.0) for m in models if m["folder"] in went} == went
    assert [m.get("share", 1.0) for m in models if m["folder"].startswith("trainings/")] == [1.0] * sum(
        x < 1 for x in went.values()
    )
    if budget:
        assert went == {"repaired": 1.0, "control": 1.0}


def test_a_share_that_holds_out_nothing_is_refused_before_training(place):
    with pytest.raises(UsageError, match=r"harm\.held_out: 0\.001 of 150 repair items is none"):
        run(place, harm={"held_out": 0.001})


def test_policy_is_refused_where_none_was_learnt(place):
    with pytest.raises(UsageError, match=r"restructure\.aim: policy needs a search that learns one.*aim: modes"):
        run(place, aim="policy")
