"""Evidence: what a bundle holds, that the same results give the same bytes, and signatures."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.evidence.write
from flows.evidence import read_bundle, read_private_key, sign_bundle, verify_bundle, write_bundle
from flows.evidence.bundle import ENVELOPE, LOCK, MANIFEST, PARAMS, SEALS, STATEMENT, dump_json, zip_members
from flows.evidence.checks import landscape_of
from flows.evidence.hashes import content_hash_of, sha256
from stages.errors import UsageError
from stages.files import content_hash, stage_dir
from stages.params import load_params
from tests.bundles import (
    DATA,
    PLAN,
    VERDICT,
    bundle_of,
    edited,
    found,
    problems,
    resealed,
    written,
)
from tests.finished import decide, finished_audits, inside, run_stages
from tests.workspace import STAGES, Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return finished_audits().copy(tmp_path_factory.mktemp("evidence") / "ws")


@pytest.fixture(scope="module")
def bundle(workspace) -> Path:
    return bundle_of(workspace)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Mapping[str, Path]:
    """Private keys and their public ones as openssl makes them, as docs/evidence.md says."""
    folder = tmp_path_factory.mktemp("keys")
    kinds = {
        "ed25519": ["ed25519"],
        "other": ["ed25519"],
        "ecdsa": ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        "rsa": ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        "locked": ["ed25519", "-aes-256-cbc", "-pass", "pass:secret"],
        "x25519": ["X25519"],
    }
    for name, (kind, *more) in kinds.items():
        private = folder / f"{name}.pem"
        openssl("genpkey", "-algorithm", kind, *more, "-out", private)
        secret = ["-passin", "pass:secret"] if name == "locked" else []
        openssl("pkey", "-in", private, *secret, "-pubout", "-out", folder / f"{name}.pub.pem")
    return {file.name.removesuffix(".pem"): file for file in folder.iterdir()}


def openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def private(keys: Mapping[str, Path], name: str) -> Any:
    return read_private_key(keys[name], lambda: "secret")


def test_a_bundle_holds_what_was_audited_decided_and_found(bundle):
    read = read_bundle(bundle)
    parts, manifest = read.manifest["parts"], read.manifest
    assert set(parts) == {
        *("parameters", "model", "data", "inputs", "landscape", "decisions"),
        *("plan", "repaired", "control", "verdict", "records"),
    }
    assert bundle.name == f"tiny-{sha256(read.members[MANIFEST])[:16]}.zip"
    assert manifest["passed"] is True and manifest["seed"] == 3 and manifest["git"]["revision"]
    assert manifest["versions"]["faded"] and manifest["device"] == "cpu"
    weights = parts["repaired"][f"{DATA}/restructure/models/repaired/config.json"]
    assert not weights["whole"] and f"{DATA}/restructure/models/repaired/config.json" not in read.members
    whole = {name for part in parts.values() for name, entry in part.items() if entry["whole"]}
    assert whole == set(read.members) - set(SEALS)
    assert {PARAMS, LOCK, VERDICT, PLAN, f"{DATA}/re_evaluate/model_card.md"} <= whole
    assert list(yaml.safe_load(read.members[LOCK])["stages"])[-1] == "re_evaluate@tiny"
    assert list(yaml.safe_load(read.members[PARAMS])["audits"]) == ["tiny"]


def test_the_statement_is_an_in_toto_one_on_the_repaired_model(bundle):
    read = read_bundle(bundle)
    statement = json.loads(read.members[STATEMENT])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    [subject] = statement["subject"]
    [repaired] = read.manifest["parts"]["repaired"].values()
    assert subject == {"name": "config.json", "digest": {"sha256": repaired["sha256"]}}
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["audit"] == "tiny"
    dependencies = definition["resolvedDependencies"]
    assert {d["annotations"].get("part") for d in dependencies} == {"model", "data", "decisions", None}
    assert dependencies[-1]["digest"]["gitCommit"] == read.manifest["git"]["revision"]


def test_a_bundle_that_nobody_touched_holds(bundle, workspace):
    assert problems(bundle) == {}
    assert found(bundle, "decisions") == "3 in their order: Ada approved, Bob approved, Ada approved"
    assert found(bundle, "signature") == "not signed"
    landscape_only = bundle_of(workspace, "other")
    assert problems(landscape_only) == {}
    assert found(landscape_only, "verdict").startswith("passed; 1 gate(s)")


def test_the_same_results_give_the_same_bytes_and_are_not_written_again(bundle, workspace, monkeypatch):
    before, when = bundle.read_bytes(), bundle.stat().st_mtime_ns

    def asked(*_: Any) -> None:
        raise AssertionError("DVC was asked, or a model hashed, though nothing changed")

    with monkeypatch.context() as patch:
        patch.setattr(flows.evidence.write, "unfinished", asked)
        patch.setattr(flows.evidence.write, "_collect", asked)
        assert bundle_of(workspace) == bundle
    assert bundle.stat().st_mtime_ns == when
    bundle.unlink()
    os.utime(workspace.path / DATA / "re_evaluate/report.html")
    assert bundle_of(workspace) == bundle
    assert bundle.read_bytes() == before
    assert not list(bundle.parent.glob(".*"))


def test_a_stale_or_unfinished_audit_has_no_evidence(workspace, tmp_path):
    stale = workspace.copy(tmp_path / "ws")
    with inside(stale):
        params = stale.params()
        params["repairs"]["tiny"]["gates"]["newly_failing"] = {"max": 0.5}
        stale.write_params(params)
        assert write_bundle(load_params(), "tiny") is None
        assert write_bundle(load_params(), "other") is not None
        (stage_dir("other", "summarize") / "verdict.json").unlink()
        assert write_bundle(load_params(), "other") is None
    done = stale.faded("evidence", "tiny")
    assert done.returncode == 2
    assert "re_evaluate@tiny is stale" in done.stdout and "faded audit tiny" in done.stdout


@pytest.mark.slow
def test_a_later_decision_makes_new_evidence_and_the_old_one_stays(workspace, tmp_path):
    own = workspace.copy(tmp_path / "ws")
    first = bundle_of(own)
    with inside(own):
        decide("tiny", "Bob", revise=True)
        assert write_bundle(load_params(), "tiny") is None, "the plan is stale until the audit ran again"
    run_stages(own, "tiny", STAGES[3:])
    second = bundle_of(own)
    assert second != first and first.exists()
    assert problems(second) == {}
    assert found(second, "decisions").startswith("4 in their order")
    assert landscape_of(read_bundle(first)) == landscape_of(read_bundle(second))


def test_our_content_hash_is_that_of_the_stages(bundle, workspace):
    members = read_bundle(bundle).members
    with inside(workspace):
        plan = stage_dir("tiny", "collect_feedback") / "plan.json"
        assert content_hash_of([("plan.json", members[PLAN])]) == content_hash([plan])


def test_zips_do_not_depend_on_the_order_or_the_time():
    members = {"b": b"2", MANIFEST: b"{}", "a": b"1"}
    packed = zip_members(members)
    assert packed == zip_members(dict(reversed(members.items())))
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        assert file.namelist() == [MANIFEST, "a", "b"]
        assert {entry.date_time[0] for entry in file.infolist()} == {1980}


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa", "locked"])
def test_signatures_of_each_kind_hold_and_others_do_not(bundle, tmp_path, keys, kind):
    path = written(tmp_path / "signed.zip", dict(read_bundle(bundle).members))
    key_id = sign_bundle(path, private(keys, kind))
    assert problems(path) == problems(path, key=keys[f"{kind}.pub"]) == {}
    assert found(path, "signature") == f"signed by key id {key_id[:16]}...; not checked, as no --key was given"
    assert "no valid signature" in problems(path, key=keys["other.pub"])["signature"]
    assert "not signed" in problems(bundle, key=keys[f"{kind}.pub"])["signature"]

    sign_bundle(path, private(keys, "other"))
    for name in (kind, "other"):
        assert problems(path, key=keys[f"{name}.pub"]) == {}


def test_a_signature_of_something_else_is_no_signature(bundle, tmp_path, keys):
    path = written(tmp_path / "signed.zip", dict(read_bundle(bundle).members))
    sign_bundle(path, private(keys, "ed25519"))
    signed = dict(read_bundle(path).members)
    public = keys["ed25519.pub"]

    name = f"{DATA}/re_evaluate/metrics.json"
    moved = {**signed, name: edited(signed[name], lambda metrics: metrics.update(passed=False))}
    assert (
        "is not statement.json of this bundle" in problems(resealed(tmp_path / "a.zip", moved), key=public)["signature"]
    )

    envelope = json.loads(signed[ENVELOPE])
    for change in (
        lambda e: e["signatures"][0].update(sig=e["signatures"][0]["sig"].translate(str.maketrans("AB", "BA"))),
        lambda e: e["signatures"][0].update(keyid="0" * 64),
        lambda e: e["signatures"].clear(),
    ):
        content = json.loads(json.dumps(envelope))
        change(content)
        path = written(tmp_path / "b.zip", {**signed, ENVELOPE: dump_json(content)})
        assert "no valid signature" in problems(path, key=public)["signature"]
    for broken in (b"{}", b"[]", b"nothing", dump_json({**envelope, "payloadType": "text/plain"})):
        assert (
            "envelope" in problems(written(tmp_path / "c.zip", {**signed, ENVELOPE: broken}))["signature"]
            or broken == b"[]"
        )


def test_keys_that_cannot_be_used_are_refused(bundle, tmp_path, keys):
    path = written(tmp_path / "signed.zip", dict(read_bundle(bundle).members))
    with pytest.raises(UsageError, match="not supported, expected Ed25519"):
        sign_bundle(path, private(keys, "x25519"))
    with pytest.raises(UsageError, match="its passphrase is wrong"):
        read_private_key(keys["locked"], lambda: "guess")
    with pytest.raises(UsageError, match="no private key that can be read"):
        read_private_key(keys["ed25519.pub"], lambda: "")
    with pytest.raises(UsageError, match="is a private key: give the public one"):
        verify_bundle(path, keys["ed25519"])
    with pytest.raises(UsageError, match="cannot be read"):
        verify_bundle(path, tmp_path / "none.pem")


def test_it_is_verified_anywhere_and_without_torch(bundle, tmp_path, keys):
    alone = Workspace(tmp_path / "elsewhere")
    alone.path.mkdir()
    (alone.path / "bundle.zip").write_bytes(bundle.read_bytes())
    done = alone.faded("verify", "bundle.zip")
    assert done.returncode == 0, done.stdout
    assert "all holds" in done.stdout and "3 in their order" in done.stdout
    assert [file.name for file in alone.path.iterdir()] == ["bundle.zip"]

    members = dict(read_bundle(bundle).members)
    written(alone.path / "bad.zip", {**members, VERDICT: members[VERDICT].replace(b"true", b"null")})
    bad = alone.faded("verify", "bad.zip", "--key", str(keys["rsa.pub"]))
    assert bad.returncode == 1, bad.stdout
    assert f"{VERDICT}: expected SHA-256" in bad.stdout and "the bundle is not signed" in bad.stdout
    assert alone.faded("verify", str(keys["rsa"])).returncode == 2

    script = (
        "import sys\nfrom pathlib import Path\nfrom flows.evidence import verify_bundle\n"
        "assert all(check.holds for check in verify_bundle(Path('bundle.zip')))\n"
        "assert not {'torch', 'dvc', 'prefect'} & set(sys.modules)\n"
    )
    checked = alone.run([sys.executable, "-c", script])
    assert checked.returncode == 0, checked.stdout


def test_the_command_says_where_it_lies_and_signs_with_a_locked_key(workspace, tmp_path, keys):
    own = workspace.copy(tmp_path / "ws")
    done = own.faded("evidence", "tiny", "--sign", str(keys["locked"]), FADED_KEY_PASSPHRASE="secret")
    assert done.returncode == 0, done.stdout
    [path] = (own.path / DATA / "evidence").glob("*.zip")
    assert str(path) in done.stdout and "signed by key id" in done.stdout and "secret" not in done.stdout
    assert problems(path, key=keys["locked.pub"]) == {}
    signed = path.read_bytes()
    again = own.faded("evidence", "tiny")
    assert again.returncode == 0 and ", signed" in again.stdout
    assert path.read_bytes() == signed, "a signature outlives that the evidence is asked for again"
    wrong = own.faded("evidence", "tiny", "--sign", str(keys["locked"]), FADED_KEY_PASSPHRASE="guess")
    assert wrong.returncode == 2 and "passphrase is wrong" in wrong.stdout
