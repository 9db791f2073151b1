"""Check a repair against its gates, and write its report and model card in seconds, without querying a model."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.command import stage_main
from stages.concepts import ConceptSpace
from stages.landscape.before_after import by_purpose
from stages.landscape.bias import newly_skewed
from stages.landscape.verdict import conclude
from stages.pages.comparison_report import write_comparison_report
from stages.pages.first_page import model_and_data
from stages.pages.page import model_card, not_computed
from stages.params import load_params
from stages.provenance import provenance
from stages.records import AuditFolder, Comparison, RepairVerdict, audit_folder
from stages.records.base import FlatMetrics
from stages.records.folder import Conclude
from stages.tasks.contract import LOADER, skipped_items


def main(name: str) -> None:
    """Run the stage for one audit."""
    params, here = load_params(), audit_folder(name)
    comparison = here.compare.comparison
    must_pass = here.restructure.trainings.must_pass.get("repaired")
    verdict = conclude(comparison, here.collect_feedback.plan, params.repair(name).gates, must_pass)
    record = provenance(name, params.audit(name), computes=False) | here.re_evaluate.provenance.of_model()
    with here.conclude.publish(record) as out:
        write(out, here, verdict, record)
    print(verdict.statement)


def write(out: Conclude, here: AuditFolder, verdict: RepairVerdict, record: Mapping[str, Any]) -> None:
    """Write the verdict on a repair, its report with the provenance in `record`, and the card of the repaired model."""
    comparison, readme = here.compare.comparison, here.restructure.path / "models" / "repaired" / "README.md"
    out.verdict, out.metrics = verdict, metrics_of(comparison, verdict.passed)
    out.headline = headline_of(comparison, verdict.passed)
    modes_plot(comparison).to_csv(out.path / "modes.csv", index=False)
    broken(here.re_evaluate.probes, comparison.space).to_csv(out.path / "broken.csv", index=False)
    own, loader = (
        path.read_text(encoding="utf-8") if path.exists() else None for path in (readme, readme.with_name(LOADER))
    )
    out.card = model_card(own, comparison, verdict, here.collect_feedback.plan, loader)
    write_comparison_report(
        out.path / "report.html",
        comparison=comparison,
        verdict=verdict,
        landscapes=here.compare.cells,
        probes=here.re_evaluate.probes,
        plan=here.collect_feedback.plan,
        galleries=here.re_evaluate.examples,
        attributes=here.re_evaluate.embedded.told_apart,
        about=model_and_data(here),
        harm=here.restructure.trainings.harm,
        sheets=here.re_evaluate.sheets,
        provenance=record,
        skipped=skipped_items(here.prepare.path),
    )


def modes_plot(comparison: Comparison) -> pd.DataFrame:
    """Return the failure rate (%) in each mode, in columns `mode`, `model` (before, after, control), `failure_rate`."""
    rows = [
        {"mode": f"{mode.id}: {mode.text}", "model": model, "failure_rate": round(100 * rate, 1)}
        for mode in comparison.modes
        for model, rate in (
            ("before", mode.before),
            ("after", mode.after),
            ("control", mode.control.after if mode.control else None),
        )
        if rate is not None
    ]
    return pd.DataFrame(rows, columns=["mode", "model", "failure_rate"])


def broken(probes: pd.DataFrame, space: ConceptSpace) -> pd.DataFrame:
    """Return the pairs that passed before the repair and fail after it.

    Args:
        probes: as in re_evaluate's probes.parquet.

    Returns:
        Columns `item`, one for each concept with its level as people read it, and the answers `before` and `after`.
    """
    before, after = (by_purpose(probes, "paired")[model] for model in ("before", "after"))
    rows = ~before["failed"].astype(bool) & after["failed"].astype(bool)
    found = before.loc[rows, ["item"]]
    for concept in space.concepts:
        found[concept.name] = [concept.label(level) for level in before.loc[rows, concept.name]]
    found = found.assign(before=before.loc[rows, "output"], after=after.loc[rows, "output"])
    return not_computed(found, found.columns)


def headline_of(comparison: Comparison, passed: bool | None) -> FlatMetrics:
    """Return the few numbers that `dvc metrics` shows and git keeps: changes by the repair in percentage points."""
    measures = {"targets": "target_failure_rate", "others": "other_failure_rate", "clean": "clean_quality"}
    changes = {name: comparison.differences[measure].change for name, measure in measures.items()}
    points = {name: round(100 * change, 1) for name, change in changes.items() if change is not None}
    return FlatMetrics(**({} if passed is None else {"passed": passed}), **points)


def metrics_of(comparison: Comparison, passed: bool | None) -> FlatMetrics:
    """Return the comparison and its verdict as flat numbers."""
    numbers: dict[str, Any] = {"passed": passed}
    spread = ("before", "after", "change", "low", "high")
    for measure, entry in comparison.differences.items():
        numbers |= {f"{measure}_{key}": getattr(entry, key) for key in spread}
        numbers[f"{measure}_noise"] = entry.noise.change if entry.noise else None
    if bias := comparison.bias:
        numbers |= {f"bias_{model}": rate.value for model, rate in bias.mean.items()}
        numbers |= {f"bias_change_{key}": getattr(bias.mean_change["after"], key) for key in ("value", "low", "high")}
        numbers["newly_skewed"] = len(newly_skewed(bias))
    for part, found in (comparison.measures or {}).items():
        for measure, entry in found.measures.items():
            name = f"{part}_{measure.replace(' ', '_')}"
            numbers |= {f"{name}_{key}": getattr(entry, key) for key in spread}
    numbers |= {"invalid_targets": comparison.invalid.targets.value, "invalid_others": comparison.invalid.others.value}
    for model, searches in comparison.search.items():
        numbers |= {f"{model}_{role}_failures": found.failures for role, found in searches.roles.items()}
    shift = comparison.shift
    numbers |= {"shift_normalised": shift.normalised, "shift_null_cell": shift.null_cell}
    for view in ("normalised", "null_cell"):
        floor = getattr(shift.noise_floor, view)
        numbers |= {f"noise_floor_{view}_mean": floor.mean, f"noise_floor_{view}_max": floor.max}
    numbers["failures_moved"] = len(comparison.failures_moved.regions)
    if slices := [one for of in comparison.slices or () for one in of.values]:
        numbers["worst_slice_rate"] = max((one.after for one in slices if one.after is not None), default=None)
        numbers["worse_slices"] = sum(one.worse for one in slices)
    numbers["reduced_failures"] = comparison.reduced_failures.holds
    return FlatMetrics(**{key: value for key, value in numbers.items() if value is not None})


if __name__ == "__main__":
    stage_main(main)
