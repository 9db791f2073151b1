"""Kinds of models an audit can begin with: the tasks of the entry points `faded.tasks` that say what `init` asks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from stages import plugins
from stages.tasks.init import Init, Option


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Args:
        name: of its entry point, as in params.yaml.
        init: what it knows.
    """

    name: str
    init: Init


@cache
def kinds() -> tuple[Kind, ...]:
    """All of them. Their tasks are imported, and torch with these.

    Raises:
        UsageError: when one cannot be imported.
    """
    found = []
    for name, entry in plugins.load(plugins.TASKS).items():
        task = plugins.imported(entry)
        if (at := getattr(task, "init", None)) is not None:  # another's class may be no Task, which its audit refuses
            module, _, cls = at.partition(":")
            home = import_module(module, sys.modules[task.__module__].__package__)
            found.append(Kind(name, getattr(home, cls)()))
    return tuple(found)


def options() -> dict[str, tuple[str, Option]]:
    """The options of the command line that only some kinds have: name -> the first of these kinds, and the option."""
    found: dict[str, tuple[str, Option]] = {}
    for kind in kinds():
        for name, option in kind.init.options.items():
            found.setdefault(name, (kind.name, option))
    return found
