"""The export: atomic, with the card and the evidence, and only for what passed."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

import flows.evidence.export
from flows.evidence import verify_bundle
from flows.evidence.export import NotPassedError, export_model
from stages.core.errors import UsageError
from stages.core.files import stage_dir
from stages.params import load_params
from tests.finished import faded, finished_audits, inside, run_stages
from tests.workspace import STAGES, Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return finished_audits().copy(tmp_path_factory.mktemp("export") / "ws")


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
    assert f"```python\n{(target / 'load.py').read_text()}```\n" in card
    assert not list(target.parent.glob(".*"))
    checks = verify_bundle(target / "EVIDENCE.zip", model=target)
    assert all(check.holds for check in checks), checks
    assert checks[-1].found.startswith("the repaired model")

    (target / "README.md").write_text("better than it is")
    [problem] = verify_bundle(target / "EVIDENCE.zip", model=target)[-1].problems
    assert "README.md is not one of its files" in problem


def test_a_signed_folder_is_verified_by_the_library_of_the_specification(here, tmp_path):
    from model_signing.verifying import Config

    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key], check=True
    )
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


@pytest.fixture(scope="module")
def failed(workspace, tmp_path_factory) -> Workspace:
    """The same audit with a verdict that did not pass."""
    failed = workspace.copy(tmp_path_factory.mktemp("failed") / "ws")
    params = failed.params()
    params["repairs"]["tiny"]["gates"] = {"target_failure_rate": {"max": 0.0}}
    failed.write_params(params)
    run_stages(failed, "tiny", STAGES[6:])
    return failed


@pytest.mark.slow
def test_a_failed_verdict_is_not_exported_unless_forced(failed, tmp_path):
    with inside(failed):
        with pytest.raises(NotPassedError, match=r"tiny: FAIL.*target_failure_rate\.max \(no\)"):
            export_model(load_params(), "tiny", tmp_path / "deploy")
        assert not (tmp_path / "deploy").exists()
    assert faded(failed, "export", "tiny", tmp_path / "deploy")[0] == 1
    code, told = faded(failed, "export", "tiny", tmp_path / "deploy", "--force")
    assert code == 0, told
    assert "Failed: target\\_failure\\_rate.max" in (tmp_path / "deploy/README.md").read_text()


def test_what_no_gate_has_judged_is_not_exported_unless_forced(here, tmp_path, monkeypatch):
    verdict = flows.evidence.export.read_verdict
    monkeypatch.setattr(flows.evidence.export, "read_verdict", lambda *a: replace(verdict(*a), passed=None, gates=[]))
    with pytest.raises(
        NotPassedError, match=r"tiny: no gates set, .* set repairs\.tiny\.gates in params\.yaml; .* --force"
    ):
        export_model(load_params(), "tiny", tmp_path / "deploy")
    assert not (tmp_path / "deploy").exists()
    export_model(load_params(), "tiny", tmp_path / "deploy", force=True)
