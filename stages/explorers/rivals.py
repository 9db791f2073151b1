"""Explorers of other fields, to compare agents with at the same budget: bandits, Optuna, quality-diversity.

**Linear bandits** on factored concepts: Thompson sampling and upper confidence bounds over (item, cell) pairs. The
margin of a probe is modelled as a sum of effects of its item, of each of its levels and, by default, of each pair of
them: a Bayesian linear regression on indicators. What is learnt at one cell so carries over to all cells that share a
level, which finds failures early; interactions of more concepts are invisible. With unlimited margins they settle where
the margin is largest: of 12 planted modes on 7^8 cells they found one, with 1,900 failures in 2,000 probes. So margins
have a ceiling.

**Bayesian optimisation** by Optuna searches for the largest margin as in hyperparameter tuning, and
**quality-diversity** search by pyribs for the worst failure in every niche of the grid.
"""

from itertools import combinations
from math import prod
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy import sparse
from scipy.linalg import cho_solve, cholesky, solve_triangular
from threadpoolctl import threadpool_limits

from stages.core.errors import UsageError
from stages.explorers.contract import AskTell, NextProbes, Strategy, embedding_order, evenly
from stages.explorers.prober import Prober
from stages.params import Strict

MAX_EFFECTS = 5_000  # their covariance takes 200 MB, and a draw from it seconds
BOUND_DRAWS = 50  # posterior draws to estimate a standard deviation from


class BanditSettings(Strict):
    """Settings that both bandits share."""

    batch: int = Field(50, ge=1, le=1_000_000, description="probes asked at once, each in another cell")
    candidates: int = Field(
        4000, ge=1, le=1_000_000, description="pairs scored for a batch: half random, half near known failures"
    )
    pairs: bool = Field(True, description="also an effect for every pair of levels of two concepts")
    ceiling: float = Field(0.2, gt=0, description="margins above it count as it: a failure is one, however clear")
    noise: float = Field(0.3, gt=0, description="standard deviation of the margin around the model")
    prior: float = Field(0.7, gt=0, description="standard deviation of the margin before any probe, all effects summed")


class UCBSettings(BanditSettings):
    """Settings of the upper confidence bound."""

    optimism: float = Field(1.0, ge=0, description="posterior standard deviations added to the mean")


class LinearModel:
    """Bayesian linear regression of margins on indicators (Bishop 2006, Sec. 3.3), updated batch by batch.

    The time to draw from the posterior is cubic in the number of effects: 1.4 ms per probe with 1,500 effects, of 80
    items and the pairs of 8 concepts with 7 levels. Raises a UsageError for more than `MAX_EFFECTS` effects.

    Args:
        sizes: number of levels of each concept.
        pairs: whether pairs of levels have their own effects.
        noise, prior: standard deviations of the margin given the effects, and due to them.
    """

    def __init__(self, n_items: int, sizes: list[int], pairs: bool, noise: float, prior: float) -> None:
        self._sizes = sizes
        self._pairs = list(combinations(range(len(sizes)), 2)) if pairs else []
        blocks = [1, n_items, *sizes, *(sizes[i] * sizes[j] for i, j in self._pairs)]
        self._starts = np.cumsum([0, *blocks])
        self.n_effects = int(self._starts[-1])
        if self.n_effects > MAX_EFFECTS:
            raise UsageError(
                f"bandits learn an effect of every item, level and, with pairs: true, pair of levels, here"
                f" {self.n_effects:,}, more than {MAX_EFFECTS:,}: take model_based, pairs: false,"
                " or fewer items, concepts or levels"
            )
        self._noise = noise
        self._precision = np.eye(self.n_effects) * len(blocks) / prior**2  # one effect per block applies to a probe
        self._moment = np.zeros(self.n_effects)

    def design(self, items: np.ndarray, cells: np.ndarray) -> sparse.csr_array:
        """Return the indicators (n, effects) of items (n,) under cells (n, d)."""
        columns = [np.zeros(len(items), np.int64), items, *cells.T]
        columns += [cells[:, i] * self._sizes[j] + cells[:, j] for i, j in self._pairs]
        index = np.stack(columns, axis=1) + self._starts[:-1]
        n, k = index.shape
        return sparse.csr_array((np.ones(n * k), index.ravel(), np.arange(0, n * k + 1, k)), (n, self.n_effects))

    def update(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray) -> None:
        """Learn from probes of items (n,) under cells (n, d) with these margins (n,)."""
        x = self.design(items, cells)
        self._precision += (x.T @ x).toarray() / self._noise**2
        self._moment += x.T @ margin / self._noise**2

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the posterior mean of the effects (effects,) and n draws of them (n, effects)."""
        factor = cholesky(self._precision, lower=True)
        mean = cho_solve((factor, True), self._moment)
        chance = rng.standard_normal((self.n_effects, n))
        return mean, mean + solve_triangular(factor, chance, lower=True, trans="T").T


class _Bandit:
    """Scores a pool of candidates by the model and takes the best, at most one per cell.

    Args:
        optimism: None for Thompson sampling: each probe of the batch is the best in one draw from the posterior.
            Otherwise the posterior standard deviations (estimated from `BOUND_DRAWS` draws) added to the mean.
    """

    def __init__(
        self, prober: Prober, settings: BanditSettings, optimism: float | None, rng: np.random.Generator
    ) -> None:
        self._prober, self._settings, self._optimism, self._rng = prober, settings, optimism, rng
        self._model = LinearModel(
            len(prober.item_ids), prober.space.sizes, settings.pairs, settings.noise, settings.prior
        )
        self._asked: set[tuple[int, int]] = set()  # item, number of the cell
        self._failing = np.zeros((0, 1 + len(prober.space)), np.int64)  # item and cell of each failure

    def propose(self) -> NextProbes:
        items, cells = self._candidates()
        batch = self._settings.batch
        with threadpool_limits(1, user_api="blas"):  # the last bits of sums depend on the number of threads
            mean, draws = self._model.draw(batch if self._optimism is None else BOUND_DRAWS, self._rng)
            design = self._model.design(items, cells)
            scores = (design @ draws.T).T  # (draws, candidates)
            if self._optimism is not None:
                bound = design @ mean + self._optimism * scores.std(axis=0)
                scores = np.broadcast_to(bound, (batch, len(bound)))
        chosen = self._best_in_distinct_cells(scores, self._prober.space.flat(cells))
        return NextProbes(items[chosen], cells[chosen])

    def _candidates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return new pairs: even draws, and known failures with another item or one concept changed."""
        n = self._settings.candidates
        items, cells = evenly(self._prober, n, self._rng)
        if len(self._failing):
            near = self._failing[self._rng.integers(len(self._failing), size=n // 2)]
            column = self._rng.integers(near.shape[1], size=len(near))
            rows = np.arange(len(near))
            near[rows, column] = np.column_stack([items, cells])[rows, column]
            items[: len(near)], cells[: len(near)] = near[:, 0], near[:, 1:]
        first = {pair: row for row, pair in reversed(list(enumerate(self._pairs(items, cells))))}
        new = np.sort([row for pair, row in first.items() if pair not in self._asked]).astype(np.int64)
        return items[new], cells[new]

    def _pairs(self, items: np.ndarray, cells: np.ndarray) -> list[tuple[int, int]]:
        """Return pairs of item and cell number; a single number for both would overflow on grids of 10^18 cells."""
        return list(zip(items.tolist(), self._prober.space.flat(cells).tolist(), strict=True))

    def _best_in_distinct_cells(self, scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return for each row of the scores (batch, n) its best candidate in a cell that no earlier row has taken."""
        scores = scores.copy()
        chosen: list[int] = []
        for row in scores:
            best = int(row.argmax()) if len(row) else -1
            if best < 0 or row[best] == -np.inf:
                break  # the grid has fewer cells than the batch has probes
            chosen.append(best)
            scores[:, numbers == numbers[best]] = -np.inf
        return np.array(chosen, dtype=np.int64)

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        items, cells, margin = items[fresh], cells[fresh], margin[fresh]
        self._model.update(items, cells, np.minimum(margin, self._settings.ceiling))
        self._asked.update(self._pairs(items, cells))
        failing = np.column_stack([items, cells])[margin > 0]
        self._failing = np.concatenate([self._failing, failing])


class Thompson(AskTell[BanditSettings]):
    """Linear Thompson sampling (Agrawal and Goyal 2013): each probe is the best in a draw from the posterior."""

    name, Settings = "thompson", BanditSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Bandit(prober, self.settings, None, rng)


class UCB(AskTell[UCBSettings]):
    """Linear upper confidence bound (Li et al. 2010): the best by the posterior mean plus its uncertainty."""

    name, Settings = "ucb", UCBSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Bandit(prober, self.settings, self.settings.optimism, rng)


class BayesianSettings(Strict):
    """Settings of the Bayesian optimisation."""

    sampler: Literal["tpe", "gp"] = Field(
        "tpe", description="Parzen estimators, or a Gaussian process (a hundred times slower)"
    )
    batch: int = Field(
        16, ge=1, le=1_000_000, description="probes asked at once; those under way count as poor (constant liar)"
    )
    startup: int = Field(100, ge=1, le=1_000_000, description="probes drawn evenly first")
    max_history: int = Field(
        200, ge=10, le=1_000_000, description="probes it never forgets; from twice as many the oldest are dropped"
    )

    @model_validator(mode="after")
    def _remembers_its_startup(self) -> Self:
        if self.startup > self.max_history:  # otherwise it would forget below its start-up, and only draw at random
            raise ValueError(f"startup must be at most max_history, found {self.startup} > {self.max_history}")
        return self


class Bayesian(AskTell[BayesianSettings]):
    """Tree-structured Parzen estimators (Bergstra et al. 2011; multivariate as Falkner et al. 2018) or GP, by Optuna.

    The item is one more integer, in the order of the embeddings' first principal component; ordered concepts are
    integers too, and others are categories. It searches for the largest margin, not for many failures in many places.
    Its own cost grows with the probes it learns from (about 10 ms per probe with a few hundred), so it learns from the
    latest `max_history` to twice as many; on enumerated MNIST, forgetting also made it find more.
    """

    name, Settings = "bayesian", BayesianSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Study(prober, self.settings, int(rng.integers(2**31)))


class _Study:
    """A series of Optuna studies, each started with the latest probes of the one before.

    Its parameters are the columns of a probe: "0" is the position of the item, "1" and so on are the concepts.
    """

    def __init__(self, prober: Prober, settings: BayesianSettings, seed: int) -> None:
        self._optuna = _import_optuna()
        self._settings = settings
        self._order = embedding_order(prober)
        self._place = np.argsort(self._order)
        kinds = self._optuna.distributions
        self._distributions = {"0": kinds.IntDistribution(0, len(self._order) - 1)}
        for j, concept in enumerate(prober.space.concepts, start=1):
            self._distributions[str(j)] = (
                kinds.IntDistribution(0, len(concept) - 1)
                if concept.ordered
                else kinds.CategoricalDistribution(range(len(concept)))
            )
        samplers = self._optuna.samplers
        self._sampler = (
            samplers.TPESampler(n_startup_trials=settings.startup, multivariate=True, constant_liar=True, seed=seed)
            if settings.sampler == "tpe"
            else samplers.GPSampler(n_startup_trials=settings.startup, seed=seed)
        )
        self._study = self._new_study([])
        self._pending: list[Any] = []  # Optuna's trials, in the order of the batch proposed

    def _new_study(self, trials: list[Any]) -> Any:
        study = self._optuna.create_study(direction="maximize", sampler=self._sampler)
        study.add_trials(trials)
        return study

    def propose(self) -> NextProbes:
        complete = self._study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.COMPLETE])
        self._pending = [self._study.ask(self._distributions) for _ in range(self._settings.batch)]
        columns = np.array([[trial.params[name] for name in self._distributions] for trial in self._pending])
        uniform = len(complete) < self._settings.startup  # until then both samplers draw at random
        return NextProbes(self._order[columns[:, 0]], columns[:, 1:], uniform)

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        pending, self._pending = self._pending, []
        if pending:
            for trial, value in zip(pending, margin.tolist(), strict=True):
                self._study.tell(trial, value)
        else:  # even fill-in draws
            columns = np.column_stack([self._place[items], cells]).tolist()
            for row, value in zip(columns, margin.tolist(), strict=True):
                params = dict(zip(self._distributions, row, strict=True))
                self._study.add_trial(
                    self._optuna.trial.create_trial(params=params, distributions=self._distributions, value=value)
                )
        trials = self._study.get_trials(deepcopy=False)
        if len(trials) >= 2 * self._settings.max_history:
            self._study = self._new_study(trials[-self._settings.max_history :])


def _import_optuna() -> Any:
    try:
        import optuna
        import optuna.trial
    except ImportError:
        raise UsageError("explorer bayesian needs Optuna: pip install 'faded[explorers]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise it reports every trial
    return optuna


class MapElitesSettings(Strict):
    """Settings of MAP-Elites."""

    batch: int = Field(50, ge=1, le=1_000_000, description="probes asked at once")
    startup: int = Field(100, ge=1, le=1_000_000, description="probes drawn evenly first")
    max_niches: int = Field(
        10_000, ge=1, le=1_000_000, description="niches of the archive; levels are merged on larger grids"
    )
    step: float = Field(0.1, gt=0, description="standard deviation of a mutation, as share of the levels of a concept")
    item_step: float = Field(1.0, gt=0, description="the same of the item, in items in the order of their embeddings")


class MapElites(AskTell[MapElitesSettings]):
    """MAP-Elites (Mouret and Clune 2015) by pyribs.

    A niche is a cell of the grid, coarsened to `max_niches`; its elite is the probe with the largest margin. New probes
    are elites mutated by a Gaussian and rounded to levels. The item is mutated too, in the order of the embeddings'
    first principal component.
    """

    name, Settings = "map_elites", MapElitesSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Archive(prober, self.settings, rng)


def niches(sizes: list[int], limit: int) -> list[int]:
    """Return bins per concept for at most `limit` niches, merging the finest concepts first, last one first."""
    bins = list(sizes)
    while prod(bins) > limit:
        finest = max(range(len(bins)), key=lambda j: (bins[j], j))
        bins[finest] -= 1
    return bins


class _Archive:
    """The elites. A solution is (position of the item, levels), as real numbers that are rounded for probing."""

    def __init__(self, prober: Prober, settings: MapElitesSettings, rng: np.random.Generator) -> None:
        archives, emitters = _import_ribs()
        self._order = embedding_order(prober)
        self._place = np.argsort(self._order)
        sizes = np.array([len(self._order), *prober.space.sizes])
        archive_seed, emitter_seed = (int(seed) for seed in rng.integers(2**31, size=2))
        self._archive = archives.GridArchive(
            solution_dim=len(sizes),
            dims=niches(prober.space.sizes, settings.max_niches),
            learning_rate=1.0,
            threshold_min=0.0,
            ranges=[(-0.5, size - 0.5) for size in prober.space.sizes],
            seed=archive_seed,
        )
        items, cells = evenly(prober, settings.startup, rng)
        self._emitter = emitters.GaussianEmitter(
            self._archive,
            sigma=np.array([settings.item_step, *(settings.step * size for size in prober.space.sizes)]),
            initial_solutions=self._solutions(items, cells),
            lower_bounds=np.full(len(sizes), -0.499),
            upper_bounds=sizes - 0.501,
            batch_size=settings.batch,
            seed=emitter_seed,
        )

    def _solutions(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        return np.column_stack([self._place[items], cells]).astype(float)

    def propose(self) -> NextProbes:
        startup = bool(self._archive.empty)  # nothing to mutate: it returns its initial even draws
        rounded = np.rint(self._emitter.ask()).astype(np.int64)
        return NextProbes(self._order[rounded[:, 0]], rounded[:, 1:], uniform=startup)

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        self._archive.add(self._solutions(items[fresh], cells[fresh]), margin[fresh], cells[fresh])


def _import_ribs() -> tuple[Any, Any]:
    try:
        from ribs import archives, emitters
    except ImportError:
        raise UsageError("explorer map_elites needs pyribs: pip install 'faded[explorers]'") from None
    return archives, emitters
