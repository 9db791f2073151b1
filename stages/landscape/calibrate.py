"""Calibrate margins to probabilities of failure, and choose the estimator, both on held-out probes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, xlogy
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import brier_score_loss, log_loss

from stages.concepts import ConceptSpace
from stages.explorers.kernel import Features, Hyper, ItemFactor, ProbeArrays, choose_hyper
from stages.landscape.estimators import (
    FOLDS,
    MISFIT,
    Average,
    Constant,
    Doubted,
    Gridded,
    Inputs,
    Link,
    Logistic,
    MarginEstimator,
    ProcessEstimator,
    Trees,
)

RANK, SEARCH_RANK, SEARCH_PROBES = 900, 300, 2000
ENOUGH = 50  # evenly drawn probes needed to judge by them alone
MANY_CELLS = 10 * FOLDS  # cells needed to hold out whole cells: if there are fewer, each is unlike the others
LARGEST_WEIGHT = 10.0  # limit of a probe's weight, relative to the mean: less bias is not worth more variance
PROBIT = 1.7  # a probit is close to a logit of 1.7 times its argument
SLOPE_SPREAD, INTERCEPT_SPREAD = 0.5, 0.3  # prior standard deviations of the calibration, in log odds


@dataclass(frozen=True)
class EstimateRecipe:
    """The components of an estimate, from which a similar one can be made.

    Args:
        names: estimators, averaged if there are two.
        rival: estimator of another kind, whose deviation is added to the spread.
        link: link of the final estimator.
    """

    names: tuple[str, ...]
    rival: str
    hyper: Hyper
    links: Mapping[str, Link]
    link: Link

    def assemble(self, made: Mapping[str, MarginEstimator], spread: bool = True) -> Gridded:
        """Combine the fitted estimators; without spread the rival is not needed."""
        chosen = [made[name] for name in self.names]
        if len(chosen) > 1:  # one of which is the rival
            return Average(chosen, [self.links[name] for name in self.names], self.names.index(self.rival))
        return Doubted(chosen[0], made[self.rival], self._as_ours) if spread else chosen[0]

    def _as_ours(self, margin: np.ndarray) -> np.ndarray:
        return (self.links[self.rival].logit(margin) - self.link.intercept) / self.link.slope


def folds_of(cells: np.ndarray, space: ConceptSpace, seed: int) -> tuple[np.ndarray, str]:
    """Return the fold number of each probe (n,), and a phrase that names what is held out together.

    Whole cells are held out, because most cells of a large grid have no probe. With few cells, that would judge and
    calibrate on levels never seen, though every cell to estimate has probes, so single probes are held out.
    """
    rng = np.random.default_rng(seed)
    cell, fold_of = np.unique(space.flat(cells), return_inverse=True)
    if len(cell) < MANY_CELLS:
        return np.asarray(rng.permutation(np.arange(len(cells)) % FOLDS)), "single probes, as few cells were asked"
    return np.asarray(rng.permutation(np.arange(len(cell)) % FOLDS)[fold_of]), "whole cells"


def importance(
    data: ProbeArrays, even: np.ndarray, fold: np.ndarray, space: ConceptSpace, embeddings: np.ndarray, seed: int
) -> tuple[np.ndarray, str]:
    """Return weights (n,) under which the probes represent use, and a phrase that names them.

    If enough probes are marked as drawn evenly, only these count, see `ConceptSpace.weights`. Otherwise all count,
    weighted by the ratio of the density in use to theirs. A classifier that separates them from draws by use, which
    need no queries, learns the ratio (Bickel, Brückner and Scheffer 2009, "Discriminative Learning Under Covariate
    Shift"; Sugiyama, Suzuki and Kanamori 2012, chapter 4).
    """
    if even.sum() >= ENOUGH:
        weights, cells = np.zeros(len(data)), data.cells[even]
        weights[even] = space.weights(cells, len(embeddings)) * even.sum()
        return np.minimum(weights, LARGEST_WEIGHT), "the control's probes"
    if len(data) < ENOUGH:
        return np.ones(len(data)), "all probes, too few to correct for where they were drawn"
    rng, inputs = np.random.default_rng(seed), Inputs(space, embeddings)
    n = max(3000, 2 * len(data))
    asked = inputs.of_probes(data.items, data.cells)
    drawn = inputs.of_probes(rng.integers(0, len(embeddings), n), space.sample(n, rng))
    odds = np.empty(len(data))
    for k in range(int(fold.max()) + 1):
        others = fold != k
        classifier = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=8, min_samples_leaf=20, early_stopping=False, random_state=seed
        ).fit(np.vstack([drawn, asked[others]]), np.arange(n + others.sum()) >= n)
        odds[~others] = np.exp(-classifier.decision_function(asked[~others]))
    weights = np.minimum(odds / odds.mean(), LARGEST_WEIGHT)
    return weights / weights.mean(), "all probes, weighted by density ratio to stand for use"


@dataclass(frozen=True)
class CalibrationProbes:
    """Probes from which estimators are fitted and judged.

    Args:
        weights: (n,) weights under which they represent use.
        fold: (n,) fold number of each.
        embeddings: (items, d).
    """

    data: ProbeArrays
    weights: np.ndarray
    fold: np.ndarray
    space: ConceptSpace
    embeddings: np.ndarray
    seed: int

    @cached_property
    def items(self) -> ItemFactor:
        """The factor of the Gaussian process over items, whose decomposition is shared."""
        return ItemFactor(self.embeddings)

    def fit(self, name: str, hyper: Hyper, *, held_out: bool = True) -> MarginEstimator:
        """Fit an estimator by its name; a process needs no fold if its held-out predictions are not needed."""
        if name == ProcessEstimator.name:
            features = Features(self.space, self.items, hyper, RANK)
            return ProcessEstimator(features, hyper, self.data, self.fold if held_out else None, self.seed)
        if name == Trees.name:
            return Trees(self.space, self.embeddings, self.data, self.fold, self.seed)
        if name == Constant.name:
            return Constant(self.embeddings, self.data, self.fold, self.weights)
        return Logistic(self.space, self.embeddings, self.data, self.fold, self.weights)


def choose_estimator(evidence: CalibrationProbes) -> tuple[Gridded, EstimateRecipe, dict[str, object]]:
    """Fit every estimator and the mean of the two best, and choose the one with the lowest held-out log loss.

    If none beats the constant, the constant is chosen: the overall rate everywhere, with the best other as rival.

    Returns:
        The estimator, its recipe, and the scores: `log_losses` of all, and for the chosen one its log loss, Brier score
        and expected calibration error beside those of the constant that predicts the overall rate. All are
        cross-fitted: neither the estimate nor its calibration has seen the probe. There are two exceptions, which use
        all probes: the hyperparameters of the process, and the links by which a mean of two adds log odds.
    """
    data, rng = evidence.data, np.random.default_rng(evidence.seed)
    some = data.take(np.sort(rng.choice(len(data), min(len(data), SEARCH_PROBES), replace=False)))
    hyper = choose_hyper(evidence.space, evidence.items, some, rank=SEARCH_RANK)
    made = {name: evidence.fit(name, hyper) for name in (ProcessEstimator.name, Trees.name, Logistic.name)}
    judged = {name: _Judged.of(estimator, evidence) for name, estimator in made.items()}
    first, second = sorted(judged, key=lambda name: judged[name].log_loss)[:2]
    links = {name: judged[name].link for name in (first, second)}
    pair = tuple(name for name in made if name in links)  # in an order independent of their ranking
    both = Average([made[name] for name in pair], [links[name] for name in pair])
    judged[both.name] = _Judged.of(both, evidence)
    made[Constant.name] = constant = evidence.fit(Constant.name, hyper)
    judged[constant.name] = _Judged.of(constant, evidence)
    best = min(judged.values(), key=lambda j: j.log_loss)
    link = replace(best.link, misfit=_misfit(best, evidence))
    names, rival = (pair, second) if best.estimator is both else ((first,), second)
    if best.estimator is constant:
        names, rival, links = (constant.name,), first, links | {constant.name: best.link}
    recipe = EstimateRecipe(names, rival, hyper, links, link)
    diagnostics: dict[str, object] = {
        "name": best.estimator.name,
        **_scores(data.failed, best.predicted, evidence.weights),
        "log_losses": {name: j.log_loss for name, j in judged.items()},
        "calibration": asdict(link),
    }
    if ProcessEstimator.name in names:
        diagnostics["hyperparameters"] = asdict(hyper)
    return recipe.assemble(made), recipe, diagnostics


def rebuild(recipe: EstimateRecipe, evidence: CalibrationProbes, spread: bool) -> Gridded:
    """Fit the recipe's estimator to other probes.

    Without spread nothing is held out: one fit to all probes is as accurate as the mean of fits without one fold each
    (errors of .106 against .109 and .135 against .138 on planted grids of 4^8 and 7^8 cells), in a fifth of the time.
    """
    evidence = evidence if spread else replace(evidence, fold=np.zeros_like(evidence.fold))
    names = {*recipe.names, recipe.rival} if spread else set(recipe.names)
    return recipe.assemble({name: evidence.fit(name, recipe.hyper, held_out=False) for name in names}, spread)


@dataclass(frozen=True)
class _Judged:
    """An estimator with its calibration and its cross-fitted predictions (n,)."""

    estimator: MarginEstimator
    link: Link
    predicted: np.ndarray
    log_loss: float

    @classmethod
    def of(cls, estimator: MarginEstimator, evidence: CalibrationProbes) -> Self:
        data, weights, fold, margin = evidence.data, evidence.weights, evidence.fold, estimator.held_out
        if isinstance(estimator, Constant):  # the observed rate: nothing to calibrate
            predicted = expit(margin)
            return cls(estimator, Link(1.0, 0.0), predicted, _log_loss(data.failed, predicted, weights))
        noise = max(float(np.sqrt(np.average((margin - data.margin) ** 2, weights=weights))), 1e-6)
        if not isinstance(estimator, ProcessEstimator | Trees):
            noise = PROBIT  # these are in log odds already
        predicted = np.empty(len(margin))
        for k in range(int(fold.max()) + 1):
            held = fold == k
            others = ~held if not held.all() else held
            link = _calibrate(margin[others], data.failed[others], weights[others], noise)
            predicted[held] = link.probability(margin[held])
        link = _calibrate(margin, data.failed, weights, noise)
        return cls(estimator, link, predicted, _log_loss(data.failed, predicted, weights))


def _calibrate(margin: np.ndarray, failed: np.ndarray, weights: np.ndarray, noise: float) -> Link:
    """Logistic regression of failed on the margin, with the estimator's own probability as the prior.

    If margins err normally with standard deviation `noise`, the probability of failure is a probit of margin / noise.
    A hundred probes are weak evidence against that: calibrated freely on them, the rates of MNIST's landscape were off
    by .033 on average over three seeds, all in one direction, and uncalibrated by .018.
    """
    logit = PROBIT * margin / noise
    sign = np.where(failed, -1.0, 1.0)
    mass = weights / weights.max() if weights.any() else weights

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        argument = sign * (at[0] * logit + at[1])
        slope = mass * sign * expit(argument)
        prior = np.array([(at[0] - 1) / SLOPE_SPREAD**2, at[1] / INTERCEPT_SPREAD**2])
        penalty = 0.5 * (((at[0] - 1) / SLOPE_SPREAD) ** 2 + (at[1] / INTERCEPT_SPREAD) ** 2)
        value = float((mass * np.logaddexp(0, argument)).sum() + penalty)
        return value, np.array([(slope * logit).sum(), slope.sum()]) + prior

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0.01, None), (None, None)], method="L-BFGS-B")
    return Link(float(found.x[0] * PROBIT / noise), float(found.x[1]))


def _misfit(best: _Judged, evidence: CalibrationProbes) -> float:
    """Estimate the error of held-out rates beyond the estimator's own spread, as a share of rate * (1 - rate).

    Two probes of neighbouring cells err together only as far as the rate there is wrong, so the mean product of their
    residuals is the variance of that error. The same product over members is the estimator's own claim. Only an excess
    of two standard errors counts.
    """
    data, weights = evidence.data, evidence.weights
    rows = np.flatnonzero(weights > 0)
    items, cells, weight = data.items[rows], data.cells[rows], np.sqrt(weights[rows] / weights[rows].mean())
    expected = best.link.probability(best.estimator.held_out[rows])
    residual = weight * (data.failed[rows] - expected)
    members = best.link.probability(best.estimator.of_probes(items, cells))
    said = weight[:, None] * ((members - members.mean(axis=0)).T * best.estimator.scale)
    blocks = blocks_of(cells, evidence.space)
    observed, pairs = _pair_product(residual[:, None], blocks)
    claimed, _ = _pair_product(said, blocks)
    error = float((residual**2).mean()) / np.sqrt(max(1, pairs))
    excess = float(observed[0]) - 2 * error - float(claimed.sum())
    spread = float(np.average(expected * (1 - expected), weights=weight**2))
    return float(np.clip(excess / max(spread, 1e-6), MISFIT, 1.0))


def _pair_product(values: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, int]:
    """Mean product of two rows in one block (n,) of neighbouring cells, by column (n, k) -> (k,), and their number."""
    sums = np.zeros((blocks.max() + 1, values.shape[1]))
    np.add.at(sums, blocks, values)
    counts = np.bincount(blocks)
    pairs = int((counts * (counts - 1)).sum()) // 2
    return ((sums**2).sum(axis=0) - (values**2).sum(axis=0)) / max(1, 2 * pairs), pairs


def blocks_of(cells: np.ndarray, space: ConceptSpace) -> np.ndarray:
    """Return the number of each cell's block of neighbouring levels: (n,). Categories have no neighbours."""
    width = np.array([2 if concept.ordered else 1 for concept in space.concepts])
    return np.asarray(np.unique(cells // width, axis=0, return_inverse=True)[1]).ravel()


def _log_loss(failed: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    predicted = np.clip(predicted, 1e-6, 1 - 1e-6)
    return float(log_loss(failed, predicted, labels=[False, True], sample_weight=weights))


def _scores(failed: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, object]:
    """Return weighted scores of predicted probabilities on held-out probes, beside those of the constant."""
    rate = float(np.average(failed, weights=weights))
    constant = np.full(len(failed), rate)
    bins = np.minimum((predicted * 10).astype(int), 9)
    gaps = [abs((weights * (failed - predicted))[bins == b].sum()) for b in np.unique(bins)]
    entropy = -float(xlogy(rate, rate) + xlogy(1 - rate, 1 - rate))
    return {
        "held_out_probes": int((weights > 0).sum()),
        "effective_probes": float(weights.sum() ** 2 / (weights**2).sum()),  # Kish 1965
        "log_loss": _log_loss(failed, predicted, weights),
        "log_loss_constant": entropy,
        "brier": float(brier_score_loss(failed, predicted, sample_weight=weights)),
        "brier_constant": float(brier_score_loss(failed, constant, sample_weight=weights)),
        "calibration_error": float(sum(gaps) / weights.sum()),
    }
