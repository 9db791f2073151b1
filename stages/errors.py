"""The errors people see, and the exit codes they become.

0 pass, 1 gate failed, 2 usage (bad input: fix it and run again), 3 infrastructure (retry may help). A stage also has
70 for a bug, which no retry mends; `faded` makes 3 of it.
Every class is also a builtin error, so that library users need not know Faded to catch it.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


class Exit(IntEnum):
    """Exit codes of `faded` (up to 3) and of every stage."""

    PASS = 0
    GATE_FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    BUG = 70  # EX_SOFTWARE of sysexits.h


class FadedError(Exception):
    """Base of all errors raised on purpose: one clear message, no traceback for the user."""

    exit_code: Exit = Exit.INFRASTRUCTURE


class UsageError(FadedError, ValueError):
    """Bad input. The message says what was found, what was expected, and where."""

    exit_code = Exit.USAGE


class DecisionNeeded(UsageError):
    """A person has to decide before the pipeline can go on."""


class RejectedError(FadedError, RuntimeError):
    """A person looked and said no: the audit ends there, as at a failed gate."""

    exit_code = Exit.GATE_FAILED


class InfrastructureError(FadedError, RuntimeError):
    """The machine failed us, not the input: worth a retry."""


class BugError(FadedError, RuntimeError):
    """A stage broke in a way nobody foresaw: running it again would only break it again."""


class NoLearningError(FadedError, RuntimeError):
    """An agent made no gradient update: its policy says nothing and must not be published."""

    exit_code = Exit.USAGE


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """The end of a message about an unknown word: the known one that looks like it, if one does."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The field names of the model nested at loc."""
    from pydantic import BaseModel

    here: Any = model
    for part in loc:
        field = here.model_fields.get(str(part)) if isinstance(here, type) and issubclass(here, BaseModel) else None
        if field is not None:
            here = field.annotation
        for argument in getattr(here, "__args__", ()):  # dict[str, Model] and Model | None
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                here = argument
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def run_as_command(stage: Callable[[], None]) -> None:
    """Run a stage and turn its errors into the exit codes above.

    Unexpected exceptions keep their traceback. What the machine did (a full disk, no memory) may go well the next
    time; all others are bugs, and would only happen again.
    """
    try:
        stage()
    except FadedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(int(error.exit_code)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(int(Exit.INFRASTRUCTURE if _of_the_machine(error) else Exit.BUG)) from None


def _of_the_machine(error: Exception) -> bool:
    # torch is slow to import, and whoever raised its errors has imported it.
    torch = sys.modules.get("torch")
    of_torch = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
    return isinstance(error, (OSError, MemoryError, *of_torch))
