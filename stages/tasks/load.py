"""Load the task of an audit: find the class that `task:` names and make its context."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stages.code import is_own_workspace
from stages.concepts.grids import APPLIED_BY
from stages.core import plugins, processes
from stages.core.environment import DATA, let_torch_choose
from stages.core.errors import UsageError, did_you_mean
from stages.core.files import read_json
from stages.params.audit import AuditConfig
from stages.params.network import is_served
from stages.params.usage import in_use
from stages.tasks.contract import Compute, TaskContext

if TYPE_CHECKING:
    from stages.tasks.base import Task


def resolve_device(name: str) -> str:
    """Resolve "auto" to the available device. Raises a UsageError if a GPU is named and there is none."""
    if name == "cpu":
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= gpus:
            raise UsageError(f"compute.device is {name!r} but this machine has {gpus} usable GPU(s); use auto or cpu")
    return name


def resolve_dtype(name: str, audit: AuditConfig) -> str:
    """Return the dtype of the model: `compute.dtype`, with "auto" resolved for this device."""
    if audit.compute.dtype != "auto":
        return audit.compute.dtype
    return "float32" if resolve_device(audit.compute.device) == "cpu" else task_class(name, audit).gpu_dtype


def resolve_backend(audit: AuditConfig, prepared: Path | None) -> str:
    """Return the backend of the network: `compute.backend`, with "auto" as `prepare` resolved it.

    Other stages do not decide again, so all stages of an audit use one backend, whichever machine they run on.
    """
    if audit.compute.backend != "auto" or prepared is None:
        return audit.compute.backend
    return str(read_json(prepared / "fingerprint.json")["backend"])


def task_context(name: str, audit: AuditConfig, prepared: Path | None = None) -> TaskContext:
    """Make the context of an audit's task.

    Args:
        prepared: data/<audit>/prepare, which records what "auto" means; None to check or prepare the audit.
    """
    compute = audit.compute
    device = resolve_device(compute.device)
    return TaskContext(
        audit=name,
        seed=audit.seed,
        config=audit.prepare,
        concepts=audit.concepts,
        discrepancy=audit.automatic,
        inputs=DATA / name / "inputs",
        compute=Compute(
            device,
            compute.threads,
            compute.batch_size,
            resolve_backend(audit, prepared),
            resolve_dtype(name, audit),
            1
            if device != "cpu" or is_served(audit.prepare.get("model"))
            else max(1, processes.cores() // compute.threads),
        ),
    )


def load_task(
    name: str, audit: AuditConfig, prepared: Path, model: Path | None = None, learnt: Collection[str] = ()
) -> Task:
    """Load an audit's task, with further processes if `compute` asks for them; see `Task.load`.

    Args:
        prepared: data/<audit>/prepare.
        model: a folder that `repair` wrote, loaded in place of the model under test.
        learnt: test items that the repair learnt from, see `Items.learning`.
    """
    task = load_alone(name, audit, prepared, model, learnt)
    if (count := task_context(name, audit, prepared).compute.processes) > 1:
        copy = partial(load_alone, name, audit, prepared, model, learnt)
        task.crew = processes.Crew(count, copy, after=processes.WORTH)
    return task


def load_alone(
    name: str, audit: AuditConfig, prepared: Path, model: Path | None = None, learnt: Collection[str] = ()
) -> Task:
    """Load the task for this process only: in the other processes, and for a repair, which changes the model."""
    task = task_class(name, audit).load(task_context(name, audit, prepared), prepared, model)
    # Repair stages do not depend on the block `summarize`: the kinds are those of the landscape that the plan names.
    task.clusters = audit.summarize.clusters
    task.concepts = in_use(task.concepts, audit.usage)
    task.items = task.items.learning(learnt) if learnt else task.items
    return task


def load_learner(name: str, audit: AuditConfig, prepared: Path, held_out: float, learnt: Collection[str] = ()) -> Task:
    """Load the task for a repair, without the share of the repair items that is held out; see `Items.divided`.

    Raises a UsageError if a share holds out no item, or `learnt` has other items.

    Args:
        learnt: test items to learn from as well, see `Items.learning`.
    """
    task = load_alone(name, audit, prepared)
    learning, told = task.items.divided(held_out)
    if held_out and not told.ids("repair"):
        raise UsageError(
            f"restructure.harm.held_out: {held_out:g} of {len(task.items.ids('repair'))} repair items is none; expected"
            " some, which tell what a repair breaks: more items (prepare.items.repair), a larger share, or harm: null"
        )
    task.items = learning.learning(learnt) if learnt else learning
    return task


def task_class(name: str, audit: AuditConfig) -> type[Task]:
    """Import the class named by `task:`: a module and its class, or the name of an entry point.

    A prefix may name what applies the audit's concepts (`stages.concepts.grids.APPLIED_BY`). Raises a UsageError if it
    cannot be imported, or is not a task.
    """
    from stages.tasks.base import Task

    where = f"audits.{name}.task: {audit.task}"
    module_name, class_name = _target(where, audit.task)
    cls = _imported(where, module_name, class_name)
    if cls is None:
        raise UsageError(f"{where} is not a valid task: it is not in {sys.modules[module_name].__file__}")
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise UsageError(
            f"{where} is not a valid task: make it a subclass, `class {class_name}(Task)` with `from faded import"
            " Task`; docs/own-task.md says what its methods are"
        )
    if lacking := sorted(cls.__abstractmethods__):
        raise UsageError(f"{where} is not a valid task: it lacks {', '.join(lacking)}; see docs/own-task.md")
    if not cls.alike:
        let_torch_choose()
    for concept in APPLIED_BY.keys() & audit.concepts.keys():
        module_name, _, class_name = APPLIED_BY[concept].partition(":")
        cls = getattr(importlib.import_module(module_name), class_name).before(cls)
    return cls


def own_function(target: str, where: str) -> Callable[..., Any]:
    """Import a function from a user's module beside params.yaml, or from an installed one.

    The stages that may call it depend on its code (`stages.code`). Raises a UsageError if it cannot be imported or
    called.

    Args:
        target: "my_module:predict", or a method of an object there: "my_module:model.predict_proba".
        where: the key of params.yaml that names it.
    """
    module, _, name = target.partition(":")
    found = _imported(f"{where}: {target}", module, name)
    if not callable(found):
        told = "is not in" if found is None else f"is {type(found).__name__}, expected a function, in"
        raise UsageError(f"{where}: {name} {told} {sys.modules[module].__file__}")
    return cast(Callable[..., Any], found)


def own_module_error(target: str, where: str) -> str:
    """Return what is wrong if there is no module for `own_function`, which is not imported; "" if there is one."""
    top = target.partition(":")[0].partition(".")[0]
    _find_modules_of_users()
    if importlib.util.find_spec(top) is not None:
        return ""
    return f"{where}: no module {top} for {target}, expected {top}.py beside params.yaml, or an installed package"


def _imported(where: str, module_name: str, name: str) -> Any:
    """Import an object by the names of its module and of its attributes, "Class.Inner"; None if there is none."""
    _find_modules_of_users()
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {error}") from None
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _target(where: str, task: str) -> tuple[str, str]:
    """Split the name of a task into module and class."""
    if ":" in task:
        module, _, name = task.partition(":")
        return module, name
    known = plugins.entry_points_of(plugins.TASKS)
    if task not in known:
        raise UsageError(
            f"{where} is not the name of an installed task, found: {', '.join(sorted(known))}"
            f"{did_you_mean(task, known)}; name your own class as package.module:Class"
        )
    return known[task].module, known[task].attr


def _find_modules_of_users() -> None:
    """Make modules beside params.yaml importable; in a user's workspace after all installed packages."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(len(sys.path) if is_own_workspace() else 0, here)
