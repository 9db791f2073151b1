"""The gate for CI: worse results fail, equal ones pass, incomparable ones are refused, and unproven ones fail."""

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import flows.evidence.gate
from flows.evidence.gate import GateResult, last_passed, looks_since, run_gate, show_gate
from flows.results import WORKSPACE
from flows.results.compare import Evaluation, NoResults, Run, read_run
from stages.core.errors import UsageError
from stages.params import load_params
from stages.records import Comparison, Difference, Gate, Provenance, RepairVerdict
from stages.records.landscape import RatingsInForce
from tests.finished import commit, faded, inside, run_stages
from tests.workspace import FADED, ROOT, STAGES, Workspace
from tests.worse import spoil, worse_audits


@pytest.fixture(scope="module")
def worse(tmp_path_factory) -> Workspace:
    """The audit "other" again, with a model that fails more, committed as `second`."""
    return worse_audits().copy(tmp_path_factory.mktemp("worse") / "ws")


def fail(workspace: Workspace) -> None:
    """Make the headline of "other" say that it did not pass."""
    headline = workspace.path / "data/other/report/headline.json"
    headline.write_text(headline.read_text().replace('"passed": true', '"passed": false'))


def judged(workspace: Workspace, audit: str, against: str | None = "first", tolerance: float = 0.02) -> GateResult:
    with inside(workspace):
        return run_gate(load_params(), audit, against, tolerance)


@pytest.mark.parametrize("audit", ["tiny", "other"])
def test_the_same_result_is_no_worse_than_itself_however_few_the_items(workspace, audit):
    result = of_another(workspace, audit, tolerance=0.0)
    assert result.passed and result.own
    assert all(row.worse[:3] == (0.0, 0.0, 0.0) and row.worse.n > 0 for row in result.rows)
    assert len(result.rows) == (3 if audit == "tiny" else 1)


def test_a_worse_model_fails_and_a_better_one_passes(worse):
    result = judged(worse, "other")
    [row] = result.rows
    assert result.own, "the audit itself still passes its own gates"
    assert row.worse.low > 0 and row.now > row.then and not row.passed and not result.passed
    with inside(worse), pytest.MonkeyPatch.context() as patch:
        then, now = read_run("first", "other"), read_run(WORKSPACE, "other")
        patch.setattr(flows.evidence.gate, "read_run", lambda rev, *_, **__: then if rev == WORKSPACE else now)
        patch.setattr(flows.evidence.gate, "proven_evidence", lambda *_: None)
        swapped = run_gate(load_params(), "other", "first", 0.02)
    assert swapped.passed and swapped.rows[0].worse.high < 0.02


def test_the_command_tells_who_decided_and_ends_with_the_code_of_a_gate(worse, workspace):
    code, told = faded(worse, "gate", "other", "--against", "first")
    assert code == 1, told
    assert "model under test: failures" in told and "95% interval" in told
    assert "first's own verdict: pass; no decision needed: it ends with its landscape" in told
    code, told = faded(worse, "gate", "tiny", "--against", "second")  # planted.py is its code, too
    assert code == 2 and "run `faded audit tiny` first" in told
    out = io.StringIO()
    show_gate(Console(file=out, width=160), of_another(workspace, "tiny"))
    assert "first's own verdict: pass; decided by Bob, Ada" in out.getvalue()
    assert out.getvalue().rstrip().endswith("tiny: at least as good as first")
    by_rule = of_another(workspace, "tiny", lambda run: judged_as(run, decided_by="policy"))
    assert by_rule.now.decided == "decided by policy, no human"


def judged_as(run: Run, **verdict: Any) -> Run:
    """The same run with another verdict."""
    if run.evaluation is None:
        return altered("verdict", **verdict)(run)
    return evaluated(run, verdict=run.evaluation.verdict.model_copy(update=verdict))


MISSED = Gate(gate="x.max", bound=0.1, value=0.2, low=0.2, high=0.2, passed=False)
FAILED = {"passed": False, "gates": [MISSED]}
NOT_JUDGED = {"passed": None, "gates": [MISSED.model_copy(update={"passed": None})]}
WITHOUT_GATES = {"passed": None, "gates": []}


@pytest.mark.parametrize(("audit", "verdict"), [("tiny", FAILED), ("other", FAILED), ("other", NOT_JUDGED)])
def test_a_revision_that_did_not_pass_is_nothing_to_compare_with(worse, workspace, audit, verdict):
    head = workspace.run(["git", "rev-parse", "first"]).stdout[:12]
    with pytest.raises(UsageError, match=rf"'{audit}' did not pass at first .* that passed is --against {head}"):
        of_another(workspace, audit, before=lambda run: judged_as(run, **verdict))


@pytest.mark.parametrize("audit", ["tiny", "other"])
def test_without_gates_the_comparison_counts_only_where_there_never_were_any(workspace, audit):
    def without(run: Run) -> Run:
        return judged_as(run, **WITHOUT_GATES)

    neither = of_another(workspace, audit, without, before=without)
    assert neither.passed and any("only the comparison was judged" in note for note in neither.notes)
    out = io.StringIO()
    show_gate(Console(file=out, width=160), neither)
    assert "the workspace's own verdict: no gates set; " in out.getvalue() and "pass;" not in out.getvalue()
    dropped = of_another(workspace, audit, without)
    assert all(row.passed for row in dropped.rows) and not dropped.own and not dropped.passed
    assert any("what passed there has to pass here" in note for note in dropped.notes)
    new = of_another(workspace, audit, before=without)
    assert new.passed and any("first sets no gates" in note for note in new.notes)


def test_by_default_it_is_the_last_that_passed(workspace, worse, tmp_path):
    head, second = (worse.run(["git", "rev-parse", tag]).stdout[:12] for tag in ("HEAD", "second"))
    own = worse.copy(tmp_path / "ws")
    with inside(own):
        assert last_passed(load_params(), "other") == (second, True)
        assert last_passed(load_params(), "tiny") == (head, True), "nothing has changed it since it passed"
    result, told = judged(worse, "other", None), "is the last that passed, and has this same result; use --against for"
    assert result.passed and result.notes == [f"{second} {told} another"]
    fail(own)
    commit(own, "third")
    with inside(own):
        assert last_passed(load_params(), "other")[0] == second
    shutil.rmtree(own.path / ".git")
    assert own.run(["git", "init", "--quiet"]).returncode == 0
    with inside(own), pytest.raises(NoResults, match=r"no commit has a data/other/report/headline.json"):
        last_passed(load_params(), "other")


def test_each_further_result_since_a_revision_is_another_try_and_needs_more(worse, workspace, tmp_path, monkeypatch):
    own = worse.copy(tmp_path / "ws")
    with inside(own):
        assert looks_since(load_params(), "other", "first") == 1
        fail(own)
        assert looks_since(load_params(), "other", "first") == 2
    once = judged(worse, "other")
    monkeypatch.setattr(flows.evidence.gate, "looks_since", lambda *_: 3)
    third, same = judged(worse, "other"), of_another(workspace, "other")
    [before], [after] = once.rows, third.rows
    assert (once.looks, third.looks) == (1, 3) and after.worse.value == before.worse.value
    by = NormalDist().inv_cdf(1 - 0.05 / 12) / NormalDist().inv_cdf(0.975)
    assert after.worse.high - after.worse.value == pytest.approx(by * (before.worse.high - before.worse.value))
    assert len(third.notes) == len(once.notes) + 1 and same.passed, "the same model is no worse, however often"


def unchanged(run: Run) -> Run:
    return run


def of_another(
    workspace, audit: str, change: Any = unchanged, *, before: Any = unchanged, tolerance=0.02
) -> GateResult:
    """The gate with another run for the workspace, and optionally for the revision."""
    with inside(workspace), pytest.MonkeyPatch.context() as patch:
        now = read_run(WORKSPACE, audit, repaired=audit == "tiny")  # as it was committed
        then, now = before(replace(now, revision="first")), change(now)
        patch.setattr(flows.evidence.gate, "read_run", lambda rev, *_, **__: now if rev == WORKSPACE else then)
        patch.setattr(flows.evidence.gate, "proven_evidence", lambda *_: None)  # DVC takes half a second
        return run_gate(load_params(), audit, "first", tolerance)


def altered(where: str, **update: Any) -> Callable[[Run], Run]:
    return lambda run: replace(run, **{where: getattr(run, where).model_copy(update=update)})


def test_another_grid_is_told_by_the_concept_and_its_levels(workspace):
    def coarser(run: Run) -> Run:
        first, *others = run.landscape.concepts
        concepts = [first.model_copy(update={"levels": first.levels[:2]}), *others]
        return replace(run, landscape=run.landscape.model_copy(update={"concepts": concepts}))

    with pytest.raises(UsageError) as error:
        of_another(workspace, "other", coarser)
    with inside(workspace):
        first = read_run(WORKSPACE, "other", repaired=False).landscape.concepts[0]
    levels = list(first.levels)
    told = f"  concepts.{first.name}.levels: {json.dumps(levels)} against {json.dumps(levels[:2])}"
    assert str(error.value).splitlines()[1:] == [told], "and not that the weights of other levels differ"


def test_unlike_runs_are_refused_with_the_reason(workspace):
    for what, where, value in (
        ("ratings", "landscape", RatingsInForce.model_construct(sha256="0" * 64, fails_below=5)),
        ("seed", "provenance", 4),
        ("device", "provenance", "cuda (H100)"),
        ("task", "provenance", "my:Task"),
    ):
        told = rf"first and workspace are not comparable.*\n  {what}.*: .* against "
        with pytest.raises(UsageError, match=told) as error:
            of_another(workspace, "other", altered(where, **{what: value}))
        assert str(error.value).count("\n") == 1, "only what differs is named"


def evaluated(run: Run, **changes: Any) -> Run:
    assert run.evaluation is not None
    return replace(run, evaluation=replace(run.evaluation, **changes))


def made(run: Run, **changes: Any) -> Run:
    """The same evaluation with changed provenance."""
    assert run.evaluation is not None
    return evaluated(run, provenance=run.evaluation.provenance.model_copy(update=changes))


def test_an_unlike_evaluation_is_refused_and_settings_that_may_explain_a_difference_are_told(workspace):
    with pytest.raises(UsageError, match="re_evaluate: seed: 3 against 9"):
        of_another(workspace, "tiny", lambda run: made(run, seed=9))
    assert of_another(workspace, "other", altered("provenance", threads=2)).notes == ["threads differs: 1 against 2"]


def failing_more(run: Run, model: str = "after") -> Run:
    """The same evaluation with a model that fails on all probes of the uniform control of its search."""
    probes = run.evaluation.probes.copy()
    asked = (probes["purpose"] == "search") & (probes["role"] == "control")
    probes.loc[asked & (probes["model"] == model), "failed"] = True
    return made(evaluated(run, probes=probes), repaired="1" * 16)


def test_a_repaired_model_that_fails_more_fails_the_gate(workspace):
    result = of_another(workspace, "tiny", failing_more)
    landscape, repaired, _ = result.rows
    assert landscape.passed and not repaired.passed and repaired.worse.low > 0 and not result.passed
    before = of_another(workspace, "tiny", lambda run: failing_more(run, model="before"))
    assert before.rows[1].worse.value == 0.0, "what the model before does is not the repaired one's"


def test_what_is_no_sample_of_the_grid_does_not_count(workspace):
    """Half of the common pairs are in the targets, and an agent searches for failures: a worse model is still worse."""

    def better_there(run: Run, failed: bool) -> Run:
        run = failing_more(run)
        probes = run.evaluation.probes.copy()
        probes.loc[(probes["purpose"] != "search") | (probes["role"] == "agent"), "failed"] = failed
        return evaluated(run, probes=probes)

    one, other = (of_another(workspace, "tiny", lambda run, f=failed: better_there(run, f)) for failed in (True, False))
    assert one.rows[1] == other.rows[1] and not one.rows[1].passed
    with inside(workspace):
        probes = read_run(WORKSPACE, "tiny", repaired=True).evaluation.probes
    asked = probes[(probes["purpose"] == "search") & (probes["role"] == "control") & (probes["model"] == "after")]
    assert one.rows[1].then == asked["failed"].mean() and one.rows[1].worse.n == len(asked) == 128


def test_what_is_not_shown_to_be_no_worse_fails(workspace):
    """The same answers from another model: 20 items cannot show 2 points, though nothing looks worse."""
    landscape, repaired, quality = of_another(workspace, "tiny", lambda run: made(run, repaired="1" * 16)).rows
    assert landscape.passed
    assert repaired.worse.value == 0.0 and repaired.worse.high > 0.02 and not repaired.passed
    assert quality.worse.value == 0.0 and quality.worse.high > 0.02 and not quality.passed
    high = of_another(workspace, "tiny", failing_more).rows[1].worse.high
    for tolerance, passed in ((high - 1e-9, False), (high, False), (high + 1e-9, True), (1.0, True)):
        assert of_another(workspace, "tiny", failing_more, tolerance=tolerance).rows[1].passed is passed


def evaluation(**quality: float | None) -> Evaluation:
    entry = Difference(name="clean accuracy", pairs=1000, low=None, high=None, **quality)
    comparison = Comparison.model_construct(differences={"clean_quality": entry})
    return Evaluation(comparison, RepairVerdict.model_construct(), Provenance.model_construct(), pd.DataFrame())


def test_clean_quality_is_compared_as_two_means():
    then = evaluation(after=0.9, after_low=0.88, after_high=0.91)
    now = evaluation(after=0.86, after_low=0.83, after_high=0.88)
    row = flows.evidence.gate._quality(then, now, False, 0.05)
    assert row.worse.value == pytest.approx(0.04)
    # Minus the square root of 0.02^2 + 0.02^2 below, plus that of 0.01^2 + 0.03^2 above.
    assert row.worse.low == pytest.approx(0.04 - np.sqrt(0.0008))
    assert row.worse.high == pytest.approx(0.04 + np.sqrt(0.001))
    assert not row.passed and flows.evidence.gate._quality(now, then, False, 0.05).passed
    nothing = evaluation(after=None, after_low=None, after_high=None)
    assert not flows.evidence.gate._quality(then, nothing, False, 0.05).passed


@pytest.mark.parametrize("verdict", [FAILED, NOT_JUDGED])
def test_ones_own_verdict_counts(workspace, verdict):
    result = of_another(workspace, "other", lambda run: judged_as(run, **verdict))
    assert all(row.passed for row in result.rows)
    assert not result.own and result.now.word in ("FAIL", "not judged") and not result.passed


def test_a_clone_without_results_is_told_what_to_do(workspace, tmp_path):
    assert workspace.run(["git", "clone", "--quiet", str(workspace.path), str(tmp_path / "clone")]).returncode == 0
    file = "data/tiny/summarize/landscape.json"
    with inside(Workspace(tmp_path / "clone")):
        with pytest.raises(UsageError, match=rf"its dvc.lock names {file}(?s:.*)`dvc push`") as at_first:
            read_run("first", "tiny")
        assert "`dvc fetch --all-commits`" in str(at_first.value)
        with pytest.raises(UsageError, match=f"the workspace has no {file}"):
            read_run(WORKSPACE, "tiny")
    with inside(workspace):
        commits = workspace.run(["git", "rev-list", "--max-parents=0", "HEAD"]).stdout.split()
        with pytest.raises(UsageError, match=f"its dvc.lock does not name {file}"):
            read_run(commits[0], "tiny")


@pytest.mark.slow
def test_in_ci_a_fresh_clone_pulls_and_judges(workspace, tmp_path):
    own = workspace.copy(tmp_path / "ws")
    for command in (["remote", "add", "--default", "store", str(tmp_path / "store")], ["push", "--quiet"]):
        done = own.run(["dvc", *command])
        assert done.returncode == 0, done.stdout
    commit(own, "with-remote")
    clone = Workspace(tmp_path / "clone")
    assert own.run(["git", "clone", "--quiet", str(own.path), str(clone.path)]).returncode == 0
    assert clone.faded("gate", "tiny", "--against", "first").returncode == 2, "nothing is there yet"
    pulled = clone.run(["dvc", "pull", "--with-deps", "report@tiny", "conclude@tiny"])
    assert pulled.returncode == 0, pulled.stdout
    done = clone.faded("gate", "tiny", "--against", "first")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_hook_of_the_docs_keeps_a_worse_model_from_being_pushed(workspace, tmp_path):
    own = workspace.copy(tmp_path / "ws")
    [script] = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/gate.md").read_text(), re.DOTALL)
    hook = own.path / ".git/hooks/pre-push"
    hook.write_text(script.replace("faded gate mnist", f"{FADED} gate other"))
    hook.chmod(0o755)
    for command in (["init", "--quiet", "--bare"], ["remote", "add", "origin"]):
        assert own.run(["git", *command, str(tmp_path / "remote.git")]).returncode == 0
    first = own.run(["git", "push", "origin", "main"])
    assert first.returncode == 0, first.stdout
    (own.path / "notes.txt").write_text("nothing the audit depends on")
    commit(own, "notes")
    same = own.run(["git", "push", "origin", "main"])
    assert same.returncode == 0 and "no worse" in same.stdout, same.stdout

    spoil(own)
    commit(own, "stale")
    stale = own.run(["git", "push", "origin", "main"])
    assert stale.returncode != 0 and "faded audit other" in stale.stdout
    run_stages(own, "other", STAGES[:4])
    commit(own, "worse")
    refused = own.run(["git", "push", "origin", "main"])
    assert refused.returncode != 0 and "could not confirm it is at least as good as origin/main" in refused.stdout
    assert own.run(["git", "rev-parse", "origin/main"]).stdout == own.run(["git", "rev-parse", "notes"]).stdout


@pytest.mark.slow
def test_params_without_repairs_lead_to_evidence_and_a_gate(workspace, tmp_path):
    own = workspace.copy(tmp_path / "ws")
    shutil.rmtree(own.path / "data/other/evidence")
    own.write_params({"audits": {"other": own.params()["audits"]["other"]}})
    commit(own, "alone")
    code, told = faded(own, "gate", "other", "--against", "HEAD")
    assert code == 0, told
    [bundle] = (own.path / "data/other/evidence").glob("*.zip")
    code, told = faded(own, "verify", bundle)
    assert code == 0, told


def test_nothing_in_common_is_no_pass(workspace):
    [row] = of_another(workspace, "other", lambda run: replace(run, probes=run.probes.assign(item="x"))).rows
    assert (row.then, row.worse.n, row.passed) == (None, 0, False)
