"""Evidence: contents of a bundle, equal bytes for equal results, and signatures."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.evidence.write
from flows.evidence.bundle import ENVELOPE, LOCK, MANIFEST, PARAMS, SEALS, STATEMENT, dump_yaml, read_bundle
from flows.evidence.checks import landscape_of
from flows.evidence.formats import make_statement
from flows.evidence.signature import read_private_key
from flows.evidence.verify import verify_bundle
from flows.evidence.write import bundles_dir, keep_evidence, sign_bundle, why_unfinished, write_bundle
from flows.graph.lock import content_hash_of, sha256
from stages.core.errors import UsageError
from stages.core.files import content_hash, stage_dir
from stages.params import load_params
from tests.bundles import (
    COMPARISON,
    DATA,
    PLAN,
    VERDICT,
    Members,
    bundle_of,
    edited,
    found,
    problems,
    resealed,
    signature,
    written,
)
from tests.finished import GATES, decide, faded, inside, put_ratings_in_force, quick_audit, quick_repair, run_stages
from tests.workspace import ROOT, STAGES, Workspace, make_workspace


@pytest.fixture(scope="module")
def rated(workspace, tmp_path_factory) -> Workspace:
    """The audit and its repair with ratings in force."""
    rated = workspace.copy(tmp_path_factory.mktemp("rated") / "ws")
    put_ratings_in_force(rated, "tiny")
    return rated


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Mapping[str, Path]:
    """Private keys and their public ones, made by openssl as in docs/evidence.md."""
    folder = tmp_path_factory.mktemp("keys")
    kinds = {"ed25519": ["ed25519"], "other": ["ed25519"], "x25519": ["X25519"], "rsa": ["RSA"]}  # of 2048 bits
    kinds["ecdsa"] = ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    kinds["locked"] = ["ed25519", "-aes-256-cbc", "-pass", "pass:secret"]
    for name, (kind, *more) in kinds.items():
        secret = ["-passin", "pass:secret"] if name == "locked" else []
        made = folder / f"{name}.pem"
        openssl("genpkey", "-algorithm", kind, *more, "-out", made)
        openssl("pkey", "-in", made, *secret, "-pubout", "-out", folder / f"{name}.pub.pem")
    return {file.name.removesuffix(".pem"): file for file in folder.iterdir()}


def openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def private(keys: Mapping[str, Path], name: str) -> Any:
    return read_private_key(keys[name], lambda: "secret")


def test_a_bundle_holds_what_was_audited_decided_and_found(bundle, workspace):
    read = read_bundle(bundle)
    parts, manifest = read.manifest["parts"], read.manifest
    assert set(parts) == {
        *("parameters", "model", "data", "inputs", "landscape", "decisions"),
        *("plan", "repaired", "control", "verdict", "records"),
    }
    assert bundle.name == f"tiny-{sha256(read.members[MANIFEST])[:16]}.zip"
    assert manifest["passed"] is True and manifest["seed"] == 3 and manifest["git"]["revision"]
    assert manifest["versions"]["faded"] and manifest["device"].startswith("cpu")
    weights = parts["repaired"][f"{DATA}/restructure/models/repaired/config.json"]
    assert not weights["whole"] and f"{DATA}/restructure/models/repaired/config.json" not in read.members
    whole = {name for part in parts.values() for name, entry in part.items() if entry["whole"]}
    assert whole == set(read.members) - set(SEALS)
    assert {PARAMS, LOCK, VERDICT, PLAN, f"{DATA}/conclude/model_card.md"} <= whole
    assert list(yaml.safe_load(read.members[LOCK])["stages"])[-1] == "conclude@tiny"
    assert list(yaml.safe_load(read.members[PARAMS])["audits"]) == ["tiny"]
    with inside(workspace):
        plan = stage_dir("tiny", "collect_feedback") / "plan.json"
        assert content_hash_of([("plan.json", read.members[PLAN])]) == content_hash([plan])


def test_the_statement_is_an_in_toto_one_on_the_repaired_model(bundle):
    read = read_bundle(bundle)
    statement = json.loads(read.members[STATEMENT])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    repaired = [{"sha256": entry["sha256"]} for entry in read.manifest["parts"]["repaired"].values()]
    assert [subject["digest"] for subject in statement["subject"]] == repaired
    assert [subject["name"] for subject in statement["subject"]] == ["config.json", "load.py"]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["audit"] == "tiny"
    dependencies = definition["resolvedDependencies"]
    assert {d["annotations"].get("part") for d in dependencies} == {"model", "data", "decisions", None}
    assert dependencies[-1]["digest"]["gitCommit"] == read.manifest["git"]["revision"]


def test_a_bundle_that_nobody_touched_holds(bundle, workspace):
    assert problems(bundle) == {}
    ada, bob = (f"{name} (name typed, not verified) approved" for name in ("Ada", "Bob"))
    assert found(bundle, "manifest").startswith("of audit 'tiny', SHA-256 ")
    assert found(bundle, "decisions") == f"3 in their order: {ada}, {bob}, {ada}"
    assert found(bundle, "signature") == "so anybody could have made it"
    landscape_only = bundle_of(workspace, "other")
    assert problems(landscape_only) == {} and found(landscape_only, "verdict").startswith("passed; 1 gate(s)")


def test_the_same_results_give_the_same_bytes_and_are_not_written_again(bundle, workspace, monkeypatch):
    before, when = bundle.read_bytes(), bundle.stat().st_mtime_ns

    def asked(*_: Any) -> None:
        raise AssertionError("DVC was asked, or a model hashed, though nothing changed")

    with monkeypatch.context() as patch:
        patch.setattr(flows.evidence.write, "why_unfinished", asked)
        patch.setattr(flows.evidence.write, "_collect", asked)
        assert bundle_of(workspace) == bundle
    assert bundle.stat().st_mtime_ns == when
    bundle.unlink()
    os.utime(workspace.path / DATA / "conclude/report.html")
    assert bundle_of(workspace) == bundle and bundle.read_bytes() == before and not list(bundle.parent.glob(".*"))


def test_a_stale_or_unfinished_audit_has_no_evidence(workspace, tmp_path):
    stale = workspace.copy(tmp_path / "ws")
    with inside(stale):
        params = stale.params()
        params["repairs"]["tiny"]["gates"]["newly_failing"] = {"max": 0.5}
        stale.write_params(params)
        assert write_bundle(load_params(), "tiny") is None and write_bundle(load_params(), "other") is not None
        (stage_dir("other", "report") / "verdict.json").unlink()
        assert write_bundle(load_params(), "other") is None
        told = why_unfinished(load_params(), "tiny")
    assert "conclude@tiny is stale" in str(told) and "faded audit tiny" in str(told)


@pytest.mark.slow
def test_a_bundle_that_is_no_longer_as_it_was_written_is_written_again(workspace, tmp_path, keys, monkeypatch):
    monkeypatch.setattr(flows.evidence.write, "why_unfinished", lambda *_: None)  # DVC takes half a second
    own = workspace.copy(tmp_path / "ws")
    path = bundle_of(own)
    before, members = path.read_bytes(), read_bundle(path).members
    report = f"{DATA}/report/report.html"
    path.write_bytes(b"garbage")
    assert bundle_of(own) == path and path.read_bytes() == before
    for forge in (resealed, written):
        forge(path, {**members, report: b"<h1>all is well</h1>"})
        code, told = faded(own, "evidence", "tiny", "--sign", keys["ed25519"])
        assert code == 0, told
        assert problems(path, keys=[keys["ed25519.pub"]]) == {}
        assert read_bundle(path).members[report] == members[report]


def test_nobody_signs_what_does_not_hold(bundle, tmp_path, keys):
    members = dict(read_bundle(bundle).members)
    members[PLAN] = edited(members[PLAN], lambda plan: plan["modes"][0].update(action="ignore"))
    path = resealed(tmp_path / "forged.zip", members)
    before = path.read_bytes()
    told = r"is not signed, because it is not consistent: .*and \d+ more: `faded verify "
    with pytest.raises(UsageError, match=told):
        sign_bundle(path, private(keys, "ed25519"))
    assert path.read_bytes() == before


@pytest.mark.slow
def test_what_changes_while_evidence_is_collected_is_not_taken_for_finished(workspace, tmp_path, monkeypatch):
    own = workspace.copy(tmp_path / "ws")
    collect = flows.evidence.write._collect

    def meanwhile(*args: Any) -> Any:
        members = collect(*args)
        text = Path(PARAMS).read_text()
        Path(PARAMS).write_text(text.replace("seed: 3", "seed: 4"))
        return members

    with inside(own):
        shutil.rmtree(bundles_dir("tiny"))
        with monkeypatch.context() as patch:
            patch.setattr(flows.evidence.write, "_collect", meanwhile)
            assert write_bundle(load_params(), "tiny") is None
        assert write_bundle(load_params(), "tiny") is None, "it is stale now"
        assert not list(bundles_dir("tiny").glob("*.zip"))


def test_evidence_is_not_taken_while_an_audit_runs(workspace):
    (workspace.path / ".faded").mkdir(exist_ok=True)
    with (workspace.path / ".faded/flow.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (["evidence", "tiny"], ["export", "tiny", "deploy"]):
            code, told = faded(workspace, *arguments)
            assert code == 3 and "another audit runs" in told


@pytest.mark.slow
def test_ratings_in_force_are_in_the_bundle(rated):
    bundle = read_bundle(bundle_of(rated))
    assert problems(bundle.path) == {}
    assert found(bundle.path, "ratings") == "2 by Ada, Bob, as params.yaml and the results say"
    assert bundle.members[bundle.ratings] == (rated.path / RATINGS).read_bytes()
    assert len(json.loads(bundle.members[RATINGS])["decisions"]) == 3
    named = json.loads(bundle.members[STATEMENT])["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {"ratings"} == {d["annotations"]["part"] for d in named if d["name"] == bundle.ratings}


RATINGS, LANDSCAPE = f"{DATA}/ratings.json", f"{DATA}/summarize/landscape.json"


def in_json(name: str, change: Callable[[Any], Any]) -> Callable[[Members], Any]:
    return lambda members: members.update({name: edited(members[name], change)})


def in_params(change: Callable[[Any, Members], Any]) -> Callable[[Members], Any]:
    def edit(members: Members) -> None:
        params = yaml.safe_load(members[PARAMS])
        change(params["audits"]["tiny"]["discrepancy"], members)
        members[PARAMS] = dump_yaml(params)

    return edit


def fails_below_two(record: Any) -> None:
    record["ratings"].update(fails_below=2)


OTHER_KNOTS = in_json(RATINGS, lambda ratings: ratings.update(y=[0.0, 0.1, 1.0]))
OTHER_HASH = in_params(lambda block, members: block["ratings"].update(sha256=sha256(members[RATINGS])))
UNLIKE = {
    "discrepancy.ratings.sha256: expected": [OTHER_KNOTS],
    "landscape.json: ratings: y[1]: expected 0.1, found 0.5": [OTHER_KNOTS, OTHER_HASH],
    "landscape.json: ratings: fails_below: expected 5.0, found 2": [in_json(LANDSCAPE, fails_below_two)],
    "comparison.json: ratings: fails_below: expected 5.0, found 2": [in_json(COMPARISON, fails_below_two)],
    f"{RATINGS} is not in the bundle": [lambda m: m.pop(RATINGS)],
    f"{RATINGS} is there, but params.yaml names none": [in_params(lambda block, _: block.pop("ratings"))],
    "decisions: none.yaml: expected nothing, found '000": [
        in_json(RATINGS, lambda ratings: ratings["decisions"].update({"none.yaml": "0" * 64}))
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", UNLIKE)
def test_ratings_that_are_not_those_in_force_are_told(rated, tmp_path, problem):
    members = dict(read_bundle(bundle_of(rated)).members)
    for change in UNLIKE[problem]:
        change(members)
    told = problems(resealed(tmp_path / "forged.zip", members))
    assert problem in told["ratings"] and "files" not in told


@pytest.mark.slow
def test_without_the_ratings_that_were_in_force_there_is_no_evidence(rated, tmp_path):
    own = rated.copy(tmp_path / "ws")
    (own.path / RATINGS).write_text("{}")
    code, told = faded(own, "evidence", "tiny")
    assert code == 2 and f"{RATINGS} has sha256" in told


@pytest.mark.parametrize(
    "kind", ["ed25519", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ecdsa", "rsa", "locked"))]
)
def test_signatures_of_each_kind_hold_and_others_do_not(bundle, tmp_path, keys, kind):
    path = written(tmp_path / "signed.zip", dict(read_bundle(bundle).members))
    key_id = sign_bundle(path, private(keys, kind))
    public, other = keys[f"{kind}.pub"], keys["other.pub"]
    assert problems(path, keys=[other, public]) == {}
    assert f"UTC by {public} (key id {key_id[:16]}...)" in found(path, "signature", keys=[public])
    assert signature(path) == ""
    assert found(path, "signature").endswith(f"by an unknown key (key id {key_id[:16]}...); anybody can make a key")
    assert "expected a signature by a known key" in signature(path, other)
    assert "it is not signed, expected" in signature(bundle, public)

    time = told_time(path)
    sign_bundle(path, private(keys, "other"))
    assert told_time(path) == time, "a further signature makes no evidence younger"
    team = tmp_path / "team.pem"  # with several keys
    team.write_bytes(keys["rsa.pub"].read_bytes() + public.read_bytes())
    assert signature(path, team) == "" and signature(path, public) == signature(path, other) == ""


def told_time(path: Path) -> str:
    payload = json.loads(base64.b64decode(json.loads(read_bundle(path).members[ENVELOPE])["payload"]))
    return str(payload["predicate"]["runDetails"]["metadata"]["faded_signedOn"])


@pytest.mark.slow
def test_bundles_are_signed_by_a_key_of_the_user_made_at_first_use(workspace, tmp_path, monkeypatch):
    own, home = workspace.copy(tmp_path / "ws"), tmp_path / "keys"
    monkeypatch.setenv("FADED_KEYS", str(home))
    code, told = faded(own, "evidence", "tiny", "--no-sign")
    assert code == 0 and "UNSIGNED" in told and not home.exists()
    assert faded(own, "evidence", "tiny", FADED_NO_SIGN="1")[1].endswith("not signed: FADED_NO_SIGN is set\n")
    code, told = faded(own, "evidence", "tiny")
    assert code == 0 and ", signed" in told
    [path] = (own.path / DATA / "evidence").glob("*.zip")
    before = path.read_bytes()
    assert faded(own, "evidence", "tiny")[0] == 0
    assert path.read_bytes() == before, "it is not signed again while it is the same"
    assert "by faded (key id" in found(path, "signature")
    code, told = faded(own, "verify", path, "--require-signed", "--require-repaired", "--max-age", "1")
    assert code == 0 and "all holds" in told
    monkeypatch.setenv("FADED_KEYS", str(tmp_path / "elsewhere"))
    code, told = faded(own, "verify", path)
    assert code == 0 and "unknown key" in told and "all holds" not in told
    assert faded(own, "verify", path, "--require-signed")[0] == 1
    assert faded(own, "verify", path, "--key", home / "known/faded.pem")[0] == 0


def test_keys_that_cannot_be_used_are_refused(bundle, tmp_path, keys):
    path = written(tmp_path / "signed.zip", dict(read_bundle(bundle).members))
    for told, use in (
        ("not supported, expected Ed25519", lambda: sign_bundle(path, private(keys, "x25519"))),
        ("its passphrase is wrong", lambda: read_private_key(keys["locked"], lambda: "guess")),
        ("not a readable private key", lambda: read_private_key(keys["ed25519.pub"], lambda: "")),
        ("is a private key: give the public one", lambda: verify_bundle(path, [keys["ed25519"]])),
        ("cannot be read", lambda: verify_bundle(path, [tmp_path / "none.pem"])),
    ):
        with pytest.raises(UsageError, match=told):
            use()


@pytest.mark.slow
def test_it_is_verified_anywhere_and_without_torch(bundle, tmp_path, keys):
    alone = Workspace(tmp_path / "elsewhere")
    alone.path.mkdir()
    (alone.path / "bundle.zip").write_bytes(bundle.read_bytes())
    script = "import sys\nfrom flows.cli import app\napp(['verify', 'bundle.zip'], standalone_mode=False)\n"
    script += "assert not {'torch', 'dvc', 'prefect'} & set(sys.modules)\n"
    done = alone.run([sys.executable, "-c", script])
    assert done.returncode == 0, done.stdout
    assert "UNSIGNED" in done.stdout and "all holds" not in done.stdout and "3 in their order" in done.stdout
    assert [file.name for file in alone.path.iterdir()] == ["bundle.zip"]

    members = dict(read_bundle(bundle).members)
    written(alone.path / "bad.zip", {**members, VERDICT: members[VERDICT].replace(b"true", b"null")})
    code, told = faded(alone, "verify", "bad.zip", "--key", keys["rsa.pub"])
    assert code == 1 and f"{VERDICT}: SHA-256: expected" in told and "it is not signed" in told
    assert faded(alone, "verify", keys["rsa"])[0] == 2


@pytest.mark.slow
def test_the_command_says_where_it_lies_and_signs_with_a_locked_key(workspace, tmp_path, keys):
    own = workspace.copy(tmp_path / "ws")
    code, told = faded(own, "evidence", "tiny", "--sign", keys["locked"], FADED_KEY_PASSPHRASE="secret")
    assert code == 0, told
    [path] = (own.path / DATA / "evidence").glob("*.zip")
    assert str(path) in told and "signed by key id" in told and "secret" not in told
    assert problems(path, keys=[keys["locked.pub"]]) == {}
    signed = path.read_bytes()
    code, told = faded(own, "evidence", "tiny")
    assert code == 0 and ", signed" in told
    assert path.read_bytes() == signed, "a signature outlives that the evidence is asked for again"
    code, told = faded(own, "evidence", "tiny", "--sign", keys["locked"], FADED_KEY_PASSPHRASE="guess")
    assert code == 2 and "passphrase is wrong" in told


def test_levels_that_are_numbers_are_named_in_the_statement_as_json_names_them(bundle):
    params = {"audits": {"tiny": {"usage": {"levels": {"tilt": {1: 2, 0.5: 1}}}}}}
    statement = make_statement(read_bundle(bundle).manifest, "0" * 64, params)
    assert json.loads(json.dumps(statement)) == statement
    strange = {"audits": {"tiny": {"seed": date(2026, 1, 1)}}}  # what a forger may write is compared, never a crash
    make_statement(read_bundle(bundle).manifest, "0" * 64, strange)


@pytest.mark.slow
def test_a_bundle_of_pictures_holds(tmp_path):
    """Its verdict has measures, its landscape and gates have bias."""
    summarize = {"modes": 2, "examples": 3, "min_support": 0.5}
    audit = quick_audit(task="planted_pictures:PlantedPictures", summarize=summarize, gates={"max_bias": 0.9})
    repair = quick_repair(gates={**GATES, "bias": {"max": 0.9}})
    own = make_workspace(tmp_path / "ws", {"tiny": audit}, {"tiny": repair})
    shutil.copy(ROOT / "tests" / "planted_pictures.py", own.path)
    run_stages(own, "tiny")
    path = bundle_of(own)
    assert problems(path) == {}
    members = dict(read_bundle(path).members)
    [i] = [i for i, gate in enumerate(json.loads(members[VERDICT])["gates"]) if gate["gate"].startswith("bias")]
    members[VERDICT] = edited(members[VERDICT], lambda verdict: verdict["gates"][i].update(high=0.05, low=0.04))
    assert f"gates[{i}].high" in problems(resealed(tmp_path / "forged.zip", members))["verdict"]


@pytest.mark.slow
def test_a_later_decision_makes_new_evidence_and_the_old_one_stays(workspace, tmp_path):
    own = workspace.copy(tmp_path / "ws")
    first = bundle_of(own)
    with inside(own):
        decide("tiny", "Bob", revise=True)
        assert write_bundle(load_params(), "tiny") is None, "the plan is stale until the audit ran again"
    run_stages(own, "tiny", STAGES[4:])
    second = bundle_of(own)
    assert second != first and first.exists() and problems(second) == {}
    assert found(second, "decisions").startswith("4 in their order")
    assert landscape_of(read_bundle(first)) == landscape_of(read_bundle(second))


@pytest.mark.slow
def test_where_no_key_can_be_made_the_evidence_is_unsigned_and_says_so(workspace, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FADED_KEYS", str(tmp_path / "file/keys"))
    with inside(workspace.copy(tmp_path / "ws")):
        path, why = keep_evidence(load_params(), "tiny")
        assert path is not None and ENVELOPE not in read_bundle(path).members
    assert why is not None and why.startswith("the evidence of tiny is not signed: a key cannot be made in ")
