"""How common the levels of concepts are among inputs, from measures of these inputs and of the audit's own items.

This is estimation of class shares with a classifier that errs (Saerens, Latinne and Decaestecker 2002; Lipton, Wang and
Smola 2018). For each concept a classifier reads the level off the measures. It learns on changed items of one half of
the audit's items; the other half shows how often it reads which level for another, (levels, readings). Readings of
production inputs are a mixture of these rows, and the most likely shares of the mixture are found by EM. How often it
errs depends on what else is changed, so changed items are then weighted by the estimated shares of all concepts, and
the mixture is solved again.

It holds if production inputs, apart from changes, are like the audit's items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np

from stages.concepts import ConceptSpace
from stages.concepts.usage import Usage
from stages.params.usage import AnyUsage

DRAWS = 4000  # changed items that are measured
FEWEST = 20  # production inputs
RESAMPLES = 200
WIDEST = 0.5  # interval of shares that are used
_CHANGED = 1 / 3  # probability that a changed item has some concept changed
_ROUNDS = 4
_STEPS = 400  # of EM
_TREES = {"n_estimators": 60, "min_samples_leaf": 5}


@dataclass(frozen=True)
class Shares:
    """How common the levels of a concept are.

    Args:
        shares: (levels,) sums to 1.
        low, high: (levels,) 95% interval, by resampling production inputs and items.
        read: number of production inputs that were read.
        unlike: number of the others: no level makes an item of the audit look like these.
    """

    concept: str
    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    read: int
    unlike: int

    @property
    def known(self) -> bool:
        """Whether the intervals are narrow enough for the shares to be used."""
        return bool((self.high - self.low).max() <= WIDEST)

    @property
    def worth(self) -> float:
        """Number of inputs that would show the shares as precisely if each showed its level without error."""
        variance = float((((self.high - self.low) / (2 * NormalDist().inv_cdf(0.975))) ** 2).sum())
        shares = self.smoothed
        return float(np.clip((shares * (1 - shares)).sum() / max(variance, 1e-12), 1.0, max(self.read, 1)))

    @property
    def smoothed(self) -> np.ndarray:
        """The shares (levels,), none of them 0: half an input is added to each level."""
        return _smoothed(self.shares, self.read)


def spread_usage(space: ConceptSpace) -> Usage:
    """Return the usage by which items are changed, so that every level is seen alone and combined."""
    return _independent(
        space,
        [
            np.full(size, 1 / size)
            if unchanged is None
            else np.where(np.arange(size) == unchanged, 1 - _CHANGED, _CHANGED / (size - 1))
            for size, unchanged in zip(space.sizes, space.neutral_levels, strict=True)
        ],
    )


def _independent(space: ConceptSpace, weights: Sequence[np.ndarray]) -> Usage:
    nothing = np.zeros((0, len(space)), dtype=np.int64)
    return Usage(tuple(weights), space.neutral_levels, None, nothing, np.zeros(0))


def estimate_usage(
    space: ConceptSpace,
    cells: np.ndarray,
    groups: Sequence[str],
    own: np.ndarray,
    found: np.ndarray,
    columns: Mapping[str, Sequence[int]],
    seed: int,
) -> list[Shares]:
    """Estimate how common the levels of some concepts are.

    Args:
        cells: (n, d) cells of changed items, drawn by `spread`.
        groups: n names of groups of items that belong together.
        own: (n, m) measures of these changed items.
        found: (N, m) measures of production inputs.
        columns: by concept that can be read, the measures that show it.
    """
    rng = np.random.default_rng([seed, len(found)])
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    learns = np.isin(group, rng.permutation(len(names))[: len(names) // 2])
    read = [_read(space.names.index(name), name, at, cells, own, found, learns, seed) for name, at in columns.items()]
    cells, group = cells[~learns], group[~learns]
    drawn, weights = spread_usage(space), np.ones(len(cells))
    for _ in range(_ROUNDS):
        shares = list(drawn.weights)
        for one in read:
            counts = one.counts[None].astype(float)
            shares[one.at] = _smoothed(
                _mixture(_mistakes(space, one, cells, weights)[None], counts)[0], one.counts.sum()
            )
        weights = _independent(space, shares).density(cells) / drawn.density(cells)
    chosen = np.unique(group)
    times = rng.multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), size=RESAMPLES)
    again = times[:, np.searchsorted(chosen, group)] * weights
    result = []
    for one in read:
        total = int(one.counts.sum())
        # What was never read may be rare: resamples give it half an input, or its interval would end at 0.
        counts = rng.multinomial(total, _smoothed(one.counts / max(total, 1), total), size=RESAMPLES).astype(float)
        mistakes = np.stack([_mistakes(space, one, cells, resampled) for resampled in again])
        # From random starts, shares of levels that cannot be distinguished end anywhere, and their interval is wide.
        starts = rng.dirichlet(np.ones(space.sizes[one.at]), size=RESAMPLES)
        low, high = np.quantile(_mixture(mistakes, counts, starts), [0.025, 0.975], axis=0)
        value = _mixture(_mistakes(space, one, cells, weights)[None], one.counts[None].astype(float))[0]
        low, high = np.minimum(low, value), np.maximum(high, value)
        result.append(Shares(one.concept, value, low, high, total, len(found) - total))
    return result


@dataclass(frozen=True)
class _Read:
    """Levels that a classifier read for concept `at` of the grid.

    Args:
        at: its place in the grid.
        tested: (k,) what was read of changed items that it did not learn on.
        counts: (levels,) how often each level was read of production inputs.
    """

    concept: str
    at: int
    tested: np.ndarray
    counts: np.ndarray


def _read(
    at: int,
    name: str,
    shown_by: Sequence[int],
    cells: np.ndarray,
    own: np.ndarray,
    found: np.ndarray,
    learns: np.ndarray,
    seed: int,
) -> _Read:
    """Read a concept's level off the measures; inputs beyond what any changed item shows are left out."""
    from sklearn.ensemble import RandomForestClassifier

    shown = list(shown_by)
    like = ((found[:, shown] >= own[:, shown].min(0)) & (found[:, shown] <= own[:, shown].max(0))).all(1)
    forest = RandomForestClassifier(**_TREES, random_state=seed).fit(own[learns], cells[learns, at])
    given = forest.predict(found[like]) if like.any() else np.zeros(0, dtype=np.int64)
    return _Read(name, at, forest.predict(own[~learns]), np.bincount(given, minlength=int(cells[:, at].max()) + 1))


def _mistakes(space: ConceptSpace, one: _Read, cells: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return how often each level of a concept is read for another: (levels, readings), each row sums to 1."""
    size = space.sizes[one.at]
    found = np.zeros((size, size))
    np.add.at(found, (cells[:, one.at], one.tested), weights)
    found += 1e-6 * max(1.0, float(found.max()))  # a level that was not drawn may be read as any
    return np.asarray(found / found.sum(1, keepdims=True))


def _mixture(mistakes: np.ndarray, counts: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """Find the most likely shares (b, levels), given mistakes (b, levels, readings) and counts (b, readings), by EM."""
    shares = np.full(mistakes.shape[:2], 1 / mistakes.shape[1]) if starts is None else starts
    for _ in range(_STEPS):
        likely = np.einsum("bl,blk->bk", shares, mistakes)
        shares = shares * np.einsum("blk,bk->bl", mistakes, counts / np.maximum(likely, 1e-300))
        shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-300)
    return shares


def _smoothed(shares: np.ndarray, n: int) -> np.ndarray:
    counts = shares * n + 0.5
    return np.asarray(counts / counts.sum())


@dataclass(frozen=True)
class UsageInForce:
    """The usage of an audit.

    Args:
        usage: how often its cells occur.
        said: whether it is assumed, stated or measured.
        stated: whether params.yaml has anything on it.
    """

    audit: str
    space: ConceptSpace
    usage: Usage
    said: str
    stated: bool

    @classmethod
    def of(cls, audit: str, space: ConceptSpace, config: AnyUsage) -> Self:
        """Return the usage of a grid, and where it is from according to `usage:` of its audit."""
        usage = space.usage
        if usage is None or isinstance(config, str):
            usage = Usage.uniform(space.sizes, space.neutral_levels)
            return cls(audit, space, usage, "uniform: every cell of the grid is equally common", stated=True)
        if (measured := config.measured) is not None:
            said = f"measured on {measured.inputs:,} inputs, {measured.source}"
            return cls(audit, space, usage, said, stated=True)
        said = "stated in params.yaml" if config.stated else "assumed, as params.yaml states nothing"
        return cls(audit, space, usage, said, config.stated)

    @property
    def changes(self) -> list[float]:
        """Share of inputs with 0, 1, 2, ... concepts changed."""
        return np.trim_zeros(np.round(self.usage.by_changes(), 12), "b").tolist()

    def share(self, concept: str, level: int) -> float:
        return self.usage.share({self.space.names.index(concept): [level]})


@dataclass(frozen=True)
class MeasuredUsage:
    """How common levels are in production inputs.

    Args:
        in_force: the usage so far.
        concepts: those that could be measured.
        source: where they are from.
        left_out: what could not be read, and why.
    """

    in_force: UsageInForce
    concepts: list[Shares]
    inputs: int
    source: str
    left_out: list[str]
