"""Files between stages: atomic, with hashes that see what DVC sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import InfrastructureError, UsageError
from stages.files import content_hash, publishing, read_json, scratch, write_json


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_outputs_take_the_place_of_the_old_ones_as_a_whole() -> None:
    target = Path("data/x/stage")
    for names in (("a", "b"), ("c",)):
        with publishing(target) as out:
            for name in names:
                (out / name).write_text(name)
        assert sorted(p.name for p in target.iterdir()) == sorted(names)
    assert [p.name for p in Path("data/x").iterdir()] == ["stage"]


def test_an_error_leaves_the_old_outputs_alone() -> None:
    target = Path("data/x/stage")
    with publishing(target) as out:
        (out / "a").write_text("old")
    with pytest.raises(RuntimeError), publishing(target) as out:
        (out / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with publishing(target) as out:  # the next attempt contains nothing of the failed one
        assert list(out.iterdir()) == []


def test_scratch_is_kept_for_the_same_inputs_only() -> None:
    with scratch("x", "stage", "one") as folder:
        (folder / "ledger").write_text("")
        with pytest.raises(InfrastructureError, match="another process is running stage"), scratch("x", "stage", "one"):
            pass
    with scratch("x", "stage", "one") as folder:
        assert (folder / "ledger").exists()
    with scratch("x", "stage", "two") as other:
        assert list(other.iterdir()) == []
    assert not folder.exists()


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


def test_json_comes_back_and_bad_json_is_told() -> None:
    write_json(Path("a.json"), {"b": [1, 2]})
    assert read_json(Path("a.json")) == {"schema": 1, "b": [1, 2]}
    for text, message in (
        ("{", "not valid JSON"),
        ('{"schema": 9}', "schema 9, this version reads 1"),
        ("[]", "schema None"),
    ):
        Path("a.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_json(Path("a.json"))
    with pytest.raises(UsageError, match="missing"):
        read_json(Path("none.json"))
