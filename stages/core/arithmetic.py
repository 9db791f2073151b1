"""Let torch compute the same bytes on every x86-64 CPU with AVX2, as fast as it can there.

Torch has MKL for products of matrices and for square roots. Its products are the same on all these CPUs only with code
that is three times as slow (`stages.core.environment.ALIKE`), and its roots are not. So large products are oneDNN's, as
convolutions are anyway, and roots NumPy's.
"""

import warnings
from functools import cache

import numpy as np
import torch
from torch import Tensor

from stages.core.environment import is_alike

# Numbers in the second factor, a layer's weights; smaller products gain nothing. Not in both factors: the sums of a row
# must not depend on how many others there are.
LARGE = 1 << 14


def compute_alike() -> None:
    """Let torch compute alike from now on in this process, unless the environment says otherwise (`is_alike`).

    Networks that consist of products need it: transformers. To others it makes no difference worth a call.
    """
    if is_alike():
        _replace_operators()


@cache
def _replace_operators() -> torch.library.Library:
    """Replace operators of torch on the CPU, also in gradients, until this process ends.

    Where ours have nothing to gain, they call the variant with `out`, which is another operator and not replaced.
    """
    replaced = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # that something is replaced
        replaced.impl("mm", _mm, "CPU")
        replaced.impl("addmm", _addmm, "CPU")
        replaced.impl("sqrt", _sqrt, "CPU")
        replaced.impl("pow.Tensor_Scalar", _pow, "CPU")
    return replaced


def _mm(a: Tensor, b: Tensor) -> Tensor:
    return _product(a, b, None) if _is_large(a, b) else torch.mm(a, b, out=a.new_empty(0))


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if _is_large(a, b) and bias.shape == b.shape[1:] and bias.dtype == a.dtype and beta == alpha == 1:
        return _product(a, b, bias)
    return torch.addmm(bias, a, b, beta=beta, alpha=alpha, out=a.new_empty(0))


def _is_large(a: Tensor, b: Tensor) -> bool:
    fit = a.dtype == b.dtype == torch.float32 and a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]
    return fit and b.numel() >= LARGE


def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return product


def _sqrt(x: Tensor) -> Tensor:
    if x.dtype in (torch.float32, torch.float64):
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))
    kind = x.dtype if x.is_floating_point() or x.is_complex() else torch.get_default_dtype()
    return torch.sqrt(x, out=x.new_empty(0, dtype=kind))


def _pow(x: Tensor, exponent: complex) -> Tensor:
    if exponent == 0.5:
        return _sqrt(x)
    return torch.pow(x, exponent, out=x.new_empty(0, dtype=torch.result_type(x, exponent)))
