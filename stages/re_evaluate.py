"""Search again on items the repair never saw, and query every model with the same pairs: before, after, control.

This stage judges nothing: `compare` and `conclude` use its outputs.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.audit_run import AuditRun
from stages.command import stage_main
from stages.concepts import Region
from stages.core.errors import UsageError
from stages.core.files import content_hash
from stages.core.ledger import Ledger
from stages.core.progress import progress
from stages.explorers.prober import Prober
from stages.explorers.search import SearchResult, search
from stages.landscape.compare import measure_answers
from stages.landscape.pairs import ask_trainings, draw_pairs, inside_any
from stages.params import AuditConfig
from stages.records import PairedProbe
from stages.records.folder import ReEvaluate
from stages.records.search import ReEvaluateMetrics
from stages.records.tables import Embedded, ModelTallies
from stages.tasks.base import LoadedTask, known_attributes, offers
from stages.tasks.contract import Compute, Exhibit, Tally

EXAMPLES = 8
DRAWN = 100_000  # cells per policy, so that their shares are precise to a fraction of a percentage point


class ModelAnswers(NamedTuple):
    """The models' answers.

    Args:
        searches: per model before and after, the result of its search.
        paired: per model, its answers to the same pairs of item and cell.
        clean: per model, its answers to unchanged items.
    """

    searches: Mapping[str, SearchResult]
    paired: Mapping[str, pd.DataFrame]
    clean: Mapping[str, pd.DataFrame]


def main(name: str) -> None:
    """Run the stage for one audit."""
    with AuditRun(name, "re_evaluate") as run:
        audit, here, config = run.audit, run.here, run.params.repair(name).re_evaluate
        models = here.restructure.path / "models"
        plan = here.collect_feedback.plan
        targets = [mode.cells for mode in plan.targets]
        tasks = _load_models(run, models, plan.learnt)
        if not tasks["before"].items.ids("test"):
            raise UsageError(
                f"{run.prepared / 'items.parquet'} has no items of the split test: a repair cannot be judged"
            )
        folder = run.scratch(config.model_dump())
        found = query_models(tasks, audit, targets, config.paired_probes, folder, run.compute)
        doses = ask_trainings(here, audit, tasks["before"], config.dose_pairs, folder)
        repaired = content_hash([models]) if models.exists() else None
        with here.re_evaluate.publish(run.provenance(repaired=repaired)) as out:
            out.doses = doses
            write(out, tasks, targets, found, audit.seed)


def query_models(
    tasks: Mapping[str, LoadedTask],
    audit: AuditConfig,
    targets: Sequence[Region],
    pairs: int,
    folder: Path,
    compute: Compute,
) -> ModelAnswers:
    """Search with the models before and after, and query all models with the same pairs.

    Args:
        targets: the cells of the target modes.
        pairs: number of pairs of item and cell inside the targets, and as many outside.
        folder: folder of the ledgers.
    """
    space, item_ids = tasks["before"].concepts, tasks["before"].items.ids("test")
    ledgers = {model: Ledger(folder / f"{model}.jsonl") for model in tasks}
    searches = {m: _search(tasks[m], item_ids, audit, ledgers[m], compute, m) for m in ("before", "after")}
    drawn = draw_pairs(space, _told_apart(tasks["before"]), targets, pairs, audit.seed)
    paired = query_pairs(tasks, item_ids, *drawn, ledgers, compute)
    clean = ask_clean(tasks, item_ids, ledgers, compute)
    for ledger in ledgers.values():
        ledger.close()
    return ModelAnswers(searches, paired, clean)


def write(
    out: ReEvaluate, tasks: Mapping[str, LoadedTask], targets: Sequence[Region], found: ModelAnswers, seed: int
) -> None:
    """Write the models' answers and everything else that a repair is judged by."""
    item_ids = tasks["before"].items.ids("test")
    out.probes = _one_table(found)
    out.embedded = Embedded(item_ids, tasks["before"].embed(item_ids), known_attributes(tasks["before"], item_ids))
    out.policies = draw_cells(tasks, found.searches, seed)
    out.quality = _quality(tasks)
    out.measures = _measures(tasks, targets, found)
    out.tallies = ModelTallies(models=tally_all(tasks))
    out.sheets = {m: t.sheets("test") for m in ("before", "after") if offers(t := tasks[m], "sheets")}
    out.examples = examples(tasks, found.paired)
    out.metrics = ReEvaluateMetrics.computed(
        {model: {**search.metrics, "enumerated": search.enumerated} for model, search in found.searches.items()}
    )


def _load_models(run: AuditRun, models: Path, learnt: Collection[str]) -> dict[str, LoadedTask]:
    """Load the model before, after and, if trained, the control; without a repaired model, after is before.

    A task that measures its noise adds the model before, queried again.
    """
    folders = {"before": run.prepared / "model", "after": models / "repaired", "control": models / "control"}
    tasks = {model: run.judged_task(folder, learnt) for model, folder in folders.items() if folder.exists()}
    if "before" not in tasks:
        raise UsageError(f"{folders['before']} is missing: run prepare first")
    tasks.setdefault("after", tasks["before"])
    if (noise := tasks["before"].again()) is not None:
        tasks["noise"] = noise
    return tasks


def _search(
    task: LoadedTask, item_ids: Sequence[str], audit: AuditConfig, ledger: Ledger, compute: Compute, model: str
) -> SearchResult:
    """Repeat discover's search on test items, with the same budget and seed."""
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
    return result


def draw_cells(tasks: Mapping[str, LoadedTask], searches: Mapping[str, SearchResult], seed: int) -> pd.DataFrame:
    """Draw cells for the test items from the policy learnt on each model: where it would look, without a query.

    Empty unless both searches learnt a policy of the same kind, because others cannot be compared. Both draw with the
    same seed, so that they differ by what they learnt, not by the draw.

    Returns:
        The same number of rows for each `model` and `item`, with one column per concept.
    """
    space, item_ids = tasks["before"].concepts, tasks["before"].items.ids("test")
    policies = {model: search.policy for model, search in searches.items() if search.policy is not None}
    if len(policies) < len(searches) or len({policy.algorithm for policy in policies.values()}) > 1:
        return pd.DataFrame(columns=["model", "item", *space.names])
    each, tables = max(1, DRAWN // len(item_ids)), []
    for model, policy in policies.items():
        cells = policy.sample(tasks[model].embed(item_ids), each, seed).reshape(-1, len(space))
        table = pd.DataFrame(cells, columns=space.names)
        table.insert(0, "item", np.repeat(item_ids, each))
        table.insert(0, "model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def query_pairs(
    tasks: Mapping[str, LoadedTask],
    item_ids: Sequence[str],
    items: np.ndarray,
    cells: np.ndarray,
    ledgers: Mapping[str, Ledger],
    compute: Compute,
) -> dict[str, pd.DataFrame]:
    """Query every model with the same pairs of items (n,) and cells (n, concepts): model -> answers in this order."""
    answers = {}
    for model, task in tasks.items():
        prober = Prober(task, item_ids, len(items), ledgers[model], compute)
        prober.ask(items, cells)
        answers[model] = prober.table().assign(explorer="uniform")
    return answers


def ask_clean(
    tasks: Mapping[str, LoadedTask], item_ids: Sequence[str], ledgers: Mapping[str, Ledger], compute: Compute
) -> dict[str, pd.DataFrame]:
    """Query every model with every unchanged item; empty if the task has no measures or the grid no neutral cell."""
    neutral = tasks["before"].concepts.neutral
    if neutral is None or not offers(tasks["before"], "measure"):
        return {}
    items = np.arange(len(item_ids))
    return query_pairs(tasks, item_ids, items, np.tile(neutral, (len(items), 1)), ledgers, compute)


def _told_apart(task: LoadedTask) -> pd.DataFrame:
    item_ids = task.items.ids("test")
    return known_attributes(task, item_ids).set_axis(item_ids)


def _one_table(found: ModelAnswers) -> pd.DataFrame:
    tables = [search.probes.assign(model=model, purpose="search") for model, search in found.searches.items()]
    tables += [
        table.assign(model=model, purpose=purpose, role=purpose)
        for purpose, asked in (("paired", found.paired), ("clean", found.clean))
        for model, table in asked.items()
    ]
    return pd.concat(tables, ignore_index=True)


def _quality(tasks: Mapping[str, LoadedTask]) -> pd.DataFrame:
    """Return the clean quality, which must not get worse, per item: `name`, `model`, `item`, `value`."""
    found = {model: task.clean_quality("test") for model, task in tasks.items()}
    table = pd.concat(
        [
            pd.DataFrame({"name": found["before"].name, "model": model, "item": q.item_ids, "value": q.values})
            for model, q in found.items()
        ],
        ignore_index=True,
    )
    return tasks["before"].items.with_groups(table)


def _measures(tasks: Mapping[str, LoadedTask], targets: Sequence[Region], found: ModelAnswers) -> pd.DataFrame:
    """Compute a task's own measures of all answers and baselines, on unchanged items, in target modes and elsewhere."""
    measuring = {model: task for model, task in tasks.items() if offers(task, "measure")}
    if not measuring:
        return measure_answers({}, {}, ())
    space = tasks["before"].concepts
    pairs = found.paired["before"]
    of_pairs = _told_apart(tasks["before"]).loc[pairs["item"]]
    inside = inside_any(space, targets, pairs[space.names].to_numpy(dtype=np.int64), of_pairs)
    parts = {
        "clean": found.clean,
        "targets": {model: table[inside] for model, table in found.paired.items()},
        "others": {model: table[~inside] for model, table in found.paired.items()},
    }
    return measure_answers(measuring, parts, space.names)


def tally_all(tasks: Mapping[str, LoadedTask]) -> dict[str, list[Tally]]:
    """Return every model's tallies of the same subjects, by model; empty if the task has no tallies.

    Without a repaired model, after is before and is not queried twice.
    """
    tallies: dict[str, list[Tally]] = {}
    for model, task in tasks.items():
        if offers(task, "tallies"):
            same = model == "after" and task is tasks["before"]
            tallies[model] = tallies["before"] if same else task.tallies("test")
    return tallies


def examples(tasks: Mapping[str, LoadedTask], answers: Mapping[str, pd.DataFrame]) -> dict[str, list[PairedProbe]]:
    """Return examples of what the repair fixed and of what newly fails, and their unchanged items.

    Each has the outputs, and any drawings, of both models.
    """
    before, after = answers["before"], answers["after"]
    names = tasks["before"].concepts.names
    kinds = {"fixed": before["failed"] & ~after["failed"], "newly_failing": ~before["failed"] & after["failed"]}
    shown = {}
    for kind, mask in kinds.items():
        rows = before[mask].drop_duplicates("item").head(EXAMPLES)
        now = after.loc[rows.index]
        measured = now.get("automatic", now["discrepancy"])  # captions use the task's own measure
        compared = _both(
            tasks, rows["item"].tolist(), rows[names].to_numpy(dtype=np.int64), rows["output"], now["output"]
        )
        shown[kind] = [
            one._replace(exhibit=_with_discrepancy(one.exhibit, d)) for one, d in zip(compared, measured, strict=True)
        ]
    items = list(dict.fromkeys(one.item for rows in shown.values() for one in rows))
    if (neutral := tasks["before"].concepts.neutral) is not None and items:
        cells = np.tile(neutral, (len(items), 1))
        said = [tasks[model].probe(items, cells).outputs for model in ("before", "after")]
        shown["unchanged"] = _both(tasks, items, cells, *said)
    return shown


def _both(
    tasks: Mapping[str, LoadedTask], items: list[str], cells: np.ndarray, before: Iterable[str], after: Iterable[str]
) -> list[PairedProbe]:
    """Return probes as people would see them, with the outputs and any drawings of both models."""
    exhibits = tasks["before"].exhibit(items, cells) if items else []
    draws = any(exhibit.drawn is not None for exhibit in exhibits)
    redrawn = tasks["after"].exhibit(items, cells) if draws else exhibits
    rows = zip(exhibits, redrawn, before, after, items, cells.tolist(), strict=True)
    return [
        PairedProbe(shown, str(b), str(a), later.drawn, item, tuple(cell)) for shown, later, b, a, item, cell in rows
    ]


def _with_discrepancy(exhibit: Exhibit, after: float) -> Exhibit:
    """Add the discrepancy after the repair to the captions of texts, which are too long to compare at a glance."""
    if not exhibit.answers:
        return exhibit
    return replace(exhibit, caption=f"{exhibit.caption}; after the repair: discrepancy {after:.2f}")


if __name__ == "__main__":
    stage_main(main)
