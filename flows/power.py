"""What the test items of an audit can show of a repair, from its landscape: read before it is decided, or trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pandas as pd

from stages.errors import UsageError
from stages.files import read_table
from stages.landscape.pairs import inside_any
from stages.landscape.power import Power, alike
from stages.params import Gate, Params, RepairConfig
from stages.records import AuditFolder, ModeRecord, audit_folder


def what_can_be_shown(params: Params, audit: str) -> list[str]:
    """Which changes the test items can show, and for which gates they are too few, in sentences.

    Of the modes that a rule repairs, or where people decide of all. Nothing is said without a repair, a landscape with
    a mode, or test items.
    """
    here = audit_folder(audit)
    if audit not in params.repairs or not here.summarize.has("landscape"):
        return []
    with suppress(UsageError):  # whoever reads these files for more than this says what is wrong with them
        return [f"{audit}: {line}" for line in _said(params.repairs[audit], here)]
    return []


def _said(repair: RepairConfig, here: AuditFolder) -> list[str]:
    modes = here.summarize.landscape.modes
    table = read_table(here.prepare.path / "items.parquet")
    tests = table[table["split"] == "test"]
    items, unit = (tests["group"].nunique(), "groups of test items") if "group" in tests else (len(tests), "test items")
    if not modes or not items:
        return []
    targets = modes[: repair.feedback.modes] if repair.feedback.policy == "top-k" else modes
    inside, outside = _powers(here, targets, items, repair.re_evaluate.paired_probes)
    named = ", ".join(mode.id for mode in targets)
    said = [
        f"{items:,} {unit} can show, in {named}, where {inside.rate:.1%} fail, {_drop(inside)}; elsewhere a rise by"
        f" {_points(outside.margin(0))} or more"
    ]
    said += _too_few("target_failure_rate", repair.gates.target_failure_rate, inside, unit)
    said += _too_few("other_failure_rate", repair.gates.other_failure_rate, outside, unit)
    return said


def _powers(here: AuditFolder, targets: Sequence[ModeRecord], items: int, pairs: int) -> tuple[Power, Power]:
    """Of the target modes, and of everything else."""
    space, told_apart = here.summarize.landscape.space, here.discover.embedded.told_apart
    regions = [mode.cells for mode in targets]
    about = np.any([region.about(told_apart) for region in regions], axis=0)  # of the searched items; tests are alike
    rate = float(np.average([mode.rate for mode in targets], weights=[mode.share for mode in targets]))
    fresh = here.summarize.fresh
    fresh = fresh[fresh["mode"].isin([mode.id for mode in targets])]
    inside = Power(rate, max(1, round(items * about.mean())), pairs, _alike(fresh))
    uniform = here.discover.probes
    uniform = uniform[uniform["role"] == "control"]
    cells = uniform[space.names].to_numpy(dtype=np.int64)
    others = uniform[~inside_any(space, regions, cells, told_apart.loc[uniform["item"]])]
    return inside, Power(float(others["failed"].mean()) if len(others) else 0.0, items, pairs, _alike(others))


def _alike(probes: pd.DataFrame) -> float:
    return alike(probes["failed"].to_numpy(dtype=float), probes.get("group", probes["item"]).to_numpy(dtype=str))


def _drop(power: Power) -> str:
    least = power.least_drop()
    return "no drop at all" if least is None else f"a drop by {_points(least)} or more"


def _too_few(measure: str, gate: Gate | None, power: Power, unit: str) -> list[str]:
    """What the gate on a change asks for beyond its bound, because items are few; at most one sentence."""
    if gate is None or (most := gate.change_max) is None:
        return []
    told = f"gate {measure}.change_max {most:g}"
    if most >= 0:
        if (rise := power.margin(0)) <= most:
            return []
        enough = f"about {_about(power.items_for(0, -most))} would" if most else "no number of items would"
        return [
            f"{told} is likely to fail unless failures drop there, too: {power.items:,} {unit} do not rule out a"
            f" rise by {_points(rise)}, {enough}"
        ]
    if power.rate <= -most:
        return [f"{told} cannot pass: only {power.rate:.1%} fail there"]
    if (least := power.least_drop(-most)) is not None:
        return [f"{told} passes with a drop by {_points(least)} or more"]
    return [
        f"{told} is likely to fail even if every failure is repaired: {power.items:,} {unit} are too few, about"
        f" {_about(power.items_for(power.rate, -most))} would do"
    ]


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _about(count: int) -> str:
    """To two digits."""
    return f"{int(float(f'{count:.1e}')):,}"
