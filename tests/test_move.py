"""Weights moved part of the way: those of the model under test at one end, those learnt at the other.

Whole models of each kind are moved where they are repaired: test_classification.py, test_summarization_repair.py,
test_text_to_image_repair.py.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.core.errors import UsageError
from stages.tasks.training import interpolate, scale_adapter
from tests.weights import same


@pytest.fixture
def trained(tmp_path):
    """Original tensors, and a folder of trained ones with another file."""
    draw = torch.Generator().manual_seed(0)
    original, learnt = (
        {
            "weight": torch.randn(3, 4, generator=draw),
            "half": torch.randn(5, generator=draw).to(torch.float16),
            "seen": torch.tensor(seen),
        }
        for seen in (7, 9)
    )
    original["weight"][0, 0], learnt["weight"][0, 0] = -0.0, 1e30  # a sum would lose the one beside the other
    (tmp_path / "learnt").mkdir()
    save_file(learnt, tmp_path / "learnt" / "model.safetensors", metadata={"format": "pt", "about": "x"})
    (tmp_path / "learnt" / "faded.json").write_text("{}")
    return original, learnt, tmp_path / "learnt"


def test_weights_are_exact_at_both_ends_and_between_them_elsewhere(trained, tmp_path):
    original, learnt, folder = trained
    found = {}
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        interpolate(folder, share, tmp_path / str(share), original)
        found[share] = load_file(tmp_path / str(share) / "model.safetensors")
        assert (tmp_path / str(share) / "faded.json").read_text() == "{}"
    assert same(found[0.0], original)
    assert (tmp_path / "1.0" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    written = set()
    for n in range(8):  # the library writes the file's metadata in random order
        interpolate(folder, 0.3, tmp_path / str(n), original)
        written.add((tmp_path / str(n) / "model.safetensors").read_bytes())
    assert len(written) == 1
    for share in (0.1, 0.5, 0.9):
        assert found[share]["seen"] == 9, "a whole number has no share"
        assert found[share]["half"].dtype == torch.float16
        for name, rough in (("weight", 1e-6), ("half", 1e-3)):
            wanted = (1 - share) * original[name].double() + share * learnt[name].double()
            assert torch.allclose(found[share][name].double(), wanted, rtol=rough, atol=rough)


def test_of_an_adapter_one_factor_is_scaled(tmp_path):
    with pytest.raises(UsageError, match="has no weights to move"):
        scale_adapter(tmp_path, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "adapter").mkdir()
    learnt = {f"layer.{factor}.weight": torch.ones(2, 2) for factor in ("lora_A", "lora_B")}
    save_file(learnt, tmp_path / "adapter" / "adapter_model.safetensors")
    scale_adapter(tmp_path / "adapter", 0.25, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    values = {name: tensor.unique().tolist() for name, tensor in found.items()}
    assert values == {"layer.lora_A.weight": [1.0], "layer.lora_B.weight": [0.25]}
