"""Check audits before anything runs and report all errors at once. Only commands import this module, no stage does."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import psutil

from stages.core.errors import UsageError
from stages.explorers.contract import EXPLORERS, make_explorer
from stages.microscopic.settings import agent_settings
from stages.params import DATA, AuditConfig, Params, errors_in
from stages.params.network import is_served
from stages.ratings import read_ratings
from stages.tasks.base import Task
from stages.tasks.contract import TaskContext
from stages.tasks.endpoint import EndpointConfig
from stages.tasks.load import task_class, task_context
from stages.tasks.sources import collect

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".gguf")


def check_audits(
    params: Params, names: Iterable[str], *, elsewhere: bool = False, gpus: Callable[[], int] | None = None
) -> None:
    """Check the explorers, tasks and repairs of the named audits; params.yaml itself was validated when it was read.

    Raises a UsageError with one line per error.

    Args:
        elsewhere: whether stages run on other machines, so that a GPU missing on this one is not an error.
        gpus: counts the GPUs of the machine that runs the stages, which takes a moment; None if they are unknown.
    """
    errors: list[str] = []
    checks = (
        *(_check_explorer, _check_microscopic, _check_gradient, _check_ratings),
        partial(_check_task, elsewhere=elsewhere),
        partial(_check_gpus, count=gpus),
        *(() if elsewhere else (_check_memory,)),
    )
    for name in names:
        for check in checks:
            try:
                errors += check(params, name)
            except UsageError as error:
                errors += str(error).splitlines()
            except Exception as error:  # a user's own class may raise anything
                errors.append(f"audits.{name}: {type(error).__name__}: {error}")
    if errors:
        raise errors_in("params.yaml", errors)


def check_api_keys(params: Params, names: Iterable[str]) -> None:
    """Refuse audits of which a served model or judge has no key in this environment, before time is spent on them.

    Raises a UsageError with one line per key.

    Args:
        names: names of audits whose models are about to be queried from here.
    """
    errors: dict[str, None] = {}
    for name in names:
        for part, block in params.audit(name).prepare.items():
            if is_served(block) and isinstance(variable := block.get("key_env"), str):
                lines = collect(EndpointConfig.model_construct(endpoint="", key_env=variable).key)
                errors |= dict.fromkeys(f"audits.{name}.{line.replace('.model.', f'.{part}.')}" for line in lines)
    if errors:
        raise UsageError("\n".join(errors))


def _check_explorer(params: Params, name: str) -> list[str]:
    discover = params.audit(name).discover
    if discover.explorer in EXPLORERS and not discover.settings:
        return []  # its defaults are valid, and importing it would load torch
    errors = collect(partial(make_explorer, discover.explorer, discover.settings))
    return [f"audits.{name}.{error}" for error in errors]


def _check_microscopic(params: Params, name: str) -> list[str]:
    config = params.audit(name).discover.microscopic
    errors = collect(partial(agent_settings, config)) if config.method == "rl" else []
    return [f"audits.{name}.{error}" for error in errors]


def _check_gradient(params: Params, name: str) -> list[str]:
    audit = params.audit(name)
    if audit.discover.microscopic.gradient is None:
        return []
    errors = task_class(name, audit).attack_errors(task_context(name, audit))
    return [f"audits.{name}.discover.microscopic.gradient: {error}" for error in errors]


def _check_ratings(params: Params, name: str) -> list[str]:
    if params.audit(name).ratings is not None:
        read_ratings(name, params.audit(name))
    return []


def _check_task(params: Params, name: str, *, elsewhere: bool) -> list[str]:
    audit = params.audit(name)
    task = task_class(name, audit)
    context = _context_elsewhere(name, audit) if elsewhere else task_context(name, audit)
    errors = [f"audits.{name}.{error}" for error in task.check(context)]
    if name in params.repairs:
        config = params.repairs[name].restructure
        found = task.check_repair(context, {"method": config.method, **config.settings})
        if config.control == "clean" and (always := _always_changing(task, context)):
            found.append(
                "restructure.control: clean needs a level that changes nothing in every concept, found none in "
                + ", ".join(always)
            )
        if config.trainings > 1 and config.method not in task.heeds_dose:
            found.append(
                f"restructure.trainings: method {config.method} of this task does not train in steps, so it has"
                " no frontier of steps; expected 1"
            )
        if config.harm is not None and "harm" in config.model_fields_set and config.method not in task.movable:
            others = f"expected null, or method {' or '.join(task.movable)}" if task.movable else "expected null"
            found.append(f"restructure.harm: method {config.method} of this task cannot go part of the way; {others}")
        errors += [f"repairs.{name}.{error}" for error in found]
    return errors


def _check_gpus(params: Params, name: str, *, count: Callable[[], int] | None) -> list[str]:
    asked = {f"audits.{name}.compute.gpus": params.audit(name).compute.gpus}
    if name in params.repairs:
        asked[f"repairs.{name}.gpus"] = params.repairs[name].gpus
    most = count() if count is not None and any(asked.values()) else max(asked.values())
    return [f"{where}: {n} GPU(s) requested, this machine has {most}" for where, n in asked.items() if n > most]


def _check_memory(params: Params, name: str) -> list[str]:
    """Report weights larger than this machine's memory; only the task knows what else a run needs.

    A folder may contain the same weights in several formats, so only the largest format counts.
    """
    audit, inputs = params.audit(name), DATA / name / "inputs"
    model = audit.prepare.get("model") if audit.compute.device in ("auto", "cpu") else None
    named = (
        [value for value in model.values() if isinstance(value, str) and value] if isinstance(model, Mapping) else []
    )
    paths = [inputs / value for value in named if os.path.exists(inputs / value)]  # noqa: PTH110  # may be any text
    sizes: Counter[str] = Counter()
    for file in {
        file for path in paths for file in (path, *path.rglob("*")) if file.suffix in _WEIGHTS and file.is_file()
    }:
        sizes[file.suffix] += file.stat().st_size
    size, memory = max(sizes.values(), default=0), psutil.virtual_memory().total
    if size <= memory:
        return []
    found = f"{size / 2**30:.1f} GiB of weights in {', '.join(map(str, paths))}"
    return [f"audits.{name}.prepare.model: {found}, this machine has {memory / 2**30:.1f} GiB of memory"]


def _context_elsewhere(name: str, audit: AuditConfig) -> TaskContext:
    """Return the task's context for a machine that has the device named in `compute.device`."""
    named = audit.compute.device
    anywhere = audit.model_copy(update={"compute": audit.compute.model_copy(update={"device": "auto"})})
    context = task_context(name, anywhere)
    return context if named == "auto" else replace(context, compute=replace(context.compute, device=named))


def _always_changing(task: type[Task], context: TaskContext) -> list[str]:
    """Return the concepts that have no neutral level, as far as the task's `catalogue` names the neutral one.

    Concepts missing from the catalogue are checked when restructure has loaded the task, before it repairs.
    """
    told = {name: entry for name, entry in task.catalogue.items() if hasattr(entry, "neutral")}
    return [name for name, levels in context.concepts.items() if name in told and told[name].neutral not in levels]
