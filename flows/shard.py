"""`faded shard`: divide the search of an audit among workers, by writing params.yaml and nothing else."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from flows.edit_params import replace_file, with_shards
from stages.errors import UsageError
from stages.explorers.auto import FEW
from stages.params import Params, load_params

PARAMS = Path("params.yaml")


def shard_audit(params: Params, name: str, shards: int, gpus: int | None, console: Console) -> None:
    """Write how many shares the search of an audit has; 1 leaves it whole.

    Args:
        params: as read.
        name: the audit.
        shards: independent searches its budget is divided among.
        gpus: GPUs each asks the task runner for; by default what the audit itself asks for.
        console: what was done, and what it means, goes there.

    Raises:
        UsageError: when a share would have no probe, or params.yaml is laid out so that it cannot be edited.
    """
    audit = params.audit(name)
    budget = audit.discover.budget
    if shards > budget:
        raise UsageError(f"the budget of {budget:,} probes (audits.{name}.discover) is too small for {shards:,} shares")
    with PARAMS.open(encoding="utf-8", newline="") as file:
        before = file.read()
    after = with_shards(before, name, shards, audit.compute.gpus if gpus is None else gpus)
    if after == before:
        console.print(f"nothing to write: {name} {_words(shards)} already", highlight=False)
        return
    replace_file(PARAMS, after)
    load_params(PARAMS)  # what stages will read
    console.print(f"{PARAMS}: {name} {_words(shards)}; `faded plan {name}` says what that costs", highlight=False)
    if shards > 1 and budget // shards < FEW:
        console.print(
            f"[yellow]each share has {budget // shards:,} probes: with fewer than {FEW} an explorer draws most of them"
            " at random and finds less (docs/shards.md)[/]",
            highlight=False,
            soft_wrap=True,
        )


def _words(shards: int) -> str:
    return f"is searched in {shards:,} shares" if shards > 1 else "is searched as a whole"
