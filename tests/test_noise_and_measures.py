"""Further results of re-evaluate: the model a second time, the task's own measures, and invalid probes."""

import re
import sys

import numpy as np
import pandas as pd
import pytest

from stages import re_evaluate
from stages.concepts import Region
from stages.core.errors import UsageError
from stages.core.files import read_json, stage_dir
from stages.landscape.compare import PairedAnswers, against_noise, compare_measures, measure_answers
from stages.landscape.describe import invalid_probes, invalid_share
from stages.records import Difference
from stages.records.repair import Measures
from stages.tasks.base import LoadedTask, offers
from stages.tasks.contract import Items, Quality, Split
from tests.landscapes import planted, uniform
from tests.planted_texts import PlantedTexts
from tests.test_re_evaluate import TARGET, audited, repaired

MEASURES = {"words", "in the article"}


def difference(before: np.ndarray, after: np.ndarray, **others: np.ndarray) -> Difference:
    n = len(before)
    failed = {"before": before, "after": after, **others}
    pairs = (np.arange(n) % 30, np.zeros((n, 1)), np.ones(n, dtype=bool))
    return PairedAnswers(*pairs, 1.0, failed, resamples=300, seed=0).difference()


def test_an_improvement_has_to_be_one_over_both_answers_of_the_model_before():
    rng = np.random.default_rng(0)
    before = rng.random(600) < 0.7
    half = before & (rng.random(600) < 0.5)
    flipped = before ^ (rng.random(600) < 0.02)
    assert against_noise(difference(before, half, noise=flipped)).beyond
    assert not against_noise(difference(before, half, noise=before & (rng.random(600) < 0.5))).beyond
    worse = against_noise(difference(half, before, noise=half))
    assert (worse.beyond, worse.statement) == (False, None), "where nothing improved, nothing is claimed"
    assert against_noise(difference(before, half)) is None


def texts(n: int = 12) -> tuple[PlantedTexts, pd.DataFrame]:
    model = planted(items=n)
    items = Items(model.items.table.assign(split="test"))
    task = PlantedTexts(items, model.concepts, {"regions": [], "noise": 0.0}, seed=0)
    ids = items.table["id"].tolist()
    cells = np.zeros((n, len(task.concepts)), dtype=int)
    table = pd.DataFrame(cells, columns=task.concepts.names)
    return task, table.assign(item=ids, valid=True, output=task.probe(ids, cells).outputs)


def measures(task: PlantedTexts, **answers: pd.DataFrame) -> Measures:
    measured = measure_answers(dict.fromkeys(answers, task), {"clean": answers}, task.concepts.names)
    return compare_measures(answers, measured, resamples=200, seed=0)


def test_invalid_probes_are_counted_where_they_occur():
    task = planted(items=20)
    task._invalid = [Region({"rain": (4,)})]
    probes = uniform(task, 900)
    assert invalid_probes(task.concepts, probes).count == 0, "a table that does not say so has none"
    probes["valid"] = probes["rain"] != 4
    agent = probes[probes["rain"] == 4].assign(role="agent")
    found = invalid_probes(task.concepts, pd.concat([probes, agent], ignore_index=True))
    assert found.count == 2 * len(agent) and found.value == pytest.approx(len(agent) / len(probes))
    assert found.low < found.value < found.high
    worst = max(found.levels, key=lambda row: row.value)
    assert (worst.concept, worst.label, worst.value, worst.n) == ("rain", "4", 1.0, len(agent))
    assert not [row for row in found.levels if row.concept == "rain" and row.level < 4]
    assert invalid_share(task.concepts, Region({"rain": (3, 4)}), probes) == pytest.approx(0.5, abs=0.1)
    assert invalid_share(task.concepts, Region({"rain": (4,)}), probes.iloc[:0]) is None


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    """A repaired planted summarizer that fails less on a second request; half of its noisy cells are invalid."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("texts")
        settings = {"again": 0.3, "noise": 0.03, "invalid": [{"tilt": [1], "fog": [0, 1]}]}
        settings["items"] = {"discover": 12, "repair": 4, "test": 40}
        task = "planted_texts:PlantedTexts"
        audited(path, patch, task, concepts=("tilt", "fog"), budget=150, control="clean", **settings)
        yield repaired([], control=[TARGET])
    sys.modules.pop("planted_texts", None)


def test_the_verdict_tells_of_noise_measures_and_the_control(verdict):
    rows = verdict["differences"]
    assert rows["target_failure_rate"]["noise"]["change"] == 0.0, "planted failures stay when asked again"
    assert rows["other_failure_rate"]["noise"]["change"] == pytest.approx(0.25, abs=0.05)
    assert rows["newly_failing"]["noise"]["after"] == pytest.approx(0.25, abs=0.06)
    assert rows["clean_quality"]["noise"]["change"] < 0 and verdict["noise"]["beyond"] and verdict["control"] == "clean"
    assert "Training on changed inputs helped" in verdict["statement"]
    assert "The improvement in the target modes exceeds the noise floor" in verdict["statement"]
    assert set(verdict["measures"]) == {"clean", "targets", "others"}
    assert all(set(part["measures"]) == MEASURES for part in verdict["measures"].values())
    assert verdict["measures"]["clean"]["pairs"] == 40
    words = verdict["measures"]["targets"]["measures"]["words"]
    assert (words["before"], words["baselines"]["first two words"]) == (1.0, 2.0) and words["after"] > 7
    assert set(words) >= {"control", "noise", "low", "high"} and verdict["invalid"]["targets"]["value"] == 0.0
    assert verdict["invalid"]["others"]["value"] == pytest.approx(2 / 21, abs=0.03)
    failing, counted = (verdict["differences"][f"other_{name}"] for name in ("failure_rate", "not_passing"))
    assert counted["before"] == pytest.approx(failing["before"] + verdict["invalid"]["others"]["value"])
    assert rows["target_not_passing"]["after"] == rows["target_failure_rate"]["after"]


def test_a_run_that_was_killed_asks_no_model_again(verdict, monkeypatch):
    """Ledgers outlive a run: the answers of all models, also of the second request, are read from them.

    Clean quality is in none.
    """
    asked, task = [], sys.modules["planted_texts"].PlantedTexts
    monkeypatch.setattr(task, "probe", lambda *_: asked.append(1))

    def known(self: LoadedTask, split: Split) -> Quality:
        ids = self.items.ids(split)
        return Quality("clean", np.ones(len(ids)), ids)

    monkeypatch.setattr(task, "clean_quality", known)
    monkeypatch.setattr(re_evaluate, "_one_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        re_evaluate.main("tiny")
    assert asked == []


def test_measures_are_means_over_the_same_valid_pairs():
    task, before = texts()
    assert offers(task, "measure") and not offers(planted(), "measure")
    before.loc[0, "valid"] = False
    found = measures(task, before=before, after=before.assign(output="the river"), noise=before)
    assert (found.pairs, found.items, found.invalid) == (11, 11, 1)
    words = found.measures["words"]
    assert (words.before, words.after, words.change, words.pairs) == (8.0, 2.0, -6.0, 11)
    assert words.low < -6.0 < words.high and words.noise.change == 0.0 and words.baselines == {"first two words": 2.0}
    referenced = found.measures["in the article"]
    assert referenced.pairs == 5, "an item without a value is left out of all means"
    assert referenced.before == referenced.baselines["first two words"] == 1.0


def test_a_measure_without_any_value_has_no_mean():
    task, before = texts(2)
    odd = before.iloc[1:]
    entry = measures(task, before=odd, after=odd).measures["in the article"]
    assert (entry.before, entry.change, entry.baselines) == (None, None, {"first two words": None})
    nothing = before.iloc[:0]
    assert measures(task, before=nothing, after=nothing) == Measures(pairs=0, items=0, invalid=0, measures={})


def test_a_measure_that_cannot_be_averaged_is_refused(monkeypatch):
    task, before = texts(3)
    for answer, said in (([1.0], "answered with 1 rows"), ([1.0, np.inf, 1.0], "answered a value that is infinite")):
        monkeypatch.setattr(PlantedTexts, "measure", lambda *_, answer=answer: pd.DataFrame({"m": answer}))
        with pytest.raises(UsageError, match=f"PlantedTexts.measure .*{said}"):
            measures(task, before=before, after=before)


def test_the_summary_counts_what_was_not_judged(verdict):
    summary = read_json(stage_dir("tiny", "summarize") / "landscape.json")
    assert summary["invalid"]["value"] == pytest.approx(2 / 25, abs=0.06)
    assert {row["label"] for row in summary["invalid"]["levels"] if row["concept"] == "tilt"} == {"1"}
    assert summary["modes"][0]["invalid"] == 0.0
    assert read_json(stage_dir("tiny", "report") / "metrics.json")["invalid_share"] == summary["invalid"]["value"]
    page = (stage_dir("tiny", "report") / "report.html").read_text()
    assert re.search(r"as failures the [\d.]+% that changed the input so much that no model could be blamed", page)


def test_all_answers_are_kept(verdict):
    out = stage_dir("tiny", "re_evaluate")
    asked = pd.read_parquet(out / "probes.parquet").groupby("purpose")["model"].agg(set).to_dict()
    assert asked["paired"] == asked["clean"] == {"before", "after", "control", "noise"}
    assert asked["search"] == {"before", "after"}
    out = stage_dir("tiny", "conclude")
    metrics = read_json(out / "metrics.json")
    assert metrics["targets_words_change"] == verdict["measures"]["targets"]["measures"]["words"]["change"]
    assert metrics["invalid_others"] > 0
    page = (out / "report.html").read_text()
    assert "Other measures" in page and "baseline: first two words" in page and "Queried again:" in page
