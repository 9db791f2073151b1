"""A chat model whose weights ship in parts in several packages."""

import hashlib
from struct import pack

import numpy as np
import pytest

pytest.importorskip("transformers")

from stages.core.errors import UsageError
from stages.tasks.chat import Chat
from stages.tasks.language import models
from stages.tasks.language.chats import generation_of
from stages.tasks.language.models import PackagesModel
from stages.tasks.sources import source_errors

WHOLE = pack("<4sIQQ", b"GGUF", 3, 0, 1) + pack("<Q20sIQ5s", 20, b"general.architecture", 8, 5, b"llama")
LOADERS = Chat.loaders["model"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The first and last bytes of a GGUF file, each in a package that must not be imported."""
    for name, part in (("weights_a", WHOLE[:30]), ("weights_b", WHOLE[30:])):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
        (tmp_path / name / "data" / "part.bin").write_bytes(part)
    monkeypatch.syspath_prepend(tmp_path)
    hashed = hashlib.sha256(WHOLE).hexdigest()
    return {"packages": ["weights_a", "weights_b"], "files": ["data/part.bin"] * 2, "sha256": hashed}


def build(model, folder):
    PackagesModel.model_validate(model).build(folder, folder / "model", generation_of("", max_new_tokens=8, rows=4))


def test_parts_are_joined_in_order_and_nothing_else_is_left(model, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(models, "_convert", lambda folder, *_: read.append((folder / "model.gguf").read_bytes()))
    assert source_errors(model, LOADERS, "prepare.model", tmp_path) == []
    build(model, tmp_path)
    assert read == [WHOLE] and not list(tmp_path.rglob("*.gguf"))
    assert "weights_a, weights_b" in PackagesModel.model_validate(model).origin(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"packages": ["weights_b", "weights_a"]}, {"sha256": "0" * 64}], ids=["order", "hash"]
)
def test_other_bytes_than_those_named_are_refused(model, tmp_path, changes):
    with pytest.raises(UsageError, match=r"^prepare.model.sha256: expected \w{64}, but the joined parts have \w{64}$"):
        build({**model, **changes}, tmp_path)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": ["data/part.bin"]}, "expected a file for each of 2 packages, found 1"),
        ({"files": ["data/part.bin", "../part.bin"]}, "leads out of the package weights_b"),
        ({"packages": ["weights_a", "weights_c"]}, "package weights_c is not installed"),
        ({"sha256": "ABC"}, "sha256"),
        ({"package": "weights_a"}, "expected exactly one of the keys"),
    ],
)
def test_what_cannot_be_joined_is_told_before_anything_runs(model, tmp_path, changes, said):
    assert any(said in error for error in source_errors({**model, **changes}, LOADERS, "prepare.model", tmp_path))


def test_types_that_transformers_does_not_know_become_float32_and_all_else_stays(tmp_path):
    gguf = pytest.importorskip("gguf")
    path, rng = tmp_path / "m.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "ß"])
    writer.add_uint32("llama.block_count", 2)
    kinds = [gguf.GGMLQuantizationType[name] for name in ("Q5_0", "Q8_0", "F32", "Q5_1")]
    for kind in kinds:
        writer.add_tensor(kind.name, gguf.quantize(rng.random((2, 64), dtype=np.float32), kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    before = gguf.GGUFReader(path)
    wanted = {one.name: gguf.dequantize(one.data, one.tensor_type) for one in before.tensors}
    models._write_known_types(path)
    after = gguf.GGUFReader(path)
    assert [one.tensor_type.name for one in after.tensors] == ["F32", "Q8_0", "F32", "F32"]
    for one in after.tensors:
        assert np.array_equal(gguf.dequantize(one.data, one.tensor_type), wanted[one.name])
    fields = [name for name in before.fields if not name.startswith("GGUF.")]
    assert [after.fields[name].contents() for name in fields] == [before.fields[name].contents() for name in fields]
    assert list(tmp_path.iterdir()) == [path]
