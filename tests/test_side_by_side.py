"""Several results side by side: which are chosen, what is shown, and what is refused."""

import pytest

import flows.views.side_by_side
from flows.results import WORKSPACE
from flows.results.compare import Run, read_run
from flows.views.side_by_side import SideBySide, chosen_results, put_side_by_side
from tests.finished import faded, inside
from tests.workspace import Workspace

AUDITS = ("tiny", "other")


def together(workspace: Workspace, results: list[tuple[str, str]], **changed: Run) -> SideBySide:
    with inside(workspace), pytest.MonkeyPatch.context() as patch:
        runs = {pair: changed.get(pair[1]) or read_run(*pair) for pair in results}
        patch.setattr(flows.views.side_by_side, "read_run", lambda *pair: runs[pair])
        return put_side_by_side(results)


def test_every_audit_is_meant_in_every_revision(workspace):
    every = [("first", "tiny"), ("HEAD", "tiny"), ("first", "other"), ("HEAD", "other")]
    for words, meant in (
        (["first", WORKSPACE], [("first", "tiny"), (WORKSPACE, "tiny")]),
        (["other", "tiny"], [(WORKSPACE, "other"), (WORKSPACE, "tiny")]),
        (["first", "HEAD", "tiny", "other"], every),
    ):
        with inside(workspace):
            assert chosen_results(words, AUDITS, "tiny") == meant


def test_one_result_and_a_word_that_is_neither_are_refused(workspace, tmp_path):
    for words, told in (
        (["first"], "found one result, of tiny in first, expected two at least: name another revision or audit"),
        (["first", "first"], "found one result, of tiny in first"),
        (["othr", "tiny"], "cannot compare 'othr': expected a git revision, 'workspace' or an audit in params.yaml"),
    ):
        code, said = faded(workspace, "compare", *words, "--page", tmp_path / "page.html")
        assert code == 2 and told in said, said
    assert not (tmp_path / "page.html").exists()


def test_two_audits_are_put_in_one_table_and_one_page(workspace, tmp_path):
    page = tmp_path / "page.html"
    code, said = faded(workspace, "compare", "tiny", "other", "--page", page)
    assert code == 0, said
    assert "failures found by the agent" in said and "failure rate, overall" in said and "tilt 3" in said
    assert "all searches had the same budget of 128 unique probes" in said
    assert "grids differ" not in said and "differs:" not in said
    text = page.read_text()
    assert "tiny: control (random)" in text and "other: agent (random)" in text and "stroke-dasharray" in text
    assert "Nothing but the results" in text
    assert "common probes of" in said and "fails more often than the best by" in said and "other: tilt" in said
    assert "Head to head" in text and "Whose failure modes they are" in text


def test_more_revisions_and_audits_are_named_by_both(workspace):
    shown = together(workspace, [("first", "tiny"), (WORKSPACE, "tiny"), ("first", "other")])
    assert list(shown.runs) == ["tiny in first", "tiny in workspace", "other in first"]
    rates = dict(shown.rates)
    assert rates["overall"][0] == rates["overall"][1] == shown.runs["tiny in first"].landscape.overall.rate
    mode = max(shown.runs["tiny in first"].landscape.modes, key=lambda mode: mode.rate)
    assert rates["worst failure mode"][0] == mode.measured.rate
