"""Query the model under test: the explorer and its control spend the same budget on the discover items.

If the search is divided (`discover.shards`), the stage explore has searched each share, and this stage merges them. A
separate budget then measures robustness: how few small steps make the model fail. All other queries for the landscape
are made here too, except the fresh probes that summarize places in regions that seem to fail.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.audit_run import AuditRun
from stages.command import stage_main
from stages.core.errors import UsageError
from stages.core.files import stage_dir
from stages.core.ledger import Ledger
from stages.core.progress import progress
from stages.explorers.policy import save_policy
from stages.explorers.search import SearchResult, ShowProgress, search
from stages.explorers.shards import ShareResult, ledger_answers, merge_shares, origin, read_parts, remove_undeclared
from stages.microscopic.search import RobustnessResult, measure_robustness
from stages.params import AuditConfig
from stages.records import DiscoverMetrics
from stages.records.folder import Discover
from stages.records.tables import Embedded, Tallies
from stages.tasks.base import LoadedTask, known_attributes, offers, own_attributes
from stages.tasks.contract import Compute

CURVE_POINTS = 100  # DVC draws every point of a curve; more would only make the file larger


def main(name: str) -> None:
    """Run the stage for one audit."""
    with AuditRun(name, "discover") as run:
        audit, task, shares = run.audit, run.judged_task(), stage_dir(name, "shards")
        if not task.items.ids("discover"):
            raise UsageError(
                f"{run.prepared / 'items.parquet'} has no items of the split discover: there is nothing to search on"
            )
        run.params.check_slices(name, known_attributes(task, task.items.ids("discover")))  # before any query
        parts = _parts(shares, audit, run.prepared, task)
        ledger = run.ledger(run.scratch(more=[shares] if parts else []))
        result, robustness = query_model(task, audit, parts, ledger, run.compute)
        with run.here.discover.publish(run.provenance(), [shares / str(part.part) for part in parts]) as out:
            write(out, task, result, robustness)
    _print_summary(audit, result, robustness)


def _parts(shares: Path, audit: AuditConfig, prepared: Path, task: LoadedTask) -> list[ShareResult]:
    """Read the results of a divided search's shares; empty if the search is not divided."""
    count = audit.discover.shards
    if removed := remove_undeclared(shares, count):
        print(f"removed {', '.join(removed)} from {shares}: shares of an earlier split of the search")
    return read_parts(shares, count, origin(audit, prepared), task.concepts) if count > 1 else []


def query_model(
    task: LoadedTask,
    audit: AuditConfig,
    parts: Sequence[ShareResult],
    ledger: Ledger,
    compute: Compute,
    show: ShowProgress = progress,
) -> tuple[SearchResult, RobustnessResult]:
    """Search or merge the shares, then look for the smallest changes, which may reuse answers from the search.

    Args:
        parts: results of the shares, empty if the search is not divided.
    """
    item_ids, config = task.items.ids("discover"), audit.discover
    given: dict[str, Any] = {"seed": audit.seed, "ledger": ledger, "compute": compute, "show": show}
    if parts:
        result = merge_shares(parts, task.concepts)
        ledger.know(ledger_answers(result.probes, task.concepts))
    else:
        result = search(task, item_ids, config, **given)
    return result, measure_robustness(task, item_ids, config, enumerated=result.enumerated, **given)


def _print_summary(audit: AuditConfig, result: SearchResult, robustness: RobustnessResult) -> None:
    if "chosen" in (agent := result.metrics.get("agent", {})):
        print(f"auto took {agent['chosen']}" + (f": {agent['why']}" if agent["why"] else ""))
    if result.enumerated:
        print(f"the budget of {audit.discover.budget:,} covers every pair: all were probed, without an agent")
    for role, numbers in result.metrics.items():
        print(
            f"{role} ({numbers['explorer']}): {numbers['failures']:,} failures in {numbers['probes']:,} unique probes,"
            f" in {numbers['failing_cells']:,} distinct cells"
        )
        if found := numbers.get("shard_failures"):
            print(f"{role}: {min(found):,} to {max(found):,} failures in each of {len(found):,} shares")
    if len(robustness.table):
        numbers = robustness.metrics
        print(
            f"small steps ({numbers['method']}): of {numbers['items']:,} items {numbers['fail_unchanged']:,} fail"
            f" unchanged, {numbers['found']:,} after some steps, for {numbers['not_found']:,} no failure was found;"
            f" {numbers['probes']:,} unique probes of its own"
        )


def write(out: Discover, task: LoadedTask, result: SearchResult, robustness: RobustnessResult) -> None:
    """Write the probes, and the other data of the task that the landscape needs."""
    item_ids = task.items.ids("discover")
    out.probes, out.robustness = result.probes, robustness.table
    out.embedded = Embedded(item_ids, task.embed(item_ids), own_attributes(task, item_ids))
    out.tallies = Tallies(tallies=task.tallies("discover") if offers(task, "tallies") else [])
    out.sheets = {"": task.sheets("discover")} if offers(task, "sheets") else {}
    save_policy(result.policy, out.path / "policy")
    _write_curves(out.path / "live", result)
    searches = {**result.metrics, "microscopic": robustness.metrics, "enumerated": result.enumerated}
    out.metrics = DiscoverMetrics.computed(searches)


def _write_curves(folder: Path, result: SearchResult) -> None:
    """Write failures against unique probes, one table per role, in DVCLive's format, so that `dvc plots` shows them."""
    for role in ("agent", "control"):  # an enumerated grid has no agent; DVC still expects its curve
        curve = result.curves.get(role, [])
        every = max(1, len(curve) // CURVE_POINTS)
        points = pd.DataFrame([*curve[:-1:every], *curve[-1:]], columns=["step", "failures"])
        path = folder / "plots" / "metrics" / role / "failures.tsv"
        path.parent.mkdir(parents=True)
        points.to_csv(path, sep="\t", index=False)


if __name__ == "__main__":
    stage_main(main)
