"""The verdict on a repair: what was decided, what changed, and whether that passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.files import read_json
from stages.landscape.bias import compare_bias, newly_skewed
from stages.landscape.compare import Paired, against_noise, compare_quality, reduced_failures, risen, targeting
from stages.landscape.estimate import Landscape, estimate
from stages.landscape.gates import all_passed, judge_repair
from stages.landscape.intervals import Rate
from stages.landscape.measures import compare_measures
from stages.landscape.modes import find_regions
from stages.landscape.pairs import covered_share, inside_any
from stages.landscape.shift import shift
from stages.params import AuditConfig, RepairConfig
from stages.tasks.contract import Measured, Tally, Task

Search = tuple[pd.DataFrame, dict[str, Any]]  # probes, metrics by role
SPLITS = 5  # of the items, for the noise floor of the shift


@dataclass(frozen=True)
class Plan:
    """What a person, or a rule, decided."""

    decided_by: str
    reviewer: str | None
    reason: str
    modes: list[dict[str, Any]]
    agreement: dict[str, Any] | None = None  # of several reviewers
    by: str | None = None  # the reviewers, each with what vouches for the name

    @property
    def targets(self) -> list[Region]:
        """Regions of the modes to repair."""
        return [Region.from_json(mode["region"]) for mode in self.modes if mode["action"] == "repair"]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read plan.json."""
        data = read_json(path)
        said = (data["decided_by"], data.get("reviewer"), data.get("reason") or "", data["modes"])
        return cls(*said, data.get("agreement"), data.get("by"))


@dataclass(frozen=True)
class Judged:
    """The verdict as in verdict.json, and both landscapes as in landscapes.parquet."""

    verdict: dict[str, Any]
    landscapes: pd.DataFrame


def judge_models(
    tasks: Mapping[str, Task],
    item_ids: Sequence[str],
    plan: Plan,
    repair: RepairConfig,
    searches: Mapping[str, Search],
    answers: Mapping[str, pd.DataFrame],
    audit: AuditConfig,
    clean: Mapping[str, pd.DataFrame] | None = None,
    tallies: Mapping[str, Sequence[Tally]] | None = None,
) -> Judged:
    """Compare the models and hold what came out against the gates.

    Args:
        tasks: the models: before, after, and what there is of control and noise (the model before, asked again).
        item_ids: the test items.
        plan: what was to be repaired.
        repair: control, gates and number of resamples.
        searches: probes and metrics of the searches on the models before and after.
        answers: model -> its answers to the common pairs.
        audit: seed and limits of regions.
        clean: model -> its answers to unchanged items, for measures beside the failure rate.
        tallies: model -> its tallies, for tasks that have them.
    """
    task, resamples, seed = tasks["before"], repair.re_evaluate.bootstrap, audit.seed
    space, targets = task.concepts, plan.targets
    pairs = answers["before"]
    cells = pairs[space.names].to_numpy(dtype=np.int64)
    inside, share = inside_any(space, targets, cells), covered_share(space, targets, seed)

    def pair_by(column: str) -> Paired:
        failed = {model: table[column].to_numpy(dtype=bool) for model, table in answers.items()}
        items = pairs["item"].to_numpy(dtype=str)
        return Paired(items, cells, inside, share, failed, resamples=resamples, seed=seed)

    paired = pair_by("failed")
    valid = pairs["valid"].to_numpy(dtype=bool)
    differences = paired.differences()
    qualities = {model: task.clean_quality("test") for model, task in tasks.items()}
    differences["clean_quality"], quality, quality_change = compare_quality(
        {model: q.values for model, q in qualities.items()},
        qualities["before"].item_ids,
        resamples=resamples,
        seed=seed,
    )
    differences["clean_quality"]["name"] = qualities["before"].name
    after = {
        "target_failure_rate": paired.rate("after", paired.inside),
        "other_failure_rate": paired.rate("after", ~paired.inside),
        "newly_failing": paired.newly_failing(),
        "clean_quality": quality,
    }
    change = {
        "target_failure_rate": paired.change(paired.inside),
        "other_failure_rate": paired.change(~paired.inside),
        "newly_failing": paired.newly_failing(),  # before the repair nothing was newly failing
        "clean_quality": quality_change,
    }
    bias = compare_bias(tallies, seed) if tallies else None
    if bias:
        after["bias"], change["bias"] = Rate(**bias["mean"]["after"]), Rate(**bias["mean_change"]["after"])
    gates = judge_repair(repair.gates, after, change)
    passed = all_passed(gates)

    before_landscape, after_landscape, splits = _landscapes(task, item_ids, searches, seed)
    moved = risen(paired, space, _rising_regions(space, before_landscape, after_landscape, audit))
    control = repair.restructure.control if "control" in tasks else None
    aimed = targeting(differences["target_failure_rate"], control or "")
    noise = against_noise(differences["target_failure_rate"])
    verdict = {
        "passed": passed,
        "gates": gates,
        "decided_by": plan.decided_by,
        "reviewer": plan.reviewer,
        **({"by": plan.by} if plan.by else {}),
        "reason": plan.reason,
        **({"agreement": plan.agreement} if plan.agreement else {}),
        "statement": _statement(plan, gates, differences, (aimed, noise), moved, bias),
        "control": control,
        "differences": differences,
        "modes": [
            {
                "id": mode["id"],
                "text": mode["text"],
                "action": mode["action"],
                **paired.difference(Region.from_json(mode["region"]).contains(space, cells)),
            }
            for mode in plan.modes
        ],
        "targeting": aimed,
        "invalid": {
            "targets": paired.share(~valid, paired.inside).to_json(),
            "others": paired.share(~valid, ~paired.inside).to_json(),
        },
        "failures_moved": {"found": bool(moved), "regions": moved},
        "reduced_failures": reduced_failures(paired),
        "search": {model: numbers for model, (_, numbers) in searches.items()},
        "shift": shift(space, before_landscape.table, after_landscape.table, splits),
        "estimator": {"before": before_landscape.diagnostics, "after": after_landscape.diagnostics},
        "items": len(item_ids),
    }
    if bias:
        verdict["bias"] = bias
    if "automatic_failed" in pairs:  # people's ratings say what a failure is: what of the automatic measure?
        own = pair_by("automatic_failed").differences()
        verdict["automatic"] = {key: own[key] for key in ("target_failure_rate", "other_failure_rate", "failure_rate")}
    measuring = {model: measured for model, measured in tasks.items() if isinstance(measured, Measured)}
    if measuring:
        sides = (("targets", paired.inside), ("others", ~paired.inside))
        asked = {"clean": clean or {}, **{side: {m: t[mask] for m, t in answers.items()} for side, mask in sides}}
        verdict["noise"] = noise
        verdict["measures"] = {
            part: compare_measures(measuring, tables, space.names, resamples=resamples, seed=seed)
            for part, tables in asked.items()
            if tables
        }
    return Judged(verdict, _side_by_side(space, before_landscape, after_landscape))


def _landscapes(
    task: Task, item_ids: Sequence[str], searches: Mapping[str, Search], seed: int
) -> tuple[Landscape, Landscape, list[tuple[pd.DataFrame, pd.DataFrame]]]:
    """Both landscapes, estimated alike, and for several splits two of the model before from halves of the items.

    Items are described by what the model *before* sees in them, so that both are estimated from the same description.
    """
    embeddings, space, threshold = task.embed(item_ids), task.concepts, task.threshold
    before_probes, after_probes = searches["before"][0], searches["after"][0]
    before = estimate(before_probes, item_ids, embeddings, space, threshold=threshold, seed=seed)
    after = estimate(after_probes, item_ids, embeddings, space, threshold=threshold, seed=seed)

    def part(mask: np.ndarray) -> pd.DataFrame:
        ids = [item for item, kept in zip(item_ids, mask, strict=True) if kept]
        some = before_probes[before_probes["item"].isin(ids)]
        half = estimate(some, ids, embeddings[mask], space, threshold=threshold, seed=seed, like=before, spread=False)
        return half.table

    rng, splits = np.random.default_rng(seed), []
    for _ in range(SPLITS if len(item_ids) > 1 else 1):
        first = rng.permutation(len(item_ids)) < (len(item_ids) + 1) // 2
        splits.append((part(first), part(~first if len(item_ids) > 1 else first)))
    return before, after, splits


def _rising_regions(space: ConceptSpace, before: Landscape, after: Landscape, audit: AuditConfig) -> list[Region]:
    """Regions in which the estimated rate rose most: where failures may have moved to."""
    rise = after.rates - before.rates
    if not (rise > 0).any():
        return []
    limits = audit.summarize
    return find_regions(
        space,
        before.cells(space),
        np.clip(rise, 0, None),
        modes=min(3, limits.modes),
        max_conditions=limits.max_conditions,
        min_support=limits.min_support,
    )


def _side_by_side(space: ConceptSpace, before: Landscape, after: Landscape) -> pd.DataFrame:
    columns = ["probes", "failures", "rate", "low", "high", "certain"]
    table = before.table[space.names].copy()
    for suffix, landscape in (("before", before), ("after", after)):
        for column in columns:
            table[f"{column}_{suffix}"] = landscape.table[column].to_numpy()
    return table


def _statement(
    plan: Plan,
    gates: Sequence[Mapping[str, Any]],
    differences: Mapping[str, Mapping[str, Any]],
    compared: Sequence[Mapping[str, Any] | None],
    moved: Sequence[Mapping[str, Any]],
    bias: Mapping[str, Any] | None,
) -> str:
    """The verdict in a few sentences; that a rule decided comes first, and an unjudged gate is never passed over."""
    said = ["Decided by policy, no human."] if plan.decided_by == "policy" else []
    failed, unjudged = ([gate["gate"] for gate in gates if gate["passed"] is result] for result in (False, None))
    if failed:
        said.append(f"Failed: {', '.join(failed)}.")
    if unjudged:
        said.append(f"Not judged, as there was nothing to measure: {', '.join(unjudged)}; so this is no pass.")
    if not (failed or unjudged):
        said.append("All gates passed." if gates else "No gates were set.")
    if not plan.targets:
        said.append("The plan repairs no mode, so nothing was to improve; the model is judged as it is.")
    else:
        d = differences["target_failure_rate"]
        said.append(f"In the target modes failures went from {d['before']:.1%} to {d['after']:.1%}.")
    for statement in (entry["statement"] for entry in compared if entry):
        if statement:
            said.append(f"{statement[0].upper()}{statement[1:]}.")
    if moved:
        said.append("Failures rose elsewhere: " + "; ".join(str(region["text"]) for region in moved) + ".")
    skewed = [f"{s['attribute']} of {s['subject']}" for s in newly_skewed(bias)] if bias else []
    if skewed:
        said.append(f"Newly skewed beyond chance: {', '.join(skewed)}.")
    return " ".join(said)
