"""Compare the models before and after a repair, and after fewer steps, to find the cheapest training that passes."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.core.processes import Crew, cores
from stages.landscape.bias import compare_bias
from stages.landscape.compare import (
    PairedAnswers,
    against_noise,
    compare_measures,
    compare_quality,
    failure_differences,
    reduced_failures,
    risen,
    targeting,
)
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.landscape.frontier import frontier
from stages.landscape.kinds import Rates
from stages.landscape.modes import find_regions
from stages.landscape.pairs import covered_shares, half_of, inside_any, use_of_pairs
from stages.landscape.shift import policy_shift, shift
from stages.landscape.slices import compare_slices
from stages.params import SummarizeConfig
from stages.records import AuditFolder, Comparison, Landscape, RateRecord
from stages.records.landscape import ConceptRecord, EstimatorRecord
from stages.records.repair import BothEstimators, Checkpoint, InvalidPairs, ModeDifference, Moved, Training
from stages.records.tables import Embedded


def checkpoints(answers: pd.DataFrame, share: float, *, resamples: int, seed: int) -> list[Checkpoint]:
    """Compare failures and clean quality after fewer steps of the repair's own training.

    Args:
        answers: as in re_evaluate's doses.parquet.
        share: share of use that the targets cover.
        resamples: number of resamples of the items, for the intervals.
    """
    first = answers[answers["training"] == 0]
    before, found = first[first["copy_of"] == "before"], []
    fewer = first[(first["copy_of"] == "repaired") & (first["dose"] < 1) & (first["share"] == 1)]
    for (steps, dose), after in fewer.groupby(["steps", "dose"], sort=True):
        probed, clean = (before["part"].isin(parts).to_numpy() for parts in (("targets", "others"), ("clean",)))
        asked, items = before[probed], before[clean]
        values, valid = (
            {model: table[column].to_numpy() for model, table in (("before", before), ("after", after))}
            for column in ("value", "valid")
        )
        differences = failure_differences(
            *(
                PairedAnswers(
                    asked["item"].to_numpy(dtype=str),
                    np.empty((len(asked), 0), dtype=np.int64),
                    asked["part"].to_numpy() == "targets",
                    share,
                    counted,
                    asked.get("group"),
                    asked["weight"].to_numpy(),
                    resamples=resamples,
                    seed=seed,
                )
                for counted in (
                    {model: value[probed] > 0 for model, value in values.items()},
                    {model: ((value > 0) | ~valid[model].astype(bool))[probed] for model, value in values.items()},
                )
            )
        )
        of_clean = {model: value[clean] for model, value in values.items()}
        names, groups = items["item"].tolist(), items.get("group")
        differences["clean_quality"] = compare_quality(of_clean, names, groups, resamples=resamples, seed=seed)[0]
        folder = Training.folder_of("repaired", dose, 0)
        found.append(Checkpoint(folder=folder, steps=int(steps), differences=differences))
    return found


SPLITS = 5  # random splits of the items, for the noise floor of the shift
SHIFTED = 5000  # most cells for the shift, which reduces them to half as many blocks
FEW = 1000  # probes below which landscapes are fitted faster than another process starts


def by_purpose(probes: pd.DataFrame, purpose: str) -> dict[str, pd.DataFrame]:
    """Select re_evaluate's probes of one purpose, by model."""
    rows = probes[probes["purpose"] == purpose]
    return {model: table.reset_index(drop=True) for model, table in rows.groupby("model", sort=False)}


def compare_models(
    here: AuditFolder, limits: SummarizeConfig, control: str, *, resamples: int, seed: int
) -> tuple[Comparison, pd.DataFrame]:
    """Compare the models by the records of an audit.

    Args:
        here: the records up to those of re_evaluate.
        limits: of regions to which failures may have moved.
        control: what the control was trained on.
        resamples: number of resamples of the items, for the intervals.

    Returns:
        The comparison, and both landscapes as in landscapes.parquet.
    """
    found, landscape, plan = here.re_evaluate, here.summarize.landscape, here.collect_feedback.plan
    space, embedded = landscape.space, found.embedded
    answers = by_purpose(found.probes, "paired")  # of each model to the same pairs, in the same order
    targets = [mode.cells for mode in plan.targets]
    pairs = answers["before"]
    cells = pairs[space.names].to_numpy(dtype=np.int64)
    known = embedded.told_apart
    of_pairs, shares = known.loc[pairs["item"]], covered_shares(space, targets, known, seed)
    inside, share = inside_any(space, targets, cells, of_pairs), float(shares.mean())

    use = use_of_pairs(space, targets, known, cells, inside, seed)
    items = pairs["item"].to_numpy(dtype=str)
    groups = pairs["group"].to_numpy(dtype=str) if "group" in pairs else None

    def pair_by(counts: Callable[[pd.DataFrame], pd.Series]) -> PairedAnswers:
        failed = {model: counts(table).to_numpy(dtype=bool) for model, table in answers.items()}
        return PairedAnswers(
            items, cells, inside, share, failed, groups, use, usage=space.usage, resamples=resamples, seed=seed
        )

    paired = pair_by(lambda table: table["failed"])
    not_passing = pair_by(lambda table: table["failed"] | ~table["valid"].astype(bool))
    valid = pairs["valid"].to_numpy(dtype=bool)
    differences = failure_differences(paired, not_passing)
    quality = dict(iter(found.quality.groupby("model", sort=False)))
    differences["clean_quality"] = compare_quality(
        {model: rows["value"].to_numpy() for model, rows in quality.items()},
        quality["before"]["item"].tolist(),
        quality["before"].get("group"),
        resamples=resamples,
        seed=seed,
    )[0].having(name=quality["before"]["name"].iloc[0])
    tallies = found.tallies.models
    bias = compare_bias(tallies, seed) if tallies else None
    before, after, splits = _landscapes(landscape, embedded, by_purpose(found.probes, "search"), seed)
    every = _every(before)
    moved = risen(paired, space, _rising_regions(space, before, after, limits))
    used = control if "control" in answers else None
    comparison = Comparison(
        audit=here.path.name,
        concepts=[ConceptRecord(**concept) for concept in space.to_json()],
        usage=landscape.usage,
        control=used,
        differences=differences,
        modes=[
            ModeDifference(
                id=mode.id,
                text=mode.text,
                action=mode.action,
                **paired.difference(mode.cells.contains(space, cells, of_pairs)).to_json(),
            )
            for mode in plan.modes
        ],
        targeting=targeting(differences["target_failure_rate"], used or ""),
        invalid=InvalidPairs(
            targets=RateRecord.from_rate(paired.share(~valid, paired.inside)),
            others=RateRecord.from_rate(paired.share(~valid, ~paired.inside)),
        ),
        failures_moved=Moved(found=bool(moved), regions=moved),
        reduced_failures=reduced_failures(paired),
        search={"before": found.metrics.before, "after": found.metrics.after},
        shift=shift(space, before.table.iloc[::every], after.table.iloc[::every], splits),
        estimator=BothEstimators(before=_estimator(before), after=_estimator(after)),
        items=len(embedded.item_ids),
    ).having(
        bias=bias,
        frontier=frontier(found.doses, share, resamples=resamples, seed=seed),
        checkpoints=checkpoints(found.doses, share, resamples=resamples, seed=seed) or None,
        policy=policy_shift(space, found.policies, seed) or None,
        ratings=landscape.ratings.bound if landscape.ratings else None,
        slices=compare_slices(
            embedded.attributes,
            embedded.item_ids,
            items,
            cells,
            inside,
            shares,
            {model: table["failed"].to_numpy(dtype=bool) for model, table in answers.items()},
            groups,
            use,
            usage=space.usage,
            resamples=resamples,
            seed=seed,
        ),
    )
    if "automatic_failed" in pairs:  # people's ratings define failures: compare by the automatic measure too
        own = pair_by(lambda table: table["automatic_failed"]).differences()
        rates = ("target_failure_rate", "other_failure_rate", "failure_rate")
        comparison = comparison.having(automatic={key: own[key] for key in rates})
    if "noise" in answers:
        sides = (("targets", paired.inside), ("others", ~paired.inside))
        clean = by_purpose(found.probes, "clean")  # empty for a task without measures
        parts = {"clean": clean, **{side: {m: t[mask] for m, t in answers.items()} for side, mask in sides}}
        measures = {
            part: compare_measures(
                tables, found.measures[found.measures["part"] == part], resamples=resamples, seed=seed
            )
            for part, tables in parts.items()
            if tables
        }
        noise = against_noise(differences["target_failure_rate"])
        comparison = comparison.model_copy(update={"noise": noise, "measures": measures})
    return comparison, _side_by_side(space, before, after)


def _estimator(landscape: CellRates) -> EstimatorRecord:
    return EstimatorRecord.computed({"name": "exact enumeration", **landscape.diagnostics})


def _landscapes(
    landscape: Landscape, embedded: Embedded, searches: Mapping[str, pd.DataFrame], seed: int
) -> tuple[CellRates, CellRates, list[tuple[pd.DataFrame, pd.DataFrame]]]:
    """Estimate both landscapes, and landscapes of the model before from several splits of the items into halves.

    Items are embedded by the model *before* in all of them, so that they are estimated from the same description.
    """
    probes, (item_ids, embeddings) = searches["before"], embedded[:2]
    crew = Crew(cores() if len(probes) > FEW else 1)
    whole = partial(estimate_landscape, space=landscape.space, threshold=landscape.threshold, seed=seed)
    before, after = crew.ask(whole, [(searches[model], item_ids, embeddings) for model in ("before", "after")])

    def part(mask: np.ndarray) -> tuple[pd.DataFrame, list[str], np.ndarray]:
        ids = [item for item, kept in zip(item_ids, mask, strict=True) if kept]
        return probes[probes["item"].isin(ids)], ids, embeddings[mask]

    every = _every(before)
    rng, halves = np.random.default_rng(seed), []
    for _ in range(SPLITS if len(item_ids) > 1 else 1):
        first = ~half_of(item_ids, probes, rng)
        halves += [part(first), part(~first if len(item_ids) > 1 else first)]
    alike = partial(whole, like=before, spread=False, every=every)
    tables = [half.table for half in crew.ask(alike, halves)]
    splits = list(zip(tables[::2], tables[1::2], strict=True))
    return before, after, splits


def _every(landscape: CellRates) -> int:
    """Return k, where the shift is measured on every k-th cell of a landscape."""
    return -(-len(landscape.table) // SHIFTED)


def _rising_regions(space: ConceptSpace, before: CellRates, after: CellRates, limits: SummarizeConfig) -> list[Region]:
    """Find regions in which the estimated rate rose most, to which failures may have moved."""
    rise = after.rates - before.rates
    if not (rise > 0).any():
        return []
    few = limits.model_copy(update={"modes": min(3, limits.modes)})
    return find_regions(Rates.of_cells(space, before.cells(space), np.clip(rise, 0, None), before.use), few)


def _side_by_side(space: ConceptSpace, before: CellRates, after: CellRates) -> pd.DataFrame:
    columns = ["probes", "failures", "rate", "low", "high", "certain"]
    table = before.table[[*space.names, "use"]].copy()
    for suffix, landscape in (("before", before), ("after", after)):
        for column in columns:
            table[f"{column}_{suffix}"] = landscape.table[column].to_numpy()
    return table
