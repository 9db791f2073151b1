"""`faded shard`: divide the search of an audit among workers, by editing params.yaml and updating faded.json."""

from math import prod

from rich.console import Console

from flows.graph import read_graph
from flows.workspace import exclusive
from flows.workspace.edit_params import with_shards
from flows.workspace.pipeline import PARAMS, update_pipeline
from stages.core.errors import UsageError
from stages.core.files import read_table, replace_file, stage_dir
from stages.explorers.model_based import FEW
from stages.explorers.shards import divide
from stages.params import AuditConfig, Params, load_params
from stages.tasks.contract import Items


def shard_audit(params: Params, name: str, shards: int, gpus: int | None, console: Console) -> None:
    """Set how many shares the search of an audit has, 1 for undivided, and the GPUs of its stages, None to keep them.

    Raises a UsageError if a share would have no probe, or no item once prepare has written the items, or params.yaml's
    layout does not allow the edit.
    """
    audit = params.audit(name)
    budget = audit.discover.budget
    if shards > budget:
        raise UsageError(f"the budget of {budget:,} probes (audits.{name}.discover) is too small for {shards:,} shares")
    if shards > 1 and (stage_dir(name, "prepare") / "items.parquet").exists():
        prepare = read_graph().stages.get(f"prepare@{name}")
        if prepare is not None and not prepare.stale:
            check_division(name, audit, shards)
    before = PARAMS.read_bytes().decode("utf-8")
    after = with_shards(before, name, shards, gpus)
    if after == before:
        console.print(f"nothing to write: {name} {_words(shards)} already")
        return
    with exclusive():
        replace_file(PARAMS, after)
        load_params(PARAMS)  # checks the new text
        update_pipeline()  # writes the shares to faded.json for DVC
    console.print(f"{PARAMS}: {name} {_words(shards)}; `faded plan {name}` says what that costs")
    if shards > 1 and (each := (budget - audit.discover.kept_back) // shards) < FEW:
        console.print(
            f"[yellow]each share has {each:,} probes: with fewer than {FEW} an explorer draws most of them"
            " at random and finds less (docs/scaling.md)[/]",
            soft_wrap=True,
        )


def check_division(name: str, audit: AuditConfig, shards: int) -> None:
    """Divide the items that prepare wrote, to find errors before each share does so itself.

    Raises a UsageError if a share would have no item or no probe.
    """
    items = Items(read_table(stage_dir(name, "prepare") / "items.parquet"))
    ids, cells = items.ids("discover"), prod(len(levels) for levels in audit.concepts.values())
    divide(ids, cells, audit.discover.searched(len(ids) * cells), shards, audit.seed)


def _words(shards: int) -> str:
    return f"is searched in {shards:,} shares" if shards > 1 else "is searched as a whole"
