"""Benchmarks that docs quote: the paper's experiments as audits, and the study of explorers."""

import re

import pandas as pd
import pytest
import yaml

from benchmarks.paper import figures
from benchmarks.paper.__main__ import LENT, PARAMS, STAND_IN, put_inputs, put_workspace
from benchmarks.study import run
from stages.check import check_audits
from stages.core.errors import UsageError
from stages.params import load_params
from tests.finished import finished_audits

TORCHVISION = ("alexnet", "resnet50", "efficientnet")


@pytest.fixture(scope="module")
def results() -> list[figures.Result]:
    """Results of two finished audits with planted failures, one of which was repaired."""
    workspace = finished_audits()
    audits = {name: {"prepare": {"model": {"planted": f"<{name}>"}}} for name in ("tiny", "other", "never-ran")}
    return figures.read_results(workspace.path, audits)


def test_the_full_audits_lack_nothing_but_weights_that_have_to_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.paper.__main__._download", lambda name, path: None)
    audits = put_workspace(tmp_path / "ws", PARAMS.read_text(encoding="utf-8"))
    for name, audit in audits.items():
        put_inputs(tmp_path / "ws" / "data" / name / "inputs", audit, None)
    monkeypatch.chdir(tmp_path / "ws")
    params = load_params()
    with pytest.raises(UsageError) as refused:
        check_audits(params, params.audits)
    _, *errors = str(refused.value).splitlines()
    for name, error in zip(TORCHVISION, errors, strict=True):
        assert f"audits.{name}.prepare.model.weights: no data/{name}/inputs/{name}" in error


def test_every_audit_has_a_stand_in_that_lacks_nothing(tmp_path, monkeypatch):
    audits = put_workspace(tmp_path / "ws", STAND_IN.read_text(encoding="utf-8"))
    assert list(audits) == list(yaml.safe_load(PARAMS.read_text())["audits"])
    for name, audit in audits.items():
        put_inputs(tmp_path / "ws" / "data" / name / "inputs", audit, LENT.get(name))
    monkeypatch.chdir(tmp_path / "ws")
    params = load_params()
    check_audits(params, params.audits)


def test_the_table_says_what_the_records_say(results):
    assert [result.name for result in results] == ["tiny", "other"]
    tiny, other = (line.split(" | ") for line in figures.table_of(results).splitlines()[2:])
    landscape, comparison = results[0].landscape, results[0].comparison
    target = comparison.differences["target_failure_rate"]
    assert tiny[2].startswith(f"{100 * landscape.overall.value:.1f}% (")
    assert tiny[3] == f"{landscape.search.agent.failures:,} of {landscape.search.agent.probes:,}"
    assert tiny[6:8] == [f"{100 * target.before:.1f}%", f"{100 * target.after:.1f}%"]
    assert tiny[9] == f"{100 * target.control.after:.1f}%"
    assert other[6:9] == ["–"] * 3


def test_the_page_needs_no_network_and_says_that_models_are_stand_ins(results, tmp_path):
    figures.write_page(tmp_path / "page.html", results, stand_in=True)
    page = (tmp_path / "page.html").read_text()
    assert "stand-ins, not the paper" in page and page.count("<svg") >= 5
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?:', page)
    assert "&lt;tiny&gt;" in page and "<tiny>" not in page


PLAN = {"budgets": [40, 80], "short": 80, "estimate_at": []}


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_killed_and_ends_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "dependencies", list)  # a changed state of the code would be another run
    study = {"seeds": [100, 101], "landscapes": {"planted5": PLAN}, "explorers": {"random": {}}}
    whole = run.run("random", study, workers=1)
    kept = sorted(tmp_path.glob(".faded/scratch/study/random/*/*.json"))
    assert [path.name for path in kept] == ["planted5-100.json", "planted5-101.json"]
    kept[0].unlink()
    stamp = kept[1].stat().st_mtime_ns
    again = run.run("random", study, workers=1)
    assert kept[1].stat().st_mtime_ns == stamp  # not done again
    pd.testing.assert_frame_equal(whole.drop(columns="cpu_ms"), again.drop(columns="cpu_ms"))
