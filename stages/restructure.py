"""Fine-tune a copy of the model away from the failures that matter, as far as a budget of harm allows.

A control is trained beside it, which differs only in what it is aimed at. If `trainings` is above 1, both are trained
again with other seeds and numbers of steps, so that re_evaluate can compare them where they break as much.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from stages.audit_run import AuditRun
from stages.code import usage_json
from stages.command import stage_main
from stages.core.errors import UsageError
from stages.core.files import content_hash
from stages.core.processes import Crew
from stages.landscape.harm import HeldOut, keep_budget
from stages.params import RestructureConfig
from stages.params.repair import HarmConfig
from stages.records import Plan, PlannedExample
from stages.records.base import FlatMetrics
from stages.records.repair import Harm, MustPass, Training, Trainings
from stages.tasks.base import Task
from stages.tasks.contract import Pair, RatedExample, RepairPlan, RepairRecord, TargetMode
from stages.tasks.load import load_learner, task_class


def main(name: str) -> None:
    """Run the stage; see docs/files.md for what it writes."""
    with AuditRun(name, "restructure") as run:
        here, audit, prepared, config = run.here, run.audit, run.prepared, run.params.repair(name).restructure
        budget = config.harm if config.method in task_class(name, audit).movable else None
        decision = here.collect_feedback.plan
        load = partial(load_learner, name, audit, prepared, budget.held_out if budget else 0.0, decision.learnt)
        task = load()
        work = run.scratch(config.model_dump(mode="json"), usage_json(audit.usage))
        plans = _plans(decision, config, audit.seed, task, work)
        record = run.provenance(plan=content_hash([here.collect_feedback.where("plan")]))
        with here.restructure.publish(record) as out:
            todo = [(plan, out.path / "models" / folder) for folder, plan in plans.items()]
            harm: dict[str, Harm] = {}
            must_pass: dict[str, MustPass] = {}
            if plans["repaired"].targets:  # the others train beside the repair, in their own processes
                crew = Crew(run.compute.processes, load)
                found = crew.ask(task.repair, todo)
                trained = {copy: out.path / "models" / copy for copy in plans if copy in ("repaired", "control")}
                must = plans["repaired"].must_pass
                judges = HeldOut(name, audit, prepared, budget or HarmConfig(), work, must)
                if budget is not None:
                    harm = keep_budget(judges, task, trained, crew)
                must_pass = judges.must_pass(trained)
                for copy, kept in must_pass.items():
                    print(f"{copy}: {kept}")
            else:
                found = [_unchanged(prepared / "model", folder) for _, folder in todo]
            records: dict[str, RepairRecord] = dict(zip(plans, found, strict=True))
            records["repaired"].curve.to_csv(out.path / "curve.csv", index=False)
            models = _trainings(plans, records, audit.seed, harm)
            trainings = Trainings(models=models, movable=budget is not None, harm=harm)
            out.trainings = trainings.having(must_pass=must_pass or None)
            out.metrics = FlatMetrics.computed(_metrics(records, plans["repaired"], harm))
        shutil.rmtree(work)  # published: nothing left to resume


def _plans(decision: Plan, config: RestructureConfig, seed: int, task: Task, work: Path) -> dict[str, RepairPlan]:
    """Return the plans of the repair, its control and further trainings, by their folder under models.

    Args:
        decision: the plan made by people or a rule.
        work: the scratch folder.
    """
    targets = [TargetMode(mode.id, mode.cells, mode.severity) for mode in decision.targets]
    examples = [_example(e) for e in decision.examples if e.mode in {target.id for target in targets}]
    if examples and not learns_from_examples(task, config.method):
        print(f"note: method {config.method} of this task learns from no examples, so {len(examples)} rated are unused")
        examples = []
    control = config.control if config.control != "none" else None
    whole = RepairPlan(
        targets=targets,
        settings={"method": config.method, **config.settings},
        seed=seed,
        decision={
            **{key: getattr(decision, key) for key in ("decided_by", "reason", "landscape")},
            "reviewer": decision.by or decision.reviewer,
        },
        examples=examples,
        must_pass=[Pair(pair.item, pair.cell) for pair in decision.must_pass],
    )
    alike = {"repaired": whole}
    if control is not None:
        alike["control"] = replace(whole, control=control)
    plans = dict(alike)
    for training in range(config.trainings if targets else 0):
        for copy, shares in config.doses.items():
            for dose in shares:
                if (training, dose) != (0, 1.0):  # this is the repair or its control itself
                    folder = Training.folder_of(copy, dose, training)
                    plans[folder] = replace(alike[copy], seed=seed + training, dose=dose, draft=True)
    plans = {folder: replace(plan, scratch=work / folder) for folder, plan in plans.items()}
    for plan in alike.values() if targets else ():
        plan.regions(task.concepts)  # report a control that cannot be drawn before the repair takes its time
    return plans


def _trainings(
    plans: Mapping[str, RepairPlan], records: Mapping[str, RepairRecord], seed: int, harm: Mapping[str, Harm]
) -> list[Training]:
    """Return the trained models with their numbers of steps, and those that went only part of the way.

    Raises a UsageError if two doses took the same number of steps.
    """
    models = [
        Training(
            folder=folder,
            copy_of="control" if plan.control else "repaired",
            training=plan.seed - seed,
            dose=plan.dose,
            steps=records[folder].steps,
        )
        for folder, plan in plans.items()
    ]
    taken = {(model.copy_of, model.dose): model.steps for model in models if not model.training}
    for copy in ("repaired", "control"):
        steps = {dose: n for (one, dose), n in taken.items() if one == copy}
        if len(set(steps.values())) < len(steps):
            told = ", ".join(f"{n} at a dose of {dose:g}" for dose, n in sorted(steps.items()))
            raise UsageError(
                f"restructure.trainings: the steps of {copy} were {told}; expected more with a larger dose: more steps"
                " in the settings, a task that heeds plan.dose (docs/own-task.md), or trainings: 1"
            )
    back = [m.model_copy(update={"share": harm[m.folder].share}) for m in models if _goes_back(m.folder, harm)]
    whole = [
        m.model_copy(update={"folder": Training.folder_of(m.copy_of, 1.0, 0)}) if _goes_back(m.folder, harm) else m
        for m in models
    ]
    return back + whole


def _goes_back(folder: str, harm: Mapping[str, Harm]) -> bool:
    return folder in harm and harm[folder].share < 1


def learns_from_examples(task: Task | type[Task], method: str) -> bool:
    """Whether a repair by this method learns from rated examples; a task lists such methods, by default none."""
    return method in task.learns_from_examples


def _example(entry: PlannedExample) -> RatedExample:
    return RatedExample(**entry.model_dump(exclude={"id"}))


def _unchanged(model: Path, out: Path) -> RepairRecord:
    print("the plan repairs no failure mode: the model is not changed")
    shutil.copytree(model, out)
    (out / "README.md").write_text("# Unchanged copy\n\nThe plan names no failure mode to repair.\n", encoding="utf-8")
    return RepairRecord("none", 0, curve=pd.DataFrame({"step": [], "loss": []}))


def _metrics(records: Mapping[str, RepairRecord], plan: RepairPlan, harm: Mapping[str, Harm]) -> dict[str, Any]:
    went = {copy: {"share": one.share} for copy, one in harm.items()}
    return {
        "modes": len(plan.targets),
        "examples": len(plan.examples),  # given to the repair
        **{
            copy: {"steps": records[copy].steps, **went.get(copy, {}), **records[copy].details}
            for copy in ("repaired", "control")
            if copy in records
        },
    }


if __name__ == "__main__":
    stage_main(main)
