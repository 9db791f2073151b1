"""Reproduction: the audit of a bundle again, how its numbers compare, and the statement that says so."""

import base64
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flows.evidence.reproduce
from flows.evidence.beside import REPRODUCTION, add_statements, beside
from flows.evidence.bundle import read_bundle
from flows.evidence.reproduce import compare_results
from flows.evidence.signature import machine_key
from flows.graph.lock import files_below, sha256
from stages.core.errors import InfrastructureError
from tests.bundles import bundle_of, edited, resealed
from tests.finished import faded, inside
from tests.test_json import told


@pytest.fixture
def bundle(workspace, tmp_path) -> Path:
    return Path(shutil.copy(bundle_of(workspace, "other"), tmp_path))


@pytest.fixture
def stages(monkeypatch) -> list[str]:
    """Stages run in this process, as new ones take seconds to start; those that ran."""
    ran: list[str] = []

    def run(kind: str, arguments: list[str], scratch: Path, say: Callable[[str], None]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(scratch)
            importlib.import_module(f"stages.{kind}").main(*arguments)
        ran.append(kind)

    monkeypatch.setattr(flows.evidence.reproduce, "_run", run)
    return ran


@pytest.fixture
def result(monkeypatch) -> Callable[..., None]:
    """Stages that write what the workspace has, changed by a function of the stage's folder."""

    def use(change: Callable[[str, Path], None]) -> None:
        def run(kind: str, arguments: list[str], scratch: Path, say: Callable[[str], None]) -> None:
            folder = scratch / "data" / arguments[0] / kind
            shutil.copytree(Path("data", arguments[0], kind), folder)
            change(kind, folder)

        monkeypatch.setattr(flows.evidence.reproduce, "_run", run)

    return use


def rewrite(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    data = edited((folder / name).read_bytes(), change)
    (folder / name).unlink()
    (folder / name).write_bytes(data)


def stated(bundle: Path) -> dict[str, Any]:
    """The last statement beside a bundle."""
    return json.loads(base64.b64decode(json.loads(beside(bundle).read_bytes().splitlines()[-1])["payload"]))


def test_an_audit_that_runs_again_gives_the_same_numbers_and_a_signed_statement(workspace, bundle, stages):
    before = {file: file.read_bytes() for file in files_below(workspace.path / "data/other")}
    code, told = faded(workspace, "reproduce", bundle)
    assert code == 0, told
    assert stages == ["prepare", "discover", "summarize", "report"]
    statement = stated(bundle)
    assert statement["predicateType"] == REPRODUCTION
    assert statement["subject"][0]["digest"]["sha256"] == sha256(read_bundle(bundle).members["manifest.json"])
    found = statement["predicate"]
    assert found["agrees"] and found["stages"] == stages and found["judged"] == found["equal"] > 20
    assert found["other_files"] in ([], ["report/report.html"]) and found["files"] > 10
    assert not list((workspace.path / ".faded/reproduce").iterdir())
    assert {file: file.read_bytes() for file in files_below(workspace.path / "data/other")} == before

    code, told = faded(workspace, "verify", bundle)
    assert code == 0 and "reproduction" in told and f"{found['equal']} of {found['judged']}" in told
    assert faded(workspace, "verify", bundle, FADED_KEYS=str(bundle.parent / "none"))[1].count("unknown signer") == 1


@pytest.mark.slow
def test_a_killed_run_resumes_and_a_finished_one_starts_again(workspace, bundle, stages, monkeypatch):
    run = flows.evidence.reproduce._run

    def killed(kind, *rest):
        if kind == "summarize":
            raise InfrastructureError("killed")
        run(kind, *rest)

    monkeypatch.setattr(flows.evidence.reproduce, "_run", killed)
    assert faded(workspace, "reproduce", bundle)[0] == 3 and not beside(bundle).exists()
    monkeypatch.setattr(flows.evidence.reproduce, "_run", run)
    assert faded(workspace, "reproduce", bundle)[0] == 0
    assert stages == ["prepare", "discover", "summarize", "report"]
    assert faded(workspace, "reproduce", bundle)[0] == 0
    assert len(stages) == 8


def test_what_noise_does_not_explain_exits_with_1_and_says_so(workspace, bundle, result):
    def fewer(kind: str, folder: Path) -> None:
        if kind == "summarize":
            rewrite(folder, "landscape.json", lambda it: it["overall"].update(value=0.9, low=0.85, high=0.95))

    result(fewer)
    code, told = faded(workspace, "reproduce", bundle)
    assert code == 1, told
    found = stated(bundle)["predicate"]
    assert not found["agrees"] and found["other_files"] == ["summarize/landscape.json"]
    assert [line.partition(":")[0] for line in found["beyond_noise"]] == ["summarize/landscape.json.overall.value"]
    [kept] = (workspace.path / ".faded/reproduce").glob("*/data/other")
    assert json.loads((kept / "summarize/landscape.json").read_bytes())["overall"]["value"] == 0.9
    code, told = faded(workspace, "verify", bundle)
    assert code == 0 and "DIFFERS" in told
    shutil.rmtree(workspace.path / ".faded/reproduce")


def test_a_number_within_its_noise_agrees(workspace, bundle, result):
    def slightly(kind: str, folder: Path) -> None:
        if kind == "summarize":
            rewrite(folder, "landscape.json", lambda it: it["overall"].update(value=it["overall"]["value"] + 0.01))

    result(slightly)
    code, document, _ = told(workspace, "reproduce", bundle)
    assert code == 0 and Path(document["statement"]) == beside(bundle)
    found = stated(bundle)["predicate"]
    assert found == document["reproduction"] and document["results"] is None
    [one] = document["deviations"]
    assert one["where"] == "summarize/landscape.json.overall.value" and not one["beyond"]
    assert one["theirs"] - one["ours"] == pytest.approx(0.01) and one["noise"] > 0.01
    assert found["agrees"] and found["within_noise"] == 1 and found["equal"] == found["judged"] - 1


@pytest.fixture
def changed(workspace, tmp_path):
    return workspace.copy(tmp_path / "changed")


def test_other_inputs_or_code_are_refused_before_anything_runs(changed, bundle, result):
    result(lambda kind, folder: pytest.fail("nothing may run"))
    [file, *_], code_file = files_below(changed.path / "data/other/inputs"), changed.path / "planted.py"
    data, more = file.read_bytes(), file.with_name("more.txt")
    other = code_file.read_text() + "\n\nPlantedTask.other = 1\n"
    for change, said in (
        (file.unlink, f"data/other/inputs/{file.name} is missing"),
        (lambda: file.write_bytes(data + b" "), f"data/other/inputs/{file.name} is not what"),
        (lambda: (file.write_bytes(data), more.touch()), "data/other/inputs/more.txt is not one of"),
        (lambda: (more.unlink(), code_file.write_text(other)), "the code of prepare, discover"),
    ):
        change()
        code, told = faded(changed, "reproduce", bundle)
        assert code == 2 and said in told
    assert "revision" in told and not beside(bundle).exists()


def test_a_bundle_that_does_not_hold_is_refused(workspace, bundle, tmp_path):
    members, name = dict(read_bundle(bundle).members), "data/other/report/verdict.json"
    members[name] = edited(members[name], lambda it: it.update(passed=False))
    code, told = faded(workspace, "reproduce", resealed(tmp_path / "forged.zip", members))
    assert code == 2 and "does not hold" in told


def test_statements_that_are_forged_or_about_another_bundle_are_reported(workspace, bundle, result):
    result(lambda kind, folder: None)
    assert faded(workspace, "reproduce", bundle)[0] == 0
    path, statement = beside(bundle), stated(bundle)
    whole = path.read_bytes()
    line = json.loads(whole)
    for changed in ({"signatures": [{**line["signatures"][0], "sig": "00" * 64}]}, {"payloadType": "x"}):
        path.write_text(json.dumps(line | changed) + "\n")
        assert faded(workspace, "verify", bundle)[0] == 1, changed
    empty = json.dumps(line | {"signatures": [{"keyid": "", "sig": ""}]}).encode()
    path.write_bytes(b"\n".join([b"", b"[" * 9999, b'{"payload": "e30="}', empty, whole]))
    code, told = faded(workspace, "verify", bundle)
    assert code == 0 and "statement 1" in told and "statement 2" not in told
    for change in (
        {"subject": [{"name": "x", "digest": {"sha256": "0" * 64}}]},
        {"predicate": {**statement["predicate"], "agrees": False}},
        {"predicate": {**statement["predicate"], "more": 1}},
        {"predicate": []},
    ):
        path.unlink()
        with inside(workspace):
            add_statements(bundle, [{**statement, **change}], machine_key())
        assert faded(workspace, "verify", bundle)[0] == 1, change
    path.unlink()
    with inside(workspace):
        add_statements(bundle, [{**statement, "predicateType": "https://example.org/other/v1"}], machine_key())
    code, told = faded(workspace, "verify", bundle)
    assert code == 0 and "reproduction" not in told  # readers have to ignore what they do not know


@pytest.mark.slow
def test_all_stages_run_again_as_processes_of_their_own(workspace, tmp_path):
    bundle = Path(shutil.copy(bundle_of(workspace), tmp_path))
    done = workspace.faded("reproduce", str(bundle))
    assert done.returncode == 0, done.stdout
    found = stated(bundle)["predicate"]
    assert found["equal"] == found["judged"] > 50
    assert "conclude" in found["stages"] and "collect_feedback" not in found["stages"]  # people's plan is in the bundle
    assert {Path(name).name for name in found["other_files"]} <= {"report.html"}


def rate(value: float, half: float = 0.05, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, **more}


def test_a_difference_is_noise_up_to_the_intervals_of_both():
    def beyond(theirs: float) -> bool:
        return bool(compare_results({"f": rate(0.5)}, {"f": rate(theirs)}).beyond)

    assert not beyond(0.5) and not beyond(0.57) and not beyond(0.43)
    assert beyond(0.575) and beyond(0.425)  # hypot(0.05, 0.05) = 0.0707


def test_many_numbers_may_each_differ_more_as_all_have_to_agree_together():
    def result(value: float, more: int) -> dict[str, Any]:
        return {"first": rate(value), **{str(i): rate(0.2) for i in range(more)}}

    assert compare_results(result(0.5, 0), result(0.58, 0)).beyond
    assert not compare_results(result(0.5, 99), result(0.58, 99)).beyond


def test_a_verdict_or_a_failure_mode_that_only_one_result_has_is_no_noise():
    mode = {"text": "fog >= 2", "id": "M1", **{"rate": 0.5, "low": 0.4, "high": 0.6}, "probes": 50}
    ours = {"f": {"passed": True, "modes": [mode, {**mode, "text": "tilt >= 2", "id": "M2"}]}}
    moved = {"f": {"passed": True, "modes": [{**mode, "text": "tilt >= 2"}, {**mode, "id": "M2"}]}}
    found = compare_results(ours, moved)
    assert not found.deviations and found.judged == 3 and found.rest == 2  # their ids
    lost = compare_results(ours, {"f": {"passed": None, "modes": [mode]}}).beyond
    assert [one.where for one in lost] == ["f.passed", "f.modes[tilt >= 2].rate"]


def test_a_distance_may_move_by_the_measured_noise_floor_and_a_count_is_not_judged():
    def result(value: float) -> dict[str, Any]:
        floor = {"splits": 5, "normalised": {"mean": 0.05, "max": 0.1}}
        return {"shift": {"normalised": value, "noise_floor": floor, "n": value}}

    near, far = (compare_results(result(0.5), result(value)) for value in (0.6, 0.7))
    assert near.judged == 1 and not near.beyond and near.rest == 1
    assert [one.where for one in far.beyond] == ["shift.normalised"]
