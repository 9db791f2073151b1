"""What a task says of `compute:` where that leaves it no choice."""

from __future__ import annotations

from stages.tasks.contract import Compute


def no_choice(compute: Compute, dtype_at: str) -> list[str]:
    """Refuse what a task would have to ignore, and record with its results all the same.

    Args:
        compute: what is asked for.
        dtype_at: where in params.yaml such a model is told what to compute with.
    """
    errors = []
    if compute.backend != "eager":
        errors.append(f"compute.backend: {compute.backend} is only for classifiers; this task runs in torch: use eager")
    if compute.dtype != "float32":
        errors.append(
            f"compute.dtype: the dtype of this task is set by {dtype_at}; found {compute.dtype} here, remove it"
        )
    return errors
