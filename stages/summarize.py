"""Turn the probes into a landscape people can read: rates, effects, failure modes, a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stages.command import stage_main
from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.explorers import Policy, load_policy
from stages.files import publishing, read_json, read_table, stage_dir, write_json
from stages.landscape import (
    Against,
    Landscape,
    Mode,
    Rate,
    against_automatic,
    all_passed,
    effects,
    estimate,
    invalid_probes,
    invalid_share,
    judge_landscape,
    judged,
    largest_bias,
    measure_bias,
    name_in_halves,
    name_modes,
    overall_rate,
    reproducibility,
    skipped_combinations,
)
from stages.landscape.kernel import landmarks
from stages.landscape.robustness import describe_steps, nearest, reached, summarize_robustness
from stages.params import AuditConfig, load_params, task_class, task_context
from stages.provenance import prepared_files, provenance, write_provenance
from stages.ratings import RatedTask, rated
from stages.report import Gallery, PicturedCell, write_exhibits, write_landscape_report
from stages.tasks.contract import Exhibit, Illustrated, Tallied, Task

MOST_EXAMPLES = 24  # of each kind, as summarize.examples allows
EXTREME_CELLS = 4  # shown of the best, and of the worst
POLICY_CELLS = 4096  # cells whose policy probabilities are held at once, for all items


def main(name: str) -> None:
    """Run the stage for one audit."""
    audit = load_params().audit(name)
    prepared, discovered = stage_dir(name, "prepare"), stage_dir(name, "discover")
    task = rated(task_class(name, audit).load(task_context(name, audit), prepared), name, audit)
    found = read_json(discovered / "metrics.json")
    probes = _read_probes(discovered / "probes.parquet", task.concepts)
    walked = read_table(discovered / "robustness.parquet")
    item_ids = task.items.ids("discover")
    embeddings = task.embed(item_ids)

    landscape = estimate(probes, item_ids, embeddings, task.concepts, threshold=task.threshold, seed=audit.seed)
    evidence = (landscape, probes, item_ids, embeddings, task.concepts, audit.summarize)
    modes = name_modes(*evidence, threshold=task.threshold, seed=audit.seed)
    halves = name_in_halves(*evidence, threshold=task.threshold, seed=audit.seed)
    overall = overall_rate(landscape, probes)
    bias = measure_bias(task.tallies("discover"), audit.seed) if isinstance(task, Tallied) else []
    confirmed = [mode.rate for mode in modes if mode.confirmed]
    gates = judge_landscape(audit.summarize.gates, overall, confirmed, largest_bias(bias))
    passed = all_passed(gates)
    verdict = {"audit": name, "passed": passed, "gates": gates}
    table = landscape.table.assign(
        **policy_view(load_policy(discovered / "policy"), embeddings, landscape, task.concepts)
    )
    people = None
    if isinstance(task, RatedTask):
        evidence_of_both = (landscape, probes, item_ids, embeddings, task.concepts)
        own = task.automatic_task.threshold
        people = against_automatic(*evidence_of_both, threshold=own, seed=audit.seed, ratings=task.ratings)
        table = table.assign(**people.rates)
    summary = {
        "audit": name,
        "concepts": task.concepts.to_json(),
        "threshold": float(task.threshold),
        "false_alarms": getattr(task, "false_alarms", {}),
        **({"notes": notes} if (notes := list(getattr(task, "notes", ()))) else {}),
        "overall": overall.to_json(),
        "overall_estimated": landscape.mean_rate().to_json(),
        "effects": effects(landscape, task.concepts, probes),
        "modes": [
            mode.to_json(task.concepts)
            | {
                "minimal": reached(walked, task.concepts, mode.region),
                "invalid": invalid_share(task.concepts, mode.region, probes),
                "examples": pick_examples(task.concepts, mode, probes, audit.seed).to_dict("records"),
            }
            for mode in modes
        ],
        "invalid": invalid_probes(task.concepts, probes),
        "modes_found_again": reproducibility(task.concepts, modes, halves),
        "modes_skipped": skipped_combinations(task.concepts, audit.summarize.max_conditions),
        **({"bias": bias} if bias else {}),
        **({"ratings": _ratings(task, audit, people)} if people and isinstance(task, RatedTask) else {}),
        "estimator": _estimator(landscape, probes),
        "robustness": summarize_robustness(walked, task.concepts, found.get("microscopic", {})),
        "search": {role: found[role] for role in ("agent", "control") if role in found},
        "exact": landscape.exact,
        "sampled": landscape.sampled,
        "items": len(item_ids),
        **({"items_averaged": n} if (n := landscape.averaged or len(item_ids)) < len(item_ids) else {}),
    }
    metrics = _metrics(summary, passed)
    shown = galleries(task, modes, probes, audit.summarize.examples, audit.seed)
    with publishing(stage_dir(name, "summarize")) as out:
        table.to_parquet(out / "landscape.parquet", index=False)
        write_json(out / "landscape.json", summary)
        write_exhibits(out / "exhibits.parquet", shown)
        write_json(out / "verdict.json", verdict)
        write_json(out / "metrics.json", metrics, schema=False)
        record = provenance(name, audit, prepared)
        write_landscape_report(
            out / "report.html",
            landscape=table,
            summary=summary,
            verdict=verdict,
            probes=probes,
            galleries=shown,
            nearest=nearest_failures(task, walked, audit.summarize.examples),
            extremes=best_and_worst(task, table, probes) if isinstance(task, Illustrated) else {},
            sheets=task.sheets("discover") if isinstance(task, Illustrated) else [],
            provenance=record,
            metrics=metrics,
            skipped=task.items.skipped,
        )
        read = [discovered / one for one in ("probes.parquet", "robustness.parquet", "policy", "metrics.json")]
        write_provenance(out, record, [*prepared_files(prepared), *read])
    _say(summary, overall, modes, task.concepts)


def _read_probes(path: Any, space: ConceptSpace) -> pd.DataFrame:
    probes = read_table(path)
    needed = {"role", "item", "repeat", "discrepancy", "failed", "output", *space.names}
    if missing := sorted(needed - set(probes.columns)):
        raise UsageError(f"{path} lacks the column(s) {', '.join(missing)}, found {', '.join(probes.columns)}")
    if probes.empty:
        raise UsageError(f"{path} holds no probes: there is nothing to summarize")
    return probes


def policy_view(
    policy: Policy | None, embeddings: np.ndarray, landscape: Landscape, space: ConceptSpace
) -> dict[str, np.ndarray]:
    """The paper's second view: mean and standard deviation over items of the policy's probability of each cell.

    Over the items the rates are averaged over, too: a sample where they are very many.

    NaN where no policy was learnt. It says where the agent looks, not how often the model fails.
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


def pick_examples(space: ConceptSpace, mode: Mode, probes: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Probes that may be shown of a mode: failing ones, then passing ones, of as many items as there are.

    Drawn at random, the same ones for the same seed. Probes that are not valid are examples of neither. The landscape
    names as many as any report may show, so that showing more of them makes no decision on it stale.

    Returns:
        One row a probe: `id` (M1.1, M1.2, ..., as a decision refers to it), `item`, `cell` (level indices), `output`,
        `failed`, `discrepancy` (the automatic one, also where people's ratings say what has failed).
    """
    inside = probes[mode.region.contains(space, probes[space.names].to_numpy(dtype=np.int64))]
    inside = inside.drop_duplicates(["item", *space.names])  # explorer and control may have asked the same
    inside = inside[inside["valid"]] if "valid" in inside else inside
    sides = []
    for failed in (True, False):
        rows = inside[(inside["failed"] == failed).to_numpy()].sample(frac=1, random_state=seed)
        sides.append(pd.concat([rows.drop_duplicates("item"), rows[rows.duplicated("item")]]).head(MOST_EXAMPLES))
    rows = pd.concat(sides)
    ids = [f"{mode.id}.{n}" for n in range(1, len(rows) + 1)]
    rows = rows.assign(id=ids, cell=rows[space.names].to_numpy(dtype=np.int64).tolist())
    if "automatic" in rows:  # ratings of them teach what people make of the automatic measure, not of themselves
        rows = rows.assign(discrepancy=rows["automatic"])
    return rows[["id", "item", "cell", "output", "failed", "discrepancy"]]


def galleries(task: Task, modes: Sequence[Mode], probes: pd.DataFrame, examples: int, seed: int) -> dict[str, Gallery]:
    """So many failing and passing examples of each mode as people would see them, each behind its id."""
    shown = {}
    for mode in modes:
        rows = pick_examples(task.concepts, mode, probes, seed).groupby("failed", sort=False).head(examples)
        exhibits = task.exhibit(rows["item"].tolist(), np.array(rows["cell"].tolist())) if len(rows) else []
        named = [replace(e, caption=f"{id_} - {e.caption}") for e, id_ in zip(exhibits, rows["id"], strict=True)]
        failing = int(rows["failed"].sum())
        shown[mode.id] = Gallery(failing=named[:failing], passing=named[failing:], ids=rows["id"].tolist())
    return shown


def nearest_failures(task: Task, walked: pd.DataFrame, examples: int) -> list[Exhibit]:
    """The smallest failing changes as people would see them, the smallest first."""
    rows = nearest(walked, task.concepts, examples)
    if rows.empty:
        return []
    cells = rows[task.concepts.names].to_numpy(dtype=np.int64)
    said = [describe_steps(task.concepts, cell, int(n)) for cell, n in zip(cells, rows["radius"], strict=True)]
    exhibits = task.exhibit(rows["item"].tolist(), cells)
    return [replace(e, caption=f"{text}. {e.caption}") for e, text in zip(exhibits, said, strict=True)]


def best_and_worst(task: Task, table: pd.DataFrame, probes: pd.DataFrame) -> dict[str, list[PicturedCell]]:
    """The cells with the highest and the lowest estimated rate, with an example of each cell that was probed.

    Of cells with the same rate those probed most come first. A bad cell is shown failing if it was seen to, a good one
    passing.

    Returns:
        "worst" and "best", each the most extreme cell first. No cell is in both.
    """
    names, n = task.concepts.names, min(EXTREME_CELLS, len(table) // 2)
    probes = probes[probes["valid"]] if "valid" in probes else probes
    shown = {}
    for side, falling in (("worst", True), ("best", False)):
        rows = table.sort_values(["rate", "probes"], ascending=[not falling, False], kind="stable").head(n)
        table = table.drop(index=rows.index)
        asked = probes.sort_values("failed", ascending=not falling, kind="stable").drop_duplicates(names)
        found = rows[names].merge(asked[[*names, "item"]], on=names, how="left")["item"].tolist()
        cells = rows[names].to_numpy(dtype=np.int64)
        known = [i for i, item in enumerate(found) if isinstance(item, str)]
        exhibits = task.exhibit([found[i] for i in known], cells[known]) if known else []
        by_row = dict(zip(known, exhibits, strict=True))
        numbers = rows[["rate", "low", "high"]].to_numpy(dtype=float)
        shown[side] = [
            PicturedCell(task.concepts.describe(cell.tolist()), rate, low, high, by_row.get(i))
            for i, (cell, (rate, low, high)) in enumerate(zip(cells, numbers.tolist(), strict=True))
        ]
    return shown


def _ratings(task: RatedTask, audit: AuditConfig, people: Against) -> dict[str, Any]:
    """What people's ratings say of the landscape, beside what the automatic measure says."""
    assert audit.ratings is not None
    bounds = audit.ratings.model_dump(include={"sha256", "fails_below", "fails_above"}, exclude_none=True)
    learnt = task.ratings.model_dump(exclude={"scale", "decisions"})
    return {**bounds, **learnt, "automatic": people.summary}


def _estimator(landscape: Landscape, probes: pd.DataFrame) -> dict[str, Any]:
    by_role = {f"probes_{role}": int(n) for role, n in probes["role"].value_counts().sort_index().items()}
    # Diagnostics name the estimator that was chosen; an enumerated grid has none.
    return {"name": "exact enumeration", **by_role, **landscape.diagnostics}


def _metrics(summary: dict[str, Any], passed: bool | None) -> dict[str, Any]:
    """Flat numbers, for `dvc metrics diff`."""
    confirmed = [mode for mode in summary["modes"] if mode["confirmed"]]
    numbers = {
        "failure_rate": summary["overall"]["value"],
        "failure_rate_low": summary["overall"]["low"],
        "failure_rate_high": summary["overall"]["high"],
        "modes": len(summary["modes"]),
        "confirmed_modes": len(confirmed),
        "worst_mode_rate": max((mode["rate"] for mode in confirmed), default=None),
        "invalid_share": summary["invalid"]["value"],
        "log_loss": summary["estimator"].get("log_loss"),
        "log_loss_constant": summary["estimator"].get("log_loss_constant"),
        "calibration_error": summary["estimator"].get("calibration_error"),
        "largest_bias": largest_bias(summary.get("bias", [])).to_json()["value"],
        "biased_subjects": sum(entry["beyond_noise"] for entry in judged(summary["bias"]))
        if "bias" in summary
        else None,
        "median_radius": (summary["robustness"] or {}).get("median_radius"),
        "passed": passed,
    }
    if "ratings" in summary:
        numbers["failure_rate_automatic"] = summary["ratings"]["automatic"]["overall"]["value"]
    for role, search in summary["search"].items():
        numbers |= {f"{role}_{key}": search.get(key) for key in ("probes", "failures", "failing_cells")}
    return {key: value for key, value in numbers.items() if value is not None}


def _say(summary: dict[str, Any], overall: Rate, modes: Sequence[Mode], space: ConceptSpace) -> None:
    print(f"fails on {overall.value:.1%} of the grid, 95% interval {overall.low:.1%} to {overall.high:.1%}")
    if "ratings" in summary:
        rate = summary["ratings"]["automatic"]["overall"]
        print(f"that is by people's ratings; by the automatic measure it fails on {rate['value']:.1%}")
    for mode in modes:
        print(f"{mode.id}: {mode.region.describe(space)}: {_measured(mode)}")
    for names in summary["modes_skipped"]:
        print(f"too many ranges to try: no mode was sought that conditions on {', '.join(names)} together")


def _measured(mode: Mode) -> str:
    if not mode.rate.n:
        return f"not measured, no unseen uniform probe fell there; estimated {mode.estimate:.0%} (not confirmed)"
    note = "" if mode.confirmed else " (not confirmed)"
    interval = f"{mode.rate.low:.0%}-{mode.rate.high:.0%}"
    return f"{mode.rate.value:.0%} fail, 95% interval {interval}, {mode.rate.n} probes{note}"


if __name__ == "__main__":
    stage_main(main)
