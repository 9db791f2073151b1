"""Search again on items the repair never saw, before against after, and judge what the repair did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.code import code_of
from stages.command import stage_main
from stages.errors import UsageError
from stages.explorers import Prober, search
from stages.files import content_hash, publishing, read_json, scratch, stage_dir, write_json
from stages.landscape import Plan, draw_pairs, judge_models, newly_skewed
from stages.ledger import Ledger
from stages.params import AuditConfig, load_params, task_class, task_context
from stages.progress import progress
from stages.provenance import prepared_files, provenance, run_key, write_provenance
from stages.ratings import rated
from stages.report import Compared, model_card, write_comparison_report
from stages.tasks.contract import Compute, Exhibit, Illustrated, Measured, Tallied, Tally, Task

EXAMPLES = 8


def main(name: str) -> None:
    """Run the stage for one audit."""
    params = load_params()
    audit, repair = params.audit(name), params.repair(name)
    context, prepared = task_context(name, audit), stage_dir(name, "prepare")
    plan_path, models_path = (
        stage_dir(name, "collect_feedback") / "plan.json",
        stage_dir(name, "restructure") / "models",
    )
    plan = Plan.read(plan_path)
    tasks = _load_models(name, audit, prepared, models_path)
    item_ids = tasks["before"].items.ids("test")
    if not item_ids:
        raise UsageError(f"{prepared / 'items.parquet'} has no items of the split test: a repair cannot be judged")

    inputs = [prepared / "model", prepared / "items.parquet", prepared / "fingerprint.json", models_path, plan_path]
    key = run_key(audit, inputs, code_of(audit, "re_evaluate"), repair.re_evaluate.model_dump())
    with scratch(name, "re_evaluate", key) as folder:
        ledgers = {model: Ledger(folder / f"{model}.jsonl") for model in tasks}
        searches = {m: _search(tasks[m], item_ids, audit, ledgers[m], context.compute, m) for m in ("before", "after")}
        pairs = draw_pairs(
            tasks["before"].concepts, len(item_ids), plan.targets, repair.re_evaluate.paired_probes, audit.seed
        )
        answers = ask_all(tasks, item_ids, *pairs, ledgers, context.compute)
        clean = ask_clean(tasks, item_ids, ledgers, context.compute)
        for ledger in ledgers.values():
            ledger.close()

    judged = judge_models(tasks, item_ids, plan, repair, searches, answers, audit, clean, tally_all(tasks))
    probes = pd.concat(
        [table.assign(model=model, purpose="search") for model, (table, _) in searches.items()]
        + [
            table.assign(model=model, purpose=purpose, role=purpose)
            for purpose, tables in (("paired", answers), ("clean", clean))
            for model, table in tables.items()
        ],
        ignore_index=True,
    )
    verdict = {"audit": name, **judged.verdict}
    if audit.ratings is not None:
        verdict["ratings"] = audit.ratings.model_dump(
            include={"sha256", "fails_below", "fails_above"}, exclude_none=True
        )
    with publishing(stage_dir(name, "re_evaluate")) as out:
        probes.to_parquet(out / "probes.parquet", index=False)
        judged.landscapes.to_parquet(out / "landscapes.parquet", index=False)
        write_json(out / "verdict.json", verdict)
        write_json(out / "metrics.json", _metrics(verdict), schema=False)
        (out / "model_card.md").write_text(_card(models_path / "repaired", verdict, plan_path), encoding="utf-8")
        record = provenance(name, audit, prepared)
        record["repaired"] = content_hash([models_path]) if models_path.exists() else None
        write_comparison_report(
            out / "report.html",
            verdict=verdict,
            landscapes=judged.landscapes,
            space=tasks["before"].concepts,
            probes=probes,
            galleries=_galleries(tasks, answers),
            sheets={m: t.sheets("test") for m in ("before", "after") if isinstance(t := tasks[m], Illustrated)},
            provenance=record,
            skipped=tasks["before"].items.skipped,
        )
        write_provenance(out, record, [*prepared_files(prepared), plan_path, models_path])
    print(verdict["statement"])


def _load_models(name: str, audit: AuditConfig, prepared: Path, models: Path) -> dict[str, Task]:
    """The model before, after and, if asked for, the control; without a repaired model, after is before.

    A task that measures its noise adds the model before, asked again.
    """
    cls, context = task_class(name, audit), task_context(name, audit)
    folders = {"before": prepared / "model", "after": models / "repaired", "control": models / "control"}
    tasks: dict[str, Task] = {
        model: rated(cls.load(context, prepared, folder), name, audit)
        for model, folder in folders.items()
        if folder.exists()
    }
    if "before" not in tasks:
        raise UsageError(f"{folders['before']} is missing: run prepare first")
    tasks.setdefault("after", tasks["before"])
    if isinstance(tasks["before"], Measured):
        tasks["noise"] = tasks["before"].again()
    return tasks


def _search(
    task: Task, item_ids: Sequence[str], audit: AuditConfig, ledger: Ledger, compute: Compute, model: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The same search as discover's, with the same budget and seed, on test items."""
    result = search(
        task,
        item_ids,
        audit.discover,
        seed=audit.seed,
        ledger=ledger,
        compute=compute,
        show=progress,
        label=f"{model}: ",
    )
    for role, numbers in result.metrics.items():
        print(f"{model}: {role} found {numbers['failures']:,} failures in {numbers['probes']:,} unique probes")
    return result.probes, {**result.metrics, "enumerated": result.enumerated}


def ask_all(
    tasks: Mapping[str, Task],
    item_ids: Sequence[str],
    items: np.ndarray,
    cells: np.ndarray,
    ledgers: Mapping[str, Ledger],
    compute: Compute,
) -> dict[str, pd.DataFrame]:
    """Put the same pairs, items (n,) and cells (n, concepts), to every model: model -> answers, row by row the same."""
    answers = {}
    for model, task in tasks.items():
        prober = Prober(task, item_ids, len(items), ledgers[model], compute)
        prober.ask(items, cells)
        answers[model] = prober.table().assign(explorer="uniform")
    return answers


def ask_clean(
    tasks: Mapping[str, Task], item_ids: Sequence[str], ledgers: Mapping[str, Ledger], compute: Compute
) -> dict[str, pd.DataFrame]:
    """Put every item, unchanged, to every model; nothing where the task has no measures, or the grid no such cell."""
    neutral = tasks["before"].concepts.neutral
    if neutral is None or not isinstance(tasks["before"], Measured):
        return {}
    items = np.arange(len(item_ids))
    return ask_all(tasks, item_ids, items, np.tile(neutral, (len(items), 1)), ledgers, compute)


def tally_all(tasks: Mapping[str, Task]) -> dict[str, list[Tally]]:
    """What every model makes of the same subjects, by model; nothing where the task has no tallies.

    Without a repaired model the one after is the one before, and is not asked twice.
    """
    tallies: dict[str, list[Tally]] = {}
    for model, task in tasks.items():
        if isinstance(task, Tallied):
            same = model == "after" and task is tasks["before"]
            tallies[model] = tallies["before"] if same else task.tallies("test")
    return tallies


def _galleries(tasks: Mapping[str, Task], answers: Mapping[str, pd.DataFrame]) -> dict[str, list[Compared]]:
    """Examples of what the repair fixed and of what fails newly, with the outputs of both models and what they drew."""
    task = tasks["before"]
    before, after = answers["before"], answers["after"]
    kinds = {"fixed": before["failed"] & ~after["failed"], "newly_failing": ~before["failed"] & after["failed"]}
    shown = {}
    for kind, mask in kinds.items():
        rows = before[mask].drop_duplicates("item").head(EXAMPLES)
        cells = rows[task.concepts.names].to_numpy(dtype=np.int64)
        exhibits = task.exhibit(rows["item"].tolist(), cells) if len(rows) else []
        draws = any(exhibit.drawn is not None for exhibit in exhibits)
        redrawn = tasks["after"].exhibit(rows["item"].tolist(), cells) if draws else exhibits
        now = after.loc[rows.index]
        measured = now.get("automatic", now["discrepancy"])  # captions are the task's own
        shown[kind] = [
            Compared(_with_discrepancy(exhibit, d), str(b), str(a), later.drawn)
            for exhibit, later, d, b, a in zip(exhibits, redrawn, measured, rows["output"], now["output"], strict=True)
        ]
    return shown


def _card(repaired: Path, verdict: Mapping[str, Any], plan: Path) -> str:
    """The repaired model's own card with what was found here."""
    readme = repaired / "README.md"
    return model_card(readme.read_text(encoding="utf-8") if readme.exists() else None, verdict, read_json(plan))


def _with_discrepancy(exhibit: Exhibit, after: float) -> Exhibit:
    """Texts are long: how far the output after the repair is off is said beside that of the output before."""
    if not exhibit.answers:
        return exhibit
    return replace(exhibit, caption=f"{exhibit.caption}; after the repair: discrepancy {after:.2f}")


def _metrics(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Flat numbers, for `dvc metrics diff`."""
    numbers: dict[str, Any] = {"passed": verdict["passed"]}
    for measure, entry in verdict["differences"].items():
        numbers |= {f"{measure}_{key}": entry.get(key) for key in ("before", "after", "change", "low", "high")}
        numbers[f"{measure}_noise"] = entry.get("noise", {}).get("change")
    if "bias" in verdict:
        means = {model: rate["value"] for model, rate in verdict["bias"]["mean"].items()}
        numbers |= {f"bias_{model}": value for model, value in means.items()}
        change = verdict["bias"]["mean_change"]["after"]
        numbers |= {f"bias_change_{key}": change[key] for key in ("value", "low", "high")}
        numbers["newly_skewed"] = len(newly_skewed(verdict["bias"]))
    for part, found in verdict.get("measures", {}).items():
        for measure, entry in found["measures"].items():
            name = f"{part}_{measure.replace(' ', '_')}"
            numbers |= {f"{name}_{key}": entry[key] for key in ("before", "after", "change", "low", "high")}
    numbers |= {f"invalid_{part}": rate["value"] for part, rate in verdict["invalid"].items()}
    for model, roles in verdict["search"].items():
        numbers |= {
            f"{model}_{role}_failures": roles[role]["failures"] for role in ("agent", "control") if role in roles
        }
    numbers |= {f"shift_{key}": verdict["shift"][key] for key in ("normalised", "null_cell")}
    for view in ("normalised", "null_cell"):
        numbers |= {f"noise_floor_{view}_{key}": verdict["shift"]["noise_floor"][view][key] for key in ("mean", "max")}
    numbers["failures_moved"] = len(verdict["failures_moved"]["regions"])
    numbers["reduced_failures"] = verdict["reduced_failures"]["holds"]
    return {key: value for key, value in numbers.items() if value is not None}


if __name__ == "__main__":
    stage_main(main)
