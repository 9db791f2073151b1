"""The checks of a bundle: every single change is reported with its name, and unknown content is refused."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.evidence import Bundle, Check, read_bundle, verify_bundle
from flows.evidence.bundle import ENVELOPE, LOCK, MANIFEST, PARAMS, SCHEMA, STATEMENT, dump_json, dump_yaml, md5
from flows.evidence.statement import make_statement
from flows.evidence.views import show_bundle, show_checks
from flows.graph.digests import sha256
from stages.core.errors import UsageError
from tests.bundles import (
    COMPARISON,
    DATA,
    PLAN,
    VERDICT,
    broken_seals,
    bundle_of,
    decisions_of,
    edited,
    found,
    problems,
    resealed,
    written,
)
from tests.finished import finished_audits
from tests.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return finished_audits().copy(tmp_path_factory.mktemp("evidence") / "ws")


@pytest.fixture(scope="module")
def bundle(workspace) -> Path:
    return bundle_of(workspace)


def test_a_flipped_byte_in_any_member_is_told_by_its_name(bundle):
    members = read_bundle(bundle).members
    assert len(members) > 20
    for name, data in members.items():
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        try:
            told = broken_seals({**members, name: flipped})
        except UsageError as error:
            assert name == MANIFEST  # without one there is nothing to check
            told = str(error)
        assert name in told, f"{name}: {told}"


def test_a_missing_member_and_a_strange_one_are_told_by_name(bundle, tmp_path):
    members = read_bundle(bundle).members
    for name in members.keys() - {MANIFEST}:
        left = {other: data for other, data in members.items() if other != name}
        assert name in broken_seals(left)
    strange = f"{DATA}/decisions/{'0' * 16}.yaml"
    more = written(tmp_path / "more.zip", {**members, strange: members[PARAMS]})
    assert f"{strange} is in the bundle, but the manifest does not name it" in problems(more)["files"]
    for name in (PARAMS, LOCK, PLAN, VERDICT):
        left = {other: data for other, data in members.items() if other != name}
        assert name in problems(written(tmp_path / "missing.zip", left))["files"]


def test_what_was_changed_in_the_zip_itself_is_damage(bundle, tmp_path):
    raw = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as file:
        entry = file.getinfo(VERDICT)
    raw[entry.header_offset + 30 + len(VERDICT) + 40] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(raw)
    with pytest.raises(UsageError, match=rf"{VERDICT} is damaged"):
        read_bundle(tmp_path / "damaged.zip")


def flip_gate(verdict: Any) -> None:
    verdict["gates"][0]["passed"] = False


def one_for_true(verdict: Any) -> None:
    verdict["gates"][0]["passed"] = 1


def better_value(verdict: Any) -> None:
    verdict["gates"][0]["high"] = -0.9


def better_difference(comparison: Any) -> None:
    comparison["differences"]["target_failure_rate"]["after"] = 0.0


def another_reviewer(verdict: Any) -> None:
    verdict["reviewer"] = "Eve"


@pytest.mark.parametrize(
    ("member", "change", "told"),
    [
        (VERDICT, flip_gate, "gates[0].passed: expected True, found False"),
        (VERDICT, one_for_true, "gates[0].passed: expected True, found 1"),
        (VERDICT, better_value, "gates[0].high"),
        (COMPARISON, better_difference, "target_failure_rate_after"),
        (VERDICT, another_reviewer, "reviewer: expected 'Bob, Ada', found 'Eve'"),
    ],
)
def test_a_verdict_that_does_not_follow_from_its_numbers_is_told(bundle, tmp_path, member, change, told):
    members = dict(read_bundle(bundle).members)
    members[member] = edited(members[member], change)
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert told in forged["provenance" if change is one_for_true else "verdict"]
    assert member in forged["dvc.lock"]
    assert not {"files", "manifest", "statement"} & set(forged)


def test_a_verdict_that_is_said_alike_in_all_places_still_has_to_follow_from_the_gates(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    for name in (VERDICT, f"{DATA}/conclude/metrics.json", MANIFEST):
        members[name] = edited(members[name], lambda said: said.update(passed=False))
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert forged["verdict"] == f"{VERDICT}: passed: expected True, found False"


def test_a_manifest_with_another_sha256_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    manifest = json.loads(members[MANIFEST])
    next(part for part in manifest["parts"].values() if PLAN in part)[PLAN]["sha256"] = "0" * 64
    members[MANIFEST] = dump_json(manifest)
    follows = make_statement(manifest, sha256(members[MANIFEST]), yaml.safe_load(members[PARAMS]))
    forged = problems(written(tmp_path / "forged.zip", {**members, STATEMENT: dump_json(follows)}))
    assert f"{PLAN}: SHA-256: expected '{'0' * 64}'" in forged["files"]


def test_a_landscape_whose_gate_was_made_to_pass_is_told(workspace, tmp_path):
    members = dict(read_bundle(bundle_of(workspace, "other")).members)
    params = yaml.safe_load(members[PARAMS])
    params["audits"]["other"]["gates"]["max_failure_rate"] = 0.1
    members[PARAMS] = dump_yaml(params)
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert "gates[0].bound: expected 0.1, found 0.9" in forged["verdict"]
    assert "report@other" in forged["parameters"] and "max_failure_rate" in forged["parameters"]


def test_another_landscape_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    name = f"{DATA}/summarize/landscape.json"
    members[name] = edited(members[name], lambda landscape: landscape["overall"].update(value=0.01))
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert PLAN in forged["landscape"] and MANIFEST in forged["landscape"]
    assert name in forged["dvc.lock"]
    assert "found: nobody decided" in forged["plan"]


def test_a_record_that_would_fill_memory_with_what_is_wrong_with_it_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    name = f"{DATA}/summarize/landscape.json"
    members[name] = edited(members[name], lambda landscape: landscape.update(modes=[{}] * 60_000))
    forged = problems(resealed(tmp_path / "forged.zip", members))
    for check in ("plan", "provenance"):
        assert f"{name} has some 1" in forged[check] and "values, expected 100,000 at most" in forged[check]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_edited_decision_is_told_wherever_it_stands(bundle, tmp_path, which):
    members = dict(read_bundle(bundle).members)
    name = decisions_of(members)[which]
    assert b"approve: true" in members[name]
    members[name] = members[name].replace(b"reason: seen", b"reason: fine")
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert "decisions" in forged
    follower = decisions_of(members)[min(which + 1, 2)]
    assert Path(follower).name in forged["decisions"]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_dropped_decision_is_told(bundle, tmp_path, which):
    members = dict(read_bundle(bundle).members)
    del members[decisions_of(members)[which]]
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert {"decisions", "plan"} & set(forged)
    assert "missing" in forged["decisions"]


def test_a_plan_that_nobody_decided_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    members[PLAN] = edited(members[PLAN], lambda plan: plan["modes"][0].update(action="ignore"))
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert "modes[0].action: expected 'repair', found 'ignore'" in forged["plan"]
    assert "hashes.plan" in forged["provenance"]


def test_a_plan_by_rule_is_made_again_from_the_landscape(bundle, tmp_path):
    """The same landscape as if a rule had decided, so the plan has to be the rule's."""
    members = dict(read_bundle(bundle).members)
    params = yaml.safe_load(members[PARAMS])
    params["repairs"]["tiny"]["feedback"] = {"policy": "top-k", "modes": 1}
    members[PARAMS] = dump_yaml(params)
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert f"{PLAN}: decided_by: expected 'policy', found 'human'" in forged["plan"]


def test_other_origins_and_another_seed_are_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    record = f"{DATA}/restructure/provenance.json"
    members[record] = edited(members[record], lambda p: p.update(model="0" * 16, seed=4))
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert f"{record}: model" in forged["provenance"] and "seed: expected 3, found 4" in forged["provenance"]


def test_a_card_with_other_numbers_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    name = f"{DATA}/conclude/model_card.md"
    assert b"| 100.0% |" in members[name]
    members[name] = members[name].replace(b"| 100.0% |", b"| 99.0% |", 1)
    assert name in problems(resealed(tmp_path / "forged.zip", members))["model card"]


def test_stages_that_read_something_else_than_was_written_are_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    lock = yaml.safe_load(members[LOCK])
    dep = next(d for d in lock["stages"]["re_evaluate@tiny"]["deps"] if d["path"].endswith("restructure/models"))
    dep["md5"] = "0" * 32 + ".dir"
    members[LOCK] = dump_yaml(lock)
    forged = problems(resealed(tmp_path / "forged.zip", members))
    assert "re_evaluate@tiny read data/tiny/restructure/models" in forged["dvc.lock"]


def test_a_stage_left_out_of_the_lock_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    lock = yaml.safe_load(members[LOCK])
    del lock["stages"]["re_evaluate@tiny"]
    members[LOCK] = dump_yaml(lock)
    assert f"{VERDICT}: no stage in dvc.lock wrote it" in problems(resealed(tmp_path / "x.zip", members))["dvc.lock"]


def test_a_statement_that_says_a_thing_twice_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    twice = members[STATEMENT].replace(b"{", b'{\n "subject": [],', 1)
    assert json.loads(twice) == json.loads(members[STATEMENT])
    told = problems(written(tmp_path / "x.zip", {**members, STATEMENT: twice}))
    assert "it has the key 'subject' twice" in told["statement"]


def test_a_plan_that_does_not_name_its_decisions_is_told(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    record = f"{DATA}/collect_feedback/provenance.json"
    members[record] = edited(members[record], lambda provenance: provenance.pop("decisions"))
    assert f"{record}: decisions" in problems(resealed(tmp_path / "x.zip", members))["plan"]


def test_the_model_at_hand_is_named_or_refused(bundle, workspace, tmp_path):
    home = workspace.path / DATA
    repaired = home / "restructure/models/repaired"
    assert found(bundle, "model", model=repaired) == "the repaired model: 2 file(s) match"
    under_test = problems(bundle, model=home / "prepare/model")["model"]
    assert under_test.endswith("holds the model under test, expected the repaired model")
    of_a_landscape = bundle_of(workspace, "other")
    assert found(of_a_landscape, "model", model=home / "prepare/model") == "the model under test: 1 file(s) match"
    manifest = json.loads(read_bundle(bundle).members[MANIFEST])
    [control] = manifest["parts"]["control"].values()
    control.update(sha256=sha256(b"of the control"), md5=md5(b"of the control"))
    with_control = written(tmp_path / "x.zip", {**read_bundle(bundle).members, MANIFEST: dump_json(manifest)})
    (tmp_path / "control").mkdir()
    (tmp_path / "control/config.json").write_bytes(b"of the control")
    assert "holds the control of the repair" in problems(with_control, model=tmp_path / "control")["model"]

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((repaired / "config.json").read_bytes() + b" ")
    (other / "more.bin").write_bytes(b"x")
    told = problems(bundle, model=other)["model"]
    assert "config.json: expected SHA-256" in told and "more.bin is not one of its files" in told
    (other / "config.json").unlink()
    assert "config.json is missing" in problems(bundle, model=other)["model"]
    with pytest.raises(UsageError, match="is not a folder"):
        verify_bundle(bundle, model=tmp_path / "nowhere")


def test_a_folder_with_anything_more_is_not_the_model(bundle, workspace, tmp_path):
    home = tmp_path / "my__pycache__dir"
    shutil.copytree(workspace.path / DATA / "restructure/models/repaired", home)
    assert found(bundle, "model", model=home) == "the repaired model: 2 file(s) match"
    (home / "__pycache__").mkdir()
    (home / "__pycache__/evil.pyc").write_bytes(b"x")
    assert "__pycache__/evil.pyc is not one of its files" in problems(bundle, model=home)["model"]
    shutil.rmtree(home / "__pycache__")

    evidence = home / "EVIDENCE.zip"
    evidence.write_bytes(b"junk")
    assert "EVIDENCE.zip is not one of its files" in problems(bundle, model=home)["model"]
    members = dict(read_bundle(bundle).members)
    written(evidence, {**members, VERDICT: members[VERDICT] + b" "})
    assert "EVIDENCE.zip is not one of its files" in problems(bundle, model=home)["model"]
    written(evidence, {**members, ENVELOPE: b"signed by somebody else meanwhile"})
    assert "model" not in problems(bundle, model=home)


def test_what_a_bundle_says_does_not_control_the_terminal(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    versions = {"faded": "\x1b[2J[red]9\x1b[1A"}
    members[MANIFEST] = edited(members[MANIFEST], lambda manifest: manifest.update(versions=versions))
    told = verify_bundle(resealed(tmp_path / "x.zip", members))
    assert any("\x1b[2J" in check.found for check in told), "it comes as far as the table"
    strange = Check("plan", "", ("bad\x1b[1A\x1b[2Kall holds\r\x07",))
    read = read_bundle(bundle)
    other = Bundle(bundle, read.members, {**read.manifest, "audit": "\x1b]0;title\x07", "landscape": "\x9b2J"})
    out = io.StringIO()
    console = Console(file=out, width=160)
    show_checks(console, [*told, strange])
    show_bundle(console, other)
    assert {c for c in out.getvalue() if not c.isprintable()} == {"\n"}
    assert r"\x1b[2J[red]9\x1b[1A" in out.getvalue() and r"\x1b[2Kall holds\r\x07" in out.getvalue()


def test_a_card_by_another_version_is_said_not_to_be_checked(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("flows.evidence.judged.version", lambda _: "0.0.1")
    [card] = [check for check in verify_bundle(bundle) if check.name == "model card"]
    assert card.holds and card.word == "not checked" and "this is 0.0.1" in card.found

    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("flows.evidence.judged.version", not_installed)
    checks = verify_bundle(bundle)
    assert all(check.holds for check in checks)
    out = io.StringIO()
    show_checks(Console(file=out, width=160), checks)
    assert out.getvalue().count("not checked") == 3 and "; not checked: model card" in out.getvalue()


def raw_zip(path: Path, *entries: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["../evil"], "'../evil'"),
        (["/etc/passwd"], "'/etc/passwd'"),
        (["data/tiny/decisions/../../../x.yaml"], "which does not belong in a bundle"),
        (["data/tiny/restructure/models/repaired/weights.pkl"], "which does not belong in a bundle"),
        ([MANIFEST, MANIFEST], "twice"),
        ([STATEMENT], "it has no manifest.json"),
        ([f"data/tiny/{MANIFEST}"], "which does not belong in a bundle"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_no_bundle_is_like_is_refused(tmp_path, names, told):
    path = raw_zip(tmp_path / "strange.zip", *((name, b"{}") for name in names))
    with pytest.raises(UsageError, match="is not a valid evidence bundle") as error:
        verify_bundle(path)
    assert told in str(error.value)


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_member_of_another_compression_is_refused(bundle, tmp_path, kind):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr(MANIFEST, read_bundle(bundle).members[MANIFEST])
    raw = bytearray(path.read_bytes())
    raw[30 + len(MANIFEST) + 4 : 30 + len(MANIFEST) + 40] = bytes(36)
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=rf"compressed by zip's method {kind}, expected 0 \(stored\) or 8"):
        read_bundle(path)


def test_a_zip_bomb_is_refused_by_what_comes_out(tmp_path, monkeypatch):
    import flows.evidence.archive as module

    monkeypatch.setattr(module, "LARGEST", 1000)
    monkeypatch.setattr(module, "LARGEST_SUM", 1500)
    for entries in ([(VERDICT, bytes(1001))], [(VERDICT, bytes(900)), (PLAN, bytes(900))]):
        with pytest.raises(UsageError, match="larger than"):
            read_bundle(raw_zip(tmp_path / "bomb.zip", (MANIFEST, b"{}"), *entries))
    monkeypatch.setattr(module, "MOST_MEMBERS", 1)
    with pytest.raises(UsageError, match="2 members, expected 1 at most"):
        read_bundle(raw_zip(tmp_path / "many.zip", (VERDICT, b""), (PLAN, b"")))


def test_yaml_that_unfolds_is_not_read(bundle, tmp_path):
    bomb = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    members = dict(read_bundle(bundle).members)
    name = decisions_of(members)[0]
    for target in (PARAMS, LOCK, name):
        told = "\n".join(problems(written(tmp_path / "bomb.zip", {**members, target: bomb})).values())
        assert f"{target} is not readable as YAML: it has an alias" in told


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut short"])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UsageError, match="is not a valid evidence bundle"):
        verify_bundle(tmp_path / "x.zip")
    with pytest.raises(UsageError, match="cannot be read"):
        verify_bundle(tmp_path / "nowhere.zip")
    with pytest.raises(UsageError, match="is a folder"):
        verify_bundle(tmp_path)


def test_a_manifest_of_another_form_is_refused_or_told_but_breaks_nothing(bundle, tmp_path):
    members = dict(read_bundle(bundle).members)
    manifest = json.loads(members[MANIFEST])
    another = f"this version reads {SCHEMA}"
    older = r"is a bundle of schema {}, by an older version, which this one cannot check \(it reads " + rf"{SCHEMA}\)"
    changes = [({"schema": n}, older.format(n)) for n in range(1, SCHEMA)]
    for change, told in [*changes, *(({"schema": n}, another) for n in (True, SCHEMA + 1)), ({"parts": []}, another)]:
        with pytest.raises(UsageError, match=told):
            verify_bundle(written(tmp_path / "x.zip", {**members, MANIFEST: dump_json({**manifest, **change})}))
    values = itertools.cycle([None, 7, "x", [], {}])
    for key in sorted(set(manifest) - {"schema", "parts"}):
        assert MANIFEST in broken_seals({**members, MANIFEST: dump_json({**manifest, key: next(values)})})
    entries = itertools.cycle([7, {"a": 7}, {"a": {}}])
    for part in list(manifest["parts"])[::3]:
        parts = {**manifest["parts"], part: next(entries)}
        assert problems(written(tmp_path / "x.zip", {**members, MANIFEST: dump_json({**manifest, "parts": parts})}))
