"""Screening on tasks with planted effects: what it drops, how it narrows and widens ranges, what it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from flows.edit_params import with_levels
from flows.graph import read_graph
from flows.screen import _key, clean_accuracy, probes_time, read_screening, screen_audit
from flows.views import show_screening
from stages.concepts import Concept, ConceptSpace
from stages.errors import UsageError
from stages.files import write_state
from stages.intervals import Rate, wilson
from stages.ledger import Ledger
from stages.params import AuditConfig, load_params
from stages.screening import Screening, ScreenSettings
from stages.screening.first_pass import fewest_probes, screen
from stages.screening.probes import Probes
from stages.screening.ranges import Axis
from stages.screening.record import points
from stages.screening.surface import fit_surface
from stages.tasks.contract import Items, ProbeBatch
from tests.finished import faded
from tests.workspace import Workspace, audit_params, make_workspace

HAZE, TILT = [0, 1, 2, 3, 4, 5], [0, 10, 20, 30, 40]
OFTEN = ScreenSettings(lowest_rate=0.15, highest_rate=0.3)  # so that few probes show effects


class Weighted:
    """Its margin is a weighted sum of level values plus an item's share and chance, so its failure rate is exact."""

    threshold = 0.5
    catalogue: Mapping[str, Any] = {}

    @property
    def automatic_task(self):
        return self

    def __init__(
        self,
        levels: Mapping[str, Sequence[Any]],
        weights: Mapping[str, float],
        *,
        bounds: bool = True,
        chance: float = 0.1,
    ) -> None:
        neutral = {name: values[0] for name, values in levels.items()}
        self.concepts = ConceptSpace(
            tuple(
                Concept(name, tuple(values), neutral=neutral[name], ordered=not isinstance(values[0], str))
                for name, values in levels.items()
            )
        )
        if bounds:
            self.catalogue = {name: SimpleNamespace(low=0, high=100) for name in ("haze", "tilt", "dull")}
        split = ["discover"] * 60 + ["test"] * 20
        self.items = Items(pd.DataFrame({"id": [f"item-{i:02d}" for i in range(80)], "split": split, "label": ""}))
        self._rows = {item: row for row, item in enumerate(self.items.table["id"])}
        self._weights, self._chance = weights, chance
        self.asked: set[str] = set()
        self.queries = 0

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        self.asked |= set(item_ids)
        self.queries += len(item_ids)
        rows = np.array([self._rows[item] for item in item_ids])
        margin = np.sin(rows * 1.7) * 0.3 - 1.0 + self.beside(cells)
        for j, concept in enumerate(self.concepts.concepts):
            effect = [
                self._weights.get(f"{concept.name}={level}", 0.0)
                if isinstance(level, str)
                else self._weights.get(concept.name, 0.0) * level
                for level in concept.levels
            ]
            margin += np.array(effect)[cells[:, j]]
        chance = np.sin(rows * 12.9898 + self.concepts.flat(cells) * 78.233) * 43758.5453
        margin += self._chance * (chance - np.floor(chance) - 0.5)
        discrepancy = (margin + self.threshold).astype(np.float32)
        return ProbeBatch(discrepancy, discrepancy > self.threshold, [""] * len(rows))

    def beside(self, cells: np.ndarray) -> np.ndarray | float:
        """Return the contribution of cells (n, concepts) to the margin besides the weights."""
        return 0.0

    def rate(self) -> float:
        """Return the failure rate over the whole grid and the discover items."""
        cells = self.concepts.cells()
        return float(np.mean([self.probe([item] * len(cells), cells).failed for item in self.items.ids("discover")]))


def screened(
    levels: Mapping[str, Sequence[Any]],
    weights: Mapping[str, float],
    settings: ScreenSettings = OFTEN,
    **kw: Any,
) -> tuple[Screening, float]:
    """Return a screening, and the true failure rate over the grid it proposes."""
    found = screen(lambda levels: Weighted(levels, weights, **kw), levels, settings, seed=1)
    return found, Weighted(found.grid, weights, **kw).rate()


def shown(found: Screening) -> str:
    """Return the printed output."""
    console = Console(width=300)
    with console.capture() as captured:
        show_screening(console, "a", found)
    return captured.get()


def changes(found: Screening) -> dict[str, str]:
    return {concept.name: concept.change for concept in found.concepts}


def test_a_concept_without_effect_is_dropped_though_chance_changes_its_answers():
    found, rate = screened({"haze": HAZE, "dull": [0, 1, 2], "tilt": TILT}, {"haze": 0.15, "tilt": 0.014})
    assert changes(found) == {"haze": "kept", "dull": "dropped", "tilt": "kept"}
    dull = found.concepts[1]
    assert dull.verdict == "no larger effect" and dull.share.high < 0.05 and dull.alone.low < 0 < dull.alone.high
    assert found.proposed is not None and found.proposed.low <= rate <= found.proposed.high
    # Tilt alone: .014 * 40. Its share: the variance of its uniform levels over the total variance.
    tilt, haze = found.concepts[2], found.concepts[0]
    assert tilt.alone.value == pytest.approx(0.56, abs=0.03)
    variances = [np.var(np.array(TILT) * 0.014), np.var(np.array(HAZE) * 0.15), 0.1**2 / 12]
    assert tilt.share.value == pytest.approx(variances[0] / sum(variances), abs=0.08)
    assert haze.share.value == pytest.approx(variances[1] / sum(variances), abs=0.08)


def test_a_task_that_needs_all_its_concepts_keeps_one_that_does_nothing():
    levels = {"haze": HAZE, "dull": [0, 1, 2], "tilt": TILT}
    found = screen(
        lambda levels: Weighted(levels, {"haze": 0.15, "tilt": 0.014}),
        levels,
        OFTEN,
        seed=1,
        droppable=False,
    )
    assert found.concepts[1].verdict == "no larger effect" and found.concepts[1].change == "kept"
    assert {*found.grid} == {*levels}


def test_beside_a_category_that_is_too_harsh_alone_the_others_keep_levels_that_do_something():
    levels = {"kind": ["none", "harsh"], "haze": HAZE}
    found, rate = screened(levels, {"kind=harsh": 3.0, "haze": 0.3})
    assert rate > 0.5 and not found.reached  # half of the grid fails at any level of haze
    haze = Weighted({"haze": found.grid["haze"]}, {"haze": 0.3}).rate()
    assert 0.1 <= haze <= 0.4


def test_the_fewest_probes_are_enough_and_one_less_is_not():
    levels = {"word": [f"w{n}" for n in range(12)], "haze": HAZE}
    fewest = fewest_probes(Weighted(levels, {}).concepts.concepts)
    assert fewest > 300
    with pytest.raises(UsageError, match=rf"at least {fewest} \(--probes\)"):
        screen(lambda levels: Weighted(levels, {}), levels, ScreenSettings(probes=fewest - 1), seed=1)
    assert screen(lambda levels: Weighted(levels, {}), levels, ScreenSettings(probes=fewest), seed=1).probes <= fewest


class Redundant(Weighted):
    """Medium haze fails with either fog or dull, so that removing one has no effect, but removing both has."""

    def beside(self, cells: np.ndarray) -> np.ndarray:
        haze, *others = (cells[:, self.concepts.names.index(name)] for name in self.concepts.names)
        return np.where(np.isin(haze, (2, 3)) & np.any(others, axis=0), 1.15, 0.0)


def test_concepts_that_stand_in_for_each_other_are_not_dropped_together():
    levels = {"haze": HAZE, "fog": list(range(10)), "dull": list(range(10))}
    found = screen(lambda levels: Redundant(levels, {}), levels, OFTEN.model_copy(update={"probes": 1500}), seed=1)
    for concept in found.concepts[1:]:  # no effect one at a time
        assert concept.share.high < 0.05 and concept.alone.low < 0 < concept.alone.high
        assert concept.without is not None and concept.without.low > -0.1 and concept.without.high < 0.1
        assert (concept.verdict, concept.change) == ("not known", "kept")
    assert found.together is not None and found.together.value < -0.1 and found.together.high < 0
    assert "removed at once: -" in shown(found)
    # This is not for lack of probes: two concepts without effect are found.
    found = screen(
        lambda levels: Weighted(levels, {"haze": 0.25}), levels, OFTEN.model_copy(update={"probes": 1500}), seed=1
    )
    assert changes(found) == {"haze": "kept", "fog": "dropped", "dull": "dropped"}


def test_a_rate_is_measured_on_pairs_not_asked_before_or_on_the_whole_grid():
    task = Weighted({"haze": HAZE}, {"haze": 0.4})
    probes = Probes(lambda _: task, {"haze": HAZE}, 400, lambda _: Ledger(), None, lambda _spent, _phase: None)
    rng = np.random.default_rng(0)
    items, cells = np.repeat(np.arange(60), 3), np.tile([[3], [4], [5]], (60, 1))
    assert probes.ask({"haze": HAZE}, items, cells, "trial")["failed"].mean() > 0.7
    rate = probes.uniform({"haze": HAZE}, 100, rng, "check")
    assert (rate.n, probes.spent) == (100, 280)
    checked = probes.table[probes.table["phase"] == "check"]
    assert len(checked) == 100 and checked["haze"].max() < 0.5 and rate.value == checked["failed"].mean()
    rate = probes.uniform({"haze": HAZE}, 100, rng, "check")  # 80 are left of 360
    assert (rate.n, probes.spent) == (360, 360) and rate.value == pytest.approx(task.rate())


@pytest.mark.parametrize("bounds", [True, False])
def test_too_harsh_a_range_is_narrowed_until_as_much_fails_as_should(bounds):
    found, rate = screened({"haze": HAZE, "tilt": TILT}, {"haze": 0.3, "tilt": 0.012}, ScreenSettings(), bounds=bounds)
    assert found.now.low > 0.3 and 0.03 <= rate <= 0.15 and found.reached
    assert changes(found)["haze"] == "narrowed"  # only the harsher one
    haze = found.grid["haze"]
    assert haze[0] == 0 and haze[-1] < 5
    if bounds:
        assert len(haze) == len(HAZE)
    else:  # only the user's own levels are known to be valid
        assert haze == HAZE[: len(haze)]


def test_too_mild_a_range_is_widened_in_the_users_proportions():
    found, rate = screened({"haze": HAZE, "tilt": TILT}, {"haze": 0.06, "tilt": 0.008}, ScreenSettings())
    assert found.now.high < 0.03 and 0.03 <= rate <= 0.15
    assert changes(found) == {"haze": "widened", "tilt": "widened"}
    assert {name: len(levels) for name, levels in found.grid.items()} == {"haze": 6, "tilt": 5}
    assert found.grid["tilt"][-1] / 40 == pytest.approx(found.grid["haze"][-1] / 5, rel=0.05)
    assert "no larger effect" not in [concept.verdict for concept in found.concepts]


def test_a_range_is_beyond_what_fails_unchanged():
    usual = ScreenSettings()
    raised = usual.beyond(0.2)
    assert (raised.lowest_rate, raised.highest_rate) == pytest.approx((0.2 + 0.8 * 0.03, 0.2 + 0.8 * 0.15))
    assert usual.beyond(0.0) == usual.beyond(0.6) == usual


def test_what_fails_unchanged_is_what_prepare_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metrics = tmp_path / "data" / "tiny" / "prepare" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    for measured, known in (({"clean_accuracy": {"discover": 0.8, "test": 0.7}}, 0.8), ({"items": 5}, None)):
        metrics.write_text(json.dumps(measured))
        assert clean_accuracy("tiny") == known


def test_a_verdict_says_no_more_than_the_intervals_it_rests_on():
    assert points(Rate(0.0, -0.36, 0.36, 8), 0.1) == "not known (-36 to +36)"
    assert points(Rate(0.0, -0.04, 0.05, 80), 0.1) == "+0 points (-4 to +5)"
    assert points(Rate(0.5, 0.2, 0.8, 8), 0.1) == "+50 points (+20 to +80)"
    found, _rate = screened({"haze": HAZE, "dull": [0, 1, 2], "tilt": TILT}, {"haze": 0.15, "tilt": 0.014})
    haze, dull, _tilt = found.concepts
    low, high = haze.alone.low, haze.alone.high
    assert haze.told == f"effect: alone, discrepancy {haze.alone.value:+.3g} ({low:+.3g} to {high:+.3g})"
    assert dull.without is not None and -0.1 < dull.without.low <= 0 <= dull.without.high < 0.1
    assert dull.told == "no larger effect: none over 10 points"


@pytest.mark.parametrize(("bounds", "why"), [(True, "4 times"), (False, "not declared")])
def test_what_cannot_be_reached_is_said(bounds, why):
    found, _rate = screened({"haze": HAZE, "dull": [0, 1]}, {"haze": 0.01}, ScreenSettings(), bounds=bounds)
    assert not found.reached and found.at_bounds and why in found.concepts[0].note
    assert "cannot reach a failure rate of 3% to 15%" in shown(found)
    assert {concept.verdict for concept in found.concepts} <= {"effect", "not known"}
    assert all(level <= 20 for level in found.grid["haze"])


def test_no_more_is_said_of_a_rate_than_was_measured():
    found, _rate = screened({"haze": HAZE, "tilt": TILT}, {"haze": 0.15, "tilt": 0.014})
    assert found.proposed is None and "suitable for an audit" in shown(found)
    near = found.model_copy(update={"now": wilson(32, 100)})
    assert "near 15% to 30%, which its interval touches" in shown(near) and "fit" not in shown(near)
    missed = found.model_copy(update={"now": wilson(60, 100)})
    assert "the levels miss 15% to 30%" in shown(missed) and "cannot reach" not in shown(missed)
    changed = found.concepts[0].model_copy(update={"change": "narrowed"})
    missed = missed.model_copy(update={"concepts": [changed, found.concepts[1]]})
    assert "the proposed levels miss 15% to 30%" in shown(missed)
    said = "less than 5% of the variance, less than 0.2 standard deviations alone, and removing it changes the failure "
    assert f"{said}rate by less than 10 points, by whole intervals; smaller effects" in shown(found)


def test_names_are_measured_and_never_re_ranged():
    weights = {"haze": 0.5, "light=day": 0.0, "light=dusk": 0.1, "light=night": 0.6}
    found, _rate = screened({"light": ["day", "dusk", "night"], "haze": HAZE}, weights)
    light = found.concepts[0]
    assert (light.change, light.proposed, light.alone_at) == ("kept", ["day", "dusk", "night"], "night")
    assert light.alone.value == pytest.approx(0.6, abs=0.03) and light.verdict == "effect"


@pytest.mark.parametrize(
    ("levels", "neutral", "factor", "expected"),
    [
        ((0, 4, 10, 40), 0, 0.5, (0, 2, 5, 20)),
        ((1, 0.8, 0.4), 1, 1.5, (1, 0.7, 0.1)),  # decreases as it gets stronger
        ((-20, 0, 20), 0, 2, (-40, 0, 40)),
        ((0.1, 0.3, 0.5), None, 0.5, (0.1, 0.2, 0.3)),  # no neutral level: relative to the weakest
        ((1, 0.5, 0.2), 1, 4, (1, 0.4, 0)),  # ends at the bound
        ((0.25, 3, 6), 0.25, 0.9, (0.25, 3, 5)),  # the neutral level is not rounded
    ],
)
def test_levels_are_scaled_about_where_nothing_happens(levels, neutral, factor, expected):
    axis = Axis(Concept("x", levels, neutral=neutral), (-100, 100) if max(levels) > 1 else (0, 1))
    scaled = axis.scaled(factor)
    assert scaled == pytest.approx(expected, abs=0.03)
    assert scaled[axis.base] == levels[axis.base] and len(set(scaled)) == len(levels)


def test_shares_are_the_sobol_indices_of_a_known_function():
    rng = np.random.default_rng(0)
    grid = [np.linspace(0, 1, 5)] * 3
    x = np.stack([rng.choice(levels, 1500) for levels in grid], axis=1)
    items = rng.integers(30, size=1500)
    centred = (x - 0.5) / np.sqrt(0.125)  # variance 1 on five even levels
    y = centred[:, 0] + centred[:, 1] * centred[:, 2] + rng.normal(size=30)[items] + rng.normal(size=1500)
    surface = fit_surface(x, items, y, grid, [True] * 3, seed=0, resamples=100)
    assert surface.unexplained == pytest.approx(1, abs=0.1)  # not including what items add
    assert [share.value for share in surface.shares()] == pytest.approx([1 / 3] * 3, abs=0.04)


def test_a_killed_screening_goes_on_from_its_ledgers_and_ends_alike(tmp_path):
    levels, weights = {"haze": HAZE, "tilt": TILT}, {"haze": 0.5, "tilt": 0.012}
    tasks: list[Weighted] = []

    def load(levels: Mapping[str, Sequence[Any]]) -> Weighted:
        tasks.append(Weighted(levels, weights))
        return tasks[-1]

    def killed(spent: int, _phase: str) -> None:
        if spent > 400:
            raise KeyboardInterrupt

    def ledger(levels: Mapping[str, Sequence[Any]]) -> Ledger:
        return Ledger(tmp_path / f"{abs(hash(repr(levels)))}.jsonl")

    with pytest.raises(KeyboardInterrupt):
        screen(load, levels, ScreenSettings(), seed=1, ledger=ledger, tell=killed)
    resumed = screen(load, levels, ScreenSettings(), seed=1, ledger=ledger)
    assert sum(task.queries for task in tasks) == resumed.probes <= 600
    assert set().union(*(task.asked for task in tasks)) <= set(tasks[0].items.ids("discover"))
    assert resumed == screen(load, levels, ScreenSettings(), seed=1)


def test_too_few_probes_are_refused_with_the_number_there_should_be():
    levels = {name: [0, 1] for name in "abcdefgh"}
    with pytest.raises(UsageError, match=r"100 probes are too few for 8 concepts.*at least 360"):
        screen(lambda levels: Weighted(levels, {}), levels, ScreenSettings(probes=100), seed=0)


FLOW = """audits:
  a:
    # why these
    concepts: {haze: [0, 1,   2], tilt: [0, 10]}   # flow
  b: &b
    concepts:
      haze: [0, 1.50, 2]     # weakest first
      tilt:
      - 0    # none
      - 10   # some
      - 20

      dull: [0, 1]   # nobody knows
    summarize: {modes: 6}
  c: *b
"""


def test_levels_are_written_and_every_other_byte_stays():
    text = FLOW.replace("  c: *b\n", "")
    written = with_levels(text, "b", {"haze": [0.0, 0.5, 0.00002], "tilt": [0, 5.5]})
    expected = text.replace("[0, 1.50, 2]", "[0, 0.5, 0.00002]").replace("- 10", "- 5.5").replace("      - 20\n", "")
    assert written == expected.replace("      dull: [0, 1]   # nobody knows\n", "")
    assert with_levels(text, "a", {"haze": [0, 3]}) == text.replace(
        "{haze: [0, 1,   2], tilt: [0, 10]}", "{haze: [0, 3]}"
    )
    crlf = text.replace("\n", "\r\n")
    assert with_levels(crlf, "b", {"haze": [0, 1.5, 2], "tilt": [0, 10, 20]}).count("\r\n") == text.count("\n") - 1


def test_levels_that_another_audit_shares_are_not_written():
    with pytest.raises(UsageError, match=r"write there:\n  haze: \[0, 3\]"):
        with_levels(FLOW, "b", {"haze": [0, 3]})


QUIET = """

class Quiet(PlantedTask):
    def probe(self, item_ids, cells, repeats=None):
        answer = super().probe(item_ids, cells, repeats)
        return ProbeBatch(np.where(answer.failed, 0.5, -0.5).astype(np.float32), answer.failed, answer.outputs)
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """One audit with a concept that has no effect at all, and a comment that must be kept."""
    audit = audit_params(task="planted:Quiet", concepts={"tilt": [0, 1, 2, 3], "haze": [0, 1], "fog": [0, 1, 2, 3]})
    audit["prepare"] |= {
        "items": {"discover": 60, "test": 10},
        "noise": 0.0,
        "regions": [{"tilt": [3, 3], "fog": [2, 3]}],
    }
    made = make_workspace(tmp_path_factory.mktemp("screen") / "ws", {"tiny": audit}, {})
    code, params = made.path / "planted.py", made.path / "params.yaml"
    code.write_text(code.read_text() + QUIET)
    params.write_text(params.read_text().replace("    concepts:\n", "    # people can act on these\n    concepts:\n"))
    return made


def test_screen_prepares_measures_is_shown_by_plan_and_writes_only_when_told(workspace, monkeypatch):
    monkeypatch.chdir(workspace.path)
    path = workspace.path / "params.yaml"
    before = path.read_text()

    def record() -> Any:
        return read_screening(load_params(), read_graph(), "tiny")

    code, told = faded(workspace, "screen")
    assert code == 0, told
    assert "prepare@tiny is not up to date, so it runs first" in told
    assert "600 unique probes at most" in told and "proposed grid: " in told
    rows = {line.split()[0]: line for line in told.splitlines() if line.split()}
    assert "no larger effect" in rows["haze"] and "dropped" in rows["haze"] and "kept" in rows["tilt"]
    assert path.read_text() == before

    _, plan = faded(workspace, "plan")
    assert "tiny: screened less than a minute ago" in plan and "haze dropped" in plan
    path.write_text(before.replace("- 3", "- 4", 1))
    assert record() is None  # it has other levels
    path.write_text(before)
    first, followed = record()
    assert not followed

    code, told = faded(workspace, "screen", "--write")
    assert code == 0 and "-      haze:" in told, told
    assert path.read_text() == before.replace("      haze:\n      - 0\n      - 1\n", "")
    second, followed = record()
    assert followed and second.screening == first.screening
    edited = workspace.path / "planted.py"
    edited.write_text(edited.read_text() + "\nANOTHER = True\n")
    assert record() is None


@pytest.mark.slow
def test_concepts_in_another_order_are_another_screening(workspace, monkeypatch):
    """Ledgers and records contain numbers of cells, which depend on the order of concepts."""
    monkeypatch.chdir(workspace.path)
    keys: list[str] = []

    def noted(_audit: str, _stage: str, key: str) -> NoReturn:
        keys.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.screen.scratch", noted)
    params = load_params()
    audit = params.audit("tiny")
    other = dict(reversed(audit.concepts.items()))
    for concepts in (audit.concepts, other, audit.concepts):
        changed = {"tiny": audit.model_copy(update={"concepts": concepts})}
        with pytest.raises(KeyboardInterrupt):
            screen_audit(params.model_copy(update={"audits": changed}), "tiny", None, False, Console(quiet=True))
    assert keys[0] == keys[2] != keys[1]
    assert _key("tiny", audit, audit.concepts) != _key("tiny", audit, other)


def test_a_setting_that_is_wrong_is_named(workspace):
    params = load_params(workspace.path / "params.yaml")
    with pytest.raises(UsageError, match=r"--probes: Input should be greater than or equal to 100, found 5"):
        screen_audit(params, "tiny", 5, False, Console())


def test_the_time_of_a_divided_search_is_that_of_all_its_shares(tmp_path, monkeypatch):
    """The stage that joins the shares does not search, so its time alone would promise a far too short screening."""
    timings = {"discover@tiny": 10, "explore@tiny-1": 40, "explore@tiny-2": 50}
    audit = AuditConfig.model_validate(
        audit_params(discover={"explorer": "ppo", "baseline": "random", "budget": 200, "shards": 2})
    )
    searched = 2 * 160 + audit.discover.microscopic_budget  # a fifth is kept back for modes
    for known, said in ((timings, "about 50 s from the last search here"), ({"discover@tiny": 10}, "time unknown")):
        told = {stage: {"seconds": seconds} for stage, seconds in known.items()}
        write_state(tmp_path / "timings.json", told)
        monkeypatch.setattr("flows.screen.TIMINGS", tmp_path / "timings.json")
        monkeypatch.chdir(tmp_path)
        assert probes_time("tiny", audit, searched // 2).startswith(said)
