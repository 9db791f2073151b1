"""`python -m benchmarks.gpu`: it reports a missing GPU, and finds where memory ends."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from stages.core.errors import UsageError


def test_without_a_gpu_it_says_so_and_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "this machine has no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("error", [UsageError("cuda does not have enough memory for that"), torch.OutOfMemoryError()])
def test_the_batch_doubles_until_memory_ends(error):
    def answer(size: int) -> gpu.Tried:
        if size > 100:
            raise error
        return gpu.Tried(size, 1000.0 * size, 0)

    assert [tried.size for tried in gpu.doubled(answer)] == [8, 16, 32, 64]


def test_the_batch_stops_doubling_at_the_limit_or_where_it_takes_too_long():
    assert [tried.size for tried in gpu.doubled(lambda size: gpu.Tried(size, 1000.0, 0), most=40)] == [8, 16, 32]
    assert [tried.size for tried in gpu.doubled(lambda size: gpu.Tried(size, 0.25, 0))] == [8, 16]


def test_a_first_batch_that_does_not_fit_is_an_error():
    def answer(size: int) -> gpu.Tried:
        raise UsageError(f"no memory for {size}")

    with pytest.raises(UsageError, match="no memory for 8"):
        gpu.doubled(answer)
