"""What an audit's task can do, asked in a process of its own: `python -P -m flows.results.abilities AUDIT`.

Whoever imports a task imports torch, which takes 200 MB for as long as a process lives.
"""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.workspace import stage_environment
from stages.decisions import decisions_dir
from stages.decisions.must_pass import MUST_PASS
from stages.params import Params, load_params
from stages.tasks.load import task_class

if TYPE_CHECKING:
    from stages.tasks.base import Task

MOST_SHARES = 6  # the whole way, and five by bisection of twentieths; see stages.landscape.harm


class Abilities(NamedTuple):
    """Optional methods that a task has, the methods of repair that learn from rated examples, and what a repair asks.

    `budgeted` is whether the audit's repair keeps a budget of harm. `repair_probes` is the largest number of probes
    that the repair, its control and further trainings ask, that budget included; None if they train, or there is none.
    """

    again: bool
    measure: bool
    tallies: bool
    learns_from_examples: list[str]
    budgeted: bool
    repair_probes: int | None


def abilities_of(params: Params, audit: str) -> Abilities:
    """What an audit's task can do.

    Raises:
        UsageError: if it is not a valid task.
    """
    config = params.audit(audit)
    if {"torch", config.task.partition(":")[0]} & set(sys.modules):
        return _looked_up(params, audit)
    repair = params.repairs[audit].restructure.model_dump_json() if audit in params.repairs else ""
    concepts, items = frozenset(config.concepts), repr(config.prepare.get("items"))
    asked = f"{repair}{items}{_must_pass(audit)}"
    return _asked(Path.cwd(), audit, config.task, concepts, asked) or _looked_up(params, audit)


@lru_cache
def _asked(_workspace: Path, audit: str, _task: str, _concepts: frozenset[str], _repair: str) -> Abilities | None:
    command = [sys.executable, "-P", "-m", "flows.results.abilities", audit]
    done = subprocess.run(command, env=stage_environment(), capture_output=True, text=True, check=False)
    return None if done.returncode else Abilities(*json.loads(done.stdout.splitlines()[-1]))


def _looked_up(params: Params, audit: str) -> Abilities:
    from stages.tasks.base import offers

    task = task_class(audit, params.audit(audit))
    again, measure, tallies = (offers(task, name) for name in ("again", "measure", "tallies"))
    examples, budgeted = list(task.learns_from_examples), _keeps_budget(params, audit, task)
    return Abilities(again, measure, tallies, examples, budgeted, _repair_probes(params, audit, task))


def _keeps_budget(params: Params, audit: str, task: "type[Task]") -> bool:
    repair = params.repairs[audit].restructure if audit in params.repairs else None
    return repair is not None and repair.harm is not None and repair.method in task.movable


def _repair_probes(params: Params, audit: str, task: "type[Task]") -> int | None:
    if audit not in params.repairs:
        return None
    repair, items = params.repairs[audit].restructure, params.audits[audit].prepare.get("items")
    settings = {"method": repair.method, **repair.settings}
    copies = ("repaired",) if repair.control == "none" else ("repaired", "control")
    doses = [dose for copy in copies for dose in repair.doses.get(copy, (1.0,))]
    must_pass = _must_pass(audit)
    asked = [task.repair_probes(settings, dose, must_pass) for dose in doses]
    if None in asked:
        return None
    judged, each = 1 + len(copies), must_pass  # the model under test, and the copies
    if repair.harm is not None and _keeps_budget(params, audit, task) and isinstance(items, dict):
        judged = 1 + MOST_SHARES * len(copies)  # the shares of the way that are tried of each copy
        each += repair.harm.pairs + round(repair.harm.held_out * items.get("repair", 0))
    return repair.trainings * sum(filter(None, asked)) + judged * each


def _must_pass(audit: str) -> int:
    """Return how many pairs must pass, by the lines of the file that lists them."""
    path = decisions_dir(audit) / MUST_PASS
    return len(set(path.read_bytes().splitlines())) - 1 if path.exists() else 0


if __name__ == "__main__":
    print(json.dumps(_looked_up(load_params(), sys.argv[1])))
