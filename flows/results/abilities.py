"""What an audit's task can do, asked in a process of its own: `python -P -m flows.results.abilities AUDIT`.

Whoever imports a task imports torch, which takes 200 MB for as long as a process lives.
"""

import json
import subprocess
import sys
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flows.workspace import stage_environment
from stages.decisions import decisions_dir
from stages.decisions.must_pass import MUST_PASS
from stages.params import Params, load_params
from stages.params.repair import HarmConfig
from stages.tasks.load import task_class

if TYPE_CHECKING:
    from stages.tasks.base import Task

MOST_SHARES = 6  # the whole way, and five by bisection of twentieths; see stages.landscape.harm


class Abilities(NamedTuple):
    """Optional methods that a task has, and what a repair asks; None if it trains, or there is none."""

    again: bool
    measure: bool
    tallies: bool
    learns_from_examples: list[str]  # methods of repair
    budgeted: bool  # whether the audit's repair keeps a budget of harm
    repair_probes: int | None  # at most, by the repair, its control and further trainings, that budget included
    usual_repair_probes: int | None  # about as many if one thing helps and breaks little
    requests_after: int = 1  # at most, for a probe of a repaired model for each of the model under test


def abilities_of(params: Params, audit: str) -> Abilities:
    """What an audit's task can do. Raises a UsageError if it is not a valid task."""
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
    examples = list(task.learns_from_examples)
    if audit not in params.repairs:
        return Abilities(again, measure, tallies, examples, False, None, None)
    repair = params.repairs[audit].restructure
    budget = repair.harm if repair.method in task.movable else None
    asked = _repair_probes(params, audit, task, budget)
    return Abilities(again, measure, tallies, examples, budget is not None, *asked)


def _repair_probes(
    params: Params, audit: str, task: "type[Task]", budget: HarmConfig | None
) -> tuple[int | None, int | None, int]:
    repair, items = params.repairs[audit].restructure, params.audits[audit].prepare.get("items")
    settings = {"method": repair.method, **repair.settings}
    copies = ("repaired",) if repair.control == "none" else ("repaired", "control")
    doses = [dose for copy in copies for dose in repair.doses.get(copy, (1.0,))]
    asked = [tried for dose in doses if (tried := task.repair_probes(settings, dose)) is not None]
    if len(asked) < len(doses):
        return None, None, 1
    learnt = items.get("repair", 0) if isinstance(items, dict) else 0
    existing = learnt * prod(map(len, params.audits[audit].concepts.values())) or sys.maxsize  # pairs of a small grid
    must_pass = _must_pass(audit)
    most = usual = 0
    for one in asked:
        pairs = min(one.pairs, existing)
        most += repair.trainings * one.most * (pairs + must_pass)
        # Pairs that must pass are usually asked twice: with the prompt to improve on, and with the one chosen.
        usual += repair.trainings * (one.usual * pairs + min(2, one.most) * must_pass)
    # The model under test and its copies answer the pairs that must pass and, within a budget, those held out. What
    # breaks too much answers them at several shares of the way.
    each, shares = must_pass, 1
    if budget is not None:
        shares = MOST_SHARES
        each += min(budget.pairs, existing) + round(budget.held_out * learnt)
    after = max(one.each for one in asked)
    return most + (1 + shares * len(copies)) * each, usual + (1 + len(copies)) * each, after


def _must_pass(audit: str) -> int:
    """Return how many pairs must pass, by the lines of the file that lists them."""
    path = decisions_dir(audit) / MUST_PASS
    return len(set(path.read_bytes().splitlines())) - 1 if path.exists() else 0


if __name__ == "__main__":
    print(json.dumps(_looked_up(load_params(), sys.argv[1])))
