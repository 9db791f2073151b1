"""Microscopic exploration: the nearest failures on tasks where they are known, and what the report says of them."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from stages.concepts import Concept, ConceptSpace, Region
from stages.concepts.prompts import prompt_space
from stages.core.errors import InfrastructureError
from stages.core.ledger import Ledger
from stages.explorers.prober import Prober, torch_threads
from stages.landscape.robustness import reached, summarize_robustness
from stages.microscopic.agent import train_and_walk
from stages.microscopic.search import RobustnessResult, measure_robustness
from stages.microscopic.settings import WalkerSettings
from stages.microscopic.walks import Moves, WalkState, reduce_strongest, try_alone
from stages.params import DiscoverConfig, MicroscopicConfig
from stages.records.landscape import Minimal
from stages.records.search import Walks
from stages.tasks.contract import Items, ProbeBatch
from tests.landscapes import planted
from tests.planted import PlantedTask

SPACE = ConceptSpace(tuple(Concept(name, tuple(range(6)), neutral=0) for name in ("tilt", "fog", "dust")))
WEATHER = Concept("weather", ("sun", "rain", "snow"), ordered=False, neutral="sun")
GLOW = Concept("glow", (-2, -1, 0, 1, 2), neutral=0)


class Sloped:
    """Fails if a weighted sum of the levels exceeds an item's limit; some pairs of concepts reinforce each other.

    The margin grows with every step, as for most real models, so that a search has something to follow. One item of
    eight never fails, one fails unchanged.
    """

    threshold = 0.0

    def __init__(self, space: ConceptSpace = SPACE, items: int = 24, bears: float | None = None) -> None:
        self.concepts, self.queries = space, 0
        rng = np.random.default_rng(5)
        self._weights = rng.uniform(0.2, 1.0, (items, len(space)))
        self._bears = rng.uniform(2.0, 6.0, items) if bears is None else np.full(items, bears)
        if bears is None:
            self._bears[::8], self._bears[1::8] = 99.0, -0.5
        self.items = Items(pd.DataFrame({"id": [f"i{n}" for n in range(items)], "split": "discover", "label": "0"}))

    def embed(self, item_ids: list[str]) -> np.ndarray:
        return np.stack([[*self._weights[int(i[1:])], self._bears[int(i[1:])]] for i in item_ids]).astype(np.float32)

    def probe(self, item_ids: list[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        self.queries += len(item_ids)
        rows = np.array([int(i[1:]) for i in item_ids])
        away = np.abs(np.asarray(cells) - self.concepts.start)
        harm = (self._weights[rows] * away).sum(axis=1) + 0.15 * away[:, 0] * away[:, -1]
        margin = np.tanh((harm - self._bears[rows]) / 4).astype(np.float32)
        return ProbeBatch(margin, margin > 0, [""] * len(rows))

    def radii(self) -> np.ndarray:
        """Steps to the nearest failure, from all probes; inf if there is none."""
        cells = self.concepts.cells()
        steps = Moves(self.concepts, self.concepts.start).steps(cells).astype(float)
        ids = self.items.table["id"]
        return np.array([np.where(self.probe([i] * len(cells), cells).failed, steps, np.inf).min() for i in ids])


def explore(task: Sloped, ledger: Ledger | None = None, seed: int = 0, **settings: object) -> RobustnessResult:
    given = MicroscopicConfig.model_validate({"items": 24, "budget": 10_000, **settings})
    config = DiscoverConfig(budget=10, microscopic=given)
    return measure_robustness(task, task.items.ids("discover"), config, seed=seed, ledger=ledger)


def radius_of(found: RobustnessResult) -> np.ndarray:
    return found.table["radius"].astype("Float64").fillna(np.inf).to_numpy(dtype=float)


def test_steps_lead_away_from_the_start_one_at_a_time() -> None:
    space = ConceptSpace((GLOW, WEATHER, Concept("fog", (0, 1, 2), neutral=0)))
    moves = Moves(space, space.start)
    assert moves.start.tolist() == [2, 0, 0]
    assert (len(moves), moves.longest) == (5, 5)  # glow up and down, two other weathers, fog up
    reached_cells, cells = {tuple(moves.start)}, moves.start[None]
    for depth in range(1, moves.longest + 1):
        rows, further = moves.onward(cells)
        assert (moves.steps(further) == depth).all() and (moves.steps(cells[rows]) == depth - 1).all()
        _, nearer = moves.back(further)
        assert {tuple(c) for c in nearer.tolist()} <= {tuple(c) for c in cells.tolist()}
        cells = np.unique(further, axis=0)
        reached_cells |= {tuple(c) for c in cells.tolist()}
    assert len(reached_cells) == space.n_cells  # every cell can be walked to


def test_exact_search_finds_the_nearest_failure_of_every_item() -> None:
    task = Sloped()
    found, truth = explore(task, method="exact"), task.radii()
    np.testing.assert_array_equal(radius_of(found), truth)
    table = found.table
    assert table["status"].value_counts().to_dict() == {"found": 18, "fails unchanged": 3, "not found": 3}
    assert (table["radius"] == table["at_least"])[table["status"] == "found"].all()
    hold = table[table["status"] == "not found"]
    assert (hold["searched"] == 15).all() and (hold["at_least"] == 16).all()  # all 15 steps were probed, none fails
    changed = table[table["status"] == "found"]
    cells = changed[SPACE.names].to_numpy(dtype=int)
    assert task.probe(changed["item"].tolist(), cells).failed.all()
    assert (cells.sum(axis=1) == changed["radius"]).all()


def test_a_beam_comes_close_for_less_and_what_it_finds_is_irreducible() -> None:
    task = Sloped(ConceptSpace(tuple(Concept(name, tuple(range(6)), neutral=0) for name in "abcd")))
    found, truth = explore(task, method="beam", width=4), task.radii()
    fails = np.isfinite(truth)
    excess = radius_of(found)[fails] - truth[fails]
    assert (excess >= 0).all() and (excess <= 1).all() and (excess == 0).mean() > 0.8
    assert np.isinf(radius_of(found)[np.isinf(truth)]).all()
    assert found.metrics["probes"] < explore(task, method="exact").metrics["probes"] / 2
    moves = Moves(task.concepts, task.concepts.start)
    changed = found.table[found.table["status"] == "found"]
    rows, nearer = moves.back(changed[task.concepts.names].to_numpy(dtype=int))
    assert not task.probe(changed["item"].iloc[rows].tolist(), nearer).failed.any()


def test_a_conjunction_is_reduced_to_what_it_needs_where_margins_tell_nothing() -> None:
    task = planted([{"tilt": [3, 4], "dust": [2, 3, 4]}], noise=0.0)  # margins are noise, so a beam has no direction
    items = task.items.ids("discover")
    walks = WalkState(Prober(task, items, 10_000), Moves(task.concepts, task.concepts.start), len(items))
    reduce_strongest(walks, try_alone(walks))
    assert (walks.radius == 5).all() and (walks.failing == [3, 0, 2, 0]).all() and walks.queries.mean() < 25


@pytest.mark.parametrize("method", ["beam", "exact", "rl"])
def test_a_budget_is_kept_exactly_and_a_seed_decides_everything(method: str) -> None:
    agent = {"settings": {"n_envs": 8, "n_steps": 4, "training": 0.6}} if method == "rl" else {}
    # With 150 probes, none of them finishes.
    runs = [explore(task := Sloped(), seed=s, items=10, budget=150, method=method, **agent) for s in (1, 1, 2)]
    assert task.queries == runs[2].metrics["probes"] <= 150
    if method != "rl":  # an agent that has walked all items has nothing left to probe
        assert runs[2].metrics["probes"] == 150
    pd.testing.assert_frame_equal(runs[0].table, runs[1].table)
    assert runs[0].table["item"].tolist() != runs[2].table["item"].tolist()


def test_a_resumed_exploration_equals_an_uninterrupted_one(tmp_path) -> None:
    class Killed(Sloped):
        def probe(self, *args, **kwargs):
            if self.queries > 200:
                raise InfrastructureError("killed")
            return super().probe(*args, **kwargs)

    settings, killed, path = {"method": "beam", "items": 12, "budget": 500}, Killed(), tmp_path / "ledger.jsonl"
    whole = explore(Sloped(), **settings)
    with pytest.raises(InfrastructureError):
        explore(killed, Ledger(path), **settings)
    ledger, task = Ledger(path), Sloped()
    assert 0 < ledger.resumed == killed.queries
    pd.testing.assert_frame_equal(explore(task, ledger, **settings).table, whole.table)
    assert task.queries == whole.metrics["probes"] - killed.queries  # nothing was probed twice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "beams"}, "'beam', 'exact', 'rl' or 'none'"),
        ({"gradient": {}, "method": "none"}, "found method none"),
    ],
)
def test_bad_settings_are_told(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MicroscopicConfig.model_validate(settings)


@pytest.mark.slow
def test_an_agent_learns_to_walk_the_short_way_and_asks_little() -> None:
    space = ConceptSpace(tuple(Concept(name, tuple(range(6)), neutral=0) for name in "abcd"))

    class Hidden(Sloped):
        """Only steps of b and d have an effect, so that a random walk is twice as long as necessary."""

        def __init__(self) -> None:
            super().__init__(space, items=60, bears=2.2)
            self._weights[:, [0, 2]] = 0.0
            self._weights[:, [1, 3]] = 1.0

    task = Hidden()
    truth = task.radii()[0]
    settings = WalkerSettings(training=0.9, walks=1, n_envs=16, n_steps=16)
    prober = Prober(task, task.items.ids("discover"), 1500)
    walks = WalkState(prober, Moves(space, space.start), 12)
    with torch_threads(1):
        details = train_and_walk(walks, settings, seed=0)
    assert details["gradient_updates"] > 0 and details["training_probes"] + walks.queries.sum() == prober.spent
    assert walks.radius.mean() <= truth + 0.5 and walks.queries.mean() <= truth + 2


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


# --- prompts: the fewest words that make a model fail


PROMPTS = prompt_space(
    {
        "digit": ["digit", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        "colour": ["", "red", "green", "blue", "yellow", "purple", "orange"],
        "size": ["", "small", "large"],
        "background": ["", *(f"on a {name} background" for name in ("black", "white", "gray", "pink"))],
    }
)
Words = dict[str, str]
FOUR_ON_BLACK: Words = {"digit": "four", "background": "on a black background"}
SMALL_THREE: Words = {"size": "small", "digit": "three"}


def cell_of(words: Words) -> list[int]:
    return [c.levels.index(words.get(c.name, c.neutral)) for c in PROMPTS.concepts]


def said(row: pd.Series) -> Words:
    return {c.name: str(c.levels[row[c.name]]) for c in PROMPTS.concepts if row[c.name] != c.levels.index(c.neutral)}


class Wordy(PlantedTask):
    """Fails if a prompt contains all words of one of these sets; margins do not show which words matter."""

    def __init__(self, sets: list[Words], items: int = 25) -> None:
        table = pd.DataFrame({"id": [f"i{k:03d}" for k in range(items)], "split": "discover", "label": "0"})
        super().__init__(Items(table), PROMPTS, {"regions": [], "noise": 0.0}, seed=0)
        self._sets = sets

    def probe(self, item_ids: list[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        margins = np.abs(super().probe(item_ids, cells, repeats).discrepancy)
        failed = np.array([self._fails(cell) for cell in np.asarray(cells)])
        return ProbeBatch(np.where(failed, margins, -margins), failed, [""] * len(failed))

    def _fails(self, levels: np.ndarray) -> bool:
        prompt = {c.name: c.levels[int(level)] for c, level in zip(self.concepts.concepts, levels, strict=True)}
        return any(words.items() <= prompt.items() for words in self._sets)


def explore_words(task: Wordy, each: int, method: str = "beam") -> RobustnessResult:
    items = task.items.ids("discover")
    steps = MicroscopicConfig.model_validate({"method": method, "items": 25, "budget": each * 25})
    return measure_robustness(task, items, DiscoverConfig(budget=10, microscopic=steps), seed=0)


def assert_minimal(task: Wordy, table: pd.DataFrame) -> None:
    """Check that reported words fail, and that every strict subset of them passes."""
    for _, row in table[table["status"] == "found"].iterrows():
        words = said(row)
        assert row["radius"] == len(words) and task.probe([row["item"]], np.array([cell_of(words)])).failed.all()
        fewer = [cell_of(dict(part)) for n in range(len(words)) for part in combinations(words.items(), n)]
        assert not task.probe([row["item"]] * len(fewer), np.array(fewer)).failed.any(), words


@pytest.mark.parametrize(("method", "each"), [("beam", 30), ("exact", 30), ("rl", 120)])
def test_planted_pairs_of_words_are_found_exactly(method: str, each: int) -> None:
    task = Wordy([FOUR_ON_BLACK, SMALL_THREE], items=40 if method == "rl" else 25)
    found = explore_words(task, each, method)
    assert (found.table["status"] == "found").all() and found.metrics["probes"] <= 25 * each
    assert all(said(row) in (FOUR_ON_BLACK, SMALL_THREE) for _, row in found.table.iterrows())
    assert_minimal(task, found.table)
