"""Noise along a classifier's gradient, by Foolbox: FGSM (Goodfellow et al. 2015) and PGD (Madry et al. 2018)."""

from importlib.util import find_spec
from typing import Any

from torch import Tensor

from stages.core.errors import UsageError
from stages.tasks.classification.models import Classifier, seeded

TRAVEL = 2.5  # total length of pgd's steps, in epsilons; all corners can be reached from a random start (Madry et al.)
MISSING = "Foolbox or the eagerpy it needs is not installed: pip install 'faded[gradient]'"


def has_foolbox() -> bool:
    """Whether Foolbox can be used for attacks; audits that only use data files from it need no eagerpy."""
    return all(find_spec(package) is not None for package in ("foolbox", "eagerpy"))


def noisy(
    model: Classifier, pixels: Tensor, targets: Tensor, attack: str, epsilon: float, steps: int, seed: int
) -> Tensor:
    """Return pictures perturbed by an attack, whether or not the model then fails.

    Raises a UsageError if Foolbox is not installed.

    Args:
        model: the torch model, whatever backend runs it otherwise.
        pixels: (n, c, h, w) float32 in [0, 1].
        targets: (n,) true classes.
        attack: "fgsm": one step along the sign of the gradient; "pgd": many projected steps from a random start.
        epsilon: maximum change of each pixel.
        steps: steps of pgd.

    Returns:
        (n, c, h, w) in [0, 1].
    """
    if not has_foolbox():
        raise UsageError(f"discover.microscopic.gradient: {MISSING}")
    import foolbox

    box: Any = foolbox  # its type hints allow less than its documentation
    chosen = (
        box.attacks.LinfFastGradientAttack()
        if attack == "fgsm"
        else box.attacks.LinfPGD(rel_stepsize=TRAVEL / steps, steps=steps)
    )
    shown = box.PyTorchModel(model.eval(), bounds=(0, 1), device=pixels.device)
    with seeded(seed):
        changed: Tensor = chosen.run(shown, pixels, box.criteria.Misclassification(targets), epsilon=epsilon)
    return changed.detach()
