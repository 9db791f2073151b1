"""Turn the probes into a landscape people can read: rates, effects, failure modes, and examples of each.

The model is not asked how it answers; only its task is, to show examples as people would see them.
"""

from __future__ import annotations

from stages.command import stage_main
from stages.explorers.policies import load_policy
from stages.landscape.show import exhibits, extremes
from stages.landscape.slices import worst_slice
from stages.landscape.summary import Asked, People, summarize
from stages.params import AuditConfig, load_params
from stages.provenance import prepared_files, provenance
from stages.ratings import RatedTask, rated
from stages.records import Landscape, ModeRecord, audit_folder
from stages.records.folder import Discover, Summarize
from stages.tasks.base import LoadedTask
from stages.tasks.load import task_class, task_context


def main(name: str) -> None:
    """Run the stage for one audit."""
    audit, here = load_params().audit(name), audit_folder(name)
    prepared, found = here.prepare.path, here.discover
    task = rated(task_class(name, audit).load(task_context(name, audit), prepared), name, audit)
    read = [
        found.path / "policy",
        *map(found.where, ("probes", "robustness", "metrics", "embedded", "tallies")),
    ]
    with here.summarize.publish(provenance(name, audit, prepared), [*prepared_files(prepared), *read]) as out:
        landscape = write(out, task, found, audit)
    _say(landscape)


def _people(task: LoadedTask, audit: AuditConfig) -> People | None:
    """People's ratings, where they say what a failure is."""
    if not isinstance(task, RatedTask) or audit.ratings is None:
        return None
    return People(task.ratings, audit.ratings, task.automatic_task.threshold)


def write(out: Summarize, task: LoadedTask, found: Discover, audit: AuditConfig) -> Landscape:
    """Write the landscape of what was asked, and examples as people would see them."""
    asked = Asked(
        audit=found.path.parent.name,
        space=task.concepts,
        threshold=task.threshold,
        item_ids=found.embedded.item_ids,
        embeddings=found.embedded.vectors,
        probes=found.probes,
        found=found.metrics,
        walked=found.robustness,
        tallies=found.tallies.tallies,
        policy=load_policy(found.path / "policy"),
        false_alarms=dict(task.false_alarms()),
        notes=task.notes(),
        people=_people(task, audit),
        attributes=found.embedded.attributes,
    )
    summary = summarize(asked, audit.summarize, audit.seed)
    out.cells, out.landscape = summary.cells, summary.landscape
    out.exhibits = exhibits(task, summary.landscape.modes, audit.summarize.examples)
    out.extremes = extremes(task, summary.cells, asked.probes, asked.walked, audit.summarize.examples)
    return summary.landscape


def _say(landscape: Landscape) -> None:
    overall = landscape.overall.rate
    print(f"fails on {overall.value:.1%} of the grid, 95% interval {overall.low:.1%} to {overall.high:.1%}")
    if landscape.ratings:
        rate = landscape.ratings.automatic.overall.rate
        print(f"according to people's ratings; by the automatic measure it fails on {rate.value:.1%}")
    if landscape.slices and (worst := landscape.slices.worst):
        print(f"who fails most: {worst_slice(*worst)}")
    for mode in landscape.modes:
        print(f"{mode.id}: {mode.text}: {_measured(mode)}")
    for names in landscape.modes_skipped:
        print(f"too many ranges to try: modes with conditions on {', '.join(names)} together were not searched")


def _measured(mode: ModeRecord) -> str:
    if mode.rate is None:
        return f"not measured (no unseen uniform probe there); estimated {mode.estimate:.0%} (not confirmed)"
    note = "" if mode.confirmed else " (not confirmed)"
    return f"{mode.rate:.0%} fail, 95% interval {mode.low:.0%}-{mode.high:.0%}, {mode.probes} probes{note}"


if __name__ == "__main__":
    stage_main(main)
