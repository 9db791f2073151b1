"""Ask and tell: the loop of all explorers that learn from one batch of probes to the next without a network."""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from stages.explorers.contract import Found
from stages.explorers.prober import Prober
from stages.params import Strict

S = TypeVar("S", bound=Strict)


class NoSettings(Strict):
    """Takes no settings."""


class Proposal(NamedTuple):
    """The next probes.

    Args:
        items: (n,) positions in the prober's `item_ids`.
        cells: (n, d) level indices.
        uniform: which pairs, all or (n,) bool, were drawn uniformly whatever was known (see `Prober.ask`).
    """

    items: np.ndarray
    cells: np.ndarray
    uniform: bool | np.ndarray = False


class Strategy(Protocol):
    """What differs between them. It holds the state of one search, and names batches of any size it likes."""

    def propose(self) -> Proposal:
        """Name the next probes."""
        ...

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        """Hear the answers.

        Args:
            items: (n,) what was asked, which is not always what was proposed.
            cells: (n, d) under which cells.
            margin: (n,) discrepancy less threshold, above 0 for a failure.
            fresh: (n,) asked for the first time; the others were answered from memory.
        """
        ...


class AskTell(Generic[S]):
    """An explorer made of a strategy.

    The first probes do not depend on the budget, so that a long search begins with the short one. A strategy that
    only repeats itself is given a batch of uniform draws instead: then the budget is spent all the same.
    """

    name: str
    Settings: type[S]

    def __init__(self, settings: S | None = None) -> None:
        self.settings = settings if settings is not None else self.Settings()

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        """Make the strategy for one search."""
        raise NotImplementedError

    def explore(self, prober: Prober, seed: int) -> Found:
        """Spend the prober's budget; `filled_at_random` tells how much of it the strategy could not."""
        rng = np.random.default_rng(seed)
        strategy = self.start(prober, rng)
        filled = 0
        while prober.left > 0:
            if _ask(prober, strategy, strategy.propose()) == 0:
                filled += _ask(prober, strategy, Proposal(*uniform(prober, FILL, rng), uniform=True))
        return Found(details={"filled_at_random": filled})


FILL = 64  # uniform draws given to a strategy that repeats itself


def _ask(prober: Prober, strategy: Strategy, proposal: Proposal) -> int:
    """Ask, tell, and count what was new."""
    items, cells, drawn = proposal
    answers = prober.ask(items, cells, uniform=drawn)
    if prober.left > 0:  # with the last probe the search is over, and some questions may have no answer
        strategy.learn(items, cells, answers.discrepancy - prober.task.threshold, answers.fresh)
    return int(answers.fresh.sum())


def uniform(prober: Prober, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw n probes uniformly, with replacement: items (n,), cells (n, d)."""
    return rng.integers(len(prober.item_ids), size=n), prober.space.sample(n, rng)


def embedding_order(prober: Prober) -> np.ndarray:
    """Item positions (items,) sorted along the first principal component of their embeddings.

    For optimisers that know numbers only: neighbours in this order are alike as far as one number can say.
    """
    embedding = prober.task.embed(prober.item_ids).astype(np.float64)
    centred = embedding - embedding.mean(axis=0)
    with threadpool_limits(1, user_api="blas"):  # sums depend on the number of threads in their last bits
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])  # the sign of a singular vector is arbitrary
    return np.argsort(centred @ axis, kind="stable")
