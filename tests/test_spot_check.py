"""A spot check by people: drawn as probes occur in use, read strictly, and a rate corrected by it that holds."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.usage_coverage import SCENARIOS, simulations
from stages.concepts import Concept, ConceptSpace
from stages.core.errors import UsageError
from stages.core.intervals import wilson
from stages.landscape.rates import behind_apostrophe, correct, draw_uses, parse_spot_check, rate_in_use, read_spot_check
from stages.params import SpotCheckConfig, load_params
from stages.records import audit_folder
from tests.finished import faded, finished_audits, inside, run_stages
from tests.workspace import STAGES

LINE = ConceptSpace((Concept("tilt", tuple(range(10)), neutral=0),))


def searched(rng: np.random.Generator, rate: float, missed: float, alarmed: float, n: int = 1000) -> pd.DataFrame:
    """Plain draws of a control whose measure errs; `people` is what people would say."""
    people = rng.random(n) < rate
    failed = np.where(people, rng.random(n) >= missed, rng.random(n) < alarmed)
    table = pd.DataFrame({"item": [f"i{k}" for k in range(n)], "tilt": rng.integers(0, 10, n), "output": "an answer"})
    return table.assign(role="control", failed=failed, people=people)


def judged(drawn: pd.DataFrame, space: ConceptSpace = LINE) -> pd.DataFrame:
    """What people fill in, as `parse_spot_check` reads it."""
    cells = [tuple(cell) for cell in drawn[space.names].to_numpy(dtype=int).tolist()]
    return drawn[["draws", "item"]].assign(cell=cells, answer=drawn["output"], fails=drawn["people"])


def test_probes_are_drawn_as_they_occur_in_use() -> None:
    [one] = simulations(next(one for one in SCENARIOS if one.name == "one strong concept"), 1)
    drawn = draw_uses(one.space, one.probes, 20_000, 0)
    failing = float((drawn["failed"] * drawn["draws"]).sum() / 20_000)
    in_use = rate_in_use(one.space, one.probes["failed"].to_numpy(dtype=bool), one.probes).rate.value
    assert failing == pytest.approx(in_use, abs=0.01) and drawn["draws"].sum() == 20_000
    assert abs(one.probes["failed"].mean() - in_use) > 0.03, "the control itself met rare changes more often"


def test_a_measure_that_people_never_overrule_stays_as_it_is_and_others_move() -> None:
    control = searched(np.random.default_rng(0), 0.2, 0.0, 0.0)
    same = correct(LINE, control, judged(draw_uses(LINE, control, 200, 0)), 0)
    assert same.overall.value == pytest.approx(control["failed"].mean())
    assert (same.only_people, same.only_automatic) == (0, 0)
    harsh = searched(np.random.default_rng(0), 0.2, 0.0, 0.3)
    found = correct(LINE, harsh, judged(draw_uses(LINE, harsh, 200, 0)), 0)
    low, high = found.overall.low, found.overall.high
    assert low is not None and high is not None and low < 0.2 < high < harsh["failed"].mean()
    assert found.only_automatic > 20 and found.only_people == 0 and found.overall.n == 200


@pytest.mark.slow
@pytest.mark.parametrize(("error", "most"), [(0.05, 0.7), (0.3, 1.01)])
def test_its_intervals_cover_and_a_measure_that_errs_rarely_makes_them_narrower(error: float, most: float) -> None:
    """400 simulations of 95% are below 92.5% in one of 100 cases."""
    inside, widths = [], []
    for number in range(400):
        control = searched(np.random.default_rng([number, 1]), 0.15, error, error)
        people = judged(draw_uses(LINE, control, 100, number))
        rate = correct(LINE, control, people, number).overall.rate
        alone = wilson(int(people["draws"] @ people["fails"]), 100)
        inside.append(rate.low <= 0.15 <= rate.high)
        widths.append((rate.high - rate.low, alone.high - alone.low))
    assert np.mean(inside) >= 0.925
    with_measure, without = np.mean(widths, axis=0)
    assert with_measure < most * without


def test_what_is_not_a_whole_spot_check_of_this_model_is_refused(tmp_path: Path) -> None:
    control = searched(np.random.default_rng(0), 0.2, 0.1, 0.1)
    people = judged(draw_uses(LINE, control, 60, 0))
    with pytest.raises(UsageError, match="of another model"):
        correct(LINE, control.assign(output="another"), people, 0)
    with pytest.raises(UsageError, match="20 draws"):
        correct(LINE, control, people.head(5), 0)
    path = tmp_path / "check.csv"
    cells = [" ".join(map(str, cell)) for cell in people["cell"]]
    written = people.assign(cell=cells, fails=["Yes"] + ["no"] * (len(people) - 1))
    written.to_csv(path, index=False)
    read = parse_spot_check(path.read_bytes(), path)
    assert read["fails"].tolist() == [True] + [False] * (len(people) - 1)
    assert read["cell"].tolist() == people["cell"].tolist() and read["draws"].sum() == 60
    config = SpotCheckConfig(file=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(read_spot_check(config, "here")) == len(people)
    written.assign(fails=["", *written["fails"][1:]]).to_csv(path, index=False)
    for wrong, read_it in (
        ("row 2", lambda: parse_spot_check(path.read_bytes(), path)),
        ("sha256", lambda: read_spot_check(config, "here")),
    ):
        with pytest.raises(UsageError, match=wrong):
            read_it()
    written.drop(columns="answer").to_csv(path, index=False)
    with pytest.raises(UsageError, match="found no answer"):
        parse_spot_check(path.read_bytes(), path)
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        read_spot_check(config, "here")


@pytest.mark.parametrize("answer", ["=1+1", "@SUM(A1)", "\tx", "'=1", "it's"])
def test_an_answer_that_a_spreadsheet_would_compute_stands_behind_an_apostrophe(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "check.csv"
    row = {"draws": 30, "item": "i0", "cell": "0", "answer": behind_apostrophe(answer), "fails": "no"}
    pd.DataFrame([row]).to_csv(path, index=False)
    assert pd.read_csv(path)["answer"][0][0] not in "=+-@\t"
    assert parse_spot_check(path.read_bytes(), path)["answer"].tolist() == [answer]


@pytest.mark.slow
def test_people_judge_a_table_and_the_next_verdict_has_the_corrected_rate(tmp_path: Path) -> None:
    workspace = finished_audits().copy(tmp_path / "ws")
    with inside(workspace):
        command = ["ratings", "other", "--spot-check", "check.csv"]
        code, said = faded(workspace, *command, "--draws", 40)
        table = pd.read_csv("check.csv", dtype=str, keep_default_na=False)
        assert code == 0 and "check.csv" in said and table["draws"].astype(int).sum() == 40
        assert set(table["answer"]) == {"right", "wrong"} and set(table["fails"]) == {""} and all(table["input"])
        code, said = faded(workspace, *command)
        assert code == 2 and "the first in row 2" in said
        table.assign(fails=np.where(table["answer"] == "wrong", "yes", "no")).to_csv("check.csv", index=False)
        code, said = faded(workspace, *command, "--write")
        assert code == 0 and "corrected by both" in said
        before = audit_folder("other").summarize.landscape
        assert load_params().audit("other").summarize.spot_check is not None
    run_stages(workspace, "other", STAGES[2:4])
    with inside(workspace):
        corrected = audit_folder("other").report.verdict.corrected
        page = Path("data/other/report/report.html").read_text()
        assert corrected is not None and corrected.overall.value == pytest.approx(before.overall.value)
        assert "drawn at random as they occur in use" in page
        # Decisions are on a landscape, and hold: people's verdicts change nothing in it.
        assert audit_folder("other").summarize.landscape.to_json() == before.to_json()
