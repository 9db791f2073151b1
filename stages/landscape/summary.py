"""Compute the landscape from a model's probes, in one function that needs no files or parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.core.intervals import wilson
from stages.explorers.kernel import landmarks
from stages.landscape.bias import measure_bias
from stages.landscape.confirm import Fresh, Mode, name_in_halves, reproducibility
from stages.landscape.describe import (
    against_automatic,
    alone,
    invalid_probes,
    invalid_share,
    main_effects,
    name_modes,
    overall_rate,
    shares_of_failures,
)
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.landscape.modes import skipped_combinations
from stages.landscape.pairs import UNKNOWN, probes_inside
from stages.landscape.rates import rate_under
from stages.landscape.robustness import reached, summarize_robustness
from stages.landscape.slices import measure_slices
from stages.params import RatingsConfig, SummarizeConfig
from stages.records import RateRecord
from stages.records import landscape as records
from stages.records.search import DiscoverMetrics
from stages.records.tables import PROBES, check_table
from stages.tasks.contract import NOT_VALID, Tally

if TYPE_CHECKING:
    from stages.explorers.policy import Policy
    from stages.ratings import Ratings

MOST_EXAMPLES = 24  # per mode, failing and passing: the most that summarize.examples allows
POLICY_CELLS = 4096  # cells whose policy probabilities for all items are in memory at once


@dataclass(frozen=True)
class People:
    """People's ratings, if they define what a failure is.

    Args:
        ratings: the scale learnt from them.
        bound: the bound beyond which an answer is a failure.
        threshold: threshold of the automatic measure.
    """

    ratings: Ratings
    bound: RatingsConfig
    threshold: float


@dataclass(frozen=True)
class LandscapeInput:
    """The probes of a model, and everything else the landscape is made from.

    Args:
        threshold: discrepancies above it are failures.
        item_ids: the items that rates are averaged over.
        embeddings: (items, d), in the order of `item_ids`.
        probes: as in probes.parquet.
        found: metrics of the searches, as in discover's metrics.json.
        walked: the smallest failing changes, as in robustness.parquet.
        fresh: probes kept back from the search; an enumerated grid needs none.
        tallies: the task's tallies, if it has any.
        policy: the agent's policy, if it learns one.
        false_alarms: how often a passing answer is called a failure, if the threshold was calibrated.
        notes: sentences by the task for the report.
        not_valid: description of invalid probes; see `LoadedTask.not_valid`.
        unchanged: whether each item fails unchanged, if the task knows; see `LoadedTask.fails_unchanged`.
        people: people's ratings, if they define what a failure is.
        attributes: attributes by which people distinguish items, one row per item; see `LoadedTask.attributes`.
        usage: the record of the grid's usage; None if all cells are equally common.
        conditions: the attributes that a failure mode may be about, indexed by item id, None for values that it may not
            be about; by default there are none.
    """

    audit: str
    space: ConceptSpace
    threshold: float
    item_ids: Sequence[str]
    embeddings: np.ndarray
    probes: pd.DataFrame
    found: DiscoverMetrics
    walked: pd.DataFrame
    fresh: Fresh
    tallies: Sequence[Tally] = ()
    policy: Policy | None = None
    false_alarms: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    not_valid: str = NOT_VALID
    unchanged: Sequence[bool] | np.ndarray = ()
    people: People | None = None
    attributes: pd.DataFrame = field(default_factory=pd.DataFrame)
    usage: records.UsageRecord | None = None
    conditions: pd.DataFrame | None = None


@dataclass(frozen=True)
class Summary:
    """A landscape: the record, its cells as in landscape.parquet, and fresh probes as in fresh.parquet."""

    landscape: records.Landscape
    cells: pd.DataFrame
    fresh: pd.DataFrame


def summarize(asked: LandscapeInput, config: SummarizeConfig, seed: int) -> Summary:
    """Estimate the landscape and name its failure modes.

    Raises:
        UsageError: if there are no probes, or their table lacks a column.
    """
    space, probes, ids = asked.space, asked.probes, asked.item_ids
    check_table(probes, "the table of probes", [*PROBES, *space.names])
    if probes.empty:
        raise UsageError("there are no probes: there is nothing to summarize")
    evidence = (probes, ids, asked.embeddings, space)
    landscape = estimate_landscape(*evidence, threshold=asked.threshold, seed=seed)
    known = pd.DataFrame(index=ids) if asked.conditions is None else asked.conditions
    named, fresh = name_modes(
        landscape, *evidence, config, threshold=asked.threshold, seed=seed, fresh=asked.fresh, attributes=known
    )
    modes = [mode for mode in named if mode.confirmed]
    parts = shares_of_failures(space, probes, [mode.region for mode in modes], known)
    halves = name_in_halves(landscape, *evidence, config, threshold=asked.threshold, seed=seed, attributes=known)
    cells = landscape.table.assign(**policy_view(asked.policy, asked.embeddings, landscape, space))
    told = None
    if asked.people is not None:
        told, columns = _by_people(asked, asked.people, landscape, seed)
        cells = cells.assign(**columns)
    averaged = landscape.averaged or len(ids)
    record = records.Landscape(
        audit=asked.audit,
        concepts=[records.ConceptRecord(**concept) for concept in space.to_json()],
        threshold=asked.threshold,
        false_alarms=dict(asked.false_alarms),
        usage=asked.usage,
        overall=RateRecord.from_rate(overall_rate(landscape, probes, space)),
        overall_estimated=RateRecord.from_rate(landscape.mean_rate()),
        effects=main_effects(landscape, space, probes),
        alone=alone(space, probes, [mode.region for mode in modes], known),
        half_as_much=_as_much(0.5, landscape, probes, space),
        twice_as_much=_as_much(2.0, landscape, probes, space),
        modes=[
            records.ModeRecord(
                **measure_region(mode, space),
                lift=mode.lift,
                of_failures=part,
                minimal=reached(asked.walked, space, mode.region, known),
                invalid=invalid_share(space, mode.region, probes, known),
                examples=pick_examples(space, mode, probes, seed, known),
            )
            for mode, part in zip(modes, parts, strict=True)
        ],
        suspected=[records.Suspected(**measure_region(mode, space)) for mode in named if not mode.confirmed],
        invalid=invalid_probes(space, probes, asked.not_valid),
        modes_found_again=reproducibility(space, modes, halves, known),
        modes_skipped=skipped_combinations(space, config.max_conditions),
        estimator=describe_estimator(landscape, probes),
        robustness=summarize_robustness(asked.walked, space, asked.found.microscopic),
        search=asked.found.searches,
        exact=landscape.exact,
        sampled=landscape.sampled,
        items=len(ids),
    ).having(
        notes=list(asked.notes) or None,
        unchanged=RateRecord.from_rate(wilson(int(sum(asked.unchanged)), len(asked.unchanged)))
        if len(asked.unchanged)
        else None,
        bias=measure_bias(asked.tallies, seed) or None,
        ratings=told,
        slices=measure_slices(
            probes,
            ids,
            asked.attributes,
            space,
            fresh,
            {mode.id: mode.region for mode in modes},
            exact=landscape.exact,
            seed=seed,
        ),
        items_averaged=averaged if averaged < len(ids) else None,
    )
    return Summary(record, cells, fresh)


def _as_much(factor: float, landscape: CellRates, probes: pd.DataFrame, space: ConceptSpace) -> RateRecord | None:
    """Return the failure rate if `factor` times as much changed as is assumed; None if all cells are equally common."""
    if space.usage is None or space.neutral is None:
        return None
    return RateRecord.from_rate(rate_under(space, probes, space.usage.times(factor), exact=landscape.exact))


def measure_region(mode: Mode, space: ConceptSpace) -> dict[str, Any]:
    """Return the measurements of a region, whether or not it is a failure mode."""
    return {
        "id": mode.id,
        "region": mode.region.to_json(),
        "text": mode.region.describe(space),
        **mode.rate.of_probes,
        "failures": mode.failures,
        "estimate": mode.estimate,
        "share": mode.share,
    }


def policy_view(
    policy: Policy | None, embeddings: np.ndarray, landscape: CellRates, space: ConceptSpace
) -> dict[str, np.ndarray]:
    """Compute the paper's second view: mean and standard deviation over items of the policy's probability of each cell.

    It is averaged over the same items as the rates: a sample if there are very many. NaN without a learnt policy. It
    shows where the agent looks, not how often the model fails.
    """
    cells, embeddings = landscape.cells(space), embeddings[landmarks(len(embeddings))]
    mean = np.full(len(cells), np.nan)
    std = mean.copy()
    for start in range(0, len(cells) if policy is not None else 0, POLICY_CELLS):
        part = slice(start, start + POLICY_CELLS)
        assert policy is not None
        probabilities = policy.cell_probabilities(embeddings, cells[part]).astype(float)
        mean[part], std[part] = probabilities.mean(axis=0), probabilities.std(axis=0)
    return {"policy_mean": mean, "policy_std": std}


def pick_examples(
    space: ConceptSpace, mode: Mode, probes: pd.DataFrame, seed: int, attributes: pd.DataFrame = UNKNOWN
) -> list[records.Example]:
    """Pick probes to show for a mode: failing ones, then passing ones, from as many items as possible.

    They are drawn at random, the same for the same seed. Invalid probes are examples of neither. The landscape lists as
    many as any report may show, so that showing more of them does not make decisions on it stale.

    Returns:
        Examples with the automatic discrepancy, even if people's ratings define what has failed.
    """
    inside = probes[probes_inside(space, mode.region, probes, attributes)]
    inside = inside.drop_duplicates(["item", *space.names])  # explorer and control may have made the same probe
    inside = inside[inside["valid"]] if "valid" in inside else inside
    sides = []
    for failed in (True, False):
        rows = inside[(inside["failed"] == failed).to_numpy()].sample(frac=1, random_state=seed)
        sides.append(pd.concat([rows.drop_duplicates("item"), rows[rows.duplicated("item")]]).head(MOST_EXAMPLES))
    rows = pd.concat(sides)
    ids = [f"{mode.id}.{n}" for n in range(1, len(rows) + 1)]
    rows = rows.assign(id=ids, cell=rows[space.names].to_numpy(dtype=np.int64).tolist())
    if "automatic" in rows:  # ratings of examples calibrate the automatic measure, not themselves
        rows = rows.assign(discrepancy=rows["automatic"])
    return [records.Example(**row) for row in rows[list(records.Example.model_fields)].to_dict("records")]


def describe_estimator(landscape: CellRates, probes: pd.DataFrame) -> records.EstimatorRecord:
    """Return the estimator's name, the number of probes of each role, and its diagnostics."""
    by_role = {f"probes_{role}": int(n) for role, n in probes["role"].value_counts().sort_index().items()}
    # Diagnostics contain the name of the estimator chosen; an enumerated grid has none.
    return records.EstimatorRecord.computed({"name": "exact enumeration", **by_role, **landscape.diagnostics})


def _by_people(
    asked: LandscapeInput, people: People, landscape: CellRates, seed: int
) -> tuple[records.RatingsInForce, dict[str, np.ndarray]]:
    """Compare people's ratings with the automatic measure, and return that measure's rates of cells."""
    evidence = (landscape, asked.probes, asked.item_ids, asked.embeddings, asked.space)
    automatic, rates = against_automatic(*evidence, threshold=people.threshold, seed=seed, ratings=people.ratings)
    bound = people.bound.model_dump(include={"sha256", "fails_below", "fails_above"}, exclude_none=True)
    learnt = people.ratings.model_dump(exclude={"scale", "decisions"})
    return records.RatingsInForce(**bound, **learnt, automatic=automatic), rates
