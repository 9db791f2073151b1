"""Kinds of models that `faded init` supports: the tasks of the entry points `faded.tasks` that have an `Init`."""

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
        name: name of its entry point, as in params.yaml.
        init: its part of `faded init`.
    """

    name: str
    init: Init


@cache
def kinds() -> tuple[Kind, ...]:
    """All kinds. This imports their tasks, and torch with them.

    Raises:
        UsageError: if one cannot be imported.
    """
    found = []
    for name, entry in plugins.load(plugins.TASKS).items():
        task = plugins.imported(entry)
        if (at := getattr(task, "init", None)) is not None:  # a plugin's class may not be a Task; audits refuse it
            module, _, cls = at.partition(":")
            home = import_module(module, sys.modules[task.__module__].__package__)
            found.append(Kind(name, getattr(home, cls)()))
    return tuple(found)


def options() -> dict[str, tuple[str, Option]]:
    """Command-line options that only some kinds have: name -> the first of these kinds, and the option."""
    found: dict[str, tuple[str, Option]] = {}
    for kind in kinds():
        for name, option in kind.init.options.items():
            found.setdefault(name, (kind.name, option))
    return found
