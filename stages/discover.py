"""Search for failures: the explorer and its control spend the same budget on the discover items.

Then, on a budget of its own: how little has to change, step by step, until the model fails.
"""

from __future__ import annotations

from pathlib import Path

from dvclive.live import Live

from stages.command import stage_main
from stages.errors import UsageError
from stages.explorers import SearchResult, save_policy, search
from stages.files import publishing, scratch, stage_dir, write_json
from stages.ledger import Ledger
from stages.microscopic import measure_robustness
from stages.params import load_params, task_class, task_context
from stages.progress import progress
from stages.provenance import provenance, run_key
from stages.ratings import rated

CODE = [Path(__file__).parent / name for name in ("explorers", "microscopic", "landscape/kernel.py")]
CURVE_POINTS = 100  # DVC draws every point of a curve; more would only make the file larger


def main(name: str) -> None:
    """Run the stage for one audit."""
    audit = load_params().audit(name)
    context = task_context(name, audit)
    prepared = stage_dir(name, "prepare")
    task = rated(task_class(name, audit).load(context, prepared), name, audit)
    item_ids = task.items.ids("discover")
    if not item_ids:
        raise UsageError(
            f"{prepared / 'items.parquet'} has no items of the split discover: there is nothing to search on"
        )
    inputs = [prepared / "model", prepared / "items.parquet", prepared / "fingerprint.json", *CODE]
    key = run_key(audit, inputs)
    with scratch(name, "discover", key) as folder:
        ledger = Ledger(folder / "ledger.jsonl")
        if len(ledger):
            print(f"resuming: {len(ledger):,} probes are in the ledger already")
        result = search(
            task, item_ids, audit.discover, seed=audit.seed, ledger=ledger, compute=context.compute, show=progress
        )
        robustness = measure_robustness(
            task,
            item_ids,
            audit.discover,
            seed=audit.seed,
            enumerated=result.enumerated,
            ledger=ledger,
            compute=context.compute,
            show=progress,
        )
        ledger.close()
    if "chosen" in (agent := result.metrics.get("agent", {})):
        print(f"auto took {agent['chosen']}" + (f": {agent['why']}" if agent["why"] else ""))
    if result.enumerated:
        print(f"the budget of {audit.discover.budget:,} covers the whole grid: enumerated, no agent was needed")
    with publishing(stage_dir(name, "discover")) as out:
        result.probes.to_parquet(out / "probes.parquet", index=False)
        robustness.table.to_parquet(out / "robustness.parquet", index=False)
        save_policy(result.policy, out / "policy")
        _write_curves(out / "live", result)
        metrics = {**result.metrics, "microscopic": robustness.metrics, "enumerated": result.enumerated}
        write_json(out / "metrics.json", metrics, schema=False)
        write_json(out / "provenance.json", provenance(name, audit, prepared))
    for role, numbers in result.metrics.items():
        print(
            f"{role} ({numbers['explorer']}): {numbers['failures']:,} failures in {numbers['probes']:,} unique probes,"
            f" in {numbers['failing_cells']:,} distinct cells"
        )
    if len(robustness.table):
        numbers = robustness.metrics
        print(
            f"small steps ({numbers['method']}): of {numbers['items']:,} items {numbers['fail_unchanged']:,} fail"
            f" unchanged, {numbers['found']:,} after some steps, for {numbers['not_found']:,} no failure was found;"
            f" {numbers['probes']:,} unique probes of its own"
        )


def _write_curves(folder: Path, result: SearchResult) -> None:
    """Failures against unique probes as DVCLive metrics, so that `dvc plots` and DVC's extensions show them."""
    with Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None) as live:
        for role, curve in result.curves.items():
            every = max(1, len(curve) // CURVE_POINTS)
            for spent, failures in [*curve[:-1:every], curve[-1]]:
                live.step = spent
                live.log_metric(f"{role}/failures", failures)
    (folder / "metrics.json").unlink()  # the last point of the curves again
    if "agent" not in result.curves:  # an enumerated grid has no agent; DVC still expects its curve
        path = folder / "plots" / "metrics" / "agent" / "failures.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("step\tfailures\n")


if __name__ == "__main__":
    stage_main(main)
