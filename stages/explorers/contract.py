"""Explorers, which spend a prober's budget: their contract, their names in params.yaml, and the ask-and-tell loop.

The loop is that of all explorers that learn from batch to batch without a network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from stages.core import plugins
from stages.core.errors import UsageError, did_you_mean
from stages.explorers.prober import Prober
from stages.params import Strict, checked

if TYPE_CHECKING:
    from stages.explorers.policy import Policy


S = TypeVar("S", bound=Strict)


@dataclass(frozen=True)
class ExplorerResult:
    """The results of an explorer besides its probes, which are in the prober.

    Args:
        policy: the policy it learnt, or None if it learns none.
        details: numbers for the metrics, for example gradient updates.
    """

    policy: Policy | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Explorer(Protocol):
    """Chooses the next probes in batches, reproducibly by seed, until the prober's budget is spent."""

    name: str

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Spend the prober's budget."""


class NoSettings(Strict):
    """Takes no settings."""


class Configured(Generic[S]):
    """What built-in explorers have in common: a name, and settings that all have defaults."""

    name: str
    Settings: type[S]

    def __init__(self, settings: S | None = None) -> None:
        self.settings = settings if settings is not None else self.Settings()


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
    "thompson": "stages.explorers.rivals:Thompson",
    "ucb": "stages.explorers.rivals:UCB",
    "bayesian": "stages.explorers.rivals:Bayesian",
    "map_elites": "stages.explorers.rivals:MapElites",
    "epsilon_greedy": "stages.explorers.baselines:EpsilonGreedy",
    "threshold_search": "stages.explorers.baselines:ThresholdSearch",
    "sobol": "stages.explorers.baselines:Sobol",
    "latin_hypercube": "stages.explorers.baselines:LatinHypercube",
    "random": "stages.explorers.baselines:Random",
    "exhaustive": "stages.explorers.baselines:Exhaustive",
}


def make_explorer(name: str, settings: Mapping[str, Any]) -> Explorer:
    """Build an explorer by name. Raises a UsageError for an unknown name or setting, with the known ones."""
    cls = explorer_class(name)
    explorer: Explorer = cls(checked(cls.Settings, settings, "discover.settings"))
    return explorer


def explorer_class(name: str) -> Any:
    """Return the class of an explorer. Raises a UsageError for an unknown name, or a plugin that is not an explorer."""
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


class NextProbes(NamedTuple):
    """The next probes.

    Args:
        items: (n,) positions in the prober's `item_ids`.
        cells: (n, d) level indices.
        uniform: which pairs, all or (n,) bool, were drawn evenly, independent of all answers (see `Prober.ask`).
    """

    items: np.ndarray
    cells: np.ndarray
    uniform: bool | np.ndarray = False


class Strategy(Protocol):
    """The part that differs between explorers. It has the state of one search, and proposes batches of any size."""

    def propose(self) -> NextProbes:
        """Propose the next probes."""

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        """Learn from answers.

        Args:
            items: (n,) positions of the items probed, not always those proposed.
            cells: (n, d) their cells.
            margin: (n,) discrepancy minus threshold, above 0 for a failure.
            fresh: (n,) whether the probe was new; others were answered from memory.
        """


class AskTell(Configured[S]):
    """An explorer that runs a strategy.

    The first probes do not depend on the budget, so a long search begins with the probes of a short one. A strategy
    that only repeats itself gets a batch of even draws instead, so that the budget is always spent.
    """

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        """Create the strategy for one search."""
        raise NotImplementedError

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Spend the prober's budget; `filled_at_random` is the part the strategy could not spend."""
        rng = np.random.default_rng(seed)
        strategy = self.start(prober, rng)
        filled = 0
        while prober.left > 0:
            if _ask(prober, strategy, strategy.propose()) == 0:
                filled += _ask(prober, strategy, NextProbes(*evenly(prober, FILL, rng), uniform=True))
        return ExplorerResult(details={"filled_at_random": filled})


FILL = 64  # even draws for a strategy that repeats itself


def _ask(prober: Prober, strategy: Strategy, proposal: NextProbes) -> int:
    """Probe a proposal, let the strategy learn, and count the new probes."""
    items, cells, drawn = proposal
    answers = prober.ask(items, cells, uniform=drawn)
    if prober.left > 0:  # with the last probe the search ends, and some probes may be unanswered
        strategy.learn(items, cells, answers.discrepancy - prober.task.threshold, answers.fresh)
    return int(answers.fresh.sum())


def evenly(prober: Prober, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw n probes with replacement: items (n,), each as likely, and cells (n, d) as a control draws them."""
    return rng.integers(len(prober.item_ids), size=n), prober.space.even.sample(n, rng)


class Turns:
    """Items in turn, in a random order that is drawn again when all had theirs: more even than independent draws.

    Cells that change nothing have a turn of their own, so that all unchanged items are probed before one is repeated.
    """

    def __init__(self, prober: Prober, rng: np.random.Generator) -> None:
        self._prober, self._rng = prober, rng
        self._left = {False: np.zeros(0, np.int64), True: np.zeros(0, np.int64)}

    def __call__(self, cells: np.ndarray) -> np.ndarray:
        """Return the items (n,) whose turn it is, for cells (n, d)."""
        space = self._prober.space
        usage = space.usage
        unchanged = np.zeros(len(cells), bool) if usage is None else usage.number_of_changes(cells) == 0
        items = np.zeros(len(cells), np.int64)
        for which in (False, True):
            rows = np.flatnonzero(unchanged == which)
            while len(self._left[which]) < len(rows):
                order = self._rng.permutation(len(self._prober.item_ids))
                self._left[which] = np.concatenate([self._left[which], order])
            items[rows], self._left[which] = self._left[which][: len(rows)], self._left[which][len(rows) :]
        return items


def embedding_order(prober: Prober) -> np.ndarray:
    """Return item positions (items,) sorted along the first principal component of their embeddings.

    For optimisers that only take numbers: neighbours in this order are as similar as one number can make them.
    """
    embedding = prober.task.embed(prober.item_ids).astype(np.float64)
    centred = embedding - embedding.mean(axis=0)
    with threadpool_limits(1, user_api="blas"):  # the last bits of sums depend on the number of threads
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])  # the sign of a singular vector is arbitrary
    return np.argsort(centred @ axis, kind="stable")
