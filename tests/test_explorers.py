"""Explorers on a task with known failures: budgets, the environment, agents, `auto`, and what the docs say."""

import re
import sys

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from stages.concepts import Concept, ConceptSpace, Region
from stages.core.errors import InfrastructureError, NoLearningError, UsageError
from stages.core.ledger import Key, Ledger
from stages.explorers.contract import EXPLORERS, ExplorerResult, explorer_class, make_explorer
from stages.explorers.env import ENV_ID
from stages.explorers.model_based import FEW, Auto, AutoSettings, ModelBased
from stages.explorers.prober import Prober
from stages.explorers.search import search
from stages.params import DiscoverConfig
from stages.tasks.contract import Items, ProbeBatch
from tests.planted import PlantedTask
from tests.workspace import ROOT

DOCS = (ROOT / "docs" / "explorers.md").read_text()
FACTORED = ("ppo", "a2c", "trpo")
MODEL_BASED = ("model_based", "pool", "local_search")  # see test_model_based.py
LEARNERS = ("epsilon_greedy", "thompson", "ucb", "bayesian", "map_elites")
WITHOUT_NETWORK = ("sobol", "latin_hypercube", *LEARNERS, "threshold_search")
REGION = {"a": [3, 4], "b": [2, 3, 4]}


def make_task(levels: int = 5, concepts: str = "abc", items: int = 30, noise: float = 0.03) -> PlantedTask:
    space = ConceptSpace(tuple(Concept(name, tuple(range(levels))) for name in concepts))
    rows = [{"id": f"i{n}", "split": "discover", "label": "0"} for n in range(items)]
    return PlantedTask(Items(pd.DataFrame(rows)), space, {"regions": [REGION], "noise": noise}, seed=0)


def ids(task: PlantedTask) -> list[str]:
    return task.items.ids("discover")


def explore(name: str, task: PlantedTask, budget: int, seed: int = 0, **settings) -> pd.DataFrame:
    """The probes of an explorer."""
    prober = Prober(task, ids(task), budget)
    make_explorer(name, settings).explore(prober, seed)
    return prober.table()


def test_only_unique_probes_are_paid_and_asked() -> None:
    task = make_task()
    prober = Prober(task, ids(task), budget=10)
    items, cells = np.array([0, 0, 1]), np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1]])
    first, again = prober.ask(items, cells), prober.ask(items, cells)
    assert first.fresh.tolist() == [True, False, True]
    assert not again.fresh.any() and again.answered.all() and prober.spent == task.queries == 2
    np.testing.assert_array_equal(first.discrepancy, again.discrepancy)


def test_the_budget_is_kept_exactly_and_probes_are_those_of_the_task() -> None:
    task = make_task()
    prober = Prober(task, ids(task), budget=7)
    even = np.arange(20) % 2 == 0
    answers = prober.ask(np.arange(20) % 30, task.concepts.sample(20, np.random.default_rng(0)), uniform=even)
    assert prober.spent == 7 == answers.answered.sum() == task.queries
    assert np.isnan(answers.discrepancy[~answers.answered]).all()
    table = prober.table()
    truth = task.probe(table["item"].tolist(), table[task.concepts.names].to_numpy())
    np.testing.assert_array_equal(table["discrepancy"], truth.discrepancy)
    np.testing.assert_array_equal(table["failed"], truth.failed)
    assert prober.failures == truth.failed.sum() and table["uniform"].tolist() == even[:7].tolist()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: ProbeBatch(np.full_like(a.discrepancy, np.nan), a.failed, a.outputs), "not finite"),
        (lambda a: ProbeBatch(a.discrepancy, ~a.failed, a.outputs), "must call failed what has a discrepancy above"),
        (lambda a: ProbeBatch(a.discrepancy[:-1], a.failed, a.outputs), "was asked 4 probes and answered with shapes"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(spoil, message: str, tmp_path) -> None:
    class Spoilt(PlantedTask):
        def probe(self, *args, **kwargs):
            return spoil(super().probe(*args, **kwargs))

    task = make_task()
    spoilt = Spoilt(task.items, task.concepts, task.model, 0)
    prober = Prober(spoilt, ids(task), 10, Ledger(tmp_path / "ledger"))
    with pytest.raises(UsageError, match=message):
        prober.ask(np.arange(4), np.zeros((4, 3), dtype=int))
    assert len(Ledger(tmp_path / "ledger")) == 0  # nothing was stored


def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path) -> None:
    quick = {"first": 40, "batch": 30, "candidates": 600, "final_generations": 10}
    config = DiscoverConfig(explorer="model_based", budget=140, settings=quick)
    whole = search(make_task(), ids(make_task()), config, seed=3)

    class KilledTask(PlantedTask):
        def probe(self, *args, **kwargs):
            if self.queries > 90:
                raise InfrastructureError("killed")
            return super().probe(*args, **kwargs)

    task = make_task()
    killed = KilledTask(task.items, task.concepts, task.model, 0)
    with pytest.raises(InfrastructureError):
        search(killed, ids(task), config, seed=3, ledger=Ledger(tmp_path / "ledger.jsonl"))
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write('{"schema": 1, "items": ["i0"], "ce')  # left by a kill in the middle of a line

    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert 0 < ledger.resumed == killed.queries
    pd.testing.assert_frame_equal(search(task, ids(task), config, seed=3, ledger=ledger).probes, whole.probes)
    assert task.queries == len(Ledger(tmp_path / "ledger.jsonl")) - ledger.resumed


def test_answers_come_back_exactly(tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=20).astype(np.float32)
    keys = [Key(f"ä{n}", n) for n in range(20)]
    written = Ledger(tmp_path / "l")
    written.append(keys, values, values > 0, ['"\n</script>\ud83d'] * 20, valid=values < 1)
    ledger = Ledger(tmp_path / "l")  # the file is on disk before the ledger is closed
    assert [ledger[k].valid for k in keys] == (values < 1).tolist() and not ledger[keys[values.argmax()]].valid
    assert [np.float32(ledger[k].discrepancy) for k in keys] == values.tolist()
    assert ledger[keys[3]].output == '"\n</script>?', "half a surrogate pair cannot be encoded"
    size = (tmp_path / "l").stat().st_size
    with pytest.raises(ValueError, match=r"a batch of 2 probes was answered by columns of lengths"):
        written.append([Key("a", 0), Key("b", 1)], np.zeros(2), np.zeros(1, bool), ["", ""])
    assert (tmp_path / "l").stat().st_size == size


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("flat", [False, True])
def test_both_checkers_accept_the_environment(flat: bool) -> None:
    task = make_task()
    env = gym.make(ENV_ID, prober=Prober(task, ids(task), 10_000), flat=flat, disable_env_checker=True)
    gymnasium_check(env.unwrapped, skip_render_check=True)
    sb3_check(env.unwrapped)


@pytest.mark.parametrize("name", [n for n in EXPLORERS if n not in ("auto", *MODEL_BASED, *WITHOUT_NETWORK)])
def test_an_explorer_spends_its_budget_and_is_seeded(name: str) -> None:
    config = DiscoverConfig(explorer=name, budget=220)
    runs = [search(make_task(), ids(make_task()), config, seed=s) for s in (1, 1, 2)]
    for run in runs:
        agent = run.probes[run.probes["role"] == "agent"]
        assert len(agent) == 176 == run.metrics["agent"]["probes"]  # a fifth of the budget is kept back
        assert not agent.duplicated(["item", "a", "b", "c", "repeat"]).any()
    pd.testing.assert_frame_equal(runs[0].probes, runs[1].probes)
    if name != "exhaustive":
        assert not runs[0].probes.equals(runs[2].probes)


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
def test_a_long_search_begins_with_the_short_one_of_its_seed(name: str) -> None:
    known = explorer_class(name).Settings.model_fields
    task, short = make_task(), {key: n for key, n in {"startup": 30, "batch": 20}.items() if key in known}
    long = explore(name, task, 90, seed=5, **short)
    assert len(long) == 90 == len(long.drop_duplicates(["item", *task.concepts.names]))
    pd.testing.assert_frame_equal(explore(name, task, 75, seed=5, **short), long.head(75))
    assert not explore(name, task, 75, seed=6, **short).equals(long.head(75))


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "epsilon_greedy"])  # see below
def test_what_learns_finds_more_than_chance_does(name: str) -> None:
    task, budget = make_task(items=100), 250 if name == "bayesian" else 400
    assert explore(name, task, budget)["failed"].mean() > 1.6 * 0.26  # 24% of the grid fail, and 3% of the rest


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
@pytest.mark.parametrize(("items", "regions"), [(2, [{}]), (1, [{"force": [4, 5]}])])
def test_a_grid_may_be_uneven_and_is_exhausted_to_the_last_pair(name: str, items: int, regions: list) -> None:
    kind, on = Concept("kind", ("x", "y", "z"), ordered=False), Concept("on", (0, 1))
    task = make_task(items=items)
    space = ConceptSpace((kind, Concept("force", tuple(range(6))), on))  # 36 cells
    task = PlantedTask(task.items, space, {"regions": regions, "noise": 0.0}, seed=0)
    found = explore(name, task, 36 * items)
    assert len(found) == 36 * items == len(found.drop_duplicates(["item", *space.names]))


@pytest.mark.parametrize(
    ("name", "settings", "first"),
    [
        ("latin_hypercube", {}, 90),
        ("epsilon_greedy", {"epsilon": 0.0, "batch": 16}, 16),  # no arm has been opened yet
        ("bayesian", {"startup": 30, "batch": 20}, 40),  # the startup ends between two batches
        ("map_elites", {"startup": 30, "batch": 10}, 30),
        ("thompson", {}, 0),
        ("threshold_search", {}, 0),
    ],
)
def test_uniform_draws_are_marked_and_no_others(name: str, settings: dict, first: int) -> None:
    task = make_task(concepts="abcdefg", items=1000)  # large enough that no pair is drawn twice
    assert explore(name, task, 90, **settings)["uniform"].tolist() == [True] * first + [False] * (90 - first)


@pytest.mark.parametrize(("name", "library"), [("bayesian", "optuna"), ("map_elites", "ribs")])
def test_a_missing_library_is_named_with_what_to_install(name: str, library: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'faded\[explorers\]'"):
        explore(name, make_task(), 10)


def test_a_budget_that_covers_the_grid_enumerates_it() -> None:
    task = make_task(levels=3, concepts="ab", items=5)
    found = search(task, ids(task), DiscoverConfig(budget=1000), seed=0)
    assert found.enumerated and found.policy is None and len(found.probes) == 45 == task.queries
    assert set(found.probes["role"]) == {"control"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pppo", {}, "no explorer 'pppo', found: .*ppo, "),
        ("ppo", {"reward": {"novelti": 1}}, "reward.novelti: unknown key, did you mean 'novelty'"),
        ("bayesian", {"sampler": "cma"}, "sampler: .*'tpe' or 'gp', found 'cma'"),
        ("model_based", {"generators": ["policy", "policy"]}, "each generator once"),
    ],
)
def test_bad_explorers_are_told(name: str, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_explorer(name, settings)


def test_every_explorer_and_every_setting_is_in_the_docs():
    table = [line.split("|") for line in DOCS.split("## Settings")[1].splitlines() if line.startswith("| `")]
    for name in EXPLORERS:
        assert f"`{name}`" in DOCS.split("## Model-based search")[0]
        documented = {s for row in table if f"`{name}`" in row[1] for s in re.findall(r"`(\w+)` \(", row[2])}
        if name == "thompson":
            documented -= {"optimism"}  # a setting of ucb, in the same row
        assert documented == set(explorer_class(name).Settings.model_fields), name


def test_auto_draws_at_random_what_is_too_little_to_learn_from():
    task = make_task()
    prober = Prober(task, ids(task), FEW - 1)
    found = make_explorer("auto", {}).explore(prober, seed=0)
    assert found.details["chosen"] == "random" and "too few" in found.details["why"]
    assert prober.spent == FEW - 1 and prober.table()["uniform"].all()


@pytest.mark.parametrize("concepts", [2, 8], ids=["small grid", "large grid"])
def test_auto_takes_one_explorer_for_every_grid_and_hands_its_goal_on(monkeypatch, concepts):
    """It goes by the budget of the whole search, of which the prober may have a share."""
    asked = []

    def explore(self, prober, seed):
        asked.append((self.name, self.settings.goal, prober.space.n_cells))
        return ExplorerResult(None, {})

    monkeypatch.setattr(ModelBased, "explore", explore)
    task = make_task()
    task.concepts = ConceptSpace(tuple(Concept(name, tuple(range(7))) for name in "abcdefgh"[:concepts]))
    Auto(AutoSettings(goal="failures"), budget=FEW).explore(Prober(task, ids(task), FEW - 1), seed=0)
    assert asked == [("model_based", "failures", 7**concepts)]


@pytest.mark.parametrize(
    "name", ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dqn", "a2c", "trpo", "qrdqn"))]
)
def test_an_agent_learns_where_the_failures_are(name: str) -> None:
    task = make_task(items=300)  # enough failing pairs that the agent does not run out of new ones
    found = search(task, ids(task), DiscoverConfig(explorer=name, budget=1740), seed=0)
    agent, control = found.metrics["agent"], found.metrics["control"]
    assert agent["gradient_updates"] > 0
    assert agent["failures"] > 1.5 * control["failures"]  # the region is 24% of the grid

    cells = task.concepts.cells()
    p = found.policy.cell_probabilities(task.embed(ids(task)), cells)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-3)
    inside = Region.from_json(REGION).contains(task.concepts, cells)
    assert inside[p.argmax(axis=1)].mean() > 0.8  # softmax(Q) is nearly flat, but its peak is in the region
    if name in FACTORED:
        assert p.mean(axis=0)[inside].sum() > 0.6


def test_an_agent_without_an_update_is_an_error() -> None:
    with pytest.raises(NoLearningError, match="no gradient update within its budget of 20"):
        search(make_task(), ids(make_task()), DiscoverConfig(explorer="ppo", budget=25), seed=0)
