"""Damage to the files from which work resumes: it ends with the same result, or in one clear line."""

import contextlib
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.graph.intact import _heal_rwlock, _Locks
from flows.init.unfinished import Unfinished
from flows.recur.schedule import read_entries
from flows.results import Took
from stages.code import RECORD, read_record
from stages.concepts import Concept, ConceptSpace
from stages.core import files
from stages.core.errors import UsageError
from stages.core.files import append_sealed, read_sealed, read_state, replace_file, seal, unseal, write_state
from stages.core.ledger import Ledger
from stages.explorers.prober import Prober
from stages.tasks.classification.init.pictures import look_at_pictures
from stages.tasks.contract import Compute, Items, ProbeBatch
from stages.tasks.tabular.data import read_frame
from stages.tasks.text_to_image.init import PromptsInit
from stages.tasks.text_to_image.pictures import ParquetPictures
from stages.tasks.training import resume, save_checkpoint
from stages.usage.measures import read_table_file
from tests.cases import scaled
from tests.own_model import questions
from tests.planted import PlantedTask

SPACE = ConceptSpace(tuple(Concept(name, (0, 1, 2, 3)) for name in "ab"))
ITEMS = pd.DataFrame([{"id": f"i{n}", "split": "discover", "label": "0"} for n in range(6)])


class Watched(PlantedTask):
    """Records the batches it is called with."""

    batches: list[tuple[tuple[str, ...], bytes]]

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        self.batches.append((tuple(item_ids), cells.tobytes()))
        return super().probe(item_ids, cells, repeats)


def search(path: Path) -> tuple[pd.DataFrame, list[tuple[tuple[str, ...], bytes]]]:
    """A small search of three calls with a ledger; returns its result, and the batches the model was called with."""
    task = Watched(Items(ITEMS), SPACE, {"regions": [{"a": [2, 3]}], "noise": 0.03}, seed=0)
    task.batches, rng, ledger = [], np.random.default_rng(1), Ledger(path)
    prober = Prober(task, list(ITEMS["id"]), 60, ledger, Compute(batch_size=8))
    for n in (20, 5, 30):
        prober.ask(rng.integers(len(ITEMS), size=n), rng.integers(4, size=(n, 2)))
    ledger.close()
    return prober.table(), task.batches


@pytest.fixture(scope="module")
def undisturbed() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".faded" / "ledger.jsonl"
        table, batches = search(path)
        return table, batches, path.read_bytes()


def damaged(data: bytes, kind: str, rng: random.Random) -> bytes:
    """The bytes of a file after some damage."""
    start, length = rng.randrange(len(data)), rng.randrange(1, 200)
    lines = data.splitlines(keepends=True)
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    at = rng.choice([n for n, byte in enumerate(data) if byte in b"0123456789"] or [start])
    digit = (data[at] - 48 + rng.randrange(1, 10)) % 10
    return {
        "cut": data[:start],
        "emptied": b"",
        "overwritten": data[:start] + rng.randbytes(length) + data[start + length :],
        "removed": data[:start] + data[start + length :],
        "zeros": data[:start] + bytes(len(data) - start),
        "one bit": data[:start] + bytes([data[start] ^ (1 << rng.randrange(8))]) + data[start + 1 :],
        "one digit": data[:at] + str(digit).encode() + data[at + 1 :],
        "a line twice": b"".join([*lines[:one], lines[other], *lines[one:]]),
        "a line moved": b"".join([*lines[:one], *lines[one + 1 :], lines[one]]),
        "a line lost": b"".join([*lines[:one], *lines[one + 1 :]]),
    }[kind]


KINDS = "cut, emptied, overwritten, removed, zeros, one bit, one digit, a line twice, a line moved, a line lost"
DAMAGE = st.sampled_from(KINDS.split(", "))


@settings(max_examples=scaled(40))
@given(st.lists(DAMAGE, min_size=1, max_size=3), st.integers(0, 2**32))
def test_a_damaged_ledger_ends_in_the_same_result(undisturbed: Any, kinds: list[str], seed: int) -> None:
    table, batches, data = undisturbed
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".faded" / "ledger.jsonl"
        replace_file(path, data)
        for kind in kinds:
            if data := path.read_bytes():
                path.write_bytes(damaged(data, kind, rng))
        for _ in range(2):
            again, asked = search(path)
            pd.testing.assert_frame_equal(again, table)
            assert set(asked) <= set(batches)  # in equal batches, as the last digits of answers depend on them
        assert not asked  # the second time all answers are stored


@pytest.mark.parametrize(
    "change",
    [
        lambda line: None,
        lambda line: {**line, "failed": line["failed"][1:]},
        lambda line: {**line, "cells": [True] * 8},
        lambda line: {**line, "items": ["i0"] * 8, "cells": [0] * 8},
    ],
)
def test_an_impossible_line_is_asked_again(undisturbed: Any, tmp_path: Path, capsys: Any, change: Any) -> None:
    table, batches, data = undisturbed
    path = tmp_path / ".faded" / "ledger.jsonl"
    lines = data.splitlines(keepends=True)
    impossible = seal(path, json.dumps(change(json.loads(unseal(path, lines[1]) or b""))).encode())
    replace_file(path, b"".join([lines[0], impossible, *lines[2:]]))
    again, asked = search(path)
    pd.testing.assert_frame_equal(again, table)
    assert asked == [batches[1]]
    assert "1 damaged line(s) set aside in" in capsys.readouterr().err
    assert path.with_name("ledger.jsonl.damaged").read_bytes() == impossible
    search(path)
    assert capsys.readouterr().err == "", "what was set aside is no longer in the ledger"


def test_lines_of_another_ledger_do_not_fit(undisturbed: Any, tmp_path: Path) -> None:
    table, batches, data = undisturbed
    path = tmp_path / ".faded" / "other.jsonl"
    replace_file(path, data)
    again, asked = search(path)
    pd.testing.assert_frame_equal(again, table)
    assert asked == batches


@pytest.mark.parametrize(
    ("cut", "aside"),
    [(lambda lines: [*lines[:1], lines[1][:9]], False), (lambda lines: [*lines[:1], b"?", *lines[1:]], True)],
)
def test_sealed_lines_are_kept_up_to_the_damage(tmp_path: Path, cut: Any, aside: bool) -> None:
    path = tmp_path / "scratch" / "kept.jsonl"
    assert read_sealed(None) == read_sealed(path) == []
    for n in range(3):
        append_sealed(path, b"%d" % n)
    assert read_sealed(path) == [b"0", b"1", b"2"]
    path.write_bytes(b"".join(cut(path.read_bytes().splitlines(keepends=True))))
    assert read_sealed(path) == [b"0"] and path.with_name("kept.jsonl.damaged").exists() is aside
    append_sealed(path, b"1")
    assert read_sealed(path) == [b"0", b"1"]


STATES: list[tuple[Any, Any]] = [
    ({"discover@tiny": Took(seconds=3.0, when="2026-01-01")}, dict[str, Took]),
    (Unfinished("tiny", {"model": "a.onnx", "yes": True}, (({"seed": 1}, None),), None, 150), Unfinished),
]


@given(of=st.sampled_from(STATES), kinds=st.lists(DAMAGE, min_size=1, max_size=2), seed=st.integers(0, 2**32))
def test_damaged_state_is_none(of: tuple[Any, Any], kinds: list[str], seed: int) -> None:
    (state, kind), rng = of, random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ".faded" / "state.json"
        write_state(path, state)
        data = path.read_bytes()
        assert read_state(path, kind) == state
        for one in kinds:
            if some := path.read_bytes():
                path.write_bytes(damaged(some, one, rng))
        same = path.read_bytes() == data
        assert read_state(path, kind) == (state if same else None)
        assert path.exists() is same and path.with_name("state.json.damaged").exists() is not same


def test_what_is_no_state_at_all_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for data in (b"", b"[]", b"[" * 100_000, b"\xff\xfe\0", b"0" * (9 << 20)):
        for written in (data, seal(path, data)):
            replace_file(path, written)
            assert read_state(path, Unfinished) is None
    path = tmp_path / "folder.json"
    replace_file(path, b"")
    assert read_state(path, float) is None, "so that there is a file at the place for what is put aside"
    for _ in range(2):
        (path / "more").mkdir(parents=True)
        assert read_state(path, float) is None
        write_state(path, 0.5)
        assert read_state(path, float) == 0.5
        path.unlink()


def _trained(path: Path) -> tuple[dict[str, torch.Tensor], torch.optim.AdamW, int, list[float]]:
    """Two parameters after three steps of training, the last two from a checkpoint if there is one."""
    torch.manual_seed(0)
    trained = {name: torch.nn.Parameter(torch.randn(3)) for name in "ab"}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    done, losses = resume(path, trained, optimizer, "cpu")
    for step in range(done, 3):
        optimizer.zero_grad()
        loss = sum(((parameter - step) ** 2).sum() for parameter in trained.values())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step == 0:
            save_checkpoint(path, trained, optimizer, 1, losses)
    return trained, optimizer, done, losses


@settings(max_examples=scaled(40))
@given(kind=DAMAGE, seed=st.integers(0, 2**32))
def test_training_from_a_damaged_checkpoint_starts_anew(kind: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "epoch.safetensors"
        whole = _trained(path)
        data = path.read_bytes()
        path.write_bytes(damaged(data, kind, random.Random(seed)))
        intact = path.read_bytes() == data
        again = _trained(path)
    assert again[2] == (1 if intact else 0) and again[3] == whole[3]
    assert all(torch.equal(again[0][name], whole[0][name]) for name in "ab")


@pytest.mark.parametrize("kind", ["cut", "emptied", "zeros"])
def test_a_cut_table_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pd.DataFrame({"id": ["a", "b"], "n": [1, 2]}).to_parquet(path)
    path.write_bytes(damaged(path.read_bytes(), kind, random.Random(0)))
    with pytest.raises(UsageError, match=r"items\.parquet cannot be read as a parquet file"):
        files.read_table(path)


@pytest.mark.parametrize(
    "read",
    [
        read_table_file,
        lambda path: read_frame(path, "--data"),
        lambda path: look_at_pictures(path, path.name),
        lambda path: PromptsInit().data(path, path.name, questions({})),
        lambda path: ParquetPictures(parquet=path.name).load(path.parent),
    ],
)
def test_a_table_larger_than_memory_is_refused_before_it_is_read(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    pq.write_table(pa.table({"text": pa.nulls(100_000_001)}), path)  # 171 kB
    with pytest.raises(UsageError, match=r"many\.parquet has 100,000,001 values in .* expected 100,000,000 at most"):
        read(path)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES = st.recursive(LEAVES, lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=9), some))
HOLDERS = st.dictionaries(st.sampled_from(["pid", "cmd", "more"]), LEAVES)
KEYS = st.sampled_from(["write", "read", "schema", "plugins", "code", "deployments"])
HELD = st.dictionaries(st.text(max_size=5), HOLDERS | st.lists(HOLDERS, max_size=2)) | st.lists(HOLDERS)
ODD = [b"", b"[" * 50_000, b'{"write": ' * 2_000, b"\xff\xfe{\0", b"a: &a [*a]", b"? " * 30, b"? " * 3_000]
ANY_BYTES = st.one_of(
    st.binary(max_size=200),
    (VALUES | st.dictionaries(KEYS, VALUES | HELD)).map(lambda value: json.dumps(value).encode()),
    st.sampled_from(ODD),
)


@settings(max_examples=scaled(30))
@given(data=ANY_BYTES)
def test_any_bytes_as_the_locks_of_dvc_and_as_other_files_of_a_workspace(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        path = Path("rwlock")
        path.write_bytes(data)
        _heal_rwlock(path)
        assert not path.exists() or _Locks.model_validate_json(path.read_bytes())
        assert _heal_rwlock(path) == []
        Path(RECORD).write_bytes(data)
        assert isinstance(read_record(Path()), dict)
        Path("prefect.yaml").write_bytes(data)
        with contextlib.suppress(UsageError):
            read_entries()
