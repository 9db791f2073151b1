"""Paired comparison of models on common probes: in the target modes, elsewhere, against the control and noise.

A task may have measures of its own beside the failure rate, which are also taken of baselines without a model.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.concepts.usage import Usage
from stages.core.errors import UsageError
from stages.core.intervals import CHANGE, LEVEL, SHARE, Rate, Resampler, holm
from stages.records import Difference, RateRecord
from stages.records.repair import (
    Against,
    MeasureDifference,
    Measures,
    Noise,
    Reduced,
    ReducedFailures,
    RegionDifference,
    Targeting,
)

if TYPE_CHECKING:
    from stages.tasks.base import LoadedTask

MIN_PAIRS = 20
KEYS = ("part", "kind", "name")  # columns besides the measures; kind is "model" or "baseline"
OTHERS = ("control", "noise")  # shown beside the repair: the control, and the model before queried again


class PairedAnswers:
    """The same (item, cell) pairs answered by several models.

    Args:
        items: (n,) item ids.
        cells: (n, concepts).
        inside: (n,) whether the cell is in a target region.
        share: share of use that the target regions cover, by which both strata count.
        failed: model -> (n,) bool, for "before", "after", and optionally `OTHERS`.
        groups: (n,) groups of the items; None if each item is its own group.
        use: (n,) weights of the pairs within each stratum, see `use_of_pairs`; None if all count alike.
        usage: the grid's, whose error is in all intervals if it was measured.
        resamples, seed: of the bootstrap.
    """

    def __init__(
        self,
        items: np.ndarray,
        cells: np.ndarray,
        inside: np.ndarray,
        share: float,
        failed: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
        use: np.ndarray | None = None,
        *,
        usage: Usage | None = None,
        resamples: int,
        seed: int,
    ) -> None:
        self.cells, self.inside = cells, inside
        self.failed = {model: values.astype(float) for model, values in failed.items()}
        self.weight = in_strata(np.ones(len(inside)) if use is None else use, inside, share)
        error = partial(usage.error_of_mean, cells) if usage else None
        self._resampler = Resampler(items, resamples, seed, groups, error)

    def rate(self, model: str, mask: np.ndarray | None = None, level: float = LEVEL) -> Rate:
        """Failure rate of a model in use, or over the cells of the mask."""
        return self._resampler.mean(self.failed[model], self._weights(mask), SHARE, level)

    def change(
        self, mask: np.ndarray | None = None, models: tuple[str, str] = ("before", "after"), level: float = LEVEL
    ) -> Rate:
        """Failure rate of the second model minus the first, on the same pairs."""
        change = self.failed[models[1]] - self.failed[models[0]]
        return self._resampler.mean(change, self._weights(mask), CHANGE, level)

    def p_rise(self, mask: np.ndarray) -> float:
        """One-sided p-value of "no more failures after than before" in the cells of the mask."""
        return self._resampler.p_value(
            self.failed["after"] - self.failed["before"], self._weights(mask), above=0.0, lowest=CHANGE[0]
        )

    def share_among(self, values: Mapping[str, np.ndarray], among: np.ndarray) -> Difference:
        """Return the share after the repair among some pairs, and for each of `OTHERS` the share and the difference.

        Args:
            values: model -> (n,) 0 or 1.
            among: (n,) 1 for the pairs that count, else 0.
        """
        mean, weights, others = self._resampler.mean, self.weight * among, {}
        for name in OTHERS:
            if name in values:
                minus = RateRecord.from_rate(mean(values["after"] - values[name], weights, CHANGE))
                share = Against.measured(mean(values[name], weights, SHARE))
                others[name] = share.having(**{f"repair_minus_{name}": minus})
        return Difference.measured(mean(values["after"], weights, SHARE)).having(**others)

    def _weights(self, mask: np.ndarray | None) -> np.ndarray:
        return self.weight if mask is None else self.weight * mask

    def difference(self, mask: np.ndarray | None = None) -> Difference:
        """Return before, after, the paired change, and the same for the control and the noise."""
        return compare_values(self._resampler, self.failed, self._weights(mask))

    def share(self, which: np.ndarray, mask: np.ndarray | None = None) -> Rate:
        """Share of the pairs for which `which` (n,) bool is true, in use or over the cells of the mask."""
        return self._resampler.mean(which.astype(float), self._weights(mask), SHARE)

    def differences(self) -> dict[str, Difference]:
        """Return all measures on probes: in the targets, elsewhere, overall.

        And the shares of newly failing pairs among those that passed before, and of fixed ones among those that failed.
        """
        before, passing = self.failed["before"], {model: 1 - failed for model, failed in self.failed.items()}
        return {
            "target_failure_rate": self.difference(self.inside),
            "other_failure_rate": self.difference(~self.inside),
            "failure_rate": self.difference(np.ones(len(self.inside), dtype=bool)),
            "newly_failing": self.share_among(self.failed, 1 - before),
            "fixed": self.share_among(passing, before),
        }


def in_strata(use: np.ndarray, inside: np.ndarray, share: float) -> np.ndarray:
    """Return weights (n,) of pairs in use, given those within each stratum and the share that the targets cover."""
    sums = {side: float(use[inside == side].sum()) or 1.0 for side in (True, False)}
    return use * np.where(inside, share / sums[True], (1 - share) / sums[False])


def failure_differences(failed: PairedAnswers, not_passing: PairedAnswers) -> dict[str, Difference]:
    """Compare failures, and inside and outside the targets also with invalid answers counted as failures.

    Args:
        failed: pairs by whether they failed.
        not_passing: the same pairs by whether they failed or are invalid.
    """
    found = failed.differences()
    for part, mask in (("target", failed.inside), ("other", ~failed.inside)):
        found[f"{part}_not_passing"] = not_passing.difference(mask)
    return found


def compare_quality(
    values: Mapping[str, np.ndarray],
    item_ids: Sequence[str],
    groups: pd.Series | None = None,
    *,
    resamples: int,
    seed: int,
) -> tuple[Difference, Rate, Rate]:
    """Compare a quality measured per item: returns the paired difference, the value after, and the change."""
    resampler, weights = Resampler(np.asarray(item_ids), resamples, seed, groups), np.ones(len(item_ids))
    bounds, moves = value_bounds(values["before"], values["after"])
    after = resampler.mean(values["after"], weights, bounds)
    change = resampler.mean(values["after"] - values["before"], weights, moves)
    return compare_values(resampler, values, weights), after, change


def value_bounds(one: np.ndarray, other: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the bounds of the values (n,) of two models, and of their differences.

    If every value is 0 or 1, these are known. Graded values (a similarity) are assumed to be within the observed range:
    bounded by the whole scale, the intervals for some dozens of items would be several times wider than the values' own
    spread warrants. An unseen item may move as far as the farthest between the two, and at least by the standard
    deviation of the values: that no item moved so far does not show that none can.
    """
    seen = np.concatenate([one, other]).astype(float)
    if seen.size == 0 or np.isin(seen, (0.0, 1.0)).all():
        return SHARE, CHANGE
    moved = max(float(np.abs(other.astype(float) - one).max()), float(seen.std()))
    return (float(seen.min()), float(seen.max())), (-moved, moved)


def compare_values(resampler: Resampler, values: Mapping[str, np.ndarray], weights: np.ndarray) -> Difference:
    """Compare one quantity: before, after, the paired change, and each of `OTHERS` against before and after.

    Each interval is bounded by the two models it compares, so that it does not depend on which others were queried.
    """
    counted = weights > 0

    def mean(model: str) -> Rate:
        return resampler.mean(
            values[model], weights, value_bounds(values["before"][counted], values[model][counted])[0]
        )

    def moved(one: str, other: str) -> Rate:
        differences = values[other].astype(float) - values[one]
        return resampler.mean(differences, weights, value_bounds(values[one][counted], values[other][counted])[1])

    others = {}
    for name in OTHERS:
        if name in values:
            repair = {f"repair_minus_{name}": RateRecord.from_rate(moved(name, "after"))}
            others[name] = Against.measured(mean(name), change=moved("before", name)).having(**repair)
    return Difference.measured(mean("after"), mean("before"), moved("before", "after")).having(**others)


def targeting(difference: Difference, control: str = "as_used") -> Targeting | None:
    """Whether the target modes improved more than under the control; None without a control.

    Args:
        difference: of the failure rate in the target modes.
        control: the control's training data, cells "as_used" or "clean" inputs, as in params.yaml.
    """
    against = difference.control.repair_minus_control if difference.control else None
    if against is None or against.value is None:
        return None
    change, helped = change_in_points(against.rate), against.rate.high < 0
    cause, other = (
        ("what the repair knows of the changes", "the same steps on unchanged inputs")
        if control == "clean"
        else ("aiming the repair", "the control")
    )
    if helped:
        said = f"{cause} helped: {change} against {other} in the target modes"
    elif against.rate.low > 0:
        said = f"{cause} did worse than {other} there: {change}"
    else:
        said = f"no better than {other} in the target modes ({change})"
        if difference.moved.high < 0 and difference.control is not None and difference.control.moved.high < 0:
            said += ": what improved there improved in general"
    return Targeting(helped=helped, statement=said, **against.to_json())


def against_noise(difference: Difference) -> Noise | None:
    """Whether fewer failures in the target modes exceed the model's own noise; None if noise was not measured.

    An improvement counts only if it is one over both runs of the model before, because either could have been the one
    compared with the repair.
    """
    noise = difference.noise
    against = noise.repair_minus_noise if noise else None
    if noise is None or against is None or against.value is None:
        return None
    change, again = difference.moved, noise.moved
    beyond = change.high < 0 and against.rate.high < 0
    said = None
    if change.value < 0:
        where = "beyond the noise" if beyond else "within the noise"
        if change.high >= 0:
            where = "not significant, because of too few pairs rather than noise"
        floor = change_in_points(again)
        said = f"the improvement in the target modes is {where}: the same model asked again differs by {floor}"
    return Noise(beyond=beyond, statement=said, **against.to_json())


def change_in_points(change: Rate) -> str:
    """Format a change of a share with its interval: "−8.7 points (−12.0 to −5.4)"."""
    text = f"{100 * change.value:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
    return text.replace("-", "−")


def reduced_failures(paired: PairedAnswers) -> ReducedFailures:
    """Check for reduced failures in the sense of the paper's Def. 4.1, in the chosen modes and overall.

    The inequality is: sum over cells c in C of rate_after(c) < sum over c in C of rate_before(c), for C the cells of
    the chosen modes and for C all of use, evaluated as mean rates over C, which is equivalent. It holds
    `beyond_chance` if the paired 95% interval of the difference is below 0.
    """
    targets, total = (_reduced(paired, mask) for mask in (paired.inside, np.ones(len(paired.inside), dtype=bool)))
    parts = [part.holds for part in (targets, total) if part.holds is not None]
    return ReducedFailures(
        holds=bool(parts) and all(parts),
        inequality="mean over C of (rate_after - rate_before) < 0",
        targets=targets,
        total=total,
    )


def _reduced(paired: PairedAnswers, mask: np.ndarray) -> Reduced:
    change = paired.change(mask)
    before, after = (RateRecord.from_rate(paired.rate(model, mask)).value for model in ("before", "after"))
    return Reduced(
        holds=change.value < 0 if change.n else None,
        beyond_chance=change.high < 0 if change.n else None,
        before=before,
        after=after,
        change=RateRecord.from_rate(change),
    )


def risen(paired: PairedAnswers, space: ConceptSpace, regions: Sequence[Region]) -> list[RegionDifference]:
    """Return the regions that fail more often after the repair, on pairs that did not name them: failures moved there.

    A region counts if its interval is above 0 and Holm's test over all regions confirms it.
    """
    masks = [region.in_box(space, paired.cells) for region in regions]
    tested = [(r, m) for r, m in zip(regions, masks, strict=True) if paired.change(m).n >= MIN_PAIRS]
    adjusted = holm(np.array([paired.p_rise(mask) for _, mask in tested]))
    return [
        RegionDifference(region=region.to_json(), text=region.describe(space), **paired.difference(mask).to_json())
        for (region, mask), p_value in zip(tested, adjusted, strict=True)
        if paired.change(mask).low > 0 and p_value < (1 - LEVEL) / 2
    ]


def measure_answers(
    tasks: "Mapping[str, LoadedTask]", parts: Mapping[str, Mapping[str, pd.DataFrame]], names: Sequence[str]
) -> pd.DataFrame:
    """Measure the answers of all models and baselines to each pair that is valid for a model, as in measures.parquet.

    Args:
        tasks: the models; each measures its own answers, because a measure may compare two answers of one model.
        parts: part -> model -> the same pairs in the same order, in the format of probes.parquet.
        names: names of the concepts, in the order of a cell's columns.

    Returns:
        One row per answer: `part`, `kind`, `name` (of the model or baseline), and one column per measure.
    """
    found = [pd.DataFrame({key: pd.Series(dtype="str") for key in KEYS})]
    for part, answers in parts.items():
        if not answers:
            continue
        valid = _valid(answers)
        asked = answers["before"][valid]
        items, cells = asked["item"].tolist(), asked[list(names)].to_numpy(dtype=np.int64)
        if not items:
            continue
        base = tasks["before"]
        outputs = {("model", model): table.loc[valid, "output"].tolist() for model, table in answers.items()}
        outputs |= {("baseline", name): list(said) for name, said in base.baselines(items, cells).items()}
        for (kind, name), said in outputs.items():
            task = tasks[name] if kind == "model" else base
            table = _checked(task, task.measure(items, cells, said), len(items))
            found.append(table.assign(part=part, kind=kind, name=name))
    table = pd.concat(found[1:] or found, ignore_index=True)
    return table[[*KEYS, *(column for column in table if column not in KEYS)]]


def compare_measures(
    answers: Mapping[str, pd.DataFrame], measured: pd.DataFrame, *, resamples: int, seed: int
) -> Measures:
    """Compute the means of each measure for all models, the paired changes, and the means of the baselines.

    All means of one measure are over the same pairs: those that are valid for a model and have a value for every model
    and baseline. Intervals resample items.

    Args:
        answers: model -> the same pairs in the same order, in the format of probes.parquet.
        measured: the result of `measure_answers` for this part.
        resamples: number of resamples of the items, for the intervals.
    """
    valid = _valid(answers)
    pairs = answers["before"][valid]
    items = pairs["item"].tolist()
    found = Measures(pairs=len(items), items=len(set(items)), invalid=int((~valid).sum()), measures={})
    if not items:
        return found
    resampler = Resampler(pairs["item"], resamples, seed, pairs.get("group"))
    entries = {}
    for name in [column for column in measured if column not in KEYS]:
        values, without_model = (
            {who: rows[name].to_numpy(dtype=float) for who, rows in part.groupby("name", sort=False)}
            for part in (measured[measured["kind"] == kind] for kind in ("model", "baseline"))
        )
        known = ~np.isnan([*values.values(), *without_model.values()]).any(axis=0)
        values = {model: np.where(known, column, 0.0) for model, column in values.items()}
        means = {b: float(column[known].mean()) if known.any() else None for b, column in without_model.items()}
        moved = compare_values(resampler, values, known.astype(float))
        entries[name] = MeasureDifference(baselines=means, **moved.to_json())
    return found.having(measures=entries)


def _valid(answers: Mapping[str, pd.DataFrame]) -> np.ndarray:
    """Return the pairs that are valid for at least one model: leaving out those of a single one would favour it."""
    return np.any([table["valid"].to_numpy(dtype=bool) for table in answers.values()], axis=0)


def _checked(task: "LoadedTask", table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Check the measures of n probes; a single infinite value would make every mean infinite."""
    where = f"{type(task).__name__}.measure"
    if len(table) != n:
        raise UsageError(f"{where} was asked to measure {n} outputs and answered with {len(table)} rows")
    if np.isinf(table.to_numpy(dtype=float)).any():
        raise UsageError(f"{where} answered a value that is infinite; nan stands for none")
    return table.reset_index(drop=True)
