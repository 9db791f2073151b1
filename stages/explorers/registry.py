"""All explorers by their names in params.yaml."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from stages.core import plugins
from stages.core.errors import UsageError, did_you_mean
from stages.explorers.contract import Explorer
from stages.params import checked

# Each is imported when needed, so that an audit depends only on the code of its own explorer.
EXPLORERS = {
    "auto": "stages.explorers.model_based:Auto",
    "model_based": "stages.explorers.model_based:ModelBased",
    "local_search": "stages.explorers.model_based:LocalSearch",
    "pool": "stages.explorers.model_based:CandidatePool",
    "ppo": "stages.explorers.agents:PPOExplorer",
    "a2c": "stages.explorers.agents:A2CExplorer",
    "trpo": "stages.explorers.agents:TRPOExplorer",
    "dqn": "stages.explorers.agents:DQNExplorer",
    "qrdqn": "stages.explorers.agents:QRDQNExplorer",
    "thompson": "stages.explorers.bandits:Thompson",
    "ucb": "stages.explorers.bandits:UCB",
    "bayesian": "stages.explorers.bayesian:Bayesian",
    "map_elites": "stages.explorers.quality_diversity:MapElites",
    "epsilon_greedy": "stages.explorers.baselines:EpsilonGreedy",
    "threshold_search": "stages.explorers.baselines:ThresholdSearch",
    "sobol": "stages.explorers.baselines:Sobol",
    "latin_hypercube": "stages.explorers.baselines:LatinHypercube",
    "random": "stages.explorers.baselines:Random",
    "exhaustive": "stages.explorers.baselines:Exhaustive",
}


def make_explorer(name: str, settings: Mapping[str, Any]) -> Explorer:
    """Build an explorer by name.

    Raises:
        UsageError: for an unknown name or setting, with the known ones.
    """
    cls = explorer_class(name)
    explorer: Explorer = cls(checked(cls.Settings, settings, "discover.settings"))
    return explorer


def explorer_class(name: str) -> Any:
    """Return the class of an explorer.

    Raises:
        UsageError: for an unknown name, or a plugin that is not an explorer.
    """
    if name in EXPLORERS:
        module, _, cls = EXPLORERS[name].partition(":")
        return getattr(importlib.import_module(module), cls)
    others = plugins.entry_points_of(plugins.EXPLORERS)
    if name not in others:
        known = [*EXPLORERS, *others]
        raise UsageError(
            f"discover.explorer: no explorer {name!r}, found: {', '.join(known)}{did_you_mean(name, known)}"
        )
    cls = plugins.imported(others[name])
    lacking = [what for what in ("name", "Settings", "explore") if not hasattr(cls, what)]
    if lacking:
        raise UsageError(
            f"discover.explorer: {name} ({others[name].value}) is not a valid explorer, it lacks {', '.join(lacking)};"
            " see stages/explorers/contract.py"
        )
    return cls
