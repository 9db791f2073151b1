"""From an audit's block to its task: the class that `task:` names, and what that class is given."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import cast

from stages.errors import UsageError
from stages.params.audit import AuditConfig
from stages.params.file import DATA
from stages.tasks.contract import Compute, Task, TaskContext


def resolve_device(name: str) -> str:
    """Turn "auto" into the device there is.

    Raises:
        UsageError: when a GPU is named and there is none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= gpus:
            raise UsageError(f"compute.device is {name!r} but this machine has {gpus} usable GPU(s); say auto or cpu")
    return name


def task_context(name: str, audit: AuditConfig) -> TaskContext:
    """What the audit's task is given."""
    compute = audit.compute
    return TaskContext(
        audit=name,
        seed=audit.seed,
        config=audit.prepare,
        concepts=audit.concepts,
        discrepancy=audit.automatic,
        inputs=DATA / name / "inputs",
        compute=Compute(resolve_device(compute.device), compute.threads, compute.batch_size),
    )


def task_class(name: str, audit: AuditConfig) -> type[Task]:
    """Import the class named by `task:`.

    Raises:
        UsageError: when it cannot be imported, is no task, or lies outside `code:` (then DVC would miss its changes).
    """
    module_name, _, class_name = audit.task.partition(":")
    where = f"audits.{name}.task: {audit.task}"
    if str(Path.cwd()) not in sys.path:  # a user's own module lies beside params.yaml
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {error}") from None
    cls = getattr(module, class_name, None)
    lacking = [
        m
        for m in ("check", "check_repair", "prepare", "load", "embed", "probe", "exhibit", "clean_quality", "repair")
        if not hasattr(cls, m)
    ]
    if cls is None or lacking:
        what = f"lacks {', '.join(lacking)}" if cls is not None else f"is not in {module.__file__}"
        raise UsageError(f"{where} is no task: it {what}; see stages/tasks/contract.py")
    source, code = Path(cast(str, module.__file__)).resolve(), Path(audit.code).resolve()
    if not source.is_relative_to(code):
        raise UsageError(
            f"audits.{name}.code: {audit.code} does not hold the task's module {source}; DVC would not see its changes"
        )
    return cast(type[Task], cls)
