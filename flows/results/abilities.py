"""What an audit's task can do, asked in a process of its own: `python -P -m flows.results.abilities AUDIT`.

Whoever imports a task imports torch, which takes 200 MB for as long as a process lives.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from flows.workspace import stage_environment
from stages.params import Params, load_params
from stages.tasks.base import offers
from stages.tasks.load import task_class


class Abilities(NamedTuple):
    """Optional methods that a task has, and the methods of repair that learn from rated examples."""

    again: bool
    measure: bool
    tallies: bool
    learns_from_examples: list[str]


def abilities_of(params: Params, audit: str) -> Abilities:
    """What an audit's task can do.

    Raises:
        UsageError: if it is not a valid task.
    """
    config = params.audit(audit)
    if {"torch", config.task.partition(":")[0]} & set(sys.modules):
        return _looked_up(params, audit)
    return _asked(Path.cwd(), audit, config.task, frozenset(config.concepts)) or _looked_up(params, audit)


@lru_cache
def _asked(_workspace: Path, audit: str, _task: str, _concepts: frozenset[str]) -> Abilities | None:
    command = [sys.executable, "-P", "-m", "flows.results.abilities", audit]
    done = subprocess.run(command, env=stage_environment(), capture_output=True, text=True, check=False)
    return None if done.returncode else Abilities(*json.loads(done.stdout.splitlines()[-1]))


def _looked_up(params: Params, audit: str) -> Abilities:
    task = task_class(audit, params.audit(audit))
    again, measure, tallies = (offers(task, name) for name in ("again", "measure", "tallies"))
    return Abilities(again, measure, tallies, list(task.learns_from_examples))


if __name__ == "__main__":
    print(json.dumps(_looked_up(load_params(), sys.argv[1])))
