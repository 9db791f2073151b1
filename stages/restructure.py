"""Fine-tune a copy of the model away from the failures that matter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from stages.code import code_of
from stages.command import stage_main
from stages.files import content_hash, scratch
from stages.params import RestructureConfig, load_params
from stages.processes import Crew
from stages.provenance import prepared_files, provenance, run_key
from stages.records import Plan, PlannedExample, audit_folder
from stages.records.base import FlatMetrics
from stages.tasks.base import Task
from stages.tasks.contract import RatedExample, RepairPlan, RepairRecord, TargetMode
from stages.tasks.load import load_alone, task_context


def main(name: str) -> None:
    """Run the stage; see docs/files.md for what it writes."""
    params, here = load_params(), audit_folder(name)
    audit, config = params.audit(name), params.repair(name).restructure
    prepared, plan_file = here.prepare.path, here.collect_feedback.where("plan")
    context, task = task_context(name, audit, prepared), load_alone(name, audit, prepared)
    read = [*prepared_files(prepared), plan_file]
    key = run_key(audit, read, code_of(audit, "restructure"), config.model_dump(mode="json"))
    with scratch(name, "restructure", key) as work:
        plans = _plans(here.collect_feedback.plan, config, audit.seed, task, work)
        record = provenance(name, audit, prepared) | {"plan": content_hash([plan_file])}
        with here.restructure.publish(record, read) as out:
            todo = [(plan, out.path / "models" / copy) for copy, plan in plans.items()]
            if plans["repaired"].targets:  # the control learns beside the repair, in a process of its own
                crew = Crew(context.compute.processes, partial(load_alone, name, audit, prepared))
                found = crew.ask(task.repair, todo)
            else:
                found = [_unchanged(prepared / "model", folder) for _, folder in todo]
            records: dict[str, RepairRecord] = dict(zip(plans, found, strict=True))
            records["repaired"].curve.to_csv(out.path / "curve.csv", index=False)
            out.metrics = FlatMetrics.computed(_metrics(records, plans["repaired"]))
        shutil.rmtree(work)  # published: nothing is left to resume


def _plans(decision: Plan, config: RestructureConfig, seed: int, task: Task, work: Path) -> dict[str, RepairPlan]:
    """What the task is asked to repair, and what to train as a control, by the name of the copy.

    Args:
        decision: what people, or a rule, decided.
        config: how it is repaired.
        seed: of the audit.
        task: the model under test.
        work: the scratch folder.
    """
    targets = [TargetMode(mode.id, mode.cells, mode.severity) for mode in decision.targets]
    examples = [_example(e) for e in decision.examples if e.mode in {target.id for target in targets}]
    if examples and not learns_from_examples(task, config.method):
        print(f"note: method {config.method} of this task learns from no examples, so {len(examples)} rated are unused")
        examples = []
    plans = {
        copy: RepairPlan(
            targets=targets,
            settings={"method": config.method, **config.settings},
            seed=seed,
            control=config.control if copy == "control" and config.control != "none" else None,
            decision={
                **{key: getattr(decision, key) for key in ("decided_by", "reason", "landscape")},
                "reviewer": decision.by or decision.reviewer,
            },
            examples=examples,
            scratch=work / copy,
        )
        for copy in (("repaired",) if config.control == "none" else ("repaired", "control"))
    }
    for plan in plans.values() if targets else ():
        plan.regions(task.concepts)  # a control that cannot be drawn is told before the repair has cost its time
    return plans


def learns_from_examples(task: Task | type[Task], method: str) -> bool:
    """Whether a repair by this method learns from rated examples: the task names such methods, by default none."""
    return method in task.learns_from_examples


def _example(entry: PlannedExample) -> RatedExample:
    return RatedExample(**entry.model_dump(exclude={"id"}))


def _unchanged(model: Path, out: Path) -> RepairRecord:
    print("the plan repairs no failure mode: the model stays as it is")
    shutil.copytree(model, out)
    (out / "README.md").write_text("# Unchanged copy\n\nThe plan names no failure mode to repair.\n", encoding="utf-8")
    return RepairRecord("none", 0, curve=pd.DataFrame({"step": [], "loss": []}))


def _metrics(records: Mapping[str, RepairRecord], plan: RepairPlan) -> dict[str, Any]:
    return {
        "modes": len(plan.targets),
        "examples": len(plan.examples),  # that the repair was given
        **{copy: {"steps": record.steps, **record.details} for copy, record in records.items()},
    }


if __name__ == "__main__":
    stage_main(main)
