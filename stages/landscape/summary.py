"""Compute the landscape from a model's probes, in one function."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.core.intervals import wilson
from stages.explorers.kernel import landmarks
from stages.explorers.policy import Policy, load_policy
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
from stages.landscape.rates import rate_in_use
from stages.landscape.robustness import reached, summarize_robustness
from stages.landscape.slices import measure_slices
from stages.params import AuditConfig, RatingsConfig
from stages.ratings import RatedTask
from stages.records import RateRecord
from stages.records import landscape as records
from stages.records.folder import Discover
from stages.records.tables import PROBES, check_table
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.contract import Split

MOST_EXAMPLES = 24  # per mode, failing and passing: the most that summarize.examples allows
POLICY_CELLS = 4096  # cells whose policy probabilities for all items are in memory at once


@dataclass(frozen=True)
class Summary:
    """A landscape: the record, its cells as in landscape.parquet, and fresh probes as in fresh.parquet."""

    landscape: records.Landscape
    cells: pd.DataFrame
    fresh: pd.DataFrame


def summarize(task: LoadedTask, found: Discover, fresh: Fresh, audit: AuditConfig) -> Summary:
    """Estimate the landscape and name its failure modes.

    Raises a UsageError if there are no probes, or their table lacks a column.

    Args:
        found: the answers of the model under test.
        fresh: probes kept back from the search; an enumerated grid needs none.
    """
    space, probes, ids, config, seed = task.concepts, found.probes, found.embedded.item_ids, audit.summarize, audit.seed
    check_table(probes, "the table of probes", [*PROBES, *space.names])
    if probes.empty:
        raise UsageError("there are no probes: there is nothing to summarize")
    evidence = (probes, ids, found.embedded.vectors, space)
    landscape = estimate_landscape(*evidence, threshold=task.threshold, seed=seed)
    notes, unchanged, attributes = list(task.notes()), task.fails_unchanged(), known_attributes(task, ids)
    known = conditions(task, attributes.set_axis(ids))
    named, measured = name_modes(
        landscape, *evidence, config, threshold=task.threshold, seed=seed, fresh=fresh, attributes=known
    )
    modes = [mode for mode in named if mode.confirmed]
    parts = shares_of_failures(space, probes, [mode.region for mode in modes], known)
    halves = name_in_halves(landscape, *evidence, config, threshold=task.threshold, seed=seed, attributes=known)
    policy = load_policy(found.path / "policy")
    cells = landscape.table.assign(**policy_view(policy, found.embedded.vectors, landscape, space))
    told = None
    if isinstance(task, RatedTask) and audit.ratings is not None:
        told, columns = _by_people(task, audit.ratings, found, landscape, seed)
        cells = cells.assign(**columns)
    averaged = landscape.averaged or len(ids)
    record = records.Landscape(
        audit=found.path.parent.name,
        concepts=[records.ConceptRecord(**concept) for concept in space.to_json()],
        threshold=task.threshold,
        false_alarms=dict(task.false_alarms()),
        usage=records.usage_record(space, audit.usage),
        overall=RateRecord.from_rate(overall_rate(landscape, probes, space)),
        overall_estimated=RateRecord.from_rate(landscape.mean_rate()),
        effects=main_effects(landscape, space, probes),
        alone=alone(space, probes, [mode.region for mode in modes], known),
        half_as_much=_as_much(0.5, probes, space),
        twice_as_much=_as_much(2.0, probes, space),
        modes=[
            records.ModeRecord(
                **measure_region(mode, space),
                lift=mode.lift,
                of_failures=part,
                minimal=reached(found.robustness, space, mode.region, known),
                invalid=invalid_share(space, mode.region, probes, known),
                examples=pick_examples(space, mode, probes, seed, known),
            )
            for mode, part in zip(modes, parts, strict=True)
        ],
        suspected=[records.Suspected(**measure_region(mode, space)) for mode in named if not mode.confirmed],
        invalid=invalid_probes(space, probes, task.not_valid),
        modes_found_again=reproducibility(space, modes, halves, known),
        modes_skipped=skipped_combinations(space, config.max_conditions),
        estimator=describe_estimator(landscape, probes),
        robustness=summarize_robustness(found.robustness, space, found.metrics.microscopic),
        search=found.metrics.searches,
        exact=landscape.exact,
        sampled=landscape.sampled,
        items=len(ids),
    ).having(
        notes=notes or None,
        unchanged=RateRecord.from_rate(wilson(int(sum(unchanged)), len(unchanged))) if len(unchanged) else None,
        bias=measure_bias(found.tallies.tallies, seed) or None,
        ratings=told,
        slices=measure_slices(
            probes,
            ids,
            attributes,
            space,
            measured,
            {mode.id: mode.region for mode in modes},
            exact=landscape.exact,
            seed=seed,
        ),
        items_averaged=averaged if averaged < len(ids) else None,
    )
    return Summary(record, cells, measured)


def conditions(task: LoadedTask, attributes: pd.DataFrame) -> pd.DataFrame:
    """Keep the attribute values that items of every split have, for use in the conditions of modes.

    A repair learns from items of one split and is judged on those of another.

    Args:
        attributes: attributes of the discover items, indexed by id.
    """
    splits: list[Split] = ["repair", "test"]
    others = [known_attributes(task, ids) for split in splits if (ids := task.items.ids(split))]
    shared = attributes.copy()
    for name in attributes:
        for other in others:
            shared.loc[~shared[name].isin(other[name]), name] = None
    return shared


def _as_much(factor: float, probes: pd.DataFrame, space: ConceptSpace) -> RateRecord | None:
    """Return the failure rate if `factor` times as much changed as is assumed; None if all cells are equally common."""
    if space.usage is None or space.neutral is None:
        return None
    control = probes[probes["role"] == "control"]
    failed = control["failed"].to_numpy(dtype=bool)
    return RateRecord.from_rate(rate_in_use(space, failed, control, usage=space.usage.times(factor)).rate)


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
    task: RatedTask, config: RatingsConfig, found: Discover, landscape: CellRates, seed: int
) -> tuple[records.RatingsInForce, dict[str, np.ndarray]]:
    """Compare people's ratings with the automatic measure, and return that measure's rates of cells."""
    evidence = (landscape, found.probes, found.embedded.item_ids, found.embedded.vectors, task.concepts)
    threshold = task.automatic_task.threshold
    automatic, rates = against_automatic(*evidence, threshold=threshold, seed=seed, ratings=task.ratings)
    bound = config.model_dump(include={"sha256", "fails_below", "fails_above"}, exclude_none=True)
    learnt = task.ratings.model_dump(exclude={"scale", "decisions"})
    return records.RatingsInForce(**bound, **learnt, automatic=automatic), rates
