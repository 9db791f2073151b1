"""Schedulers of diffusers by name. Their options are checked, as diffusers ignores unknown ones."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import typing
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from stages.errors import UsageError
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.folders import quiet

DISTILLED = ("LCMScheduler", "TCDScheduler")  # for models distilled to few steps; diffusers lists them for none


def scheduler_errors(sampling: SamplingConfig) -> list[str]:
    """List what is wrong with the scheduler's name and options; the model's own scheduler is checked on loading."""
    if sampling.scheduler is None:
        return []
    try:
        _check_options(_scheduler_class(sampling.scheduler), sampling)
    except UsageError as error:
        return [str(error)]
    return []


def make_scheduler(own: Any, sampling: SamplingConfig) -> Any:
    """Return the scheduler of `sampling`; what that leaves open is taken from the model's own.

    Raises:
        UsageError: when diffusers has no such scheduler, it does not fit this model, or it refuses an option.
    """
    if sampling.scheduler is None and not sampling.scheduler_options:
        return own
    made = type(own) if sampling.scheduler is None else _scheduler_class(sampling.scheduler)
    _check_options(made, sampling)
    # Those that diffusers lists use the same noise; others (inverse, inpainting) fail or draw something else.
    listed = sorted(known.__name__ for known in getattr(own, "compatibles", None) or [])
    if listed and made.__name__ not in (type(own).__name__, *listed, *DISTILLED):
        raise UsageError(
            f"prepare.sampling.scheduler: {made.__name__} does not fit the model, whose own is {type(own).__name__};"
            f" diffusers lists {', '.join(listed)}"
        )
    try:
        with quiet():
            return made.from_config(own.config, **sampling.scheduler_options)
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError, ImportError) as error:
        told = " ".join(str(error).split())[:300]
        raise UsageError(f"prepare.sampling.scheduler_options: {made.__name__} refuses them: {told}") from None


def _scheduler_class(name: str) -> Any:
    import diffusers
    from diffusers import SchedulerMixin

    # Only this name is looked up: dir() lists all, and getattr imports a class.
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        if missing := getattr(found, "_backends", None):  # diffusers' placeholder for classes it cannot import
            lacking = [library for library in missing if importlib.util.find_spec(library) is None] or missing
            raise UsageError(
                f"prepare.sampling.scheduler: {name} needs {' and '.join(lacking)}, which cannot be imported here"
            )
        names = [known for known in dir(diffusers) if known.endswith("Scheduler") and not known.startswith("Flax")]
        close = difflib.get_close_matches(name, names, 3, 0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"prepare.sampling.scheduler: diffusers has no scheduler {name}{hint}")
    return found


def _check_options(scheduler: Any, sampling: SamplingConfig) -> None:
    parameters = inspect.signature(scheduler.__init__).parameters
    known = [name for name in parameters if name != "self"]
    hints = typing.get_type_hints(inspect.unwrap(scheduler.__init__))
    for name, value in sampling.scheduler_options.items():
        if name not in known:
            raise UsageError(
                f"prepare.sampling.scheduler_options: {scheduler.__name__} knows no {name}; it has {', '.join(known)}"
            )
        # diffusers accepts values of any type, and fails when it first computes with them.
        if value != parameters[name].default and (told := _value_error(hints.get(name, Any), value)):
            raise UsageError(
                f"prepare.sampling.scheduler_options: {scheduler.__name__} refuses them: {name}: {value!r}: {told}"
            )


def _value_error(hint: Any, value: Any) -> str:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except PydanticSchemaGenerationError:
        return ""
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(part["msg"] for part in error.errors()))
    return ""
