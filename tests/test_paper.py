"""The paper's experiments as audits: their params are right, and the figures show their results."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from benchmarks.paper import figures
from benchmarks.paper.__main__ import LENT, PARAMS, STAND_IN, put_inputs, put_workspace, run
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
    audits = put_workspace(tmp_path / "ws", PARAMS)
    for name, audit in audits.items():
        put_inputs(tmp_path / "ws" / "data" / name / "inputs", audit, None)
    monkeypatch.chdir(tmp_path / "ws")
    params = load_params()
    with pytest.raises(UsageError) as refused:
        check_audits(params, params.audits)
    _, *errors = str(refused.value).splitlines()
    assert len(errors) == len(TORCHVISION)
    for name, error in zip(TORCHVISION, errors, strict=True):
        assert f"audits.{name}.prepare.model.weights: no data/{name}/inputs/{name}" in error


def test_torchvision_publishes_the_weights_that_are_named():
    from torchvision.models import get_model_weights

    for name in TORCHVISION:
        model = yaml.safe_load(PARAMS.read_text())["audits"][name]["prepare"]["model"]
        assert model["weights"] in {w.url.rpartition("/")[2] for w in get_model_weights(model["torchvision"])}


def test_every_audit_has_a_stand_in_that_lacks_nothing(tmp_path, monkeypatch):
    audits = put_workspace(tmp_path / "ws", STAND_IN)
    assert list(audits) == list(yaml.safe_load(PARAMS.read_text())["audits"])
    for name, audit in audits.items():
        put_inputs(tmp_path / "ws" / "data" / name / "inputs", audit, LENT.get(name))
    monkeypatch.chdir(tmp_path / "ws")
    params = load_params()
    check_audits(params, params.audits)


def test_an_unknown_audit_is_an_error_that_lists_those_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"no audit 'alexnett', found: alexnet, resnet50.*did you mean '?alexnet"):
        run(["alexnett"], tmp_path / "ws", stand_in=True)


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


def test_surfaces_show_the_rates_of_both_landscapes(results):
    tiny, other = results
    before, after = figures.surfaces(tiny).data
    expected = tiny.rates.sort_values(tiny.landscape.space.names)
    assert before.type == "surface"
    for surface, side in ((before, "before"), (after, "after")):
        drawn = [rate for line in surface.z for rate in line]
        assert drawn == pytest.approx(expected[side].round(4).tolist())
    assert len(figures.surfaces(other).data) == 1


def test_lines_show_the_mean_rate_of_each_level(results):
    tiny, _ = results
    lines = figures.by_concept(tiny).data
    assert [line.name for line in lines] == ["before", "after"] * len(tiny.landscape.space)
    means = tiny.rates.groupby(tiny.landscape.space.names[0])["after"].mean()
    assert list(lines[1].y) == pytest.approx(means.tolist(), abs=1e-4)


def test_levels_without_an_order_are_drawn_as_a_map(results, tmp_path):
    tiny, _ = results
    concepts = [c.model_copy(update={"levels": list("abcd"), "ordered": False}) for c in tiny.landscape.concepts]
    named = tiny._replace(landscape=tiny.landscape.model_copy(update={"concepts": concepts}))
    assert {trace.type for trace in figures.surfaces(named).data} == {"heatmap"}


def test_the_page_needs_no_network_and_says_that_models_are_stand_ins(results, tmp_path):
    figures.write_page(tmp_path / "page.html", results, stand_in=True)
    page = (tmp_path / "page.html").read_text()
    assert "stand-ins, not the paper" in page
    assert page.count("Plotly.newPlot(") >= 5
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?:', page)
    assert "&lt;tiny&gt;" in page
    assert "<tiny>" not in page


def test_without_a_repair_there_is_no_figure_of_one(results):
    assert figures.before_and_after(results[1:]) is None
    rows = json.loads(figures.before_and_after(results).to_json())["layout"]["yaxis"]["ticktext"]
    assert rows == ["tiny, target modes", "tiny, elsewhere"]
