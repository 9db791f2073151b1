"""What changes an audit's test items can show after a repair, from its landscape, before a decision or training."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pandas as pd

from flows.results.abilities import abilities_of
from stages.core.errors import UsageError
from stages.core.files import read_table
from stages.core.intervals import wilson
from stages.decisions import landscape_hash, read_must_pass
from stages.decisions.rule import ruled_on
from stages.landscape.gates import unbounded_landscape, unbounded_repair
from stages.landscape.pairs import inside_any
from stages.landscape.power import APART, CHURN, Power, alike
from stages.params import Params, RepairConfig
from stages.records import AuditFolder, ModeRecord, audit_folder
from stages.records.landscape import GroupRecord
from stages.tasks.contract import Items


def what_can_be_shown(params: Params, audit: str) -> list[str]:
    """Sentences about the changes that the test items can show, and the gates for which they are too few.

    They are about the modes in the plan; before there is a plan, the modes that a rule will repair, or else all. Empty
    without a repair, a landscape with a mode, or test items.
    """
    here = audit_folder(audit)
    if audit not in params.repairs or not here.summarize.has("landscape"):
        return []
    # Stages that need these files report what is wrong with them; a search may be newer than the landscape.
    with suppress(UsageError, KeyError):
        said = _said(params.repairs[audit], here)
        return [f"{audit}: {line}" for line in said + _harm_unseen(params, audit, here)]
    return []


def what_gates_leave_open(params: Params, audit: str) -> list[str]:
    """At most one sentence: what no gate bounds, so that the light of the audit's last verdict cannot be green."""
    repair, gates = params.repairs.get(audit), params.audits[audit].gates
    said = unbounded_landscape(gates, modes=1) if repair is None else unbounded_repair(repair.gates, modes=1)
    return [f"{audit}: {line[0].lower()}{line[1:-1]}: without that its light is amber at best" for line in said]


def _said(repair: RepairConfig, here: AuditFolder) -> list[str]:
    table = read_table(here.prepare.path / "items.parquet")
    landscape = here.summarize.landscape
    learnt = {pair.item for pair in read_must_pass(landscape.audit, landscape.space)}
    table = Items(table).learning(learnt).table if learnt else table
    tests, targets = table[table["split"] == "test"], _targets(repair, here)
    if not targets or tests.empty:
        return []
    inside, outside = _powers(here, targets, tests, repair.re_evaluate.paired_probes)
    named = ", ".join(mode.id for mode in targets)
    count = f"{len(tests):,} test items" + (f" in {outside.groups:,} groups" if outside.groups else "")
    said = [
        f"{count} can show {_drop(inside)} in {named}, where {inside.rate:.1%} fail, and a rise of"
        f" {_points(outside.margin(0))} or more elsewhere"
    ]
    apart = inside._replace(churn=APART)
    judged = _is_planned(here) and here.conclude.has("verdict")  # this very landscape
    passed = {(gate.gate, gate.bound) for gate in here.conclude.verdict.gates if gate.passed} if judged else set()
    alone = {"target_failure_rate": inside, "other_failure_rate": outside}
    compared = {**alone, "target_failure_rate": apart, "newly_failing": outside._replace(rate=CHURN)}
    if repair.restructure.control != "none":
        said.append(
            f"between repair and control, the same items can show {_drop(apart, 'difference')} in {named}, and one of"
            f" {_points(outside.margin(0))} or more elsewhere"
        )
    sentences = {
        "max": (_drop_to_level, alone),
        "change_max": (_too_few, alone),
        "minus_control_max": (_not_better_enough, compared),
    }
    for key, (say, powers) in sentences.items():
        for measure, power in powers.items():
            bound = getattr(getattr(repair.gates, measure), key, None)
            if bound is not None and (f"{measure}.{key}", bound) not in passed:
                said += say(measure, bound, power)
    return said


def _harm_unseen(params: Params, audit: str, here: AuditFolder) -> list[str]:
    """At most one sentence: that one held-out item is more than the whole budget of harm, so little can be promised."""
    harm, table = params.repairs[audit].restructure.harm, read_table(here.prepare.path / "items.parquet")
    learnt = table[table["split"] == "repair"]
    held_out = round(harm.held_out * learnt["group" if "group" in table else "id"].nunique()) if harm else 0
    if not (harm and held_out and held_out * harm.newly_failing < 1 and abilities_of(params, audit).budgeted):
        return []
    unseen = wilson(0, held_out).high
    judges = f"{held_out} held-out {'groups of ' if 'group' in table else ''}repair items"
    return [
        f"restructure.harm keeps what newly fails within {harm.newly_failing:.1%} on {judges}: if none fails, up to"
        f" {unseen:.0%} of others still may. prepare.items.repair gives more"
    ]


def _is_planned(here: AuditFolder) -> bool:
    decided = here.collect_feedback
    return decided.has("plan") and decided.plan.landscape == landscape_hash(here.path.name)


def _targets(repair: RepairConfig, here: AuditFolder) -> Sequence[ModeRecord | GroupRecord]:
    modes = ruled_on(repair.feedback, here.summarize.landscape)
    if _is_planned(here):
        chosen = {mode.id for mode in here.collect_feedback.plan.targets}
        return [mode for mode in modes if mode.id in chosen]
    return modes if repair.feedback.policy == "wait" else modes[: repair.feedback.modes]


def _powers(
    here: AuditFolder, targets: Sequence[ModeRecord | GroupRecord], tests: pd.DataFrame, pairs: int
) -> tuple[Power, Power]:
    space, told_apart = here.summarize.landscape.space, here.discover.embedded.told_apart
    regions = [mode.cells for mode in targets]
    uniform = here.discover.probes
    uniform = uniform[uniform["role"] == "control"]
    cells = uniform[space.names].to_numpy(dtype=np.int64)
    within = inside_any(space, regions, cells, told_apart.loc[uniform["item"]])
    fresh = here.summarize.fresh
    fresh = fresh[fresh["mode"].isin([mode.id for mode in targets]) & (fresh["role"] != "others")]
    if len(fresh):  # in use a probe counts once, however many of the modes it lies in and was drawn for
        probed, share = fresh, fresh["mode"].map({mode.id: mode.share for mode in targets})
        levels, items = fresh[space.names].to_numpy(dtype=np.int64), told_apart.loc[fresh["item"]]
        times = np.sum([region.contains(space, levels, items) for region in regions], axis=0)
        counts = share / fresh.groupby("mode")["mode"].transform("size") / np.maximum(times, 1)
    else:  # on an enumerated grid no fresh probes were left
        probed, counts = uniform[within], space.weights(cells, uniform["item"].nunique())[within]
    # Measured on the searched items; test items are like them.
    about = float(np.any([region.about(told_apart) for region in regions], axis=0).mean())
    known = counts.sum() > 0  # otherwise no probe lies there, and overlaps are not known either
    rate = float(np.average(probed["failed"], weights=counts) if known else np.mean([mode.rate for mode in targets]))

    def of(share: float, rate: float, probes: pd.DataFrame) -> Power:
        failed, group = probes["failed"].to_numpy(dtype=float), probes.get("group", probes["item"]).to_numpy(dtype=str)
        likeness = alike(failed, group) if len(probes) else 0.0
        groups = max(1, round(share * tests["group"].nunique())) if "group" in tests else None
        return Power(rate, max(1, round(share * len(tests))), pairs, likeness, groups)

    others = uniform[~within]
    weights = space.weights(cells, uniform["item"].nunique())[~within]
    elsewhere = float(np.average(others["failed"], weights=weights)) if weights.sum() > 0 else 0.0
    return of(about, rate, probed), of(1.0, elsewhere, others)


def _drop(power: Power, what: str = "drop") -> str:
    least = power.least_drop()
    return f"no {what} at all" if least is None else f"a {what} of {_points(least)} or more"


def _too_few(measure: str, most: float, power: Power) -> list[str]:
    """What a gate on a change needs beyond its bound because items are few; at most one sentence."""
    told = f"gate {measure}.change_max {most:g}"
    if most >= 0:
        if (rise := power.margin(0)) <= most:
            return []
        enough = f"; about {_about(power.items_for(0, -most))} would" if most else ", nor would any number of them"
        return [
            f"{told} is likely to fail unless failures drop there too: {power.items:,} test items do not rule out a"
            f" rise of {_points(rise)}{enough}"
        ]
    if power.rate <= -most:
        return [f"{told} cannot pass: only {power.rate:.1%} fail there"]
    if (least := power.least_drop(-most)) is not None:
        return [f"{told} passes with a drop of {_points(least)} or more"]
    return [
        f"{told} is likely to fail even if every failure is repaired: {power.items:,} test items are too few, about"
        f" {_about(power.items_for(power.rate, -most))} would do"
    ]


def _not_better_enough(measure: str, most: float, power: Power) -> list[str]:
    """The same for a gate on repair minus control: superiority up to 0, above it non-inferiority; at most one."""
    told = f"gate {measure}.minus_control_max {most:g}"
    if most > 0:
        if (worse := power.margin(0)) <= most:
            return []
        return [
            f"{told} is likely to fail unless the repair is better than its control there: {power.items:,} test items"
            f" do not rule out that it is {_points(worse)} worse; about {_about(power.items_for(0, -most))} would"
        ]
    if (least := power.least_drop(-most)) is not None:
        return [f"{told} passes if the repair is better than its control by {_points(least)} or more"]
    return [f"{told} is likely to fail: {power.items:,} test items are too few to show that a repair is better by that"]


def _drop_to_level(measure: str, most: float, power: Power) -> list[str]:
    """By how much failures have to drop before a gate on how often the repaired model may fail can pass."""
    if power.rate <= most:
        return []
    least, unseen = power.least_drop(power.rate - most), "more test items: no drop that they show is enough"
    more = unseen if least is None else f"a drop of {_points(least)} or more"
    return [f"gate {measure}.max {most:g} needs {more}, as {power.rate:.1%} fail there now"]


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _about(count: int) -> str:
    """The count, rounded to two digits."""
    return f"{int(float(f'{count:.1e}')):,}"
