"""All that can be known to be wrong before anything runs, told at once. Only commands import this, no stage does."""

from __future__ import annotations

from collections.abc import Iterable

from stages.errors import UsageError
from stages.explorers import make_explorer
from stages.microscopic import agent_settings
from stages.params import Params, task_class, task_context


def check_audits(params: Params, names: Iterable[str]) -> None:
    """Check explorers, tasks and repairs of the named audits; params.yaml itself was checked when it was read.

    Raises:
        UsageError: with one line per error.
    """
    errors: list[str] = []
    for name in names:
        for check in (_check_explorer, _check_microscopic, _check_task):
            try:
                errors += check(params, name)
            except UsageError as error:
                errors += str(error).splitlines()
            except Exception as error:  # a user's own class may raise anything
                errors.append(f"audits.{name}: {type(error).__name__}: {error}")
    if errors:
        raise UsageError(f"{len(errors)} error(s) in params.yaml:\n" + "\n".join(f"  {e}" for e in errors))


def _check_explorer(params: Params, name: str) -> list[str]:
    discover = params.audit(name).discover
    try:
        make_explorer(discover.explorer, discover.settings)
    except UsageError as error:
        return [f"audits.{name}.{error}"]
    return []


def _check_microscopic(params: Params, name: str) -> list[str]:
    config = params.audit(name).discover.microscopic
    try:
        if config.method == "rl":
            agent_settings(config)
    except UsageError as error:
        return [f"audits.{name}.{error}"]
    return []


def _check_task(params: Params, name: str) -> list[str]:
    audit = params.audit(name)
    task, context = task_class(name, audit), task_context(name, audit)
    errors = [f"audits.{name}.{error}" for error in task.check(context)]
    if name in params.repairs:
        config = params.repairs[name].restructure
        found = task.check_repair(context, {"method": config.method, **config.settings})
        errors += [f"repairs.{name}.{error}" for error in found]
    return errors
