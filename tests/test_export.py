"""The export: atomic, with the card and the evidence, and only for what passed."""

import html
import json
import subprocess
from dataclasses import replace

import pytest

import flows.evidence.write
from flows.evidence.verify import verify_bundle
from flows.evidence.write import NotPassedError, export_model, write_bundle
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import stage_dir
from stages.pages.page import model_card
from stages.params import load_params
from stages.records import Gate, audit_folder
from tests.finished import faded, inside
from tests.report_samples import records_of
from tests.workspace import Workspace, repair_verdict


def card_of(workspace: Workspace, readme: str | None = None, loader: str | None = None, plan=None, **verdict) -> str:
    with inside(workspace):
        found, decided = repair_verdict("tiny"), audit_folder("tiny").collect_feedback.plan
    return model_card(readme, *records_of({**found, **verdict}), decided.model_copy(update=plan or {}), loader)


@pytest.fixture
def here(workspace):
    with inside(workspace):
        yield workspace


def test_a_folder_to_deploy_holds_the_model_its_card_and_the_evidence(here, tmp_path):
    target = tmp_path / "deploy/tiny"
    bundle = export_model(load_params(), "tiny", target)
    assert {file.name for file in target.iterdir()} == {"config.json", "load.py", "README.md", "EVIDENCE.zip"}
    repaired = stage_dir("tiny", "restructure") / "models/repaired"
    assert (target / "config.json").read_bytes() == (repaired / "config.json").read_bytes()
    assert (target / "EVIDENCE.zip").read_bytes() == bundle.read_bytes()
    card = (target / "README.md").read_text()
    assert "## Evaluation before and after" in card
    assert f"```python\n{(target / 'load.py').read_text()}```\n" in card and not list(target.parent.glob(".*"))
    checks = verify_bundle(target / "EVIDENCE.zip", model=target)
    assert all(check.holds for check in checks), checks
    assert checks[-1].found.startswith("the repaired model")

    (target / "README.md").write_text("better than it is")
    [problem] = verify_bundle(target / "EVIDENCE.zip", model=target)[-1].problems
    assert "README.md is not one of its files" in problem


@pytest.mark.slow
def test_a_signed_folder_is_verified_by_the_library_of_the_specification(here, tmp_path):
    from model_signing.verifying import Config

    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    subprocess.run(["openssl", "genpkey", *curve, "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    target = tmp_path / "deploy"
    code, told = faded(here, "export", "tiny", target, "--sign", key)
    assert code == 0, told
    check = Config().use_elliptic_key_verifier(public_key=public)
    check.verify(target, target / "model.sig")
    assert all(one.holds for one in verify_bundle(target / "EVIDENCE.zip", model=target))
    (target / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        check.verify(target, target / "model.sig")

    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    code, told = faded(here, "export", "tiny", tmp_path / "other", "--sign", key)
    assert code == 2 and "P-256" in told
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_an_empty_folder_will_do_and_what_cannot_be_exported_is_refused(here, tmp_path):
    (tmp_path / "empty").mkdir()
    export_model(load_params(), "tiny", tmp_path / "empty")
    (tmp_path / "file").write_text("")
    for name in ("empty", "file"):
        with pytest.raises(UsageError, match="is not an empty folder"):
            export_model(load_params(), "tiny", tmp_path / name)
    with pytest.raises(UsageError, match="no entry under repairs"):
        export_model(load_params(), "other", tmp_path / "deploy")
    code, told = faded(here, "export", "tiny", "other", "x")
    assert code == 2 and "found 3 names: tiny, other, x" in told


def test_what_did_not_pass_is_not_exported_unless_forced(here, tmp_path, monkeypatch):
    verdict = flows.evidence.write.read_verdict
    missed = Gate(gate="target_failure_rate.max", bound=0.0, value=0.2, low=0.1, high=0.3, passed=False)
    for judged, told in (
        ({"passed": False, "gates": [missed]}, r"tiny: FAIL.*target_failure_rate\.max: no"),
        ({"passed": None, "gates": []}, r"tiny: no gates set, .* set repairs\.tiny\.gates in params\.yaml; .* --force"),
    ):
        monkeypatch.setattr(flows.evidence.write, "read_verdict", lambda *a, j=judged: replace(verdict(*a), **j))
        with pytest.raises(NotPassedError, match=told) as refused:
            export_model(load_params(), "tiny", tmp_path / "deploy")
        assert refused.value.exit_code == 1 and not (tmp_path / "deploy").exists()
    export_model(load_params(), "tiny", tmp_path / "deploy", force=True)


def test_nothing_is_left_of_an_export_that_broke_off(here, tmp_path, monkeypatch):
    def cut_short(model, target, **_):
        target.mkdir()
        (target / "config.json").write_bytes(b"{")

    monkeypatch.setattr(flows.evidence.write.shutil, "copytree", cut_short)
    with pytest.raises(InfrastructureError, match=r"is not the model that was audited: .*config\.json"):
        export_model(load_params(), "tiny", tmp_path / "deploy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_stale_audit_is_not_exported_even_if_forced(workspace, tmp_path):
    stale = workspace.copy(tmp_path / "ws")
    with inside(stale):
        params = stale.params()
        params["repairs"]["tiny"]["restructure"]["control"] = "none"
        stale.write_params(params)
        told = "restructure@tiny, re_evaluate@tiny, compare@tiny, conclude@tiny are stale .* run `faded audit tiny`"
        with pytest.raises(UsageError, match=told):
            export_model(load_params(), "tiny", tmp_path / "deploy", force=True)
        assert write_bundle(load_params(), "tiny") is None
    assert not (tmp_path / "deploy").exists()


def test_a_card_keeps_what_the_repair_wrote_and_adds_the_numbers_before_it(workspace):
    card = card_of(workspace, "---\ntags: [x]\n---\n\n# Mine\n\n## Numbers so far\n\n99%\n", "import torch\n")
    headings = [line for line in card.splitlines() if line.startswith(("# ", "## "))]
    assert headings == ["# Mine", "## Evaluation before and after", "## Numbers so far", "## How to load it"]
    readme = "---\nbase_model: sha256:abc\n---\n\n# Small, repaired\n"
    card = card_of(workspace, readme)
    assert card.startswith(f"{readme}\n## Evaluation before and after\n")
    rows = [line for line in card.splitlines() if line.startswith("| failures in the target modes |")]
    assert len(rows) == 1 and rows[0].count("|") == 6
    assert "| decided by | Bob (name typed, not verified), Ada (name typed, not verified) |" in card
    assert "20 held-out items" in card and card == card_of(workspace, readme) == card_of(workspace, f"{readme}\n\n")


def test_a_card_tells_who_decided_what_and_why_as_text(workspace):
    with inside(workspace):
        plan = audit_folder("tiny").collect_feedback.plan
    card = card_of(workspace)
    rows = [f"| {m.id} | {m.text} | {m.action} | Bob: Bob on {m.id}; Ada: Ada on {m.id} |" for m in plan.modes]
    assert plan.targets and all(row in html.unescape(card) for row in rows)
    assert "| reason | Bob: seen; Ada: seen |" in card

    fog = plan.modes[0].model_copy(update={"reason": "fog | <b>\n# at the site"})
    typed = {"by": "<script>x</script> | Eve", "reason": "a\n\n# b [c](d)", "modes": [fog]}
    card = card_of(workspace, plan=typed)
    assert "<script>" not in card and "&lt;script&gt;" in card
    assert r"\| Eve" in card and r"| reason | a # b \[c\](d) |" in card
    assert r"| repair | fog \| &lt;b&gt; # at the site |" in card


def test_a_card_has_no_columns_for_what_was_not_asked_and_shows_what_was_not_measured(workspace):
    with inside(workspace):
        differences = json.loads(json.dumps(repair_verdict("tiny")["differences"]))
    for entry in differences.values():
        entry.pop("control", None)
    empty = dict.fromkeys(("before", "after", "after_low", "after_high", "change", "low", "high"))
    card = card_of(workspace, differences={**differences, "target_failure_rate": {**empty, "pairs": 0}}, gates=[])
    assert "| control |" not in card and "| failures in the target modes | – | – |  |" in card
    assert "| gate |" not in card


def test_the_card_on_disk_is_that_of_the_verdict(workspace):
    card = (workspace.path / "data/tiny/conclude/model_card.md").read_text()
    loader = (workspace.path / "data/tiny/restructure/models/repaired/load.py").read_text()
    assert card == card_of(workspace, loader=loader)
