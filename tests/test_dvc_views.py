"""DVC's own views of audits: few metrics, and plots that draw without a network."""

import json

import yaml
from dvc_render.html import HTML

from flows.workspace.new import write_workspace
from stages.core.git import git
from tests.workspace import ROOT

PAGE = "page.html"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
TEMPLATES = {path.stem: json.loads(path.read_text()) for path in (ROOT / ".dvc/plots").glob("*.json")}
PLOTS = [(stage, plot) for stage in STAGES.values() for plot in stage["do"].get("plots", [])]


def test_each_template_of_a_plot_is_there_and_takes_its_columns():
    named = [settings["template"] for _, plot in PLOTS for settings in plot.values() if "template" in settings]
    assert sorted(named) == sorted(TEMPLATES)
    for template in TEMPLATES.values():
        assert all(f"<DVC_METRIC_{name}>" in json.dumps(template) for name in ("DATA", "TITLE", "X", "Y"))


def test_the_page_of_plots_needs_no_network():
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
