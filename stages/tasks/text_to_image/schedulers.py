"""Schedulers of diffusers by name, with their options checked: diffusers leaves out what it does not know."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from stages.errors import UsageError
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.folders import quiet


def scheduler_errors(sampling: SamplingConfig) -> list[str]:
    """Say what is wrong with the scheduler's name and options; those of the model's own are checked on loading."""
    if sampling.scheduler is None:
        return []
    try:
        _check_options(_scheduler_class(sampling.scheduler), sampling)
    except UsageError as error:
        return [str(error)]
    return []


def make_scheduler(own: Any, sampling: SamplingConfig) -> Any:
    """The scheduler `sampling` asks for, with what it does not say taken from the model's own.

    Raises:
        UsageError: when diffusers has no such scheduler, or it knows no such option.
    """
    if sampling.scheduler is None and not sampling.scheduler_options:
        return own
    made = type(own) if sampling.scheduler is None else _scheduler_class(sampling.scheduler)
    _check_options(made, sampling)
    try:
        with quiet():
            return made.from_config(own.config, **sampling.scheduler_options)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise UsageError(f"prepare.sampling.scheduler_options: {made.__name__} refuses them: {error}") from None


def _scheduler_class(name: str) -> Any:
    import diffusers
    from diffusers import SchedulerMixin

    # Names are looked up one by one: dir() holds all, and getattr imports what it is asked for.
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        names = [known for known in dir(diffusers) if known.endswith("Scheduler") and not known.startswith("Flax")]
        close = difflib.get_close_matches(name, names, 3, 0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"prepare.sampling.scheduler: diffusers has no scheduler {name}{hint}")
    return found


def _check_options(scheduler: Any, sampling: SamplingConfig) -> None:
    known = [name for name in inspect.signature(scheduler.__init__).parameters if name != "self"]
    for name in sampling.scheduler_options:
        if name not in known:
            raise UsageError(
                f"prepare.sampling.scheduler_options: {scheduler.__name__} knows no {name}; it has {', '.join(known)}"
            )
