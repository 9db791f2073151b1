"""What stages pass on: outputs appear whole, records are read as they were written, and anything else is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.errors import UsageError
from stages.core.files import content_hash, publishing
from stages.params import load_params
from stages.provenance import provenance, write_provenance
from stages.records import audit_folder
from tests.workspace import ROOT

GATE = {"gate": "max_failure_rate", "bound": 0.5, "value": 0.2, "low": 0.1, "high": 0.3, "passed": True}
VERDICT = {"schema": 1, "audit": "tiny", "passed": True, "gates": [GATE]}


def put(root, data):
    folder = root / "data/tiny/report"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verdict.json").write_text(data)
    return audit_folder("tiny", root).report


def test_a_record_is_written_as_it_was_read(tmp_path):
    text = json.dumps(VERDICT, indent=1) + "\n"
    report = put(tmp_path, text)
    assert report.verdict.gates[0].high == 0.3
    assert report.verdict is report.verdict, "read once"
    assert report.verdict.dump().decode() == text


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("{", "not valid JSON"),
        (json.dumps({**VERDICT, "schema": 9}), "schema 9"),
        (json.dumps({**VERDICT, "passed": "yes?"}), "passed: "),
        (json.dumps({**VERDICT, "gates": [{**GATE, "bond": 1}]}), "gates.0.bond: unknown key, did you mean"),
        (json.dumps({"schema": 1, "audit": "tiny"}), "gates: missing"),
        ("[]", "schema None"),
    ],
)
def test_what_is_no_such_record_is_told(tmp_path, data, told):
    report = put(tmp_path, data)
    with pytest.raises(UsageError, match=told) as raised:
        report.verdict  # noqa: B018
    assert "verdict.json" in str(raised.value)


def test_reading_records_imports_no_torch():
    code = "import sys, stages.records; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_provenance_is_the_same_at_any_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, found = load_params(ROOT / "params.yaml").audit("mnist"), []
    (tmp_path / "out").mkdir()
    subprocess.run(["git", "init", "--quiet"], check=True)
    for message in ("one", "two"):
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        subprocess.run(["git", *author, "commit", "--quiet", "--allow-empty", "--message", message], check=True)
        write_provenance(tmp_path / "out", provenance("mnist", config, computes=False))
        found.append((tmp_path / "out/provenance.json").read_bytes())
    assert found[0] == found[1] and b'"numpy"' in found[0]


def test_outputs_take_the_place_of_the_old_ones_as_a_whole(workspace) -> None:
    target = Path("data/x/stage")
    for names in (("a", "b"), ("c",)):
        with publishing(target) as out:
            for name in names:
                (out / name).write_text(name)
        assert sorted(p.name for p in target.iterdir()) == sorted(names)
    assert [p.name for p in Path("data/x").iterdir()] == ["stage"]


def test_an_error_leaves_the_old_outputs_alone(workspace) -> None:
    target = Path("data/x/stage")
    with publishing(target) as out:
        (out / "a").write_text("old")
    with pytest.raises(RuntimeError), publishing(target) as out:
        (out / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with publishing(target) as out:  # the next attempt contains nothing of the failed one
        assert list(out.iterdir()) == []


def test_a_hash_sees_names_bytes_and_what_links_lead_to(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "weights").write_text("1")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "linked").symlink_to(outside)
    seen = [content_hash([inputs])]
    (outside / "weights").write_text("2")
    seen.append(content_hash([inputs]))
    (outside / "weights").rename(outside / "other")
    seen.append(content_hash([inputs]))
    seen.append(content_hash([inputs], {"seed": 1}))
    assert len(set(seen)) == 4
    (inputs / "__pycache__").mkdir()
    (inputs / "__pycache__" / "x.pyc").write_text("")
    assert content_hash([inputs]) == seen[2]
