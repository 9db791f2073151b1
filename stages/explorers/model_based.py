"""Model-based search: real probes teach a surrogate, and what to probe next is worked out inside it.

Three explorers share the surrogate, the acquisition and the loop, and differ only in where candidates come from:
`model_based` from a policy trained with reinforcement learning inside the surrogate, `pool` from uniform draws,
`local_search` from uniform draws and mutations of the best. What the policy has and its rivals lack is that it stays:
an amortised proposer for items never seen.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from stages.explorers.acquisition import Acquisition, Weights
from stages.explorers.candidates import Learnt, Mutations, Source, Uniform
from stages.explorers.contract import Found
from stages.explorers.env import Normaliser
from stages.explorers.prober import Prober
from stages.explorers.proposer import Trainer
from stages.explorers.surrogate import Learner, failure_probability
from stages.kernel import Data
from stages.params import Strict

RANDOM_SHARES = {"landscape": 0.18, "failures": 0.08}
MAX_GROWN = 800  # probes a batch grows to: a larger one would use up the candidates, of which there are thousands


class SearchSettings(Strict):
    """What model-based search and its rivals share."""

    goal: Literal["landscape", "failures"] = Field("landscape", description="sets the random share where none is given")
    random_share: float | None = Field(
        None, ge=0, le=1, description="share of probes drawn uniformly, which keep the landscape honest"
    )
    first: int = Field(100, ge=2, le=1_000_000, description="probes drawn uniformly before the first fit")
    batch: int = Field(50, ge=1, le=1_000_000, description="probes asked between two fits")
    growth: float = Field(
        0.08, ge=0, le=1, description="a batch is at least this share of the probes so far, up to 800"
    )
    surrogate: Literal["auto", "process", "boosting"] = Field(
        "auto", description="process: Gaussian process; boosting: trees; auto: by the size of the grid"
    )
    optimism: float = Field(0.4, ge=0, description="standard deviations added to the expected margin")
    certainty: float = Field(2.0, gt=0, description="higher asks less where a failure is only likely")
    novelty: float = Field(
        0.35, ge=0, description="how fast a region loses worth with the failures found in it; large grids"
    )
    new_cell: float = Field(0.6, ge=0, description="what a cell without a failure so far is worth more")
    failing_cell: float = Field(
        3.0, ge=0, description="the same again where most items are expected to fail; small grids"
    )

    @property
    def uniform(self) -> float:
        """Share of uniform draws in a batch."""
        return RANDOM_SHARES[self.goal] if self.random_share is None else self.random_share


class RivalSettings(SearchSettings):
    """Pool and local search."""

    candidates: int = Field(3000, ge=1, le=1_000_000, description="pairs ranked for each batch")


class ModelBasedSettings(SearchSettings):
    """The policy and its training."""

    objective: Literal["ppo", "balance"] = Field(
        "ppo", description="ppo: clipped policy gradient; balance: off-policy trajectory balance"
    )
    hidden: int = Field(64, ge=1, le=1_000_000, description="units of the policy's hidden layers, one per concept")
    learning_rate: float = Field(1e-2, gt=0)
    generations: int = Field(
        3, ge=1, le=1_000_000, description="draws of about 1,000 pairs learnt from after every fit"
    )
    entropy: float = Field(0.6, gt=0, lt=1, description="entropy held while searching, as a share of the uniform")
    final_generations: int = Field(60, ge=1, le=1_000_000, description="draws learnt from for the policy that is kept")
    final_entropy: float = Field(0.4, gt=0, lt=1, description="entropy of the policy that is kept")


class _SurrogateSearch:
    """The loop: fit, propose, rank, ask. A longer search begins with the shorter one, but for its last batch."""

    name: str
    Settings: type[SearchSettings]

    def __init__(self, settings: SearchSettings | None = None) -> None:
        self.settings = settings if settings is not None else self.Settings()

    def explore(self, prober: Prober, seed: int) -> Found:
        """Spend the prober's budget."""
        raise NotImplementedError

    def _search(
        self, prober: Prober, source: Source, rng: np.random.Generator, seed: int
    ) -> tuple[Learner, Data, dict[str, Any]]:
        """Spend the budget on candidates of the source.

        Returns:
            What fits surrogates, all probes, and numbers for the metrics.
        """
        s, space, n_items = self.settings, prober.space, len(prober.item_ids)
        embeddings = prober.task.embed(prober.item_ids)
        weights = Weights(s.optimism, s.certainty, s.novelty, s.new_cell, s.failing_cell)
        book, fits = _Book(prober, rng), 0
        with threadpool_limits(1):  # trees and small matrices: a second thread only waits, and sums differ by it
            learner = Learner(space, embeddings, s.surrogate)
            book.draw(min(s.first, prober.left))
            while prober.left > 0:
                grown = min(int(s.growth * prober.spent), MAX_GROWN)
                size = min(max(s.batch, grown), prober.left)
                picks = size - round(s.uniform * size)
                worth = Acquisition(learner.fit(book.data, seed + fits), book.data, space, n_items, weights, seed)
                pairs, fits = source.propose(worth), fits + 1
                chosen = worth.batch(*pairs, picks)
                book.ask(pairs.items[chosen], pairs.cells[chosen])
                book.draw(size - len(chosen))  # more than its share where the candidates held too little new
        return learner, book.data, {"surrogate": learner.kind, "fits": fits, "random_probes": book.drawn}


class _Rival(_SurrogateSearch):
    """Candidates from a source that learns nothing of its own."""

    Settings = RivalSettings
    settings: RivalSettings
    source: ClassVar[type[Uniform] | type[Mutations]]

    def explore(self, prober: Prober, seed: int) -> Found:
        """Spend the prober's budget."""
        rng = np.random.default_rng(seed)
        source = self.source(prober.space, len(prober.item_ids), self.settings.candidates, rng)
        return Found(None, self._search(prober, source, rng, seed)[2])


class Pool(_Rival):
    """Candidates drawn uniformly."""

    name = "pool"
    source = Uniform


class LocalSearch(_Rival):
    """Candidates drawn uniformly and mutations of the best of them."""

    name = "local_search"
    source = Mutations


class ModelBased(_SurrogateSearch):
    """Candidates drawn from a policy trained inside the surrogate; it stays, as a proposer for items never seen."""

    name = "model_based"
    Settings = ModelBasedSettings
    settings: ModelBasedSettings

    def explore(self, prober: Prober, seed: int) -> Found:
        """Spend the prober's budget, then train the policy that is kept."""
        s, embeddings = self.settings, prober.task.embed(prober.item_ids)
        normaliser = Normaliser.fit(embeddings)

        def trainer() -> Trainer:
            return Trainer(prober.space, normaliser(embeddings), s.hidden, s.learning_rate, s.objective, seed)

        searching = trainer()
        source = Learnt(searching, s.generations, s.entropy)
        learner, data, details = self._search(prober, source, np.random.default_rng(seed), seed)
        with threadpool_limits(1):
            surrogate = learner.fit(data, seed + details["fits"])
        details["fits"] += 1

        def failing(items: np.ndarray, cells: np.ndarray) -> np.ndarray:
            """Pay for the probability of failure alone, whatever was found before."""
            return failure_probability(surrogate, surrogate.believe(items, cells))

        kept = trainer()  # a new one: what the first learnt while little was known would stay in its favourites
        with threadpool_limits(1):
            kept.train(failing, s.final_generations, s.final_entropy)
        details |= {"gradient_updates": searching.updates + kept.updates, "policy_entropy": kept.entropy}
        return Found(kept.policy(normaliser), details)


class _Book:
    """The probes so far, as arrays, and the design that uniform draws come from.

    Draws are uniform one by one, and together more even than independent ones would be: items come in permutations,
    cells from a scrambled Halton sequence (Owen 2017, A randomized Halton algorithm in R).
    """

    def __init__(self, prober: Prober, rng: np.random.Generator) -> None:
        self._prober, self._rng = prober, rng
        self._halton = qmc.Halton(len(prober.space), scramble=True, rng=rng)
        self._items = np.zeros(0, np.int64)
        cells = np.zeros((0, len(prober.space)), np.int64)
        self.data = Data(np.zeros(0, np.int64), cells, np.zeros(0), np.zeros(0, bool))
        self.drawn = 0

    def ask(self, items: np.ndarray, cells: np.ndarray, *, uniform: bool = False) -> None:
        """Put probes and write down those that are new."""
        answers = self._prober.ask(items, cells, uniform=uniform)
        new = answers.fresh
        if not new.any():
            return
        margin = answers.discrepancy[new].astype(float) - self._prober.task.threshold
        old = self.data
        self.data = Data(
            np.concatenate([old.items, items[new]]),
            np.vstack([old.cells, cells[new]]),
            np.concatenate([old.margin, margin]),
            np.concatenate([old.failed, answers.failed[new]]),
        )

    def draw(self, n: int) -> None:
        """Ask n new probes drawn uniformly; a pair drawn again is answered from memory and another drawn for it."""
        start = len(self.data)
        while (missing := n - (len(self.data) - start)) > 0:
            cells = (self._halton.random(missing) * self._prober.space.sizes).astype(np.int64)
            self.ask(self._next_items(missing), cells, uniform=True)
        self.drawn += n

    def _next_items(self, n: int) -> np.ndarray:
        while len(self._items) < n:
            self._items = np.concatenate([self._items, self._rng.permutation(len(self._prober.item_ids))])
        items, self._items = self._items[:n], self._items[n:]
        return items
