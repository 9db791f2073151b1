"""DVC's own views of audits: few metrics, and plots that draw without a network."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from flows.workspace.new import write_workspace
from stages import conclude, report
from stages.concepts import Concept, ConceptSpace
from stages.conclude import modes_plot
from stages.core.git import git
from stages.core.intervals import NO_RATE, Rate
from stages.report import pair_plot, search_plot
from tests.report_samples import make_comparison, records_of
from tests.workspace import ROOT

PAGE = "page.html"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
TEMPLATES = {path.stem: json.loads(path.read_text()) for path in (ROOT / ".dvc/plots").glob("*.json")}
PLOTS = [(stage, plot) for stage in STAGES.values() for plot in stage["do"].get("plots", [])]


def test_metrics_are_the_headlines_alone():
    metrics = [next(iter(out)) for stage in STAGES.values() for out in stage["do"].get("metrics", [])]
    assert metrics == ["data/${key}/report/headline.json", "data/${key}/conclude/headline.json"]


def test_the_command_for_experiments_keeps_the_headlines_of_its_audit_alone():
    [keep] = re.findall(r"--keep '([^']*)' \| sed", (ROOT / "docs/workspace.md").read_text())
    columns = ["rev", "data/mnist/report/headline.json:modes", "data/mnist/conclude/headline.json:targets"]
    others = ["audits.mnist.seed", "data/mnist/code.json:report", "data/images/report/headline.json:modes", "stages"]
    assert [column for column in columns + others if re.match(keep, column)] == columns  # DVC's way to match


def test_each_template_of_a_plot_is_there_and_takes_its_columns():
    named = [settings["template"] for _, plot in PLOTS for settings in plot.values() if "template" in settings]
    assert sorted(named) == sorted(TEMPLATES)
    for template in TEMPLATES.values():
        anchors = json.dumps(template)
        assert all(f"<DVC_METRIC_{name}>" in anchors for name in ("DATA", "TITLE", "X", "Y"))


def test_the_page_of_plots_needs_no_network():
    from dvc_render.html import HTML

    page = (ROOT / ".dvc/plots/page.html").read_text()
    assert "{scripts}" not in page  # DVC would make browsers download Vega
    assert "src=" not in page.partition("<script>")[0] and "<link" not in page.partition("<script>")[0]
    assert all(f"{name} " in page for name in ("/* vega", "/* vega-lite", "/* vega-embed"))
    assert "<div>drawn</div>" in HTML(page).with_element("<div>drawn</div>").embed()


def test_a_new_workspace_draws_alike_and_a_project_of_the_users_is_left_alone(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
        git("init", folder=folder)
    write_workspace(mine)
    assert {path.name for path in (mine / ".dvc/plots").iterdir()} == {*(f"{name}.json" for name in TEMPLATES), PAGE}
    assert f"html_template = plots/{PAGE}" in (mine / ".dvc/config").read_text()
    (theirs / ".dvc").mkdir()
    write_workspace(theirs / "audit")
    assert list((theirs / ".dvc").iterdir()) == []
    write_workspace(theirs)  # beside theirs, whose settings are kept
    assert [path.name for path in (theirs / ".dvc").iterdir()] == ["plots"]
    assert {path.name for path in (theirs / ".dvc/plots").iterdir()} == {f"{name}.json" for name in TEMPLATES}


def test_the_search_is_thinned_and_ends_where_it_ended():
    failed = [n % 3 == 0 for n in range(1000)]
    probes = pd.DataFrame({"role": "agent", "order": range(1000), "failed": failed})
    probes = pd.concat([probes, probes.iloc[:5].assign(role="control")]).sample(frac=1, random_state=0)
    table = search_plot(probes)
    agent, control = (table[table["role"] == role] for role in ("agent", "control"))
    assert len(agent) == 200 and agent.iloc[-1].tolist() == ["agent", 1000, 334]
    assert control["failures"].tolist() == [1, 1, 1, 2, 2]
    assert search_plot(probes.iloc[:0]).empty


def test_the_pair_is_the_one_under_which_most_fail():
    space = ConceptSpace((Concept("a", (0, 1)), Concept("b", (0, 1)), Concept("c", (0, 1))))
    cells = pd.DataFrame(space.cells(), columns=space.names)
    cells["rate"], cells["use"] = 0.1 + 0.8 * (cells["a"] & cells["c"]), 1 / 8
    table = pair_plot(cells, space)
    assert table["failure_rate"].tolist() == pytest.approx([10, 10, 10, 90])
    assert (table["x"].iloc[-1], table["y"].iloc[-1]) == ("a 1", "c 1")
    assert pair_plot(cells[["a", "rate", "use"]], ConceptSpace(space.concepts[:1])).empty


def test_headlines_are_percent_and_points():
    sample = make_comparison(Concept("a", (0, 1, 2)), Concept("b", (0, 1, 2)))
    comparison, _ = records_of(sample["verdict"])
    numbers = conclude.headline_of(comparison, passed=False).more
    change = comparison.differences["target_failure_rate"].change
    assert change is not None and numbers["targets"] == pytest.approx(100 * change, abs=0.051)
    assert list(numbers) == ["passed", "targets", "others", "clean"] and numbers["passed"] is False
    assert len(modes_plot(comparison)) >= 2 * len(comparison.modes) > 0
    landscape = SimpleNamespace(overall=SimpleNamespace(rate=Rate(0.0933, 0.0843, 0.1033, 3600)), modes=[1, 2])
    assert report.headline_of(landscape, None).more == {"failure_rate": 9.3, "low": 8.4, "high": 10.3, "modes": 2}  # type: ignore[arg-type]
    empty = SimpleNamespace(overall=SimpleNamespace(rate=NO_RATE), modes=[])
    assert report.headline_of(empty, True).more == {"passed": True, "modes": 0}  # type: ignore[arg-type]
