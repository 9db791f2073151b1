"""The checks of a bundle: every single change is reported with its name, and unknown content is refused."""

import io
import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.evidence.bundle import (
    ENVELOPE,
    LOCK,
    MANIFEST,
    PARAMS,
    SCHEMA,
    STATEMENT,
    Bundle,
    dump_json,
    dump_yaml,
    md5,
    read_bundle,
    zip_entry,
)
from flows.evidence.checks import Check
from flows.evidence.formats import make_statement
from flows.evidence.gate import show_bundle, show_checks
from flows.evidence.verify import verify_bundle
from flows.graph.lock import sha256
from stages.core.errors import UsageError
from tests.bundles import (
    COMPARISON,
    DATA,
    PLAN,
    VERDICT,
    Members,
    broken_seals,
    bundle_of,
    decisions_of,
    edited,
    found,
    problems,
    resealed,
    written,
)

LANDSCAPE, CARD = f"{DATA}/summarize/landscape.json", f"{DATA}/conclude/model_card.md"
RESTRUCTURED, PLANNED = f"{DATA}/restructure/provenance.json", f"{DATA}/collect_feedback/provenance.json"
METRICS, REPORT = f"{DATA}/conclude/metrics.json", f"{DATA}/conclude/report.html"


def test_a_flipped_byte_in_any_member_is_told_by_its_name(members):
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


def test_a_missing_member_and_a_strange_one_are_told_by_name(members, tmp_path):
    for name in members.keys() - {MANIFEST}:
        left = {other: data for other, data in members.items() if other != name}
        assert name in broken_seals(left)
        if name in (PARAMS, LOCK, PLAN, VERDICT):
            assert name in problems(written(tmp_path / "missing.zip", left))["files"]
    strange = f"{DATA}/decisions/{'0' * 16}.yaml"
    more = written(tmp_path / "more.zip", {**members, strange: members[PARAMS]})
    assert f"{strange} is in the bundle, but the manifest does not name it" in problems(more)["files"]


# One change, with manifest and statement made to fit: what is changed, and what the checks say.

Change = Callable[[Members], object]


def in_json(name: str, change: Callable[[Any], object]) -> Change:
    return lambda members: members.update({name: edited(members[name], change)})


def in_yaml(name: str, change: Callable[[Any], object]) -> Change:
    def edit(members: Members) -> None:
        content = yaml.safe_load(members[name])
        members[name] = dump_yaml(changed if isinstance(changed := change(content), dict) else content)

    return edit


def in_text(name: str, old: bytes, new: bytes) -> Change:
    return lambda members: members.update({name: members[name].replace(old, new, 1)})


def in_decisions(old: bytes, new: bytes, which: slice) -> Change:
    def edit(members: Members) -> None:
        for name in decisions_of(members)[which]:
            members[name] = members[name].replace(old, new)

    return edit


def all_of(*changes: Change) -> Change:
    return lambda members: [change(members) for change in changes]


def without_decision(which: int) -> Change:
    return lambda members: members.pop(decisions_of(members)[which])


def records_of_no_files(members: Members) -> None:
    for name in [name for name in members if name.endswith("provenance.json")]:
        members[name] = edited(members[name], lambda record: record.update(read={}, wrote={}))


def lock_of(stage: str, change: Callable[[Any], object]) -> Change:
    return in_yaml(LOCK, lambda lock: [change(lock["stages"][f"{stage}@tiny"]), None][1])


def repaired_in(entry: Any) -> Any:
    return next(dep for dep in entry["deps"] if dep["path"].endswith("restructure/models"))


WEAKER = {"change_min": -0.9}
OTHER_GATES = in_yaml(PARAMS, lambda p: p["repairs"]["tiny"]["gates"].update(clean_quality=WEAKER))
GATES_IN_LOCK = lock_of("conclude", lambda s: s["params"][PARAMS]["repairs.tiny"]["gates"].update(clean_quality=WEAKER))
NOT_PASSED = [in_json(name, lambda record: record.update(passed=False)) for name in (VERDICT, METRICS, MANIFEST)]
CHANGES: dict[str, tuple[Change, dict[str, str]]] = {
    "failed gate": (in_json(VERDICT, lambda v: v["gates"][0].update(passed=False)),
        {"verdict": "gates[0].passed: expected True, found False", "dvc.lock": VERDICT}),
    "1 for true": (in_json(VERDICT, lambda v: v["gates"][0].update(passed=1)),
        {"provenance": "gates[0].passed: expected True, found 1"}),
    "better value": (in_json(VERDICT, lambda v: v["gates"][0].update(high=-0.9)), {"verdict": "gates[0].high"}),
    "no gates": (in_json(VERDICT, lambda v: v["gates"].clear()), {"verdict": "gates: "}),
    "better difference": (in_json(COMPARISON, lambda c: c["differences"]["target_failure_rate"].update(after=0.0)),
        {"verdict": "target_failure_rate_after", "dvc.lock": COMPARISON}),
    "another reviewer": (in_json(VERDICT, lambda v: v.update(reviewer="Eve")),
        {"verdict": "reviewer: expected 'Bob, Ada', found 'Eve'"}),
    "alike in all places": (all_of(*NOT_PASSED), {"verdict": f"{VERDICT}: passed: expected True, found False"}),
    "a key twice": (in_text(VERDICT, b'"passed": true', b'"passed": false,\n "passed": true'),
        {"verdict": "it has the key 'passed' twice"}),
    "report": (in_text(REPORT, b"</body>", b"<p>all is well</p></body>"), {"dvc.lock": REPORT}),
    "gates": (OTHER_GATES, {"parameters": "repairs.tiny", "verdict": "expected -0.9"}),
    "gates in the lock": (all_of(OTHER_GATES, GATES_IN_LOCK), {"verdict": "expected -0.9"}),
    "no parameters in the lock": (
        all_of(OTHER_GATES, in_yaml(LOCK, lambda lock: [s.pop("params") for s in lock["stages"].values()])),
        {"verdict": "expected -0.9"}),
    "without the repaired model": (lock_of("re_evaluate", lambda s: s["deps"].remove(repaired_in(s))),
        {"dvc.lock": "re_evaluate@tiny did not read data/tiny/restructure/models"}),
    "other repaired model": (lock_of("re_evaluate", lambda s: repaired_in(s).update(md5="0" * 32 + ".dir")),
        {"dvc.lock": "re_evaluate@tiny read data/tiny/restructure/models"}),
    "stages in another order": (in_yaml(LOCK, lambda lock: {**lock, "stages": dict(reversed(lock["stages"].items()))}),
        {"dvc.lock": "stages"}),
    "a stage left out": (in_yaml(LOCK, lambda lock: [lock["stages"].pop("re_evaluate@tiny"), None][1]),
        {"dvc.lock": f"{VERDICT}: no stage in dvc.lock wrote it"}),
    "landscape": (in_json(LANDSCAPE, lambda landscape: landscape["overall"].update(value=0.01)),
        {"landscape": PLAN, "dvc.lock": LANDSCAPE, "plan": "found: nobody decided"}),
    "a record that fills memory": (in_json(LANDSCAPE, lambda landscape: landscape.update(modes=[{}] * 60_000)),
        dict.fromkeys(("plan", "provenance"), "values, expected 100,000 at most")),
    "plan": (in_json(PLAN, lambda plan: plan["modes"][0].update(action="ignore")),
        {"plan": "modes[0].action: expected 'repair', found 'ignore'", "provenance": "hashes.plan"}),
    "plan by rule": (in_yaml(PARAMS, lambda p: p["repairs"]["tiny"].update(feedback={"policy": "top-k", "modes": 1})),
        {"plan": f"{PLAN}: decided_by: expected 'policy', found 'human'"}),
    "plan without its decisions": (in_json(PLANNED, lambda record: record.pop("decisions")),
        {"plan": f"{PLANNED}: decisions"}),
    "look-alike reviewer": (in_decisions(b"reviewer: Bob", "reviewer: B\u043eb".encode(), slice(None)),
        {"decisions": ""}),
    "zero-width reviewer": (in_decisions(b"reviewer: Bob", b'reviewer: "A\\u200Bda"', slice(None)), {"decisions": ""}),
    "decision with a key twice": (in_decisions(b"approve: true", b"approve: true\napprove: true", slice(2, 3)),
        {"decisions": ""}),
    **{f"decision {n} dropped": (without_decision(n), {"decisions": "missing"}) for n in range(3)},
    "other origins and seed": (in_json(RESTRUCTURED, lambda record: record.update(model="0" * 16, seed=4)),
        {"provenance": "seed: expected 3, found 4"}),
    "other threads": (in_json(f"{DATA}/re_evaluate/provenance.json", lambda record: record.update(threads=99)),
        {"dvc.lock": "re_evaluate"}),
    "records of no files": (records_of_no_files, {"provenance": "does not name what the stage read and wrote"}),
    "card": (in_text(CARD, b"| 100.0% |", b"| 99.0% |"), {"model card": CARD}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_though_it_was_sealed_again(members, tmp_path, change):
    edit, expected = CHANGES[change]
    changed = dict(members)
    edit(changed)
    assert changed != members
    told = problems(resealed(tmp_path / "forged.zip", changed))
    assert {check: text for check, text in expected.items() if text not in told.get(check, "nothing")} == {}
    assert not {"files", "manifest", "statement"} & set(told) or "decision" in change


def test_an_edited_decision_is_told_wherever_it_stands(members, tmp_path):
    for which in range(3):
        changed = dict(members)
        in_decisions(b"reason: seen", b"reason: fine", slice(which, which + 1))(changed)
        told = problems(resealed(tmp_path / "forged.zip", changed))
        assert Path(decisions_of(changed)[min(which + 1, 2)]).name in told["decisions"]


def test_seals_that_do_not_fit_or_say_a_thing_twice_are_told(members, tmp_path):
    manifest = json.loads(members[MANIFEST])
    next(part for part in manifest["parts"].values() if PLAN in part)[PLAN]["sha256"] = "0" * 64
    changed = {**members, MANIFEST: dump_json(manifest)}
    follows = make_statement(manifest, sha256(changed[MANIFEST]), yaml.safe_load(members[PARAMS]))
    told = problems(written(tmp_path / "x.zip", {**changed, STATEMENT: dump_json(follows)}))
    assert f"{PLAN}: SHA-256: expected '{'0' * 64}'" in told["files"]
    twice = members[STATEMENT].replace(b"{", b'{\n "subject": [],', 1)
    assert json.loads(twice) == json.loads(members[STATEMENT])
    told = problems(written(tmp_path / "x.zip", {**members, STATEMENT: twice}))
    assert "it has the key 'subject' twice" in told["statement"]


def test_a_landscape_whose_gate_was_made_to_pass_is_told(workspace, tmp_path):
    changed = dict(read_bundle(bundle_of(workspace, "other")).members)
    in_yaml(PARAMS, lambda params: params["audits"]["other"]["gates"].update(max_failure_rate=0.1))(changed)
    told = problems(resealed(tmp_path / "forged.zip", changed))
    assert "gates[0].bound: expected 0.1, found 0.9" in told["verdict"]
    assert "report@other" in told["parameters"] and "max_failure_rate" in told["parameters"]


def test_the_model_at_hand_is_named_or_refused(bundle, members, workspace, tmp_path):
    home = workspace.path / DATA
    repaired = home / "restructure/models/repaired"
    assert found(bundle, "model", model=repaired) == "the repaired model: 2 file(s) match"
    under_test = problems(bundle, model=home / "prepare/model")["model"]
    assert under_test.endswith("holds the model under test, expected the repaired model")
    of_a_landscape = bundle_of(workspace, "other")
    assert found(of_a_landscape, "model", model=home / "prepare/model") == "the model under test: 1 file(s) match"
    manifest = json.loads(members[MANIFEST])
    [control] = manifest["parts"]["control"].values()
    control.update(size=14, sha256=sha256(b"of the control"), md5=md5(b"of the control"))
    with_control = written(tmp_path / "x.zip", {**members, MANIFEST: dump_json(manifest)})
    (tmp_path / "control").mkdir()
    (tmp_path / "control/config.json").write_bytes(b"of the control")
    assert "holds the control of the repair" in problems(with_control, model=tmp_path / "control")["model"]

    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((repaired / "config.json").read_bytes() + b" ")
    (other / "more.bin").write_bytes(b"x")
    told = problems(bundle, model=other)["model"]
    assert "config.json: expected" in told and "more.bin is not one of its files" in told
    (other / "config.json").unlink()
    assert "config.json is missing" in problems(bundle, model=other)["model"]
    with pytest.raises(UsageError, match="is not a folder"):
        verify_bundle(bundle, model=tmp_path / "nowhere")


def test_a_folder_with_anything_more_is_not_the_model(bundle, members, workspace, tmp_path):
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
    written(evidence, {**members, VERDICT: members[VERDICT] + b" "})
    assert "EVIDENCE.zip is not one of its files" in problems(bundle, model=home)["model"]
    written(evidence, {**members, ENVELOPE: b"signed by somebody else meanwhile"})
    assert "model" not in problems(bundle, model=home)


def test_a_folder_that_never_ends_is_told(bundle, workspace, tmp_path):
    home = tmp_path / "model"
    shutil.copytree(workspace.path / DATA / "restructure/models/repaired", home)
    config = home / "config.json"
    for strange in (lambda: os.mkfifo(config), lambda: config.symlink_to("/dev/zero")):
        config.unlink()
        strange()
        assert "config.json: expected" in problems(bundle, model=home)["model"]
    for name in ("a", "b"):  # two loops, which have more paths than anybody can walk
        (home / name).symlink_to(".")
    told = problems(bundle, model=home)["model"]
    assert all(f": {name} is not one of its files" in told for name in "ab")
    os.mkfifo(tmp_path / "x.zip")
    for nothing in (tmp_path / "x.zip", Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError, match="is not a file"):
            read_bundle(nothing)
    with pytest.raises(UsageError, match="cannot be read"):
        verify_bundle(tmp_path / "nowhere.zip")


def test_what_a_bundle_says_does_not_control_the_terminal(bundle, members, tmp_path):
    changed = dict(members)
    in_json(MANIFEST, lambda manifest: manifest.update(versions={"faded": "\x1b[2J[red]9\x1b[1A"}))(changed)
    told = verify_bundle(resealed(tmp_path / "x.zip", changed))
    assert any("\x1b[2J" in check.found for check in told), "it comes as far as the table"
    strange = Check("", ("bad\x1b[1A\x1b[2Kall holds\r\x07",), name="plan")
    manifest = {**read_bundle(bundle).manifest, "audit": "\x1b]0;title\x07", "landscape": "\x9b2J"}
    out = io.StringIO()
    console = Console(file=out, width=160)
    show_checks(console, [*told, strange])
    show_bundle(console, Bundle(bundle, members, manifest))
    assert {c for c in out.getvalue() if not c.isprintable()} == {"\n"}
    assert r"\x1b[2J[red]9\x1b[1A" in out.getvalue() and r"\x1b[2Kall holds\r\x07" in out.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_no_bundle_is_like_is_refused(tmp_path):
    path = tmp_path / "strange.zip"
    for names, message in (
        (["../evil"], "'../evil'"),
        (["/etc/passwd"], "'/etc/passwd'"),
        (["data/tiny/decisions/../../../x.yaml"], "which does not belong in a bundle"),
        (["data/tiny/restructure/models/repaired/weights.pkl"], "which does not belong in a bundle"),
        ([MANIFEST, MANIFEST], "twice"),
        ([STATEMENT], "it has no manifest.json"),
        ([f"data/tiny/{MANIFEST}"], "which does not belong in a bundle"),
    ):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name in names:
                file.writestr(zip_entry(name), b"{}")
        with pytest.raises(UsageError, match="is not a valid evidence bundle") as error:
            verify_bundle(path)
        assert message in str(error.value)


def test_damage_and_other_compressions_are_refused(bundle, members, tmp_path):
    raw, path = bytearray(bundle.read_bytes()), tmp_path / "x.zip"
    with zipfile.ZipFile(bundle) as file:
        entry = file.getinfo(VERDICT)
    raw[entry.header_offset + 30 + len(VERDICT) + 40] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=rf"{VERDICT} is damaged"):
        read_bundle(path)
    for kind in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(path, "w", kind) as file:
            file.writestr(MANIFEST, members[MANIFEST])
        with pytest.raises(UsageError, match=r"is not a valid evidence bundle: manifest\.json"):
            read_bundle(path)


def test_a_zip_bomb_is_refused_by_what_comes_out(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.evidence.bundle.LARGEST", 1000)
    monkeypatch.setattr("flows.evidence.bundle.LARGEST_SUM", 1500)
    for contents in ({VERDICT: bytes(1001)}, {VERDICT: bytes(900), PLAN: bytes(900)}):
        with pytest.raises(UsageError, match="larger than"):
            read_bundle(written(tmp_path / "bomb.zip", {MANIFEST: b"{}", **contents}))
    monkeypatch.setattr("flows.evidence.bundle.MOST_MEMBERS", 1)
    with pytest.raises(UsageError, match="it has more than 1 members"):
        read_bundle(written(tmp_path / "many.zip", {VERDICT: b"", PLAN: b""}))


def test_yaml_that_unfolds_is_not_read(members, tmp_path):
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    bomb = "\n".join(["a0: &a0 [x, x]", *lines]).encode()
    for target, refusal in (
        *((name, "more than 200,000 values, aliases written out") for name in (PARAMS, LOCK)),
        (decisions_of(members)[0], "is not readable as YAML: expected no aliases"),
    ):
        text = "\n".join(problems(written(tmp_path / "bomb.zip", {**members, target: bomb})).values())
        assert any(target in line and refusal in line for line in text.splitlines())


def test_a_manifest_of_another_form_is_refused_or_told_but_breaks_nothing(members, tmp_path):
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


def test_a_card_by_another_version_is_said_not_to_be_checked(bundle, monkeypatch):
    monkeypatch.setattr("flows.evidence.checks.version", lambda _: "0.0.1")
    [card] = [check for check in verify_bundle(bundle) if check.name == "model card"]
    assert card.holds and card.word == "not checked" and "this is 0.0.1" in card.found

    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("flows.evidence.checks.version", not_installed)
    checks = verify_bundle(bundle)
    assert all(check.holds for check in checks)
    out = io.StringIO()
    show_checks(Console(file=out, width=160), checks)
    assert out.getvalue().count("not checked") == 3 and "; not checked: model card" in out.getvalue()
