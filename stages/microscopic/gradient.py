"""The smallest noise along the model's gradient that makes an item fail, for comparison with steps of concepts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.explorers.search import ShowProgress
from stages.params import GradientConfig
from stages.tasks.base import LoadedTask


def smallest_noise(
    task: LoadedTask, item_ids: Sequence[str], passing: np.ndarray, config: GradientConfig, show: ShowProgress
) -> dict[str, np.ndarray]:
    """Find by bisection the smallest epsilon of the list at which each attack makes each item fail.

    It assumes that an attack that succeeds also succeeds with more noise. The failure it returns is real in any case,
    but one with less noise may be missed.

    Args:
        task: the model under test, which offers `attacked`.
        item_ids: n items.
        passing: (n,) bool, which of them pass unchanged; the others need no noise, and get 0.
        config: attacks and epsilons.
        show: displays the progress.

    Returns:
        {attack: (n,) float64 epsilons, inf if no epsilon of the list is enough}.
    """
    epsilons = np.array(config.epsilons)
    found: dict[str, np.ndarray] = {}
    for attack in config.attacks:
        low, high = np.zeros(len(item_ids), dtype=np.int64), np.where(passing, len(epsilons), 0)
        with show(f"noise along the gradient ({attack})", len(item_ids)) as tell:
            while (left := np.flatnonzero(low < high)).size:
                middle = (low[left] + high[left]) // 2
                for at in np.unique(middle):
                    items = left[middle == at]
                    failed = task.attacked([item_ids[i] for i in items], attack, float(epsilons[at]), config.steps)
                    high[items[failed]], low[items[~failed]] = at, at + 1
                tell(int((low == high).sum()), "")
        found[attack] = np.where(passing, np.append(epsilons, np.inf)[high], 0.0)
    return found
