"""Calibration: from expected margins to probabilities of failure, judged on uniform probes of held-out cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from stages.concepts import ConceptSpace
from stages.landscape.kernel import Data, Features, fit

DRAWS = 32  # posterior draws behind every spread
# On three enumerated truths (MNIST, 2,401 cells x 200 items) errors of .017 to .03 in standard deviation were left with
# 8,000 probes; this covers them. Held-out probes can show a larger one, but are too few to show one this small.
MISFIT = 0.07**2


@dataclass(frozen=True)
class Link:
    """From margins to the probability of failure, calibrated on probes of cells the process had not seen.

    Args:
        slope, intercept: of a logistic regression of failed on margin / noise.
        misfit: variance of a cell's error that no number of probes removes, as a share of rate * (1 - rate). The
            margins are not Gaussian, so neighbouring cells share an error the posterior does not know of.
    """

    slope: float = 1.7  # a probit is close to a logit of 1.7 times the argument
    intercept: float = 0.0
    misfit: float = MISFIT

    def probability(self, margin: np.ndarray, noise: float) -> np.ndarray:
        """Probability of failure where the process expects this margin."""
        return expit(self.slope * margin / noise + self.intercept)


def assess(
    features: Features, data: Data, control: np.ndarray, space: ConceptSpace, noise: float, seed: int, folds: int = 4
) -> tuple[Link, dict[str, object]]:
    """Predict the uniform probes of cells held out in turn; calibrate the link on them and say how good it is.

    Held-out log loss, Brier score and expected calibration error are those of the calibrated prediction, its
    calibration being cross-fitted as well, beside those of the constant that predicts the overall rate.
    """
    rng = np.random.default_rng(seed)
    cell, fold_of = np.unique(space.flat(data.cells), return_inverse=True)
    fold = rng.permutation(np.arange(len(cell)) % folds)[fold_of]
    rows = np.flatnonzero(control)
    margin, draws = np.zeros(len(rows)), np.zeros((len(rows), DRAWS))
    for k in range(min(folds, len(cell))):
        held = rows[fold[rows] == k]
        posterior = fit(features, data.take(fold != k), noise)
        phi = features.of_probes(data.items[held], data.cells[held])
        margin[fold[rows] == k] = (posterior.offset + phi @ posterior.weights) / posterior.noise
        draws[fold[rows] == k] = (posterior.offset + phi @ posterior.draw(DRAWS, rng).T) / posterior.noise
    failed = data.failed[rows]
    link = _calibrate(margin, failed)
    predicted = np.empty(len(rows))
    for k in range(folds):
        held_out = fold[rows] == k
        predicted[held_out] = _calibrate(margin[~held_out], failed[~held_out]).probability(margin[held_out], 1.0)
    misfit = _misfit(failed, link.probability(margin, 1.0), link.probability(draws, 1.0), data.cells[rows])
    return Link(link.slope, link.intercept, misfit), _scores(failed, predicted)


def _misfit(failed: np.ndarray, expected: np.ndarray, draws: np.ndarray, cells: np.ndarray) -> float:
    """How far held-out rates are off beyond what the posterior says, as a share of rate * (1 - rate).

    Two probes of neighbouring cells err together only as far as the rate there is wrong, so the mean product of their
    residuals is the variance of that error; the same product over posterior draws (n, draws) is what the process says
    of it. Only an excess of two standard errors counts.
    """
    residual = failed - expected
    observed, pairs = _pair_product(residual[:, None], cells)
    said, _ = _pair_product(draws - draws.mean(axis=1, keepdims=True), cells)
    spread = expected * (1 - expected)
    error = float((residual**2).mean()) / np.sqrt(max(1, pairs))
    excess = float(observed[0]) - 2 * error - float(said.mean()) * DRAWS / (DRAWS - 1)
    return float(np.clip(excess / max(float(spread.mean()), 1e-6), MISFIT, 1.0))


def _pair_product(values: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, int]:
    """Mean product of two rows in one block of neighbouring cells, by column (n, k) -> (k,), and the pairs."""
    blocks = blocks_of(cells)
    sums = np.zeros((blocks.max() + 1, values.shape[1]))
    np.add.at(sums, blocks, values)
    counts = np.bincount(blocks)
    pairs = int((counts * (counts - 1)).sum()) // 2
    return ((sums**2).sum(axis=0) - (values**2).sum(axis=0)) / max(1, 2 * pairs), pairs


def blocks_of(cells: np.ndarray) -> np.ndarray:
    """Number of the block of neighbouring levels each cell lies in: (n,)."""
    return np.unique(cells // 2, axis=0, return_inverse=True)[1].ravel()


def _calibrate(margin: np.ndarray, failed: np.ndarray) -> Link:
    """Logistic regression of failed on the standardised margin; the default where there is only one outcome."""
    if failed.all() or not failed.any():
        return Link()
    model = LogisticRegression(C=10.0).fit(margin[:, None], failed)
    return Link(max(float(model.coef_[0, 0]), 1e-3), float(model.intercept_[0]))


def _scores(failed: np.ndarray, predicted: np.ndarray) -> dict[str, object]:
    """Scores of predicted probabilities on held-out probes, beside those of the constant."""
    if len(failed) == 0:
        return {"held_out_probes": 0}
    predicted = np.clip(predicted, 1e-6, 1 - 1e-6)
    constant = np.full(len(failed), np.clip(failed.mean(), 1e-6, 1 - 1e-6))
    bins = np.minimum((predicted * 10).astype(int), 9)
    gaps = [abs(failed[bins == b].mean() - predicted[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return {
        "held_out_probes": len(failed),
        "log_loss": float(log_loss(failed, predicted, labels=[False, True])),
        "log_loss_constant": float(log_loss(failed, constant, labels=[False, True])),
        "brier": float(brier_score_loss(failed, predicted)),
        "brier_constant": float(brier_score_loss(failed, constant)),
        "calibration_error": float(sum(gaps)),
    }
