"""Large matrix products by oneDNN: the same bytes on every x86-64 CPU with AVX2, as fast as what torch would choose.

Torch has MKL for them, which gives the same bytes on all these CPUs only with code that is three times as slow
(`stages.core.environment.ALIKE`). Convolutions are oneDNN's anyway.
"""

import warnings
from functools import cache

import torch
from torch import Tensor

from stages.core.environment import is_alike

# Numbers in the second factor, a layer's weights; smaller products gain nothing. Not in both factors: the sums of a row
# must not depend on how many others there are.
LARGE = 1 << 14


def start_torch(threads: int) -> None:
    """Let torch compute in this process with so many threads, and the same on every CPU if `is_alike`."""
    torch.set_num_threads(threads)
    if is_alike():
        _replace_products()


@cache
def _replace_products() -> torch.library.Library:
    """Replace torch's products of float32 matrices on the CPU, also in gradients, until this process ends."""
    replaced = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # that something is replaced
        replaced.impl("mm", _mm, "CPU")
        replaced.impl("addmm", _addmm, "CPU")
    return replaced


def _mm(a: Tensor, b: Tensor) -> Tensor:
    if _is_large(a, b):
        return _by_onednn(a, b, None)
    return torch.mm(a, b, out=a.new_empty(0))  # which is another operator, and not replaced


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if _is_large(a, b) and bias.shape == b.shape[1:] and bias.dtype == a.dtype and beta == alpha == 1:
        return _by_onednn(a, b, bias)
    return torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))


def _is_large(a: Tensor, b: Tensor) -> bool:
    if not (a.dtype == b.dtype == torch.float32 and a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]):
        return False
    return b.numel() >= LARGE


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return product
