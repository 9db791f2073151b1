"""Hold a landscape against its gates, and draw its report. No model is needed, and a few seconds are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.command import stage_main
from stages.concepts import ConceptSpace
from stages.landscape.bias import judged, largest_bias
from stages.landscape.extremes import KINDS, NEAREST, extreme_cells
from stages.landscape.gates import all_passed, landscape_gates
from stages.pages.gallery import Gallery, PicturedCell
from stages.pages.landscape_report import write_landscape_report
from stages.params import AuditConfig, load_params
from stages.provenance import provenance
from stages.records import AuditFolder, Landscape, RateRecord, ShownExample, Verdict, audit_folder
from stages.records.base import FlatMetrics
from stages.records.folder import Report
from stages.tasks.contract import skipped_items


def main(name: str) -> None:
    """Run the stage for one audit."""
    audit, here = load_params().audit(name), audit_folder(name)
    record = provenance(name, audit, computes=False) | here.discover.provenance.of_model()
    with here.report.publish(record, _read(here)) as out:
        verdict = write(out, here, audit, record | {"backend": here.prepare.provenance.backend_said})
    print(verdict_line(verdict))


def write(out: Report, here: AuditFolder, audit: AuditConfig, record: Mapping[str, Any]) -> Verdict:
    """Write the verdict on a landscape, and its report.

    Args:
        out: the folder to write to.
        here: what was found.
        audit: with the gates.
        record: where it comes from, for people.
    """
    landscape, cells, probes = here.summarize.landscape, here.summarize.cells, here.discover.probes
    gates = landscape_gates(audit.gates, landscape)
    verdict = Verdict(audit=here.path.name, passed=all_passed(gates), gates=gates)
    metrics = metrics_of(landscape, verdict.passed)
    out.verdict, out.metrics = verdict, metrics
    write_landscape_report(
        out.path / "report.html",
        landscape=landscape,
        cells=cells,
        verdict=verdict,
        probes=probes,
        galleries={mode: Gallery.of(shelf) for mode, shelf in here.summarize.exhibits.items()},
        nearest=[one.exhibit for one in here.summarize.extremes.get(NEAREST, ())],
        kinds=here.summarize.extremes.get(KINDS, ()),
        extremes=pictured(landscape.space, cells, probes, here.summarize.extremes),
        sheets=here.discover.sheets.get("", []),
        provenance=record,
        metrics=metrics,
        skipped=skipped_items(here.prepare.path),
    )
    return verdict


def pictured(
    space: ConceptSpace, cells: pd.DataFrame, probes: pd.DataFrame, examples: Mapping[str, Sequence[ShownExample]]
) -> dict[str, list[PicturedCell]]:
    """The cells that fail most and least with their examples; nothing where these are not shown."""
    shown = {}
    for side, rows in extreme_cells(space, cells, probes).items() if "worst" in examples else ():
        at, rates = rows[space.names].to_numpy().tolist(), rows[["rate", "low", "high"]].to_numpy(dtype=float).tolist()
        shown[side] = [
            PicturedCell(space.describe(cell), rate, low, high, one.exhibit if isinstance(item, str) else None)
            for cell, (rate, low, high), item, one in zip(at, rates, rows["item"], examples[side], strict=True)
        ]
    return shown


def _read(here: AuditFolder) -> list[Path]:
    return [
        here.prepare.path / "items.parquet",
        here.prepare.where("provenance"),
        *map(here.discover.where, ("probes", "sheets", "provenance")),
        *map(here.summarize.where, ("cells", "landscape", "exhibits", "extremes")),
    ]


def verdict_line(verdict: Verdict) -> str:
    """What the gates say, in a line."""
    if not verdict.gates:
        return "no gates set: nothing to pass or fail"
    said = {True: "passed", False: "failed", None: "not judged"}
    return ", ".join(f"{gate.named} {said[gate.passed]}" for gate in verdict.gates)


def metrics_of(landscape: Landscape, passed: bool | None) -> FlatMetrics:
    """Flat numbers, for `dvc metrics diff`."""
    bias = landscape.bias or []
    numbers = {
        "unchanged_failure_rate": landscape.unchanged.value if landscape.unchanged else None,
        "failure_rate": landscape.overall.value,
        "failure_rate_low": landscape.overall.low,
        "failure_rate_high": landscape.overall.high,
        "modes": len(landscape.modes),
        "worst_mode_rate": max((mode.rate for mode in landscape.modes), default=None),
        "invalid_share": landscape.invalid.value,
        "not_passing": counted.value if (counted := landscape.invalid.as_failures) else None,
        "not_passing_low": counted.low if counted else None,
        "not_passing_high": counted.high if counted else None,
        "log_loss": landscape.estimator.log_loss,
        "log_loss_constant": landscape.estimator.log_loss_constant,
        "calibration_error": landscape.estimator.calibration_error,
        "largest_bias": RateRecord.from_rate(largest_bias(bias)).value,
        "biased_subjects": sum(entry.beyond_noise for entry in judged(bias)) if bias else None,
        "median_radius": landscape.robustness.median_radius if landscape.robustness else None,
        "passed": passed,
    }
    if landscape.slices and (worst := landscape.slices.worst):
        numbers["worst_slice_rate"] = worst[1].rate
        numbers["worse_slices"] = len(landscape.slices.worse)
    if landscape.ratings:
        numbers["failure_rate_automatic"] = landscape.ratings.automatic.overall.value
    for role, search in landscape.search.roles.items():
        numbers |= {f"{role}_{key}": getattr(search, key) for key in ("probes", "failures", "failing_cells")}
    return FlatMetrics(**{key: value for key, value in numbers.items() if value is not None})


if __name__ == "__main__":
    stage_main(main)
