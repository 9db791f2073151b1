"""Pairs that must pass after the next repair: from a file to the plan, and away from the test items."""

from dataclasses import replace

import pandas as pd
import pytest

from flows.evidence.bundle import read_bundle
from flows.evidence.checks import check_plan
from flows.evidence.write import problems_of, write_bundle
from stages import collect_feedback
from stages.core.errors import UsageError
from stages.decisions import decisions_dir
from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.contract import Items
from tests.finished import commit, faded, finished_audits, inside, run_stages

AFTER = ("collect_feedback", "restructure", "re_evaluate", "compare", "conclude")


def written(text: str):
    path = decisions_dir("tiny") / "must_pass.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.slow
def test_pairs_that_must_pass_are_kept_and_their_items_leave_the_test_items(workspace):
    with inside(workspace):
        here = audit_folder("tiny")
        probes, space = here.re_evaluate.probes, here.compare.comparison.space
        paired = probes[probes["purpose"] == "paired"].set_index("model")
        before, after = paired.loc["before"].reset_index(), paired.loc["after"].reset_index()
        kept, fails = before[~before["failed"] & ~after["failed"]].iloc[:3], before[before["failed"]].iloc[:1]
        chosen = pd.concat([kept, fails])
        items, labels = set(chosen["item"]), {c.name: chosen[c.name].map(c.label) for c in space.concepts}
        path = written(chosen.assign(**labels)[["item", *space.names]].to_csv(index=False).strip())
    run_stages(workspace, "tiny", AFTER)
    with inside(workspace):
        here = audit_folder("tiny")
        assert set(here.collect_feedback.plan.learnt) == items
        assert items & set(probes["item"]) and not items & set(here.re_evaluate.probes["item"])
        assert not items & set(here.re_evaluate.quality["item"]) and not items & set(here.re_evaluate.doses["item"])
        found = here.restructure.trainings.must_pass["repaired"]
        assert (found.pairs, found.failing, found.left_out) == (3, 0, 1)
        said = here.conclude.verdict.statement
        assert "All 3 pairs that must pass do (left out: 1 that" in said and f"{len(items)}, do not judge it" in said
        assert said in here.conclude.card
        commit(workspace, "must-pass")
        bundle = write_bundle(load_params(), "tiny")
        assert bundle is not None and not problems_of(bundle)
        forged = dict(read_bundle(bundle).members)
        forged[path.as_posix()] = forged[path.as_posix()].rsplit(b"\n", 1)[0]
        found = check_plan(replace(read_bundle(bundle), members=forged))
        assert any("must_pass" in problem for problem in found.problems)
    code, told = faded(workspace, "plan", "tiny")
    assert code == 0, told
    # Without the file nothing remains of it.
    path = workspace.path / path
    path.unlink()
    run_stages(workspace, "tiny", AFTER)
    with inside(workspace):
        again, first = audit_folder("tiny"), audit_folder("tiny", finished_audits().path)
        assert again.collect_feedback.where("plan").read_bytes() == first.collect_feedback.where("plan").read_bytes()
        assert again.re_evaluate.where("probes").read_bytes() == first.re_evaluate.where("probes").read_bytes()
        assert again.conclude.verdict == first.conclude.verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("item,tilt\nx,0\n", r"must_pass\.csv lacks the column\(s\) fog, found item, tilt; expected those of"),
        ("item,tilt,fog\ntest-0000,0,9\n", r"row 1: fog is '9'; expected 0, "),
        ("", "cannot be read as a table"),
    ],
)
def test_a_wrong_file_is_refused_as_soon_as_it_is_read(workspace, text, expected):
    with inside(workspace):
        path = written(text)
        try:
            with pytest.raises(UsageError, match=expected):
                collect_feedback.main("tiny")
        finally:
            path.unlink()


def test_only_test_items_may_leave_and_some_have_to_stay(workspace):
    with inside(workspace):
        items = Items(pd.read_parquet("data/tiny/prepare/items.parquet"))
        for wrong in ("nobody", items.ids("discover")[0]):
            with pytest.raises(UsageError, match=rf"must_pass\.csv: {wrong}: not among the \d+ test items"):
                items.learning([wrong])
        with pytest.raises(UsageError, match="leaves none"):
            items.learning(items.ids("test"))
