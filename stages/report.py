"""Check a landscape against its gates, and write its report in seconds, without querying a model."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.command import stage_main
from stages.concepts import ConceptSpace
from stages.core.intervals import wilson
from stages.landscape.bias import at_highest_guidance, largest_bias
from stages.landscape.corruptions import CorruptionErrors, TooFew, corruption_errors, has_corruptions
from stages.landscape.extremes import KINDS, NEAREST, UNCHANGED, extreme_cells
from stages.landscape.gates import all_passed, landscape_concerns, landscape_gates, light_of
from stages.landscape.rates import correct, read_spot_check
from stages.landscape.unshown import ShownMode, bound_unshown
from stages.pages.first_page import About, known_of, model_and_data
from stages.pages.gallery import PicturedCell
from stages.pages.landscape_report import write_landscape_report
from stages.pages.maps import marginal, shown_concepts
from stages.params import AuditConfig, load_params
from stages.provenance import provenance
from stages.records import AuditFolder, Landscape, RateRecord, ShownExample, Verdict, audit_folder
from stages.records.base import FlatMetrics
from stages.records.folder import Report
from stages.records.landscape import Corrected, Unshown
from stages.tasks.contract import skipped_items

_POINTS = 200  # of each curve for `dvc plots`; more could not be distinguished


def main(name: str) -> None:
    """Run the stage for one audit."""
    audit, here = load_params().audit(name), audit_folder(name)
    record = provenance(name, audit, computes=False) | here.discover.provenance.of_model()
    with here.report.publish(record) as out:
        verdict = write(out, here, audit, record | {"backend": here.prepare.provenance.backend_said})
    print(verdict_line(verdict))


def write(out: Report, here: AuditFolder, audit: AuditConfig, record: Mapping[str, Any]) -> Verdict:
    """Write the verdict on a landscape, and its report.

    Args:
        audit: its configuration, including the gates.
        record: its provenance, for readers of the report.
    """
    landscape, cells, probes = here.summarize.landscape, here.summarize.cells, here.discover.probes
    gates = landscape_gates(audit.gates, landscape)
    concerns = landscape_concerns(audit.gates, gates, landscape)
    verdict = Verdict(
        audit=here.path.name,
        passed=all_passed(gates),
        gates=gates,
        light=light_of(gates, concerns),
        concerns=concerns,
    ).having(unshown=_unshown(here, landscape, probes, audit.seed), corrected=_corrected(here, audit, probes))
    errors = corruption_errors(landscape, probes, of_imagenet=_asks_what_imagenet_asks(here, landscape))
    out.verdict, out.metrics = verdict, metrics_of(landscape, verdict, errors)
    out.headline = headline_of(landscape, verdict.passed)
    search_plot(probes).to_csv(out.path / "search.csv", index=False)
    pair_plot(cells, landscape.space).to_csv(out.path / "pair.csv", index=False)
    write_landscape_report(
        out.path / "report.html",
        landscape=landscape,
        cells=cells,
        verdict=verdict,
        probes=probes,
        galleries=here.summarize.exhibits,
        unchanged={one.id: one.exhibit for one in here.summarize.extremes.get(UNCHANGED, ())},
        corruptions=errors,
        attributes=here.discover.embedded.told_apart,
        nearest=[one.exhibit for one in here.summarize.extremes.get(NEAREST, ())],
        kinds=here.summarize.extremes.get(KINDS, ()),
        extremes=pictured(landscape.space, cells, probes, here.summarize.extremes),
        sheets=here.discover.sheets.get("", []),
        about=_about(here),
        proposed=audit.proposed,
        provenance=record,
        skipped=skipped_items(here.prepare.path),
    )
    return verdict


def search_plot(probes: pd.DataFrame) -> pd.DataFrame:
    """Return for `dvc plots` failures against unique probes of both roles, in columns `role`, `probes`, `failures`."""
    parts = []
    for role, rows in probes.groupby("role", sort=True):
        found = rows.sort_values("order")["failed"].astype(int).cumsum().to_numpy()
        at = np.unique(np.linspace(0, len(found) - 1, _POINTS).round().astype(int))
        parts.append(pd.DataFrame({"role": role, "probes": at + 1, "failures": found[at]}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["role", "probes", "failures"])


def pair_plot(cells: pd.DataFrame, space: ConceptSpace) -> pd.DataFrame:
    """Return the estimated failure rate (%) over the pair of concepts with the highest rate.

    Args:
        cells: the landscape, one row per cell.

    Returns:
        Columns `x` and `y`, each a concept with its level, and `failure_rate`; no rows if there is only one concept.
    """
    rates = [marginal(cells, space, pair) for pair in combinations(shown_concepts(cells, space), 2)]
    if not rates or cells["rate"].isna().all():
        return pd.DataFrame(columns=["x", "y", "failure_rate"])
    worst = max(rates, key=lambda table: float(table["rate"].max()))
    x, y = (space.concepts[space.names.index(name)] for name in worst.columns[:2])
    return pd.DataFrame(
        {
            "x": [f"{x.name} {x.label(level)}" for level in worst[x.name]],
            "y": [f"{y.name} {y.label(level)}" for level in worst[y.name]],
            "failure_rate": (100 * worst["rate"]).round(1),
        }
    )


def pictured(
    space: ConceptSpace, cells: pd.DataFrame, probes: pd.DataFrame, examples: Mapping[str, Sequence[ShownExample]]
) -> dict[str, list[PicturedCell]]:
    """Return the cells that fail most and least with their examples; empty if no examples are shown."""
    shown = {}
    for side, rows in extreme_cells(space, cells, probes).items() if "worst" in examples else ():
        at, rates = rows[space.names].to_numpy().tolist(), rows[["rate", "low", "high"]].to_numpy(dtype=float).tolist()
        shown[side] = [
            PicturedCell(space.describe(cell), rate, low, high, one.exhibit if isinstance(item, str) else None)
            for cell, (rate, low, high), item, one in zip(at, rates, rows["item"], examples[side], strict=True)
        ]
    return shown


def _unshown(here: AuditFolder, landscape: Landscape, probes: pd.DataFrame, seed: int) -> Unshown | None:
    attributes = here.discover.embedded.told_apart
    # Kinds of items (summarize.clusters) are not written there: what modes about them show counts as not shown.
    modes = [
        ShownMode(mode.id, mode.cells, mode.share) for mode in landscape.modes if set(mode.cells.items) <= {*attributes}
    ]
    return bound_unshown(
        landscape.space, probes, here.summarize.fresh, modes, attributes, exact=landscape.exact, seed=seed
    )


def _corrected(here: AuditFolder, audit: AuditConfig, probes: pd.DataFrame) -> Corrected | None:
    if (spot := audit.summarize.spot_check) is None:
        return None
    judged = read_spot_check(spot, f"audits.{here.path.name}.summarize.spot_check")
    space = here.summarize.landscape.space
    return correct(space, probes[probes["role"] == "control"], judged, audit.seed)


def _about(here: AuditFolder) -> About:
    right = known_of(here).clean_accuracy.get("discover")
    return model_and_data(here)._replace(
        clean=_clean(here.prepare.path / "items.parquet", right) if right is not None else None
    )


def _clean(items: Path, right: float) -> RateRecord:
    """Return the share of the search's unchanged items answered correctly; a group counts once in its interval."""
    table = pd.read_parquet(items)
    found = table[table["split"] == "discover"]
    n = found["group"].nunique() if "group" in found else len(found)
    spread = wilson(round(right * n), n)
    return RateRecord(value=right, low=spread.low, high=spread.high, n=len(found))


def verdict_line(verdict: Verdict) -> str:
    """Return the gates' results in one line."""
    if not verdict.gates:
        return "no gates set for the landscape itself"
    said = {True: "passed", False: "failed", None: "not judged"}
    return ", ".join(f"{gate.named} {said[gate.passed]}" for gate in verdict.gates)


def headline_of(landscape: Landscape, passed: bool | None) -> FlatMetrics:
    """Return the few numbers that `dvc metrics` shows and git keeps: failure rate in percent, and number of modes."""
    rate = landscape.overall.rate
    numbers = {"failure_rate": rate.value, "low": rate.low, "high": rate.high}
    percent = {name: round(100 * value, 1) for name, value in numbers.items() if not isnan(value)}
    return FlatMetrics(**({} if passed is None else {"passed": passed}), **percent, modes=len(landscape.modes))


def _asks_what_imagenet_asks(here: AuditFolder, landscape: Landscape) -> bool:
    """Whether the classes are ImageNet's thousand; checked only for grids of corruptions, because it takes seconds."""
    if not has_corruptions(landscape.space):
        return False
    from stages.tasks.labels import are_of_imagenet

    labels = pd.read_parquet(here.prepare.path / "items.parquet", columns=["label"])["label"]
    return are_of_imagenet(labels.unique(), known_of(here).classes)


def metrics_of(landscape: Landscape, verdict: Verdict, errors: CorruptionErrors | TooFew | None = None) -> FlatMetrics:
    """Return the landscape and its verdict as flat numbers."""
    bias = landscape.bias or []
    numbers = {
        "unchanged_failure_rate": landscape.unchanged.value if landscape.unchanged else None,
        "failure_rate": landscape.overall.value,
        "failure_rate_low": landscape.overall.low,
        "failure_rate_high": landscape.overall.high,
        "modes": len(landscape.modes),
        "unshown_at_most": verdict.unshown.at_most if verdict.unshown else None,
        "worst_mode_rate": max((mode.rate for mode in landscape.modes), default=None),
        "invalid_share": landscape.invalid.value,
        "not_passing": counted.value if (counted := landscape.invalid.as_failures) else None,
        "not_passing_low": counted.low if counted else None,
        "not_passing_high": counted.high if counted else None,
        "log_loss": landscape.estimator.log_loss,
        "log_loss_constant": landscape.estimator.log_loss_constant,
        "calibration_error": landscape.estimator.calibration_error,
        "largest_bias": RateRecord.from_rate(largest_bias(bias)).value,
        "biased_subjects": sum(entry.beyond_noise for entry in at_highest_guidance(bias)) if bias else None,
        "median_radius": landscape.robustness.median_radius if landscape.robustness else None,
        "passed": verdict.passed,
    }
    if landscape.slices and (worst := landscape.slices.worst):
        numbers["worst_slice_rate"] = worst[1].rate
        numbers["worse_slices"] = len(landscape.slices.worse)
    if landscape.ratings:
        numbers["failure_rate_automatic"] = landscape.ratings.automatic.overall.value
    if verdict.corrected:
        numbers["failure_rate_corrected"] = verdict.corrected.overall.value
    if isinstance(errors, CorruptionErrors):
        numbers |= errors.numbers()
    for role, search in landscape.search.roles.items():
        numbers |= {f"{role}_{key}": getattr(search, key) for key in ("probes", "failures", "failing_cells")}
    return FlatMetrics(**{key: value for key, value in numbers.items() if value is not None})


if __name__ == "__main__":
    stage_main(main)
