"""Noise along a classifier's gradient, by Foolbox: FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import Tensor

from stages.errors import UsageError
from stages.tasks.classification.models import Classifier, seeded

TRAVEL = 2.5  # epsilons that the steps of pgd go together: from a random start all corners can be reached (Madry)
MISSING = "Foolbox or the eagerpy it needs is not installed: pip install 'faded[gradient]'"


def has_foolbox() -> bool:
    """Whether Foolbox can be used; the files that some audits take from it need no eagerpy."""
    return all(find_spec(package) is not None for package in ("foolbox", "eagerpy"))


def noisy(
    model: Classifier, pixels: Tensor, targets: Tensor, attack: str, epsilon: float, steps: int, seed: int
) -> Tensor:
    """Pictures as an attack leaves them, whether or not the model then fails.

    Args:
        model: torch's own, whatever else runs it.
        pixels: (n, c, h, w) float32 in [0, 1].
        targets: (n,) true classes.
        attack: "fgsm": one step by the sign of the gradient; "pgd": many, each projected, from a random start.
        epsilon: how much each pixel may change at most.
        steps: of pgd.
        seed: of the random start.

    Returns:
        (n, c, h, w) in [0, 1].

    Raises:
        UsageError: when Foolbox is not installed.
    """
    if not has_foolbox():
        raise UsageError(f"discover.microscopic.gradient: {MISSING}")
    import foolbox

    box: Any = foolbox  # type checkers are told of less than it documents
    chosen = (
        box.attacks.LinfFastGradientAttack()
        if attack == "fgsm"
        else box.attacks.LinfPGD(rel_stepsize=TRAVEL / steps, steps=steps)
    )
    shown = box.PyTorchModel(model.eval(), bounds=(0, 1), device=pixels.device)
    with seeded(seed):
        changed: Tensor = chosen.run(shown, pixels, box.criteria.Misclassification(targets), epsilon=epsilon)
    return changed.detach()
