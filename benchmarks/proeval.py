"""A failure rate from 50 answers, and the failures among them, beside ProEval (Huang et al. 2026, arXiv:2604.23099).

    python -m benchmarks.proeval CLONE      # of google-deepmind/proeval, for its code and its answers (gqa, CC-BY)

Each of the 14 models is the new one in turn; the answers of the others to all 2,000 questions are known. ProEval's own
code chooses questions and estimates by a Gaussian process over the others' answers (BQ-SF; its other variants need
embeddings, which a clone may hold as pointers only). Faded's control draws questions at random; beside it, the same
draws corrected by the others' mean answer (PPI++; Angelopoulos, Duchi and Zrnic 2023, arXiv:2311.01453).
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from stages.core.intervals import wilson

ANSWERS, DRAWS, SEED = 50, 200, 20261130


def sampler(clone: Path) -> Any:
    """ProEval's module of samplers, without the packages that the rest of it needs."""
    for name in ("proeval", "proeval.sampler"):
        package = ModuleType(name)
        package.__path__ = [str(clone.joinpath(*name.split(".")))]
        sys.modules[name] = package
    return importlib.import_module("proeval.sampler.bq")


def corrected(failed: np.ndarray, known: np.ndarray, drawn: np.ndarray) -> tuple[float, float, float]:
    """A rate (with its 95% interval) from drawn answers and what is known of all questions, by PPI++.

    Args:
        failed: (n,) whether the drawn answers failed.
        known: (N,) the prediction for every question.
        drawn: (n,) which questions were drawn.
    """
    own, n = known[drawn], len(drawn)
    spread = np.cov(failed, own)
    power = spread[0, 1] / max(spread[1, 1], 1e-12)
    rest = failed - power * own
    value = float(power * known.mean() + rest.mean())
    reach = float(student.ppf(0.975, n - 1) * rest.std(ddof=1) * np.sqrt((1 - n / len(known)) / n))
    return value, value - reach, value + reach


def main() -> None:
    """Print both tables."""
    clone = Path(sys.argv[1])
    table = pd.read_csv(clone / "data" / "gqa_predictions.csv")
    failed = table[[column for column in table if column.startswith("label_")]].to_numpy(float)
    bq, rng = sampler(clone), np.random.default_rng(SEED)
    methods = ("random", "random, corrected by other models", "ProEval BQ-SF", "ProEval BQ-SF, rounded")
    errors: dict[str, list[float]] = {name: [] for name in methods}
    covered: dict[str, list[float]] = {name: [] for name in methods[:3]}
    found: dict[str, list[float]] = {name: [] for name in ("random", "ProEval BQ-SF", "most failed by other models")}
    for k in range(failed.shape[1]):
        own, known = failed[:, k], np.delete(failed, k, axis=1).mean(axis=1)
        truth, rows = own.mean(), []
        for _ in range(DRAWS):
            drawn = rng.choice(len(own), ANSWERS, replace=False)
            plain, better = wilson(int(own[drawn].sum()), ANSWERS), corrected(own[drawn], known, drawn)
            rows.append([abs(own[drawn].mean() - truth), plain.low <= truth <= plain.high])
            rows[-1] += [abs(better[0] - truth), better[1] <= truth <= better[2]]
        means = np.mean(rows, axis=0)
        theirs = bq.BQPriorSampler(noise_variance=0.3).sample(table, k, ANSWERS, pretrain_mode="all", seed=0)
        error = abs(theirs.estimates[-1] - truth)
        for name, value in zip(
            methods, (means[0], means[2], error, abs(theirs.rounded_estimates[-1] - truth)), strict=True
        ):
            errors[name].append(value)
        claimed = 1.96 * np.sqrt(theirs.integral_variance[-1])
        for name, value in zip(methods, (means[1], means[3], error <= claimed), strict=False):
            covered[name].append(value)
        worst = np.argsort(-known, kind="stable")[:ANSWERS]
        for name, value in zip(
            found, (ANSWERS * truth, own[theirs.selected_indices].sum(), own[worst].sum()), strict=True
        ):
            found[name].append(value)
    shown = Table(f"failure rate from {ANSWERS} answers", "mean error, points", "worst model", "95% interval holds")
    for name in methods:
        holds = f"{np.mean(covered[name]):.0%}" if name in covered else "-"
        shown.add_row(name, f"{100 * np.mean(errors[name]):.1f}", f"{100 * max(errors[name]):.1f}", holds)
    Console().print(shown)
    shown = Table(f"of {ANSWERS} questions", "failures")
    for name, counts in found.items():
        shown.add_row(name, f"{np.mean(counts):.1f}")
    Console().print(shown)


if __name__ == "__main__":
    main()
