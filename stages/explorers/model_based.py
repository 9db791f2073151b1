"""Model-based search: real probes train a surrogate, in which the next probes are chosen.

Several generators name candidates for a batch, among them a policy trained by reinforcement learning inside the
surrogate, and the acquisition ranks them all. The model's answers show whose candidates were worth naming, which
decides how many each may name next. The policy is also kept, as an amortised proposer for new items.

`pool` and `local_search` are the same search with one generator that learns nothing. `auto` is it too, or random draws
if the budget is too small to learn from.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from stages.explorers.baselines import Random
from stages.explorers.candidates import ON_GRID, EvenDraws, Generator, LearntDraws, Portfolio, Trainer
from stages.explorers.contract import Configured, Explorer, ExplorerResult, Turns
from stages.explorers.env import Normaliser
from stages.explorers.kernel import ProbeArrays
from stages.explorers.prober import Prober
from stages.explorers.surrogate import Acquisition, Learner, Weights, commonness, failure_probability
from stages.params import Strict

FEW = 200  # probes from which `auto` learns; half of them are even in any search that learns from its probes
MAX_GROWN = 800  # largest batch: a larger one would use up the candidates, of which there are thousands

Goal = Literal["places", "failures", "landscape"]
GeneratorName = Literal["policy", "archive", "mutations", "uniform", "ascent"]


class Aims(NamedTuple):
    """The defaults that a goal determines.

    Args:
        early, late: share of a batch drawn evenly, in the first batch and, as a minimum, later.
        novelty: how fast regions and items lose worth with their failures, on large grids.
    """

    early: float
    late: float
    novelty: float


# Rates are calibrated on the control's probes and on the first ones, all drawn evenly. The few drawn later cover pairs
# that the surrogate would otherwise never see because it expects them to pass.
GOALS: dict[Goal, Aims] = {
    "places": Aims(0.10, 0.04, 0.35),
    "failures": Aims(0.0, 0.0, 0.1),
    "landscape": Aims(0.5, 0.5, 0.35),
}


class ModelBasedSettings(Strict):
    """Settings of the search, the policy and its training."""

    goal: Goal = Field(
        "places",
        description="places: failures in many places; failures: as many as possible; landscape: half of the probes"
        " drawn evenly, for the rates",
    )
    generators: list[GeneratorName] = Field(
        ["policy", "archive", "mutations", "uniform"], min_length=1, description="what names candidates"
    )
    candidates: int = Field(3000, ge=1, le=1_000_000, description="pairs ranked for each batch")
    random_share: float | None = Field(
        None, ge=0, le=1, description="share of probes drawn evenly after the first ones; by default the goal's"
    )
    first: int = Field(100, ge=2, le=1_000_000, description="probes drawn evenly before the first fit")
    batch: int = Field(50, ge=1, le=1_000_000, description="probes asked between two fits")
    growth: float = Field(
        0.15, ge=0, le=1, description="a batch is at least this share of the probes so far, up to 800"
    )
    surrogate: Literal["auto", "process", "boosting"] = Field(
        "auto", description="process: Gaussian process; boosting: trees; auto: by the size of the grid"
    )
    optimism: float = Field(0.4, ge=0, description="standard deviations added to the expected margin")
    certainty: float = Field(2.0, gt=0, description="higher asks less where a failure is only likely")
    novelty: float | None = Field(
        None,
        ge=0,
        description="how fast a region, and an item, loses worth with its failures, on large grids; by default the"
        " goal's",
    )
    new_cell: float = Field(0.6, ge=0, description="what a cell without a failure so far is worth more")
    failing_cell: float = Field(
        3.0, ge=0, description="the same again where most items are expected to fail; small grids"
    )
    common: float = Field(
        0.5, ge=0, le=1, description="how much common changes are preferred: 1 by their share of use, 0 not at all"
    )
    severity: float = Field(
        0.0, ge=0, description="how much grave failures are preferred, by how far they are beyond the threshold"
    )
    objective: Literal["ppo", "balance"] = Field(
        "ppo", description="ppo: clipped policy gradient; balance: off-policy trajectory balance"
    )
    hidden: int = Field(64, ge=1, le=1_000_000, description="units of the policy's hidden layers, one per concept")
    learning_rate: float = Field(1e-2, gt=0)
    entropy: float = Field(0.6, gt=0, lt=1, description="entropy held while searching, as a share of the uniform")
    final_generations: int = Field(
        20, ge=1, le=1_000_000, description="draws of about 1,000 pairs learnt from for the policy that is kept"
    )
    final_entropy: float = Field(0.4, gt=0, lt=1, description="entropy of the policy that is kept")

    @field_validator("generators")
    @classmethod
    def _each_once(cls, names: list[GeneratorName]) -> list[GeneratorName]:
        if len(set(names)) < len(names):
            raise ValueError(f"expected each generator once, found {', '.join(names)}")
        return names

    def uniform(self, spent: int) -> float:
        """Share of the next batch to draw evenly, which falls with the root of the number of probes so far."""
        if self.random_share is not None:
            return self.random_share
        aims = GOALS[self.goal]
        return max(aims.late, aims.early * (self.first / max(spent, self.first)) ** 0.5)

    @property
    def weights(self) -> Weights:
        """The preferences of the acquisition."""
        novelty = GOALS[self.goal].novelty if self.novelty is None else self.novelty
        return Weights(
            self.optimism, self.certainty, novelty, self.new_cell, self.failing_cell, self.common, self.severity
        )


class ModelBased(Configured[ModelBasedSettings]):
    """Lets generators of candidates compete inside one surrogate; a policy among them is kept as a proposer.

    A longer search begins with the probes of the shorter one, except for its last batch.
    """

    name, Settings = "model_based", ModelBasedSettings

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Spend the prober's budget, then train the policy to keep."""
        s, embeddings = self.settings, prober.task.embed(prober.item_ids)
        normaliser = Normaliser.fit(embeddings)

        def trainer() -> Trainer:
            return Trainer(prober.space, normaliser(embeddings), s.hidden, s.learning_rate, s.objective, seed)

        searching = trainer() if "policy" in s.generators else None
        with threadpool_limits(1):  # trees and small matrices: a second thread only waits and changes sums
            learner = Learner(prober.space, embeddings, s.surrogate)
            data, details = self._search(prober, learner, searching, seed)
            if searching is None:
                return ExplorerResult(None, details)
            surrogate = Learner(prober.space, embeddings, s.surrogate).fit(capped(data), seed + details["fits"])
            details["fits"] += 1

            def failing(items: np.ndarray, cells: np.ndarray) -> np.ndarray:
                """Score by the probability of failure and how common it is, regardless of failures found before."""
                return failure_probability(surrogate, surrogate.believe(items, cells)) * commonness(
                    prober.space, cells, s.common
                )

            kept = trainer()  # a new one: the first would keep favourites from when little was known
            kept.train(failing, s.final_generations, s.final_entropy)
        details |= {"gradient_updates": searching.updates + kept.updates, "policy_entropy": kept.entropy}
        return ExplorerResult(kept.policy(normaliser), details)

    def _search(
        self, prober: Prober, learner: Learner, trainer: Trainer | None, seed: int
    ) -> tuple[ProbeArrays, dict[str, Any]]:
        """Spend the budget: fit, propose, rank, probe, credit.

        Returns:
            All probes, and numbers for the metrics.
        """
        s, space, n_items = self.settings, prober.space, len(prober.item_ids)
        rng = np.random.default_rng(seed)
        grid = EvenDraws(space, n_items, rng)
        book, fits = _Book(prober, rng), 0
        portfolio = Portfolio({name: self._generator(name, grid, trainer) for name in s.generators}, s.candidates, rng)
        book.draw(min(s.first, prober.left))
        while prober.left > 0:
            grown = min(int(s.growth * prober.spent), MAX_GROWN)
            size = min(max(s.batch, grown), prober.left)
            picks = size - round(s.uniform(prober.spent) * size)
            worth = Acquisition(learner.fit(book.data, seed + fits), book.data, space, n_items, s.weights, seed)
            (pairs, by), fits = portfolio.propose(worth), fits + 1
            chosen = worth.batch(*pairs, picks)
            items, cells = pairs.items[chosen], pairs.cells[chosen]
            failed = book.ask(items, cells)
            reward = np.ones(len(chosen)) if s.goal == "failures" else worth.rarity(cells)
            portfolio.credit(by[chosen], failed, reward)
            book.draw(size - len(chosen))  # more than their share if the candidates contained too few new pairs
        told = {"surrogate": learner.kind, "fits": fits, "random_probes": book.drawn, "generators": portfolio.told()}
        return book.data, told

    def _generator(self, name: GeneratorName, grid: EvenDraws, trainer: Trainer | None) -> Generator:
        if name == "policy":
            assert trainer is not None
            return LearntDraws(trainer, self.settings.entropy)
        return ON_GRID[name](grid)


class _RivalSettings(ModelBasedSettings):
    """The settings with which the rivals were measured: a constant share of even draws, and smaller batches."""

    random_share: float | None = Field(
        0.18, ge=0, le=1, description="share of probes drawn evenly after the first ones"
    )
    growth: float = Field(
        0.08, ge=0, le=1, description="a batch is at least this share of the probes so far, up to 800"
    )


class PoolSettings(_RivalSettings):
    """Settings of model_based, with even draws as candidates."""

    generators: list[GeneratorName] = Field(["uniform"], min_length=1, description="what names candidates")


class LocalSearchSettings(_RivalSettings):
    """Settings of model_based, with mutations of the best even draws as candidates."""

    generators: list[GeneratorName] = Field(["ascent"], min_length=1, description="what names candidates")


class CandidatePool(ModelBased):
    """Candidates drawn evenly."""

    name, Settings = "pool", PoolSettings


class LocalSearch(ModelBased):
    """Candidates drawn evenly and mutations of the best of them."""

    name, Settings = "local_search", LocalSearchSettings


class ExplorerChoice(NamedTuple):
    """The name of an explorer, and why it was chosen."""

    explorer: str
    why: str


class AutoSettings(Strict):
    """The goal of the search; everything else is chosen."""

    goal: Goal = Field(
        "places",
        description="places: failures in many places; failures: as many as possible; landscape: half of the probes"
        " drawn evenly, for the rates",
    )


def choose_explorer(budget: int) -> ExplorerChoice:
    """Choose an explorer for a number of unique probes, on any grid."""
    if budget < FEW:
        return ExplorerChoice(Random.name, f"{budget:,} probes are too few to learn from")
    return ExplorerChoice(ModelBased.name, f"{budget:,} probes are enough to learn where failures lie")


class Auto(Configured[AutoSettings]):
    """Chooses an explorer by `choose_explorer` and runs it.

    Args:
        budget: unique probes to choose by; by default the prober's. Shares of one search use that of the whole search.
    """

    name, Settings = "auto", AutoSettings

    def __init__(self, settings: AutoSettings | None = None, budget: int | None = None) -> None:
        super().__init__(settings)
        self.budget = budget

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Let the chosen explorer spend the budget; `details` contains its name and the reason."""
        choice = choose_explorer(self.budget or prober.budget)
        learns = choice.explorer == ModelBased.name
        explorer: Explorer = ModelBased(ModelBasedSettings(goal=self.settings.goal)) if learns else Random()
        found = explorer.explore(prober, seed)
        return ExplorerResult(found.policy, {"chosen": choice.explorer, "why": choice.why, **found.details})


def capped(data: ProbeArrays) -> ProbeArrays:
    """Cap margins at the median of the failures'.

    A search is for failures, however clear, and its probes contain many clear failures and few passes. A model of the
    uncapped margins would mainly fit the differences between clear failures.
    """
    if not data.failed.any():
        return data
    return replace(data, margin=np.minimum(data.margin, np.median(data.margin[data.failed])))


class _Book:
    """The probes so far, as arrays, and the design of the even draws.

    Items come in turn. On a grid whose cells are all equally common, these come from a scrambled Halton sequence (Owen
    2017, A randomized Halton algorithm in R), which is more even than independent draws.
    """

    def __init__(self, prober: Prober, rng: np.random.Generator) -> None:
        self._prober, self._rng, self._turns = prober, rng, Turns(prober, rng)
        self._halton = qmc.Halton(len(prober.space), scramble=True, rng=rng)
        cells = np.zeros((0, len(prober.space)), np.int64)
        self.data = ProbeArrays(np.zeros(0, np.int64), cells, np.zeros(0), np.zeros(0, bool))
        self.drawn = 0

    def ask(self, items: np.ndarray, cells: np.ndarray, *, uniform: bool = False) -> np.ndarray:
        """Make probes, record the new ones, and return which of all failed (n,)."""
        answers = self._prober.ask(items, cells, uniform=uniform)
        new = answers.fresh
        if not new.any():
            return answers.failed
        margin = answers.discrepancy[new].astype(float) - self._prober.task.threshold
        old = self.data
        self.data = ProbeArrays(
            np.concatenate([old.items, items[new]]),
            np.vstack([old.cells, cells[new]]),
            np.concatenate([old.margin, margin]),
            np.concatenate([old.failed, answers.failed[new]]),
        )
        return answers.failed

    def draw(self, n: int) -> None:
        """Make n new probes drawn evenly; a pair drawn again is answered from memory and another one drawn."""
        start, space = len(self.data), self._prober.space
        while (missing := n - (len(self.data) - start)) > 0:
            if space.usage is None:
                cells = (self._halton.random(missing) * space.sizes).astype(np.int64)
            else:
                cells = space.even.sample(missing, self._rng)
            self.ask(self._turns(cells), cells, uniform=True)
        self.drawn += n
