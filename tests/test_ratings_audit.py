"""Ratings in a whole audit: learnt from its decisions, used by search and verdict, and refused if they do not fit."""

import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console

from flows.people.ratings import show_ratings, write_ratings
from stages import discover, prepare, report, summarize
from stages.check import check_audits
from stages.core.errors import UsageError
from stages.core.files import read_json
from stages.decisions import Decision, ExampleRating, landscape_hash, record_decision, standing
from stages.landscape import estimators
from stages.params import load_params
from stages.provenance import run_key
from stages.ratings.fit import gather
from tests.finished import faded, finished_audits, inside
from tests.workspace import ROOT, audit_params, repair_params


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with its first landscape."""
    place = tmp_path_factory.mktemp("ratings")
    shutil.copy(ROOT / "tests" / "planted.py", place / "planted.py")
    (place / "data/x/inputs").mkdir(parents=True)
    (place / "data/x/inputs/regions.json").write_text("[]")
    audit = audit_params() | {"usage": "uniform"}
    # Half of the grid fails, except one cell, so that a mode of this size has passing examples too.
    audit["prepare"] |= {"regions": [{"tilt": [2]}, {"tilt": [3], "fog": [0, 2, 3]}], "noise": 0.1}
    audit["prepare"]["items"]["discover"] = 40
    audit["discover"] |= {"explorer": "random", "budget": 500, "microscopic": {"method": "none"}}  # 100 kept back
    audit["summarize"] |= {"min_support": 0.2}
    feedback = {"policy": "wait", "reviewers": 2}
    params = {"audits": {"x": audit}, "repairs": {"x": repair_params(feedback=feedback)}}
    (place / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        _enter(patch, place)
        for stage in (prepare, discover, summarize, report):
            stage.main("x")
    return place


@pytest.fixture
def place(audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(audited, tmp_path / "x")
    _enter(monkeypatch, tmp_path / "x")
    return tmp_path / "x"


@pytest.fixture(scope="module")
def searched(audited: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same after two people rated it and the next search used that, and what `faded ratings` printed."""
    place = tmp_path_factory.mktemp("searched") / "x"
    shutil.copytree(audited, place)
    with pytest.MonkeyPatch.context() as patch:
        _enter(patch, place)
        rate("Ada", strict)
        rate("Ben", lambda d: strict(d) - 0.5, seed=1)
        told = learn()
        check_audits(load_params(), ["x"])
        for stage in (discover, summarize, report):
            stage.main("x")
    return place, told


@pytest.fixture
def again(searched: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copytree(searched[0], tmp_path / "x")
    _enter(monkeypatch, tmp_path / "x")
    return searched[1]


def _enter(patch: pytest.MonkeyPatch, place: Path) -> None:
    patch.chdir(place)
    patch.syspath_prepend(place)
    patch.delitem(sys.modules, "planted", raising=False)
    patch.setitem(estimators.TREES, "max_iter", 30)  # a third of the time, and the modes are clear


def rated(score: float) -> int:
    return int(np.clip(round(score), 1, 10))


def rate(reviewer: str, scale: Callable[[float], float], seed: int = 0, **more: Any) -> None:
    """Make a reviewer rate the examples on a personal scale, with a little noise."""
    params, rng = load_params(), np.random.default_rng(seed)
    modes = read_json(Path("data/x/summarize/landscape.json"))["modes"]
    given = [
        ExampleRating(id=e["id"], rating=rated(scale(e["discrepancy"]) + rng.normal(0, 0.4)))
        for mode in modes
        for e in mode["examples"]
    ]
    words = [{"id": mode["id"], "action": "ignore"} for mode in modes]
    decision = Decision(landscape=landscape_hash("x"), reviewer=reviewer, approve=True, modes=words, examples=given)
    record_decision(params, "x", decision, "file", **more)


def strict(discrepancy: float) -> float:
    """Half of the automatic failures are good enough for these people, who rate them 5 or better."""
    return 10 - 9 * (discrepancy + 0.8) / 1.6 + 2.5


def learn() -> str:
    """Learn from the ratings, and put them in force."""
    console = Console(file=(out := io.StringIO()), width=200)
    write_ratings("x", show_ratings(load_params(), "x", "quality", console), console)
    return out.getvalue()


def control_of(probes: pd.DataFrame) -> pd.DataFrame:
    return probes[probes["role"] == "control"].reset_index(drop=True)


def expected_ratings(discrepancy: Any) -> np.ndarray:
    """Computed from the file alone."""
    ratings = json.loads(Path("data/x/ratings.json").read_text())
    return 10 - 9 * np.interp(discrepancy, ratings["x"], ratings["y"])


def test_ratings_are_learnt_written_and_named_in_params(again):
    assert "by Ada (" in again and "Ben (" in again and "differ by" in again and "fails" in again
    audit, data = load_params().audit("x"), Path("data/x/ratings.json").read_bytes()
    assert audit.ratings is not None and audit.ratings.fails_below == 5
    assert audit.ratings.sha256 == hashlib.sha256(data).hexdigest()
    ratings = json.loads(data)
    assert list(ratings["reviewers"]) == ["Ada", "Ben"] and sum(ratings["reviewers"].values()) == ratings["ratings"]
    assert ratings["agreement"]["rating"]["difference"] < 1.5
    assert run_key(audit, []) != run_key(audit.model_copy(update={"discrepancy": audit.automatic}), [])


def test_ratings_change_what_the_next_audit_calls_a_failure(again, audited):
    promised = re.search(r"of 400 probes of the control ([\d.]+)% fail automatically, ([\d.]+)% would by these", again)
    assert promised is not None
    after, asked = pd.read_parquet("data/x/discover/probes.parquet"), ["item", "tilt", "fog"]
    # The control has the same probes; its answers are judged by the map.
    control, old = control_of(after), control_of(pd.read_parquet(audited / "data/x/discover/probes.parquet"))
    pd.testing.assert_frame_equal(control[asked], old[asked])
    assert np.array_equal(control["automatic"], old["discrepancy"])
    assert np.array_equal(control["automatic_failed"], old["failed"])
    assert np.array_equal(control["failed"], expected_ratings(old["discrepancy"]) < 5)
    assert 0 < control["failed"].sum() < old["failed"].sum()  # they are more lenient
    assert f"{control['failed'].mean():.1%}" == f"{promised[2]}%" and f"{old['failed'].mean():.1%}" == f"{promised[1]}%"

    summary = read_json(Path("data/x/summarize/landscape.json"))
    found, own = summary["ratings"], summary["ratings"]["automatic"]
    assert own["overall"]["value"] == old["failed"].mean() and summary["overall"]["value"] == control["failed"].mean()
    assert own["agree"]["value"] == (control["failed"] == old["failed"]).mean()
    assert own["only_automatic"]["value"] == pytest.approx(1 - own["agree"]["value"]) and own["threshold"] == 0.0
    assert own["only_people"]["value"] == 0 and found["fails_below"] == 5 and "points" in found
    assert 0.5 < own["rank_correlation"]["value"] <= 1 and own["rank_correlation"]["low"] is None
    table = pd.read_parquet("data/x/summarize/landscape.parquet")
    before = pd.read_parquet(audited / "data/x/summarize/landscape.parquet")
    assert table["rate"].mean() < table["rate_automatic"].mean()
    assert abs(table["rate_automatic"] - before["rate"]).mean() < 0.05  # other probes of the agent, same measure
    # Later ratings are again fitted to the automatic measure.
    example = summary["modes"][0]["examples"][0]
    shown = after[(after[asked[1:]] == example["cell"]).all(axis=1) & (after["item"] == example["item"])].iloc[0]
    assert example["discrepancy"] == shown["automatic"] != shown["discrepancy"]

    page = Path("data/x/report/report.html").read_text()
    section = page[page.index('<section id="ratings">') :].partition("</section>")[0]
    assert "People&#39;s ratings against the automatic measure" in section and "an expected rating below 5" in section
    assert section.count('class="chart"') == 3 and "by people&#39;s ratings" in section
    assert f"{control['failed'].mean():.1%}" in section and f"{old['failed'].mean():.1%}" in section
    assert "Ada (" in section and "Ben (" in section and "differ by" in section
    assert "Failing means an expected" in page


def test_ratings_that_were_revised_or_of_another_scale_do_not_count(place):
    rate("Ada", lambda d: 1.0)
    rate("Ada", strict, revise=True)
    assert min(s.score for s in gather(load_params(), "x", "quality").scored) > 1
    _edit("params.yaml", "threshold: 0.0", "threshold: 0.1")  # the threshold does not change the measure
    assert gather(load_params(), "x", "quality").of_another_scale == 0
    _edit("params.yaml", "noise: 0.1", "noise: 0.2")
    with pytest.raises(UsageError, match=r"nobody has rated the quality of examples of x yet; \d+ were of another"):
        learn()


def test_what_does_not_fit_is_refused_before_anything_runs(place):
    rate("Ada", strict)
    learn()
    ratings, params = Path("data/x/ratings.json"), Path("params.yaml")
    written = {path: path.read_text() for path in (ratings, params)}
    for spoil, message in (
        (ratings.unlink, "cannot be read"),
        (lambda: _edit("data/x/ratings.json", '"y"', '"z"'), "has sha256 .* params.yaml names"),
        (lambda: _edit("params.yaml", "noise: 0.1", "noise: 0.2"), "was learnt on another scale"),
        (lambda: _edit("params.yaml", "fails_below", "fails_above"), "for which the bound is fails_below"),
    ):
        spoil()
        with pytest.raises(UsageError, match=message):
            check_audits(load_params(), ["x"])
        with pytest.raises(UsageError, match=message):
            discover.main("x")
        for path, text in written.items():
            path.write_text(text)


def _edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


@pytest.mark.slow
def test_the_command_makes_the_next_search_stale(tmp_path):
    workspace = finished_audits().copy(tmp_path / "w")
    with inside(workspace):
        landscape = read_json(Path("data/tiny/summarize/landscape.json"))
        shown = [e for mode in landscape["modes"] for e in mode["examples"]]
        examples = [{"id": e["id"], "rating": rated(strict(e["discrepancy"]))} for e in shown]
        modes = [{"id": m["id"], "action": "repair", "reason": "seen"} for m in landscape["modes"]]
        said = {"landscape": landscape_hash("tiny"), "reviewer": "Ada", "approve": True, "modes": modes}
        record_decision(load_params(), "tiny", Decision(**said, examples=examples), "file", revise=True)
        assert standing(load_params(), "tiny").complete
    code, told = faded(workspace, "ratings", "tiny", "--write")
    assert code == 0, told
    _, plan = faded(workspace, "plan", "tiny")
    assert "discover" in plan and "summarize" in plan and "prepare" not in plan
