"""Importable names for functions of a Python session, by which another process finds them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from stages.errors import UsageError
from stages.tasks.functions.answers import ask
from stages.tasks.functions.items import as_concept
from stages.tasks.functions.task import FunctionTask, named

_COMPARED = 64  # number of items whose answers must be the same under the name


def carried(
    task: FunctionTask, model: str | None, concepts: Mapping[str, str], measure: str | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what params.yaml needs to name the model, the concepts and the measure of a task.

    Args:
        task: made from functions of a session.
        model: name of the model; None: the name by which it was defined.
        concepts: names of concepts, by default also those by which they were defined.
        measure: name of the measure, likewise.

    Returns:
        model, concepts and measure for params.yaml, and the files they need, by name.

    Raises:
        UsageError: if one has no importable name, or the function of that name is a different one.
    """
    own = {one.name: one for one in task.concepts.concepts if one.apply is not None}
    if unknown := set(concepts) - set(own):
        raise UsageError(f"concepts: {', '.join(sorted(unknown))} is not a concept of your own in this audit")
    names: dict[str, Any] = {"model": model or _name("model", task.model)}
    if own:
        names["concepts"] = {
            name: concepts.get(name) or _name(f"concepts: {{{name!r}: ...}}", one.apply) for name, one in own.items()
        }
    if task.judge.measure is not None:
        names["measure"] = measure or _name("discrepancy", task.judge.measure)
    targets = [names["model"], *names.get("concepts", {}).values(), *([names["measure"]] if "measure" in names else [])]
    found = {target: named(target, Path()) for target in targets}
    for name, target in names.get("concepts", {}).items():
        as_concept(name, found[target], own[name].levels)
    _same_answers(task, names["model"], found[names["model"]])
    return names, {file.name: file.read_bytes() for target in targets for file in _files(target)}


def _name(argument: str, function: Any) -> str:
    module, name = getattr(function, "__module__", "__main__"), getattr(function, "__qualname__", "")
    if module == "__main__" or not name or "<" in name or hasattr(function, "__self__"):
        raise UsageError(
            f"{name or type(function).__name__} has no file that a pipeline could run: put it into a module, and name"
            f" it as module:name, to_workspace(..., {argument if ':' in argument else argument + '=...'})"
        )
    return f"{module}:{name}"


def _files(target: str) -> list[Path]:
    """Return the file of a module outside installed packages; empty for an installed one."""
    top = target.partition(":")[0].partition(".")[0]
    path = Path(str(sys.modules[top].__file__))
    if top in packages_distributions():
        return []
    if path.name == "__init__.py":
        raise UsageError(f"{target}: the package {top} is not installed: install it, or put {target} into one file")
    return [path]


def _same_answers(task: FunctionTask, name: str, found: Any) -> None:
    items = task.items.table["label"].iloc[:_COMPARED]
    batch = task.given.unchanged(items.index.to_numpy())
    one, other = (task.judge(ask(model, batch), items.tolist()) for model in (task.model, found))
    if one[1] != other[1] or (one[0] != other[0]).any():
        raise UsageError(f"{name} answers otherwise than the model of this audit: it is not the same model")
