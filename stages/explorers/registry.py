"""All explorers by the name they have in params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stages import plugins
from stages.errors import UsageError, did_you_mean
from stages.explorers.agents import A2CExplorer, DQNExplorer, PPOExplorer, QRDQNExplorer, TRPOExplorer
from stages.explorers.auto import Auto
from stages.explorers.bandits import UCB, Thompson
from stages.explorers.baselines import (
    EpsilonGreedy,
    Exhaustive,
    LatinHypercube,
    Random,
    Sobol,
    ThresholdSearch,
)
from stages.explorers.bayesian import Bayesian
from stages.explorers.contract import Explorer
from stages.explorers.model_based import LocalSearch, ModelBased, Pool
from stages.explorers.quality_diversity import MapElites
from stages.params import validation_lines

EXPLORERS: dict[str, Any] = {
    cls.name: cls
    for cls in (
        Auto,
        ModelBased,
        LocalSearch,
        Pool,
        PPOExplorer,
        A2CExplorer,
        TRPOExplorer,
        DQNExplorer,
        QRDQNExplorer,
        Thompson,
        UCB,
        Bayesian,
        MapElites,
        EpsilonGreedy,
        ThresholdSearch,
        Sobol,
        LatinHypercube,
        Random,
        Exhaustive,
    )
}


def make_explorer(name: str, settings: Mapping[str, Any]) -> Explorer:
    """Build an explorer by name.

    Raises:
        UsageError: for an unknown name or setting, naming the known ones.
    """
    cls = _find(name)
    try:
        explorer: Explorer = cls(cls.Settings.model_validate(dict(settings)))
    except ValidationError as error:
        raise UsageError("; ".join(validation_lines(error, cls.Settings, "discover.settings"))) from None
    return explorer


def _find(name: str) -> Any:
    if name in EXPLORERS:
        return EXPLORERS[name]
    others = plugins.load(plugins.EXPLORERS)
    if name not in others:
        known = [*EXPLORERS, *others]
        raise UsageError(
            f"discover.explorer: no explorer {name!r}, found: {', '.join(known)}{did_you_mean(name, known)}"
        )
    cls = plugins.imported(others[name])
    lacking = [what for what in ("name", "Settings", "explore") if not hasattr(cls, what)]
    if lacking:
        raise UsageError(
            f"discover.explorer: {name} ({others[name].value}) is no explorer, it lacks {', '.join(lacking)};"
            " see stages/explorers/contract.py"
        )
    return cls
