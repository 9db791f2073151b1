"""Fine-tune a copy of the model away from the failures that matter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from stages.command import stage_main
from stages.concepts import Region
from stages.files import content_hash, publishing, read_json, scratch, stage_dir, write_json
from stages.params import load_params, task_class, task_context
from stages.provenance import provenance, run_key
from stages.tasks.contract import RepairPlan, RepairRecord, TargetMode, Task


def main(name: str) -> None:
    """Run the stage; see docs/files.md for what it writes."""
    params = load_params()
    audit, config = params.audit(name), params.repair(name).restructure
    prepared = stage_dir(name, "prepare")
    plan_file = stage_dir(name, "collect_feedback") / "plan.json"
    decision = read_json(plan_file)
    targets = [
        TargetMode(mode["id"], Region.from_json(mode["region"]), float(mode["severity"]))
        for mode in decision["modes"]
        if mode["action"] == "repair"
    ]
    task = task_class(name, audit).load(task_context(name, audit), prepared)
    inputs = [plan_file, prepared / "model", prepared / "items.parquet", prepared / "fingerprint.json"]
    key = run_key(audit, inputs, config.model_dump(mode="json"))
    with scratch(name, "restructure", key) as work:
        with publishing(stage_dir(name, "restructure")) as out:
            records: dict[str, RepairRecord] = {}
            for copy in ("repaired",) if config.control == "none" else ("repaired", "control"):
                plan = RepairPlan(
                    targets=targets,
                    settings={"method": config.method, **config.settings},
                    seed=audit.seed,
                    control=config.control if copy == "control" and config.control != "none" else None,
                    decision={k: decision.get(k) for k in ("decided_by", "reviewer", "reason", "landscape")},
                    scratch=work / copy,
                )
                records[copy] = _repair(task, plan, prepared / "model", out / "models" / copy)
            records["repaired"].curve.to_csv(out / "curve.csv", index=False)
            write_json(out / "metrics.json", _metrics(records, targets), schema=False)
            write_json(
                out / "provenance.json", {**provenance(name, audit, prepared), "plan": content_hash([plan_file])}
            )
        shutil.rmtree(work)  # published: nothing is left to resume


def _repair(task: Task, plan: RepairPlan, model: Path, out: Path) -> RepairRecord:
    if plan.targets:
        return task.repair(plan, out)
    print("the plan repairs no failure mode: the model stays as it is")
    shutil.copytree(model, out)
    (out / "README.md").write_text("# Unchanged copy\n\nThe plan names no failure mode to repair.\n", encoding="utf-8")
    return RepairRecord("none", 0, curve=pd.DataFrame({"step": [], "loss": []}))


def _metrics(records: dict[str, RepairRecord], targets: list[TargetMode]) -> dict[str, Any]:
    return {
        "modes": len(targets),
        **{copy: {"steps": record.steps, **record.details} for copy, record in records.items()},
    }


if __name__ == "__main__":
    stage_main(main)
