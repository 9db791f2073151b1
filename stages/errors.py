"""The errors people see, and the exit codes they become.

0 pass, 1 gate failed, 2 usage (bad input: fix it and run again), 3 infrastructure (retry may help); 130 if stopped by
Ctrl-C. A stage also has 69 for a service that stayed away however often it was asked, which is not retried at once, and
70 for a bug, which no retry mends; `faded` makes 3 of both.
Every class is also a builtin error, so that library users need not know Faded to catch it.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from enum import IntEnum
from errno import EDQUOT, EFBIG, EIO, EMFILE, ENOSPC, EROFS
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

_LONGEST = 500  # letters of a library's message


class Exit(IntEnum):
    """Exit codes of `faded` (up to 3) and of every stage."""

    PASS = 0
    GATE_FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
    BUG = 70  # EX_SOFTWARE


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


class UnavailableError(InfrastructureError):
    """A service did not answer however often it was asked: asking again at once would be no use."""


class BugError(FadedError, RuntimeError):
    """A stage broke in a way nobody foresaw: running it again would only break it again."""


class NoLearningError(FadedError, RuntimeError):
    """An agent made no gradient update: its policy says nothing and must not be published."""

    exit_code = Exit.USAGE


def plain(text: str) -> str:
    """Text of somebody else's without what would control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
    known = here.model_fields if isinstance(here, type) and issubclass(here, BaseModel) else {}
    return [field.alias or name for name, field in known.items()]


def run_as_command(stage: Callable[[], None]) -> None:
    """Run a stage and turn its errors into the exit codes above.

    What the machine did (a full disk, no memory) may go well the next time, and is told in a line. All other unexpected
    exceptions are bugs, which would only happen again, and keep their traceback.
    """
    try:
        stage()
    except FadedError as error:
        print(f"error: {error}", file=sys.stderr)
        away = isinstance(error, UnavailableError)
        raise SystemExit(int(Exit.UNAVAILABLE if away else error.exit_code)) from None
    except KeyboardInterrupt as error:
        raise SystemExit(stop_code(error)) from None
    except Exception as error:
        if (failure := machine_failure(error)) is not None:
            print(f"error: {failure}", file=sys.stderr)
            raise SystemExit(int(Exit.INFRASTRUCTURE)) from None
        traceback.print_exc()
        raise SystemExit(int(Exit.BUG)) from None


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It unwinds as Ctrl-C does, but nobody stopped us by hand."""


def stop_code(stop: KeyboardInterrupt) -> int:
    """The exit code of what was stopped: 130 by hand, else 3."""
    return int(Exit.INFRASTRUCTURE) if isinstance(stop, Terminated) else 130


# How libraries tell an error of the machine that they do not pass on as it is; SQLite has words of its own.
_OF_THE_MACHINE = (
    *(os.strerror(number) for number in (EDQUOT, EFBIG, EIO, EMFILE, ENOSPC, EROFS)),
    *("disk I/O error", "database or disk is full", "readonly database", "unable to open database file"),
)


def machine_failure(error: BaseException) -> str | None:
    """What the machine did to us, in a line, if that is behind an error: no space, no memory, a file that is gone."""
    # torch is slow to import, and whoever raised its errors has imported it.
    torch = sys.modules.get("torch")
    memory = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
    if isinstance(error, (MemoryError, *memory)):
        return f"out of memory: {_line(error) or 'no more could be had'}"
    if isinstance(error, OSError):
        return _line(error)
    cause: BaseException | None = error
    while cause is not None:
        if any(words in str(cause) for words in _OF_THE_MACHINE):
            return f"a file could not be written (is the disk full, or the size of files limited?): {_line(cause)}"
        cause = cause.__cause__ or cause.__context__
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST]
