"""What the yardstick judges: Faded, and methods that look for slices in a table of answers.

Each scanner is a function of a model and a budget of queries. Those on tables draw their probes as they occur in use,
and see the label and the levels of each as columns: half of the rows to find slices, half to confirm them (Fisher's
exact test, adjusted by Holm) and to state rates.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.planted.judge import Claim
from benchmarks.planted.models import Model
from stages.core.intervals import holm

MOST = 10  # slices that a method may hand over to be confirmed
FEWEST = 15  # rows of a slice
_SIGNIFICANT = 0.05

Slices = Iterator[tuple[str, np.ndarray]]
Method = Callable[[pd.DataFrame, np.ndarray, pd.DataFrame], Slices]
"""Finds slices, best first: the table of probes, whether each failed, and the table of all pairs -> text and mask of
each slice over all pairs."""


def faded(model: Model, budget: int, explorer: str = "auto") -> list[Claim]:
    """`faded.audit` with its defaults: modes first, then values of attributes that are worse."""
    import faded as package

    # A budget is for the search and its control each, and the smallest failing changes take half as many more.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = package.audit(
            model,
            np.stack(model.items) if model.kind == "digits" else list(model.items),
            expected=model.expected.tolist(),
            concepts=[package.concept(list(one.levels))(_named(one.apply, one.name)) for one in model.changes],
            budget=int(budget / 2.5),
            explorer=explorer,
        )
    space = result.landscape.space
    if not np.allclose(space.density(model.cells), model.use):
        raise ValueError("the audit assumes another use than the yardstick")

    attributes = result.records.discover.embedded.attributes
    claims = []
    for mode in result.modes:
        inside = np.outer(mode.cells.about(attributes), mode.cells.in_box(space, model.cells)).ravel()
        claims.append(Claim(mode.text, inside, (mode.rate, mode.low, mode.high)))
    slices = result.slices
    for one in slices[slices["worse"].astype(bool)].itertuples():
        of_items = (attributes[one.attribute] == one.value).to_numpy()
        inside = np.repeat(of_items, len(model.cells))
        claims.append(Claim(f"{one.attribute} is {one.value}", inside, (one.rate, one.low, one.high)))
    return claims


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def apply(item: Any, level: Any) -> Any:
        return function(item, level)

    apply.__name__ = name
    return apply


def of_table(method: Method) -> Callable[[Model, int], list[Claim]]:
    """Make a scanner of a method that finds slices in a table."""

    def scan(model: Model, budget: int) -> list[Claim]:
        from scipy.stats import binomtest, fisher_exact

        rng = np.random.default_rng(model.seed)
        drawn = rng.choice(len(model.pairs), budget, replace=False, p=model.share)
        failed = np.array([model(_items(model, drawn))]).ravel() != model.expected[drawn // len(model.cells)]
        found, kept = np.arange(budget) < budget // 2, np.arange(budget) >= budget // 2
        claims: list[Claim] = []
        p_values: list[float] = []
        for text, inside in method(model.pairs.iloc[drawn[found]], failed[found], model.pairs):
            rows = inside[drawn] & kept
            if len(claims) == MOST or not rows.any():
                continue
            table = [[int((failed & side).sum()), int((~failed & side).sum())] for side in (rows, kept & ~rows)]
            tested = binomtest(table[0][0], int(rows.sum())).proportion_ci(method="wilson")
            claims.append(Claim(text, inside, (failed[rows].mean(), tested.low, tested.high)))
            p_values.append(fisher_exact(table, alternative="greater").pvalue)
        return [claim for claim, p in zip(claims, holm(np.array(p_values)), strict=True) if p <= _SIGNIFICANT]

    return scan


def _items(model: Model, rows: np.ndarray) -> list[Any]:
    return [model.changed(model.items[row // len(model.cells)], model.cells[row % len(model.cells)]) for row in rows]


def tree(table: pd.DataFrame, failed: np.ndarray, pairs: pd.DataFrame) -> Slices:
    """The leaves of a decision tree, those that fail most first."""
    from sklearn.tree import DecisionTreeClassifier

    columns = pd.get_dummies(pairs)
    fitted = DecisionTreeClassifier(max_depth=4, min_samples_leaf=FEWEST, random_state=0)
    fitted.fit(columns.loc[table.index].to_numpy(dtype=float), failed)
    leaves = fitted.apply(columns.to_numpy(dtype=float))
    share = fitted.tree_.value[:, 0, -1] if failed.any() else np.zeros(fitted.tree_.node_count)
    for leaf in sorted(np.unique(leaves), key=lambda one: -share[one]):
        if share[leaf] > failed.mean():
            yield f"leaf {leaf}", leaves == leaf


def sliceline(table: pd.DataFrame, failed: np.ndarray, pairs: pd.DataFrame) -> Slices:
    """SliceLine (Sagadeeva and Boehm 2021), by the package `sliceline`."""
    from sliceline.slicefinder import Slicefinder

    finder = Slicefinder(alpha=0.95, k=MOST, max_l=3, min_sup=FEWEST, verbose=False)
    finder.fit(table.astype(str).to_numpy(), failed.astype(float))
    names, text = list(pairs.columns), pairs.astype(str)
    for found in finder.top_slices_:
        given = {name: value for name, value in zip(names, found, strict=True) if value is not None}
        inside = np.all([text[name] == value for name, value in given.items()], axis=0)
        yield " and ".join(f"{name} is {value}" for name, value in given.items()), inside


def subgroups(table: pd.DataFrame, failed: np.ndarray, pairs: pd.DataFrame) -> Slices:
    """Subgroup discovery by beam search (Klösgen 1996), by the package `pysubgroup`."""
    import pysubgroup

    data = table.assign(failed=failed)
    ordered = [name for name in table if pd.api.types.is_numeric_dtype(table[name])]
    selectors = pysubgroup.create_nominal_selectors(data, ignore=["failed", *ordered])
    for name in ordered:
        levels = sorted(pairs[name].unique())
        selectors += [pysubgroup.IntervalSelector(name, level, np.inf) for level in levels[1:]]
    quality = pysubgroup.StandardQF(0.5)
    task = pysubgroup.SubgroupDiscoveryTask(
        data, pysubgroup.BinaryTarget("failed", True), selectors, quality, result_set_size=MOST, depth=3
    )
    for _, found in pysubgroup.BeamSearch(beam_width=50).execute(task).to_descriptions():
        yield str(found), np.asarray(found.covers(pairs), dtype=bool)


def giskard(model: Model, budget: int) -> list[Claim]:
    """The scan of Giskard 2 for slices of bad performance, on a table of answers; it confirms by its own tests."""
    import giskard as package

    rng = np.random.default_rng(model.seed)
    drawn = rng.choice(len(model.pairs), budget, replace=False, p=model.share)
    table = model.pairs.iloc[drawn].reset_index(drop=True)
    answers = model(_items(model, drawn)).astype(str)
    table["row"] = np.arange(budget)
    table["expected"] = model.expected[drawn // len(model.cells)].astype(str)
    labels = sorted({*table["expected"], *answers})
    scores = (answers[:, None] == np.array(labels)).astype(float)
    features = list(model.pairs)
    kinds = {name: "numeric" if pd.api.types.is_numeric_dtype(table[name]) else "category" for name in features}
    data = package.Dataset(table, target="expected", column_types=kinds | {"row": "numeric"})
    wrapped = package.Model(
        lambda rows: scores[rows["row"].to_numpy(dtype=int)],
        model_type="classification",
        classification_labels=labels,
        feature_names=[*features, "row"],
    )
    report = package.scan(
        wrapped, data, features=features, only=["performance_bias"], verbose=False, raise_exceptions=True
    )
    claims: list[Claim] = []
    for issue in sorted(report.issues, key=lambda one: -one.importance):
        if issue.slicing_fn is not None:
            full = model.pairs.reset_index(drop=True)
            kept = package.Dataset(full.assign(n=range(len(full))), validation=False).slice(issue.slicing_fn)
            inside = np.zeros(len(full), dtype=bool)
            inside[kept.df["n"].to_numpy()] = True
            if not any((inside == claim.inside).all() for claim in claims):  # one slice for several metrics
                claims.append(Claim(str(issue.slicing_fn), inside))
    return claims


SCANNERS: dict[str, Callable[[Model, int], list[Claim]]] = {
    "faded": faded,
    "faded-random": partial(faded, explorer="random"),
    "tree": of_table(tree),
    "sliceline": of_table(sliceline),
    "subgroups": of_table(subgroups),
    "giskard": giskard,
}
