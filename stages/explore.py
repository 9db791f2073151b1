"""Search one share of a large search: an explorer and its control on some of the items, with a part of the budget.

Shares are independent and may run anywhere; discover merges them.
"""

from contextlib import closing

from stages.audit_run import AuditRun
from stages.code import code_of
from stages.command import stage_main
from stages.core.errors import UsageError
from stages.core.files import publishing, scratch, stage_dir
from stages.core.ledger import open_ledger
from stages.core.progress import progress
from stages.explorers.shards import divide, origin, search_share, write_part
from stages.params import AuditConfig
from stages.params.audit import MicroscopicConfig
from stages.provenance import prepared_files, run_key
from stages.tasks.base import known_attributes


def main(name: str, number: str) -> None:
    """Run the stage for one share of an audit, numbered from 1."""
    run = AuditRun(name, "explore")
    audit, shards = run.audit, run.audit.discover.shards
    if not (shards > 1 and number.isdecimal() and 1 <= int(number) <= shards):
        raise UsageError(f"audit {name!r} has no share {number}: audits.{name}.discover.shards is {shards}")
    part = int(number)
    task = run.judged_task()
    item_ids = task.items.ids("discover")
    run.params.check_slices(name, known_attributes(task, item_ids))  # before any query
    budget = audit.discover.searched(len(item_ids) * task.concepts.n_used)
    share = divide(item_ids, task.concepts.n_used, budget, shards, audit.seed)[part - 1]
    print(f"share {part} of {shards}: {len(share.item_ids):,} items, {share.budget:,} unique probes a search")
    key = run_key(_of_shares(audit), prepared_files(run.prepared), part, code_of(audit, "explore"))
    with scratch(name, f"explore-{part}", key) as folder, closing(open_ledger(folder)) as ledger:
        result = search_share(task, share, audit.discover, ledger=ledger, compute=run.compute, show=progress)
    with publishing(stage_dir(name, "shards") / str(part)) as out:
        write_part(out, part, result, run.provenance(origin=origin(audit, run.prepared)))
    for role, numbers in result.metrics.items():
        print(
            f"{role} ({numbers['explorer']}): {numbers['failures']:,} failures in {numbers['probes']:,} unique probes"
        )


def _of_shares(audit: AuditConfig) -> AuditConfig:
    """Drop the settings of small steps, which only discover uses, so that changing them keeps the scratch."""
    return audit.model_copy(update={"discover": audit.discover.model_copy(update={"microscopic": MicroscopicConfig()})})


if __name__ == "__main__":
    stage_main(main, "AUDIT", "PART")
