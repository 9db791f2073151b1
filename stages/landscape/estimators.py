"""Three estimators of the margin of any item under any cell, and the constant they have to beat.

A Gaussian process models smoothness, boosted trees model boxes and sharp edges, and logistic regression models little
but needs few probes. Held-out probes show which of them suits a model, see `stages.landscape.calibrate`. All of them
model the margin *given* item and cell, so a search that drew most probes where it expected failures hardly misleads
them.

Each is fitted without each fold in turn, so that every probe has a prediction by a fit that has not seen it. The spread
of an estimate comes from the process's posterior, or from the fits without one fold each (the delete-a-group jackknife:
Kott 2001, "The delete-a-group jackknife").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self, TypeVar

import numpy as np
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stages.concepts import ConceptSpace
from stages.explorers.kernel import Features, Hyper, Posterior, ProbeArrays, fit_regression, landmarks

DRAWS = 32  # posterior draws for the spread; even, as they come in pairs
FOLDS = 5
M = TypeVar("M")
Moved = Callable[[np.ndarray], np.ndarray]
"""Returns how much the rates (cells,) would differ from the estimate if the margins were these, (items, cells)."""
Spread = Callable[[Moved, np.ndarray], np.ndarray]
"""Returns how much each member's rates differ from the estimate, times its scale, (m, cells). Arguments are `Moved` and
the slopes of the rates in the estimate's margins, (items, cells), for members too many to evaluate one by one."""
ITEM_FEATURES = 8  # principal components of the embeddings, for trees and regressions
# On three enumerated grids (MNIST, 2,401 cells x 200 items), errors with a standard deviation of .017 to .03 remained
# with 8,000 probes; this covers them. Held-out probes can reveal larger errors, but are too few for one this small.
MISFIT = 0.07**2

# Of 13 settings these had the lowest log loss on planted landscapes of 7^8 cells: fewer leaves miss conjunctions of
# four concepts, and more only cost time.
TREES = {
    "learning_rate": 0.1,
    "max_iter": 120,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 5,
    "l2_regularization": 1.0,
    "early_stopping": False,
}


@dataclass(frozen=True)
class Link:
    """Converts margins to the probability of failure, calibrated on probes the estimator has not seen.

    Args:
        slope, intercept: of a logistic regression of failed on the margin.
        misfit: variance of a cell's error that no number of probes removes, as a share of rate * (1 - rate). Margins
            are not Gaussian, so neighbouring cells share an error that the estimator's spread does not include.
    """

    slope: float
    intercept: float
    misfit: float = MISFIT

    def logit(self, margin: np.ndarray) -> np.ndarray:
        """Log odds of failure at this expected margin."""
        return self.slope * margin + self.intercept

    def probability(self, margin: np.ndarray) -> np.ndarray:
        """Probability of failure at this expected margin."""
        return np.asarray(expit(self.logit(margin)))


class Gridded(Protocol):
    """Predicts the margins of items under cells, with a spread."""

    def over_items(self, cells: np.ndarray) -> tuple[np.ndarray, Spread]:
        """Margins of the items averaged over (`kernel.landmarks`) under some cells, (items, cells), and the spread."""


class MarginEstimator(Gridded, Protocol):
    """A fitted estimator of margins over items and cells.

    Args:
        held_out: (n,) the probes' margins, each predicted by a fit that has not seen its fold.
        scale: (m,) weights of the members: the variance of anything computed from the margins is the sum over members
            of (scale * (its value for the member - its value for the mean))^2.
    """

    name: str
    held_out: np.ndarray
    scale: np.ndarray

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return the members' margins of n probes, given item numbers (n,) and cells (n, concepts): (m, n)."""


class ProcessEstimator:
    """The Gaussian process of `stages.explorers.kernel`; its members are draws from the posterior."""

    name = "Gaussian process"

    def __init__(self, features: Features, hyper: Hyper, data: ProbeArrays, fold: np.ndarray | None, seed: int) -> None:
        """Fit the process. `fold` (n,) numbers the folds; None skips held-out predictions."""
        self.held_out = np.full(len(data), np.nan)
        if fold is not None:
            _, self.held_out = _without_each_fold(
                lambda rows: fit_regression(features, data.take(rows), hyper.noise),
                lambda part, rows: part.offset + features.at_probes(part.weights, data.items[rows], data.cells[rows]),
                fold,
            )
        self._posterior: Posterior = fit_regression(features, data, hyper.noise)
        # Antithetic pairs, so that their mean is the posterior's.
        drawn = self._posterior.draw(DRAWS // 2, np.random.default_rng(seed))
        self._weights = np.concatenate([drawn, 2 * self._posterior.weights - drawn])
        self.scale = np.full(DRAWS, 1 / np.sqrt(DRAWS))

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        posterior = self._posterior
        return posterior.offset + posterior.features.at_probes(self._weights, items, cells).T

    def over_items(self, cells: np.ndarray) -> tuple[np.ndarray, Spread]:
        """See Gridded.

        Rates are assumed to move in proportion to margins. Evaluating the probabilities of every item for each draw
        took most of an estimate's time, and its intervals held as often (on planted landscapes and MNIST within .003).
        """
        posterior, features = self._posterior, self._posterior.features
        of_cells = features.of_cells(cells)

        def spread(_: Moved, slopes: np.ndarray) -> np.ndarray:
            moves = (self._weights - posterior.weights) * self.scale[:, None]
            return np.asarray(moves @ features.gradient(slopes, of_cells))

        return posterior.offset + features.over_items(posterior.weights, of_cells), spread


class FoldEnsemble:
    """The mean of fits that each leave out one fold; the fits are its members."""

    name = ""

    def __init__(self, held_out: np.ndarray, members: int) -> None:
        self.held_out = held_out
        self.scale = np.full(members, np.sqrt((members - 1) / members))  # the jackknife's factor

    def _member(self, k: int, cells: np.ndarray) -> np.ndarray:
        """Return margins of the items averaged over by one member: (items, cells)."""
        raise NotImplementedError

    def over_items(self, cells: np.ndarray) -> tuple[np.ndarray, Spread]:
        members = [self._member(k, cells) for k in range(len(self.scale))]
        return np.mean(members, axis=0), lambda moved, _: self.scale[:, None] * [moved(margin) for margin in members]


class Trees(FoldEnsemble):
    """Boosted trees (Friedman 2001) on the margins, over components of the items and levels of the concepts."""

    name = "boosted trees"

    def __init__(
        self, space: ConceptSpace, embeddings: np.ndarray, data: ProbeArrays, fold: np.ndarray, seed: int
    ) -> None:
        """Fit without each of the folds (n,)."""
        self._inputs = Inputs(space, embeddings)
        x = self._inputs.of_probes(data.items, data.cells)
        self._models, held_out = _without_each_fold(
            lambda rows: HistGradientBoostingRegressor(**TREES, random_state=seed).fit(x[rows], data.margin[rows]),
            lambda model, rows: model.predict(x[rows]),
            fold,
        )
        super().__init__(held_out, len(self._models))

    @cached_property
    def _leaves(self) -> "list[Leaves]":
        return [Leaves.of(model, self._inputs) for model in self._models]

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        x = self._inputs.of_probes(items, cells)
        return np.stack([model.predict(x) for model in self._models])

    def _member(self, k: int, cells: np.ndarray) -> np.ndarray:
        return self._leaves[k].over_items(cells)


class Logistic(FoldEnsemble):
    """Logistic regression of the failures, with squares and all pairwise interactions of item and concepts.

    Unlike the others it is too simple to be correct, so its fit depends on where the probes were drawn: they are
    weighted to represent use.
    """

    name = "logistic regression"

    def __init__(
        self, space: ConceptSpace, embeddings: np.ndarray, data: ProbeArrays, fold: np.ndarray, weights: np.ndarray
    ) -> None:
        """Fit without each of the folds (n,), with weights (n,) of the probes."""
        self._inputs = Inputs(space, embeddings)
        x = self._inputs.of_probes(data.items, data.cells)
        self._forms, held_out = _without_each_fold(
            lambda rows: _quadratic_form(x[rows], data.failed[rows], weights[rows]),
            lambda form, rows: _evaluate(form, x[rows]),
            fold,
        )
        super().__init__(held_out, len(self._forms))

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        x = self._inputs.of_probes(items, cells)
        return np.stack([_evaluate(form, x) for form in self._forms])

    def _member(self, k: int, cells: np.ndarray) -> np.ndarray:
        items, form = self._inputs.averaged, self._forms[k]
        x = self._inputs.space.coordinates(cells)
        n = 1 + items.shape[1]
        of_items = _evaluate(form[:n, :n], items)
        of_cells = ((x @ form[n:, n:]) * x).sum(axis=1)
        both = np.column_stack([np.ones(len(items)), items]) @ form[:n, n:]
        return of_items[:, None] + of_cells + both @ x.T


class Constant(FoldEnsemble):
    """The log odds of the overall rate for every item under every cell, which the others have to beat."""

    name = "constant"

    def __init__(self, embeddings: np.ndarray, data: ProbeArrays, fold: np.ndarray, weights: np.ndarray) -> None:
        """Count without each of the folds (n,), with weights (n,) of the probes."""
        self._n_items = len(landmarks(len(embeddings)))
        self._logits, held_out = _without_each_fold(
            lambda rows: _log_odds(data.failed[rows], weights[rows]),
            lambda logit, rows: np.full(rows.sum(), logit),
            fold,
        )
        super().__init__(held_out, len(self._logits))

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        return np.tile(np.array(self._logits)[:, None], len(items))

    def _member(self, k: int, cells: np.ndarray) -> np.ndarray:
        return np.full((self._n_items, len(cells)), self._logits[k])


def _log_odds(failed: np.ndarray, weights: np.ndarray) -> float:
    """Log odds of the weighted rate, with half a probe added to both sides so that they are finite (Haldane 1956)."""
    return float(np.log((weights[failed].sum() + 0.5) / (weights[~failed].sum() + 0.5)))


def _quadratic_form(x: np.ndarray, failed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logistic regression on x (n, k), its squares and products, as a form on (1, x): upper triangle (1 + k, 1 + k)."""
    form = np.zeros((1 + x.shape[1],) * 2)
    if (weights[failed] > 0).any() and (weights[~failed] > 0).any():
        scaler = StandardScaler()
        terms = scaler.fit_transform(_products(x))
        model = LogisticRegression(C=0.1, max_iter=300).fit(terms, failed, weights)
        coefficients = model.coef_[0] / scaler.scale_
        form[np.triu_indices(len(form))] = [model.intercept_[0] - coefficients @ scaler.mean_, *coefficients]
    return form


def _products(x: np.ndarray) -> np.ndarray:
    """Return all terms of degree 1 and 2 in x (n, k): (n, k * (k + 3) / 2)."""
    points = np.column_stack([np.ones(len(x)), x])
    first, second = np.triu_indices(points.shape[1])
    return (points[:, first] * points[:, second])[:, 1:]


def _evaluate(form: np.ndarray, x: np.ndarray) -> np.ndarray:
    points = np.column_stack([np.ones(len(x)), x])
    return ((points @ form) * points).sum(axis=1)


class Average:
    """The mean of two estimators' calibrated log odds, more accurate than each if their errors differ."""

    def __init__(self, parts: Sequence[MarginEstimator], links: Sequence[Link], rival: int | None = None) -> None:
        """Average `parts`, whose margins `links` convert to log odds, with the part numbered `rival` as the rival."""
        self.name = "mean of " + " and ".join(part.name for part in parts)
        self._parts, self._links, self._rival = parts, links, rival
        self.held_out = np.mean([link.logit(part.held_out) for part, link in zip(parts, links, strict=True)], axis=0)
        self.scale = np.concatenate([part.scale for part in parts])

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        each = [link.logit(part.of_probes(items, cells)) for part, link in zip(self._parts, self._links, strict=True)]
        means = [values.mean(axis=0) for values in each]
        total = np.sum(means, axis=0)
        return np.concatenate([(total - mean + values) / len(each) for mean, values in zip(means, each, strict=True)])

    def over_items(self, cells: np.ndarray) -> tuple[np.ndarray, Spread]:
        margins, spreads = zip(*(part.over_items(cells) for part in self._parts), strict=True)
        logits = [link.logit(margin) for link, margin in zip(self._links, margins, strict=True)]
        mean = np.mean(logits, axis=0)

        def spread(moved: Moved, slopes: np.ndarray) -> np.ndarray:
            rows = []
            for margin, of_part, link in zip(margins, spreads, self._links, strict=True):
                share = link.slope / len(margins)
                rows.append(of_part(lambda at, m=margin, s=share: moved(mean + s * (at - m)), share * slopes))
            if self._rival is not None:
                # The mean of two estimators differs from the second by half of what they differ from each other.
                rows.append(2 * moved(logits[self._rival])[None])
            return np.concatenate(rows)

        return mean, spread


class Doubted:
    """An estimator whose spread also includes its difference from a rival of another kind.

    An estimator's own spread cannot include that its kind is wrong for the model: smooth where there are edges, or the
    reverse. Two kinds agree where probes determine the answer, and differ widely elsewhere.
    """

    def __init__(
        self, estimator: MarginEstimator, rival: MarginEstimator, translate: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Combine `estimator` with a `rival`, whose margins `translate` converts to those of equal probability."""
        self._estimator, self._rival, self._translate = estimator, rival, translate

    def over_items(self, cells: np.ndarray) -> tuple[np.ndarray, Spread]:
        margins, own = self._estimator.over_items(cells)

        def spread(moved: Moved, slopes: np.ndarray) -> np.ndarray:
            return np.vstack([own(moved, slopes), moved(self._translate(self._rival.over_items(cells)[0]))])

        return margins, spread


def _without_each_fold(
    fitted: Callable[[np.ndarray], M], predict: Callable[[M, np.ndarray], np.ndarray], fold: np.ndarray
) -> tuple[list[M], np.ndarray]:
    """Fit without each fold (n,) and predict it; returns the models, and (n,) predictions."""
    held_out, models = np.empty(len(fold)), []
    for k in range(int(fold.max()) + 1):
        held = fold == k
        models.append(fitted(~held if not held.all() else held))  # a single fold cannot be left out
        held_out[held] = predict(models[-1], held)
    return models, held_out


class Inputs:
    """Items and cells as columns for models without kernels: principal components and coordinates."""

    def __init__(self, space: ConceptSpace, embeddings: np.ndarray) -> None:
        self.space, self.n_items = space, len(embeddings)
        size = min(ITEM_FEATURES, *np.shape(embeddings))
        with np.errstate(invalid="ignore"):  # if all items are alike, it divides by a variance of 0
            components = PCA(size, svd_solver="full").fit_transform(embeddings)
        self.items = components / max(float(components.std(axis=0).max()), 1e-9)
        self.averaged = self.items[landmarks(len(embeddings))]
        self.levels = [concept.coordinates for concept in space.concepts]

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return the columns of n probes: (n, columns), those of the item first."""
        return np.hstack([self.items[items], self.space.coordinates(cells)])


@dataclass(frozen=True)
class Leaves:
    """The leaves of boosted trees, each a box over items times a box over cells.

    The margins of all items under all cells are then one matrix product, as with the kernel's eigenfunctions, some
    hundred times faster than evaluating each tree for each pair.

    Args:
        offset: the trees' baseline prediction.
        items: (items averaged over, leaves) float32, the leaf's value if it contains the item, else 0.
        levels: per concept (levels, leaves / 8) uint8, one bit per leaf: whether it contains the level.
    """

    offset: float
    items: np.ndarray
    levels: Sequence[np.ndarray]

    @classmethod
    def of(cls, model: HistGradientBoostingRegressor, inputs: Inputs) -> Self:
        """Extract the leaves of the trees. scikit-learn has no public way to do so; a test compares the predictions."""
        values, lows, highs = [], [], []
        columns = inputs.items.shape[1] + sum(table.shape[1] for table in inputs.levels)
        for (tree,) in model._predictors:
            stack = [(0, np.full(columns, -np.inf), np.full(columns, np.inf))]
            while stack:
                number, low, high = stack.pop()
                node = tree.nodes[number]
                if node["is_leaf"]:
                    values.append(node["value"])
                    lows.append(low)
                    highs.append(high)
                    continue
                column, cut = node["feature_idx"], node["num_threshold"]
                left, right = high.copy(), low.copy()
                left[column], right[column] = min(high[column], cut), max(low[column], cut)
                stack += [(node["left"], low, left), (node["right"], right, high)]
        low, high = np.array(lows), np.array(highs)

        def holds(points: np.ndarray, start: int) -> np.ndarray:
            """Return which leaves contain points (k, columns) in the columns from `start` on: (k, leaves)."""
            inside = np.ones((len(points), len(low)), dtype=bool)
            for column, x in enumerate(points.T, start=start):
                inside &= (x[:, None] > low[None, :, column]) & (x[:, None] <= high[None, :, column])
            return inside

        starts = np.cumsum([inputs.items.shape[1], *(table.shape[1] for table in inputs.levels)])
        levels = [np.packbits(holds(table, at), axis=1) for table, at in zip(inputs.levels, starts[:-1], strict=True)]
        items = (holds(inputs.averaged, 0) * np.array(values)).astype(np.float32)
        return cls(float(model._baseline_prediction.item()), items, levels)

    def over_items(self, cells: np.ndarray) -> np.ndarray:
        """Return margins of the items averaged over under cells (n, concepts): (items, n)."""
        inside = self.levels[0][cells[:, 0]]
        for j, table in enumerate(self.levels[1:], start=1):
            inside &= table[cells[:, j]]
        held = np.unpackbits(inside, axis=1, count=self.items.shape[1])
        return self.offset + (self.items @ held.T.astype(np.float32)).astype(float)
